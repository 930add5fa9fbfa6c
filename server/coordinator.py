"""Run the coordinator: one process, one port, one run after another.

::

    FOLDER/runs/RUN/
      plan.json       as submitted, its noise calibrated
      status.json     state, sites, round: what `privet server status` prints
      end             how the run ends: with its model, or cancelled
      coordinator/    the run's journal
      model/          snapshot, and the final model

A run is *queued*, then *waiting* for its sites (connected, plan approved), then *running*, and ends
*done* or *failed*. The process may be killed at any moment. When it is started again, it continues
the open run at the same round.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from contextlib import suppress

from privet.common.canonical import write_json
from privet.common.errors import InputError, PrivateKeyError, PrivetError, QuorumError, RunError
from privet.common.link import offer
from privet.common.order import Order, Status
from privet.common.plan import Plan
from privet.privacy.evidence.roster import Roster
from privet.server.evidence.collector import EvidenceCollector
from privet.server.initial import first_model
from privet.server.link.grid import CoordinatorStopped, LinkGrid
from privet.server.link.parcel import LinkReply
from privet.server.link.server import LinkServer
from privet.server.membership.credentials import credentials
from privet.server.membership.enrolment import EnrolmentServer
from privet.server.membership.notice import notice_of
from privet.server.membership.registry import MemberRegistry
from privet.server.queue import OPEN, PRESENT, Run, runs, why_no_quorum
from privet.server.recovery.lost_runs import LostRuns
from privet.server.rehearsal import rehearse
from privet.server.research.service import ResearchService
from privet.server.rewitness import INTERVAL_S, MAX_INTERVAL_S, LaterWitness
from privet.server.run import execute_run

_POLL_INTERVAL_S = 1.0
"""Seconds between two polls of members, runs and stops."""
_LATE_START = 30.0
"""Seconds that a continued run waits for all its sites before a quorum is enough."""

_RUN_TURN_S = 60.0
"""Seconds that a run waits for its sites before another that is queued is tried."""
_GONE = "not connected"

_LOG = logging.getLogger("privet.office")


class RunDeferred(Exception):
    """A run cannot start yet; another queued run may start before it."""


class Coordinator:
    """Serves a federation until it is stopped.

    Args:
        federation: the opened folder, with the passphrase of its keys.
        link, enrolment: addresses (``host:port``) to listen on; default those of the federation.
    """

    def __init__(
        self,
        federation: MemberRegistry,
        *,
        link: str | None = None,
        enrolment: str | None = None,
    ) -> None:
        self.federation = federation
        self._link = link or federation.address
        self._door = EnrolmentServer(federation, enrolment or federation.enrolment)
        self.link_server = LinkServer(
            federation.name,
            federation.identify,
            federation.folder / "spool",
            renew=federation.renew,
            newest_head=federation.newest_head,
            beside=lambda link_server: (
                ResearchService(federation, link_server.present, link_server.tally.refused).services
            ),
        )
        self._lost = LostRuns(federation, self.link_server)
        self.stopped = threading.Event()
        self._held: set[str] = set()
        self._offered: set[str] = set()
        self._rehearsed: set[str] = set()
        self._later = LaterWitness(federation, self.link_server, self.stopped)
        self._looked, self._fault, self._interval = time.monotonic(), "", INTERVAL_S
        self.port = 0
        self.on_answer: Callable[[Order, str], None] = lambda order, said: None
        """Called with each order: first with ``ordered``, then with the status of its answer."""
        self.on_round: Callable[[float], None] = lambda seconds: None
        """Called for each round that is done, with its duration in seconds."""

    @property
    def is_listening(self) -> bool:
        """Whether the port of the link is open to sites."""
        return self.port != 0 and not self.stopped.is_set()

    @property
    def is_enrolling(self) -> bool:
        """Whether the port of the enrolment server is open."""
        return self._door.is_open

    def serve(self) -> None:
        """Listen, and run the queued runs, until :attr:`stopped` is set.

        Raises:
            InputError: if the coordinator cannot listen on a port.
        """
        with self._door:
            self.port = self.link_server.start(
                self._link, credentials(self.federation, mutual=True)
            )
            _LOG.info("listening", extra={"address": self._link, "port": self.port})
            watcher = threading.Thread(target=self._watch, name="members", daemon=True)
            watcher.start()
            try:
                while not self.stopped.wait(_POLL_INTERVAL_S):
                    self._next()
                    self._witness_again()
            finally:
                self.stopped.set()
                watcher.join()
                self._later.close()
                self.link_server.stop()

    def _watch(self) -> None:
        """End the streams of revoked sites, and publish which sites are connected."""
        gone: set[str] = set()
        while not self.stopped.wait(_POLL_INTERVAL_S):
            # A full disk, or a file that is being repaired, must not end this thread.
            try:
                gone = self._cut_off(gone)
            except Exception:
                _LOG.exception("who was revoked cannot be read; tried again")
            try:
                self.link_server.tell(notice_of(self.federation))
                self._drop_former_authority()
            except Exception:
                _LOG.exception("the notice to sites cannot be read; tried again")
            try:
                self._lost.look()
            except Exception:
                _LOG.exception("what runs the sites know cannot be told; tried again")
            try:
                present = {
                    "connected": sorted(self.link_server.present()),
                    "doubled": self.link_server.twins.all,
                    "told": {"address": self._told_address(), "sites": self._told()},
                    "time": time.time(),
                }
                write_json(self.federation.folder / PRESENT, present)
            except OSError:
                _LOG.exception("who is connected cannot be written; tried again")

    def _told(self) -> list[str]:
        """Return the sites that have kept the notice as it is now."""
        now = self.link_server.notice_digest
        return sorted(site for site, kept in self.link_server.noted.items() if now and kept == now)

    def _told_address(self) -> str:
        return "" if self.link_server.notice is None else self.link_server.notice.address

    def _drop_former_authority(self) -> None:
        """End an overlap of two authorities when all sites have certificates of the newer one."""
        authorities = self.federation.authorities
        if authorities.in_overlap and not authorities.is_moving and not (
            self.federation.left_behind()
        ):  # fmt: skip
            authorities.drop_former()
            _LOG.info("all sites know the new authority; the former one is dropped")

    def _cut_off(self, gone: set[str]) -> set[str]:
        """End the streams of sites revoked since ``gone``; return all revoked sites."""
        revoked = self._revoked()
        for name in revoked - gone:
            self.link_server.revoke(name)
        return revoked

    def _revoked(self) -> set[str]:
        members = self.federation.members().items()
        return {name for name, record in members if record.state == "revoked"}

    def _next(self) -> None:
        for run in runs(self.federation):
            if run.status["state"] in OPEN and run.id not in self._held:
                try:
                    self._run(run)
                    self._offered.clear()  # sites are free: waiting runs are offered again
                except CoordinatorStopped:
                    return
                except RunDeferred:
                    continue
                except OSError:
                    raise  # a fault of this machine's: every run continues when it is repaired
                except Exception as error:
                    self._note_fault(run, error)
                    self._offered.clear()

    def _witness_again(self) -> None:
        """Have logs witnessed that grew by runs with other coordinators, while there is no run."""
        if time.monotonic() - self._looked < self._interval:
            return
        before, fault, self._interval = self._interval, "", INTERVAL_S
        try:
            if grown := self._later.look():
                _LOG.info("logs that grew are witnessed", extra={"sites": "; ".join(grown)})
        except CoordinatorStopped:
            return
        except Exception as error:  # nothing waits for it, and the next run says what is wrong
            fault = str(error) or type(error).__name__
            if fault == self._fault:  # such as sites that are in a run which is lost here
                self._interval = min(2 * before, MAX_INTERVAL_S)
            else:
                text = "logs that grew are not witnessed; tried again"
                _LOG.warning(text, extra={"why": fault})
        self._looked, self._fault = time.monotonic(), fault

    def _note_fault(self, run: Run, error: Exception) -> None:
        """End a run that failed; put one aside whose files are in the way, and nothing else."""
        fault = str(error) or type(error).__name__
        if isinstance(error, PrivetError) and not isinstance(error, PrivateKeyError):
            if isinstance(error, QuorumError):
                fault += why_no_quorum(run.status)
            _LOG.error("a run failed", extra={"run": run.id, "why": fault})
            state = {"state": "failed"}
        else:
            _LOG.exception("a run is put aside until the next start", extra={"run": run.id})
            self._held.add(run.id)
            state = {}
            fault = f"put aside until the coordinator is started again: {fault}"
        with suppress(OSError, InputError):
            run.note(**state, fault=fault)

    def _run(self, run: Run) -> None:
        plan = run.plan
        names = [site.name for site in plan.sites]
        roster = run.roster(self.federation)
        first = run.folder / "model" / "initial.safetensors"
        if not run.has_begun and run.id not in self._rehearsed:
            rehearse(plan, first_model(plan, first), run.folder)
            self._rehearsed.add(run.id)
        self._gather(run, plan, offer.encode(run.id, plan.to_dict(), roster.to_dict()))

        def tell(missing: list[str]) -> None:
            run.require_wanted()
            self._require_quorum(plan.quorum, names)
            run.note(sites={**run.status.get("sites", {}), **dict.fromkeys(missing, _GONE)})

        execute_run(
            run,
            LinkGrid(self.link_server, names, stopped=self.stopped, on_wait=tell),
            lambda: first_model(plan, first),
            lambda: self._recorder(roster, run),
            on_round=self.on_round,
        )

    def _require_quorum(self, least: int, names: list[str]) -> None:
        """Stop a run that can never have enough sites again.

        Raises:
            RunError: if too many of its sites were revoked.
        """
        try:
            revoked = self._revoked()
        except InputError:
            return  # the watcher logs it; a file that is being repaired ends no run
        gone = [name for name in names if name in revoked]
        if gone and len(names) - len(gone) < least:
            who = "', '".join(gone)
            raise RunError(f"site '{who}' was revoked, and {least} sites are needed")

    def _recorder(self, roster: Roster, run: Run) -> EvidenceCollector:
        made = self.federation.collector(roster, run.folder, run.plan.strategy.witnesses)
        made.on_answer = self.on_answer
        return made

    def _gather(self, run: Run, plan: Plan, offered: bytes) -> None:
        """Wait until all sites are ready; for a run that continues, a quorum is enough in the end.

        The run does not wait for a site whose ledger is older than its witnessed head: the site
        takes part again once its operator has restored the newer ledger.
        """
        names, started = [site.name for site in plan.sites], time.monotonic()
        begun, state, needed = run.has_begun, "waiting", len(names)
        if begun:
            state, needed = "running", plan.quorum
        run.note(state=state)
        said: dict[str, str] = {}
        while not self.stopped.is_set():
            run.require_wanted()
            self._require_quorum(needed, names)
            before = dict(said)
            self._offer(names, offered, said)
            run.note(sites=dict(said))
            waits = [f"{name}: {text}" for name, text in said.items() if text != offer.READY]
            if said != before and waits:
                _LOG.info("a run waits", extra={"run": run.id, "sites": "; ".join(waits)})
            ready = [name for name in names if said[name] == offer.READY]
            stopped = sum(text == Status.REFUSED_ROLLBACK for text in said.values())
            late = begun and time.monotonic() - started > _LATE_START
            all_said = len(ready) + stopped == len(names)
            if len(ready) == len(names) or ((late or all_said) and len(ready) >= plan.quorum):
                return
            self._offered.add(run.id)
            if self._gives_way(run, said, time.monotonic() - started):
                raise RunDeferred  # a run that can start does not wait for one that cannot
            self.stopped.wait(_POLL_INTERVAL_S)
        raise CoordinatorStopped("stopped while waiting for sites")

    def _gives_way(self, run: Run, said: dict[str, str], seconds: float) -> bool:
        """Whether a waiting run lets another one try.

        A run has its full turn, with one exception: only a person can help it, and another run was
        not offered since the sites became free. Then the other run's operators should not have to
        wait a turn before they see the plan.

        Args:
            run: that waits.
            said: the last answer of each of its sites.
            seconds: that it has waited.
        """
        if seconds > _RUN_TURN_S:
            return bool(self._others(run))
        return any(map(_needs_a_person, said.values())) and bool(self._others(run) - self._offered)

    def _others(self, run: Run) -> set[str]:
        """Return the names of the other waiting runs."""
        return {
            one.id
            for one in runs(self.federation)
            if one.id not in {run.id, *self._held} and one.status["state"] in OPEN
        }

    def _offer(self, names: list[str], offered: bytes, said: dict[str, str]) -> None:
        present = set(self.link_server.present())
        asked: dict[str, tuple[str, Future[LinkReply]]] = {}
        for name in names:
            if name not in present:
                said[name] = _GONE
            else:
                asked[name] = self.link_server.post(name, offer.KIND, "", offered, {})
        wait([answer for _, answer in asked.values()], timeout=30)
        for name, (number, answer) in asked.items():
            if answer.done():
                said[name] = str(offer.decode_answer(answer.result().records))
            else:
                self.link_server.withdraw(number)
                said[name] = str(Status.FAILED)


def _needs_a_person(answer: str) -> bool:
    """Whether only a site's operator can change the site's answer to an offer."""
    return answer == Status.WAITS_FOR_APPROVAL or answer.startswith("refused-")
