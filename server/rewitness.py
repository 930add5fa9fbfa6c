"""Logs that grow after a run, by runs with other coordinators, are witnessed all the same.

A bundle of this federation holds a site's whole ledger. What another coordinator's run charged
there stands under that one's witnesses, which nobody here knows; so while nothing is to be done,
the sites of the newest run are asked whether their logs grew, and cosign them if so. The journal
gets no entry for it: cosigned heads are papers beside it, as at the end of a run.
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
"""Seconds between two looks, while no run is to be done."""
MAX_INTERVAL_S = 3600.0
"""They double up to this while the same is wrong."""
_ANSWER_TIMEOUT_S, _AWAY_TIMEOUT_S = 20.0, 1.0


def newest_run(federation: MemberRegistry) -> Run | None:
    """Return the newest run that did a round, where none is to be done now; else None."""
    found = runs(federation)
    if any(run.status["state"] in OPEN for run in found):
        return None
    return next((run for run in reversed(found) if run.has_begun), None)


class LaterWitness:
    """Has logs witnessed that grew after the newest run.

    Args:
        federation: of this coordinator.
        hub: by which sites are reached.
        stopped: ends the waiting.
    """

    def __init__(
        self, federation: MemberRegistry, hub: LinkServer, stopped: threading.Event
    ) -> None:
        self._federation, self._hub, self._stopped = federation, hub, stopped
        self._recorder: EvidenceCollector | None = None
        self._of = ""

    def look(self) -> list[str]:
        """Ask the sites of the newest run; return those whose logs grew, and are cosigned now.

        Raises:
            EvidenceFault: if the history of a log does not hold, or too few cosigned it.
            Stopped: if the coordinator is to end.
        """
        run = newest_run(self._federation)
        if run is None:
            self.close()
            return []
        names = [site.name for site in run.plan.sites]
        grid = LinkGrid(self._hub, names, stopped=self._stopped, patience=_AWAY_TIMEOUT_S)

        def show(questions: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
            return grid.show(questions, _ANSWER_TIMEOUT_S)

        present = self._hub.present()
        recorder = self._recorder_of(run)
        return recorder.witness_again([name for name in names if name in present], show)

    def close(self) -> None:
        """Let go of the run's journal."""
        if self._recorder is not None:
            self._recorder.close()
        self._recorder, self._of = None, ""

    def _recorder_of(self, run: Run) -> EvidenceCollector:
        """Return the run's recorder; it is kept, so that a long journal is not read each time."""
        if self._recorder is None or self._of != run.id:
            self.close()
            self._recorder = self._federation.recorder(run.roster(self._federation), run.folder)
            self._of = run.id
        return self._recorder
