"""Witness logs that grow after a run, through runs with other coordinators.

A bundle of this federation holds a site's whole ledger. The charges of another coordinator's run
have that run's witnesses, whom nobody here knows. So while no run is open, the coordinator asks the
sites of its newest run whether their logs grew, and they cosign the new heads. The journal gets no
entry for this: cosigned heads are papers beside it, as at the end of a run.
"""

from __future__ import annotations

import threading
from typing import Any

from privet.server.evidence.collector import EvidenceCollector
from privet.server.link.grid import LinkGrid
from privet.server.link.server import LinkServer
from privet.server.membership.registry import MemberRegistry
from privet.server.queue import OPEN, Run, runs

INTERVAL_S = 30.0
"""Seconds between two checks, while no run is open."""
MAX_INTERVAL_S = 3600.0
"""They double up to this while the same is wrong."""
_ANSWER_TIMEOUT_S, _AWAY_TIMEOUT_S = 20.0, 1.0


def newest_run(federation: MemberRegistry) -> Run | None:
    """Return the newest run that did a round; None if there is none, or a run is open."""
    found = runs(federation)
    if any(run.status["state"] in OPEN for run in found):
        return None
    return next((run for run in reversed(found) if run.has_begun), None)


class LaterWitness:
    """Have logs witnessed that grew after the newest run.

    Args:
        federation: of this coordinator.
        link_server: the link server, which reaches the sites.
        stopped: once set, waiting ends with an error.
    """

    def __init__(
        self, federation: MemberRegistry, link_server: LinkServer, stopped: threading.Event
    ) -> None:
        self._federation, self._link_server, self._stopped = federation, link_server, stopped
        self._recorder: EvidenceCollector | None = None
        self._of = ""

    def look(self) -> list[str]:
        """Ask the sites of the newest run; return those whose logs grew and are cosigned now.

        Raises:
            EvidenceError: if the history of a log does not hold, or too few witnesses cosigned it.
            CoordinatorStopped: if the coordinator is stopped.
        """
        run = newest_run(self._federation)
        if run is None:
            self.close()
            return []
        names = [site.name for site in run.plan.sites]
        grid = LinkGrid(self._link_server, names, stopped=self._stopped, patience=_AWAY_TIMEOUT_S)

        def show(questions: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
            return grid.show(questions, _ANSWER_TIMEOUT_S)

        present = self._link_server.present()
        collector = self._recorder_of(run)
        return collector.witness_again([name for name in names if name in present], show)

    def close(self) -> None:
        """Close the run's journal."""
        if self._recorder is not None:
            self._recorder.close()
        self._recorder, self._of = None, ""

    def _recorder_of(self, run: Run) -> EvidenceCollector:
        """Return the run's collector; it is kept, so that a long journal is not read each time."""
        if self._recorder is None or self._of != run.id:
            self.close()
            self._recorder = self._federation.collector(run.roster(self._federation), run.folder)
            self._of = run.id
        return self._recorder
