"""The coordinator at work: one process, one port, one run after the other.

::

    FOLDER/runs/RUN/
      plan.json       as submitted, its noise calibrated
      status.json     state, sites, round: what `privet server status` shows
      coordinator/    the run's journal
      model/          snapshot, and the final model

A run is *queued*, then *waiting* for its sites (connected, plan approved), then *running*,
and ends *done*, *failed* or *stopped*. The process may be killed at any moment: started again,
it goes on with what was running, at the same round.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from pathlib import Path
from typing import Any

import grpc

from privet.common.canonical import write_json
from privet.common.errors import InputError, PrivetError
from privet.common.flat import Arrays
from privet.common.link import offer
from privet.common.order import Status
from privet.common.plan import Plan
from privet.server.app import create_app, run_app
from privet.server.enrolment import Door
from privet.server.federation import Federation
from privet.server.grid import LinkGrid
from privet.server.hub import Answered, Hub
from privet.server.rounds import Outcome, Progress
from privet.server.snapshot import Snapshots, save_model

_LOOK = 1.0
"""Seconds between two looks for members, runs and stops."""
_LATE_START = 30.0
"""Seconds that a run that goes on waits for all its sites before a quorum is enough."""
OPEN = ("queued", "waiting", "running")

_LOG = logging.getLogger("privet.office")


class Stopped(Exception):
    """The coordinator was told to end; the run goes on when it is started again.

    No :class:`RunError`, which would be noted as the end of the run.
    """


class Run:
    """One run's folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.id = folder.name

    @property
    def plan(self) -> Plan:
        """The plan, as it was submitted."""
        return Plan.parse(json.loads((self.folder / "plan.json").read_text()), where=self.id)

    @property
    def status(self) -> dict[str, Any]:
        """What is known of the run."""
        try:
            value: dict[str, Any] = json.loads((self.folder / "status.json").read_text())
        except (OSError, ValueError) as error:
            raise InputError(f"{self.folder}: the status cannot be read: {error}") from error
        return value

    def note(self, **facts: Any) -> None:
        """Change the status."""
        write_json(self.folder / "status.json", {**self.status, **facts})

    @property
    def snapshots(self) -> Snapshots:
        """Where the model is kept after each round."""
        return Snapshots(self.folder / "model")


def submit(federation: Federation, plan: Plan, run_id: str) -> Run:
    """Queue a plan whose noise is calibrated.

    Raises:
        InputError: if it cannot run here: a site is not enrolled, or it wants figures on a test
            split, which a coordinator does not have.
    """
    if plan.metrics.source == "public":
        raise InputError(
            f"plan '{plan.name}': metrics.source 'public' needs a test split at the coordinator; "
            "use 'gate' (noised and paid for at the sites) or 'off'"
        )
    federation.require_enrolled([site.name for site in plan.sites])
    folder = federation.folder / "runs" / run_id
    if folder.exists():
        raise InputError(f"run '{run_id}' is there already")
    write_json(folder / "plan.json", plan.to_dict())
    facts = {"run": run_id, "state": "queued", "submitted": time.time(), "plan": plan.digest}
    write_json(folder / "status.json", facts)
    return Run(folder)


def runs(federation: Federation) -> list[Run]:
    """Return all runs, oldest first."""
    paths = (federation.folder / "runs").glob("*/status.json")
    found = [Run(path.parent) for path in paths]
    return sorted(found, key=lambda run: run.status["submitted"])


class Office:
    """Serves a federation until it is stopped.

    Args:
        federation: opened.
        link, enrolment: addresses to listen at; default those of the federation.
        initial: makes the first model of a plan.
    """

    def __init__(
        self,
        federation: Federation,
        initial: Callable[[Plan], Arrays],
        *,
        link: str | None = None,
        enrolment: str | None = None,
    ) -> None:
        self.federation = federation
        self._initial = initial
        self._link = link or federation.address
        self._door = Door(federation, enrolment or federation.enrolment)
        self.hub = Hub(federation.name, federation.identify, federation.folder / "spool")
        self.stopped = threading.Event()
        self.port = 0

    def serve(self) -> None:
        """Listen, and run what is queued, until :attr:`stopped` is set.

        Raises:
            InputError: if a port cannot be had.
        """
        folder = self.federation.folder
        pair = (folder / "server.key").read_bytes(), (folder / "server.pem").read_bytes()
        authority = (folder / "authority.pem").read_bytes()
        with self._door:
            self.port = self.hub.start(
                self._link, grpc.ssl_server_credentials([pair], authority, True)
            )
            watcher = threading.Thread(target=self._watch, name="members", daemon=True)
            watcher.start()
            try:
                while not self.stopped.wait(_LOOK):
                    self._next()
            finally:
                self.stopped.set()
                watcher.join()
                self.hub.stop()

    def _watch(self) -> None:
        """End the streams of sites that were revoked, and tell who is connected."""
        gone: set[str] = set()
        while not self.stopped.wait(_LOOK):
            members = self.federation.members()
            revoked = {name for name, record in members.items() if record.state == "revoked"}
            for name in revoked - gone:
                self.hub.revoke(name)
            gone = revoked
            present = {"connected": sorted(self.hub.present()), "time": time.time()}
            write_json(self.federation.folder / "present.json", present)

    def _next(self) -> None:
        for run in runs(self.federation):
            if run.status["state"] in OPEN:
                try:
                    self._run(run)
                except Stopped:
                    return
                except PrivetError as error:
                    _LOG.error("%s: %s", run.id, error)
                    run.note(state="failed", fault=str(error))

    def _run(self, run: Run) -> None:
        plan = run.plan
        names = [site.name for site in plan.sites]
        roster = self.federation.roster(names, run.folder)
        roster.save(run.folder)
        self._gather(run, plan, offer.encode(run.id, plan.to_dict(), roster.to_dict()))
        run.note(state="running")

        def observe(progress: Progress) -> None:
            answers = {name: str(status) for name, status in progress.statuses.items()}
            run.note(round=progress.round, sites=answers, spent=progress.spent)
            if self.stopped.is_set():
                raise Stopped("stopped between two rounds")

        outcomes: list[Outcome] = []
        app = create_app(
            run.id,
            plan,
            lambda: self._initial(plan),
            run.snapshots,
            lambda: self.federation.recorder(roster, run.folder),
            observe=observe,
            finish=outcomes.append,
        )
        run_app(app, LinkGrid(self.hub, names))
        facts = {"plan": plan.digest, "private": str(plan.privacy is not None).lower()}
        save_model(run.folder / "model" / "model.safetensors", outcomes[0].model, facts)
        run.note(state="done")

    def _gather(self, run: Run, plan: Plan, offered: bytes) -> None:
        """Wait until all sites are ready; for a run that goes on, a quorum is enough in the end."""
        begun = run.snapshots.latest() is not None
        run.note(state="running" if begun else "waiting")
        names, started = [site.name for site in plan.sites], time.monotonic()
        said: dict[str, str] = {}
        while not self.stopped.is_set():
            self._offer(names, offered, said)
            run.note(sites=dict(said))
            ready = [name for name in names if said[name] == offer.READY]
            late = begun and time.monotonic() - started > _LATE_START
            if len(ready) == len(names) or (late and len(ready) >= plan.quorum):
                return
            self.stopped.wait(_LOOK)
        raise Stopped("stopped while waiting for sites")

    def _offer(self, names: list[str], offered: bytes, said: dict[str, str]) -> None:
        present = set(self.hub.present())
        asked: dict[str, tuple[str, Future[Answered]]] = {}
        for name in names:
            if name not in present:
                said[name] = "not connected"
            else:
                asked[name] = self.hub.post(name, offer.KIND, "", offered, {})
        wait([answer for _, answer in asked.values()], timeout=30)
        for name, (number, answer) in asked.items():
            if answer.done():
                said[name] = str(offer.decode_answer(answer.result().records))
            else:
                self.hub.withdraw(number)
                said[name] = str(Status.FAILED)
