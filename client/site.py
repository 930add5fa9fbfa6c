"""Answer an order at a site: admit, reserve, train, commit, release.

The order of these steps is the product's first promise: the debit is on disk before data is opened,
and only a committed release or a status from a closed list leaves the site.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from privet.client.admission import AdmissionControl, RefusalError
from privet.client.operator.approval import how_to_open
from privet.client.operator.newer_ledger import note_newer
from privet.client.order_check import require_planned, require_trainable
from privet.client.outbox import Outbox, ReleaseStore
from privet.client.passing import LedgerRoom, make_room, passing_cause
from privet.client.recovery.copying import LedgerCopier, SiteCopies
from privet.client.recovery.journal_copies import FOLDER as JOURNALS
from privet.client.recovery.journal_copies import JournalCopies
from privet.client.training.protocol import TrainerOutput, TrainerProtocol
from privet.common.code import code_digest
from privet.common.errors import (
    BudgetExceededError,
    InputError,
    LedgerError,
    NoteError,
    OutOfTurnError,
    PlanClosedError,
    PrivetError,
    RolledBackError,
    SelfTestError,
    SiteClosedError,
    SourceUnavailableError,
)
from privet.common.flat import Arrays, digest_arrays
from privet.common.order import Order, Status
from privet.common.output.operator_log import operator_logger
from privet.common.plan import Plan
from privet.common.release import Release
from privet.privacy.accounting import events as ev
from privet.privacy.accounting.plan_events import gate_event
from privet.privacy.accounting.pld import GRID, LIVE_GRID
from privet.privacy.evidence.copies.copy_store import CopyStore
from privet.privacy.evidence.ledger import Request
from privet.privacy.evidence.ledger_state import Reservation
from privet.privacy.evidence.log import Evidence
from privet.privacy.evidence.roster import Roster
from privet.privacy.evidence.signed_note import Key
from privet.privacy.evidence.witness import Witness

_KEPT_RELEASES = 4
_KEPT_BYTES = 256 << 20
"""Of a run's releases, beyond the newest few, where a coordinator may be restored."""


@dataclass(frozen=True)
class LogQuery:
    """A coordinator's question about a site's log, with evidence of others' logs.

    Attributes:
        head: the newest cosigned head of the site's own log that the coordinator knows, or "".
        since: sizes of that log from which the witnesses need a proof of growth.
        slots: slots whose releases the site shall prove to be in its log.
        shown: heads of the others' logs, to cosign.
        held: size and root (hex) up to which the coordinator keeps a copy of the site's log, or
            None.
        keep: by log, pieces of copies of the others' that the site shall keep (JSON values).
        journal: new entries of the coordinator's journal, and its request for entries (JSON
            values), or None.
        seen: logs of which the site shall say what it saw; None: of all.
    """

    head: str = ""
    since: tuple[int, ...] = ()
    slots: tuple[str, ...] = ()
    shown: Mapping[str, Evidence] = field(default_factory=dict)
    held: tuple[int, str] | None = None
    keep: Mapping[str, list[Any]] = field(default_factory=dict)
    journal: Mapping[str, Any] | None = None
    seen: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Answer:
    """A status, and the release if there is one."""

    status: Status
    release: Release | None = None


class Site:
    """One site with its trainer, ledger, outbox and operator's log.

    Args:
        name: as in the plan.
        plan: the only plan of this object, with its noise calibrated.
        folder: of ledger, outbox and log.
        admission: decides which orders are admitted; it holds the ledger, which pays for every
            release.
        witness: cosigns the logs of the others.
        roster: names these logs.
        training: does the work, after it was paid for.
        live: whether the run is over the link. Then the spent loss is reported on a coarser grid
            until the last round: a round over the link may take less time than computing the loss
            of record.
        journals: the copies of the coordinator's journals; None keeps them in ``folder``.
        outbox: stores charged releases; None stores them in ``folder``.
    """

    def __init__(
        self,
        name: str,
        plan: Plan,
        folder: Path,
        admission: AdmissionControl,
        witness: Witness,
        roster: Roster,
        training: TrainerProtocol,
        *,
        live: bool = False,
        journals: JournalCopies | None = None,
        outbox: ReleaseStore | None = None,
    ) -> None:
        self.name = name
        self.plan = plan
        self.admission = admission
        self.ledger = admission.ledger
        self.witness = witness
        self._roster = roster
        self.outbox: ReleaseStore = outbox or Outbox(folder / "outbox")
        self._trainer = training
        self._live = live
        self._said = ("", "")
        self._room: LedgerRoom | None = None
        self._ahead: dict[str, Answer | Reservation] = {}
        folder.mkdir(parents=True, exist_ok=True)
        self._log = operator_logger(folder / "operator.log", name)
        self._copies = SiteCopies(
            LedgerCopier(self.ledger, witness, lambda: admission.policy.ledger_copy),
            CopyStore(folder / "copies"),
            roster,
            self.ledger.log.origin,
            self._log,
        )
        self._journals = journals or JournalCopies(folder / JOURNALS)
        admission.open()

    def answer(self, order: Order, model: Arrays, head: str = "") -> Answer:
        """Answer one order; no order and no data makes this raise.

        Args:
            order: signed by a coordinator.
            model: that came with the order.
            head: the newest cosigned head of this site's log that the coordinator knows.
        """
        ready = self._ahead.pop(order.digest, None) or self._prepared(order, model, head)
        if isinstance(ready, Answer):
            return ready
        return self._train_and_commit(order, model, ready)

    def reserve_ahead(self, order: Order, model: Arrays, head: str = "") -> bool:
        """Admit and reserve an order that :meth:`answer` will answer, before others are answered.

        Args:
            order: as :meth:`answer`, which must follow.
            model: that came with it.
            head: as :meth:`answer`.

        Returns:
            Whether it is reserved, so that the trainer may begin.
        """
        ready = self._prepared(order, model, head)
        self._ahead = {order.digest: ready}
        return isinstance(ready, Reservation)

    def _prepared(self, order: Order, model: Arrays, head: str) -> Answer | Reservation:
        """Return the reservation of an order; or its answer, if nothing is to be trained."""
        try:
            self.admission.require_signature(order)
            self._require_head(head, later=True)
            self._require_coordinator(order)
            if repeated := self._already_released(order):
                return Answer(Status.RELEASED, repeated)
            if refused := self.ledger.refusal(order):
                raise RefusalError(Status(refused), "refused before; an order gets one answer")
            return self._reserve(self._admit(order, model), model)
        except RefusalError as no:
            self._log.warning("%s: %s: %s", order.slot, no.status, no)
            return Answer(self._noted(order, no.status))
        except Exception as error:
            if self._passes(order, model, error):
                return Answer(Status.NOT_NOW)
            self._log.exception("%s: failed before data was opened: %r", order.slot, error)
            return Answer(Status.FAILED)
        finally:
            self._keep_head()

    def shown(self, ask: LogQuery) -> dict[str, Any]:
        """Return evidence of the site's log for its witnesses, and cosign their logs.

        The answer depends on private data only through the ledger's entries.

        Args:
            ask: the coordinator's question, and its evidence of others' logs.

        Returns:
            JSON values: a status, the digest of the code here, evidence of this log, the heads seen
            of the others, cosignatures, the faults of logs that were not cosigned, and the answers
            about copies (:meth:`SiteCopies.answer`, :meth:`JournalCopies.answer`).
        """
        try:
            self._require_head(ask.head)
            # A witness that cosigned additions to an old copy would never accept the newer one.
            self.admission.require_newest()
            # Kept before it is cosigned: a coordinator is bound by what it can get back.
            journal = self._keep_journal(ask.journal)
            lines, faults = self.witness.cosign(ask.shown, self._watched)
            numbers = [self.ledger.entry_of(slot) for slot in ask.slots]
            known = [number for number in numbers if number is not None]
            evidence = self.ledger.log.evidence(ask.since, known).to_json()
        except RefusalError as no:
            self._log.error("%s: %s", no.status, no)
            return {"status": str(no.status)}
        except PrivetError as error:
            self._log.error("the ledger's evidence could not be sent: %s", error)
            return {"status": str(Status.FAILED)}
        for fault in faults.values():
            self._log.error("not cosigned: %s", fault)
        return {
            "status": str(Status.PRESENT),
            "code": self._code(),
            "evidence": evidence,
            "seen": self._seen(ask.seen),
            "lines": {origin: str(line) for origin, line in lines.items()},
            "faults": faults,
            **self._copies.answer(ask.held, ask.keep, evidence["note"]),
            **journal,
        }

    def _seen(self, asked: Collection[str] | None) -> dict[str, Any]:
        """Return the heads seen of this roster's logs: other logs belong to other coordinators.

        Args:
            asked: logs of which to say so; None: all.
        """
        if asked is not None and not asked:
            return {}
        mine = self._roster.logs if asked is None else self._roster.logs.keys() & set(asked)
        return {log: seen.to_dict() for log, seen in self.witness.seen.items() if log in mine}

    def _keep_journal(self, asked: Mapping[str, Any] | None) -> dict[str, Any]:
        if asked is None:
            return {}
        seen = self.witness.seen.get(self._roster.coordinator.journal.name)
        cosigned = seen.size if seen is not None else 0
        return {"journal": self._journals.answer(asked, self.plan, self._roster, cosigned)}

    def _require_head(self, head: str, *, later: bool = False) -> None:
        """Refuse everything if this site's own log was longer before (H31)."""
        try:
            if head:
                known = self._roster.witnesses.values()
                self.ledger.log.require_extends(head, known, later=later)
        except (RolledBackError, NoteError) as error:
            if isinstance(error, RolledBackError):
                note_newer(self.ledger, head)
            raise RefusalError(Status.REFUSED_ROLLBACK, str(error)) from error

    def _keep_head(self) -> None:
        """Store the head of an order that led to no entry."""
        try:
            self.ledger.log.keep_shown()
        except PrivetError as error:  # it comes again with the next message
            self._log.error("the head that came with an order could not be kept: %s", error)

    def _require_coordinator(self, order: Order) -> None:
        """Refuse an order in another coordinator's run, before anything is sent."""
        try:
            self.ledger.require_coordinator(order)
        except OutOfTurnError as error:
            raise RefusalError(Status.REFUSED_CONFLICT, str(error)) from error

    def _code(self) -> str:
        """Return the digest of the code that would compute here; '' if it cannot be determined."""
        try:
            return code_digest(self.plan)
        except InputError as error:
            self._log.error("no digest of the code: %s", error)
            return ""

    @property
    def _watched(self) -> dict[str, Key]:
        """The first keys of the others' logs."""
        own = self.ledger.log.origin
        return {origin: key for origin, key in self._roster.logs.items() if origin != own}

    def _noted(self, order: Order, status: Status) -> Status:
        """Note a refusal; return the status of the answer.

        Refusals are entries, except for orders to others or without an authorised signature. A
        refusal without an entry, because the site has withdrawn, its disk is full, or the order was
        reserved before, is answered ``failed``: otherwise the ledger would contradict the answer.
        """
        if status in (Status.REFUSED_SIGNATURE, Status.REFUSED_ROLLBACK):
            return status
        if order.site != self.name:
            return status
        try:
            return status if self.ledger.refuse(order, str(status)) else Status.FAILED
        except PrivetError as error:
            self._log.error("%s: the refusal could not be noted: %s", order.slot, error)
            return Status.FAILED

    def _passes(self, order: Order, model: Arrays, error: Exception) -> bool:
        """Return whether an error before the reservation is temporary; log it once."""

        def probe() -> None:
            if room := make_room(self.outbox, self.ledger, self.plan, order, model):
                room.give_back()
            self.outbox.give_up_room(order.slot)

        cause = passing_cause(error, self.ledger, order, probe)
        if cause is not None and self._said != (said := (order.slot, str(cause))):
            self._said = said
            self._log.warning("%s: %s: %s", order.slot, Status.NOT_NOW, cause)
        return cause is not None

    def _admit(self, order: Order, model: Arrays) -> Request:
        """Check everything that can be checked without data; return the request to reserve."""
        self.ledger.require_not_paused()
        self.ledger.log.require_key()
        require_planned(order, self.name, self.plan)
        self.admission.look(self.plan, order.run)
        try:
            code = code_digest(self.plan)  # before the trainer imports what the plan names
            self._trainer.require_source()
        except SourceUnavailableError:
            raise
        except InputError as error:
            raise RefusalError(Status.REFUSED_POLICY, str(error)) from error
        try:
            tested = self.admission.tested(self._trainer.self_test())
        except SelfTestError as error:
            raise RefusalError(Status.REFUSED_SELF_TEST, str(error)) from error
        require_trainable(order, model, self.plan, self._trainer)
        self.admission.require_size(self.plan, sum(array.size for array in model.values()))
        evaluation = order.purpose == "evaluate"
        event = gate_event(self.plan) if evaluation else self._trainer.event
        return Request(order, event, self.admission.data_set, code, tested)

    def _already_released(self, order: Order) -> Release | None:
        """Return the release of the same order again; refuse another one for its slot.

        A crash may have come between storing a release and committing it: its charge is
        still reserved, so it is committed now. A release without a charge is dropped.
        """
        release, committed = self.outbox.get(order.slot), self.ledger.committed(order.slot)
        if release is None:
            if committed is not None:
                raise RefusalError(Status.REFUSED_CONFLICT, "answered before, and no longer kept")
            return None
        if release.order != order.digest:
            raise RefusalError(
                Status.REFUSED_CONFLICT, "a different order was answered for this attempt"
            )
        if committed is None:
            pending = self.ledger.pending(order.slot)
            if not pending:
                self.outbox.remove(order.slot)
                return None
            self._commit(pending[0], release)
        elif committed != release.facts["digest"]:
            raise LedgerError(f"{order.slot}: the stored release is not the committed one")
        return release

    def _reserve(self, request: Request, model: Arrays) -> Reservation:
        """Debit, once there is disk space for the entries and the release.

        An order that an earlier process left open is named first: its charge is kept.
        """
        slot = request.order.slot
        self._room = make_room(self.outbox, self.ledger, self.plan, request.order, model)
        try:
            return self._debit(request)
        except BaseException:
            self.outbox.give_up_room(slot)
            self._give_back_room()
            raise

    def _give_back_room(self) -> None:
        if self._room is not None:
            self._room.give_back()
        self._room = None

    def _write(self, entry: Callable[[], object]) -> None:
        """Write an entry after the reservation, in the room that was taken if the disk is full."""
        if self._room is None:
            entry()
        else:
            self._room.write(entry)

    def _debit(self, request: Request) -> Reservation:
        # Once more: a head may have come while the trainer was asked what it is.
        self.admission.require_newest()
        for left in self.ledger.pending():
            self._log.warning("%s: was left open by a process that ended", left.slot)
            self.outbox.remove(left.slot)
            self.ledger.abort(left, data_opened=True, reason="recovered")
            self._tell_attempts(left.slot)
        try:
            allowed = functools.partial(self.admission.require_allowed, self.plan)
            return self.ledger.reserve(request, allowed)
        except BudgetExceededError as error:
            raise RefusalError(Status.REFUSED_BUDGET, str(error)) from error
        except OutOfTurnError as error:
            raise RefusalError(Status.REFUSED_CONFLICT, str(error)) from error
        except PlanClosedError as error:
            raise RefusalError(Status.REFUSED_PLAN, str(error)) from error
        except SiteClosedError as error:
            raise RefusalError(Status.REFUSED_PAUSED, str(error)) from error

    def _train_and_commit(self, order: Order, model: Arrays, reservation: Reservation) -> Answer:
        """From here on data is open: the only failure that leaves is ``failed`` (H30)."""
        try:
            return self._trained(order, model, reservation)
        finally:
            self._give_back_room()

    def _trained(self, order: Order, model: Arrays, reservation: Reservation) -> Answer:
        try:
            made = self._trainer.release(order, model)
            for note in made.notes:
                self._log.warning("%s", note)
            release = self._store(order, reservation, made)
            self._tell_committed(order)
            return Answer(Status.RELEASED, release)
        except PrivetError as error:
            self._log.error("%s: %s", order.slot, error)
        except Exception as error:
            self._log.exception("%s: failed: %r", order.slot, error)
        self.outbox.give_up_room(order.slot)
        self._abort(reservation)
        return Answer(Status.FAILED)

    def _tell_committed(self, order: Order) -> None:
        """Let the trainer add this update's remainder to the next one; at worst it is lost."""
        if self.plan.compression is None:
            return
        try:
            self._trainer.committed(order)
        except Exception as error:
            self._log.warning("%s: the rest of this update is lost: %s", order.slot, error)

    def _store(self, order: Order, reservation: Reservation, made: TrainerOutput) -> Release:
        """Store the release, then commit it: neither is lost if the process dies between."""
        population = self.ledger.state.population_of(self.admission.data_set)
        last = order.round == self.plan.last_round
        grid = LIVE_GRID if self._live and not last else GRID
        release = Release(
            order.digest,
            {
                "reproducible": made.reproducible,
                "site": self.name,
                "event": ev.to_json(made.event),
                "digest": digest_arrays(made.arrays),
                "spent": self.ledger.spent(population, grid=grid).to_dict(),
            },
            made.arrays,
        )
        self.outbox.put(order.slot, release)
        try:
            self._commit(reservation, release)
        except BaseException:
            self.outbox.remove(order.slot)
            raise
        # Over the link a coordinator may be restored from a copy that is some rounds older.
        self.outbox.forget_before(order.run, _KEPT_RELEASES, _KEPT_BYTES if self._live else 0)
        return release

    def _commit(self, reservation: Reservation, release: Release) -> None:
        facts = release.facts
        event, digest = ev.from_json(facts["event"]), facts["digest"]
        commit = functools.partial(self.ledger.commit, reservation, event, digest)
        self._write(functools.partial(commit, reproducible=facts["reproducible"]))

    def _abort(self, reservation: Reservation) -> None:
        try:
            if self.ledger.pending(reservation.slot):
                abort = functools.partial(self.ledger.abort, reservation, data_opened=True)
                self._write(abort)
            self._tell_attempts(reservation.slot)
        except Exception as error:  # whatever it is: the answer stays the same
            self._log.error("%s: the abort was not noted: %r", reservation.slot, error)

    def _tell_attempts(self, slot: str) -> None:
        """Log for the operator what a failure means for the plan."""
        plan = self.ledger.state.plan_of(slot.partition("/")[0])
        failed, most = self.ledger.attempts(plan)
        if failed < most:
            text = "%s: the charge stays; attempt %d of %d in a row that failed (max_attempts)"
            self._log.warning(text, slot, failed, most)
            return
        self._log.warning(
            "%s: the charge stays; %d attempts failed in a row, so plan %s is closed here and "
            "costs no more. What failed is reported above: correct it, then %s opens it again",
            slot, failed, plan, how_to_open(self.ledger.state, plan),
        )  # fmt: skip
