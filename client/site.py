"""A site answers an order: admit, reserve, train, commit, release.

The order of these steps is the product's first promise: the debit is on disk before
data is opened, and what leaves is a committed release or a status from a closed list.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from privet.client.approval import how_to_open
from privet.client.guard import Guard, Refusal
from privet.client.outbox import Outbox
from privet.client.training import Made, Training, misfit
from privet.common.code import code_digest
from privet.common.errors import (
    BudgetExceeded,
    InputError,
    LedgerError,
    NoteError,
    OutOfTurn,
    PlanClosed,
    PrivetError,
    RolledBack,
    SelfTestFailed,
    SitePaused,
)
from privet.common.flat import Arrays, digest_arrays
from privet.common.operator_log import operator_logger
from privet.common.order import Order, Status
from privet.common.plan import Plan
from privet.common.release import Release
from privet.privacy import events as ev
from privet.privacy.accounting import GRID, LIVE_GRID
from privet.privacy.book import Reservation
from privet.privacy.ledger import Request
from privet.privacy.log import Evidence
from privet.privacy.program import gate_event, has_gate_release
from privet.privacy.roster import Roster
from privet.privacy.signed_note import Key
from privet.privacy.witness import Witness

_KEPT_RELEASES = 4


@dataclass(frozen=True)
class Asked:
    """What a coordinator wants to see of a site's log, and what it shows of others'.

    Attributes:
        head: the newest cosigned head of the site's own log that it knows, or "".
        since: sizes of that log from which the witnesses want a proof of growth.
        slots: whose releases are to be proved to be in the log.
        shown: heads of the others' logs, to cosign.
    """

    head: str = ""
    since: tuple[int, ...] = ()
    slots: tuple[str, ...] = ()
    shown: Mapping[str, Evidence] = field(default_factory=dict)


@dataclass(frozen=True)
class Answer:
    """A status, and the release when there is one."""

    status: Status
    release: Release | None = None


class Site:
    """One site and everything it keeps: trainer, ledger, outbox, operator's log.

    Args:
        name: as in the plan.
        plan: the one plan this site has approved, noise calibrated.
        folder: where ledger, outbox and log are kept.
        guard: who may ask what; it holds the ledger, which pays for every release.
        witness: cosigns the logs of the others.
        roster: whose logs they are.
        training: does the work, once it was paid for.
        live: what was spent is told on a coarser grid until the last round. Over the link a
            round may take less than the number of record.
    """

    def __init__(
        self,
        name: str,
        plan: Plan,
        folder: Path,
        guard: Guard,
        witness: Witness,
        roster: Roster,
        training: Training,
        *,
        live: bool = False,
    ) -> None:
        self.name = name
        self.plan = plan
        self.guard = guard
        self.ledger = guard.ledger
        self.witness = witness
        self._roster = roster
        self.outbox = Outbox(folder / "outbox")
        self._trainer = training
        self._live = live
        folder.mkdir(parents=True, exist_ok=True)
        self._log = operator_logger(folder / "operator.log", name)
        guard.open()

    def answer(self, order: Order, model: Arrays, head: str = "") -> Answer:
        """Answer one order; never raises for what an order or the data can do.

        Args:
            order: signed by a coordinator.
            model: that came with it.
            head: the newest cosigned head of this site's log that the coordinator knows.
        """
        try:
            self.guard.require_signature(order)
            self._require_head(head)
            self._require_coordinator(order)
            if repeated := self._already_released(order):
                return Answer(Status.RELEASED, repeated)
            if refused := self.ledger.refusal(order):
                raise Refusal(Status(refused), "refused before; an order gets one answer")
            request = self._admit(order, model)
            reservation = self._reserve(request)
        except Refusal as no:
            self._log.warning("%s: %s: %s", order.slot, no.status, no)
            return Answer(self._noted(order, no.status))
        except Exception as error:
            self._log.exception("%s: failed before data was opened: %r", order.slot, error)
            return Answer(Status.FAILED)
        return self._train_and_commit(order, model, reservation)

    def shown(self, ask: Asked) -> dict[str, Any]:
        """Show the site's log to its witnesses, and cosign theirs.

        Nothing in it depends on private data but through the ledger's entries.

        Args:
            ask: what the coordinator wants to see, and what it shows.

        Returns:
            JSON values: a status, this log's evidence, what was seen of the others,
            cosignatures, and what is wrong with the logs that were not cosigned.
        """
        try:
            self._require_head(ask.head)
            lines, faults = self.witness.cosign(ask.shown, self._watched)
            numbers = [self.ledger.entry_of(slot) for slot in ask.slots]
            known = [number for number in numbers if number is not None]
            evidence = self.ledger.log.evidence(ask.since, known).to_json()
        except Refusal as no:
            self._log.error("%s: %s", no.status, no)
            return {"status": str(no.status)}
        except PrivetError as error:
            self._log.error("the ledger could not be shown: %s", error)
            return {"status": str(Status.FAILED)}
        for fault in faults.values():
            self._log.error("not cosigned: %s", fault)
        return {
            "status": str(Status.PRESENT),
            "evidence": evidence,
            "seen": {origin: asdict(seen) for origin, seen in self.witness.seen.items()},
            "lines": {origin: str(line) for origin, line in lines.items()},
            "faults": faults,
        }

    def _require_head(self, head: str) -> None:
        """Refuse everything where this site's own log was longer before (H31)."""
        try:
            if head:
                self.ledger.log.require_extends(head, self._roster.witnesses.values())
        except (RolledBack, NoteError) as error:
            raise Refusal(Status.REFUSED_ROLLBACK, str(error)) from error

    def _require_coordinator(self, order: Order) -> None:
        """Refuse who asks in another coordinator's run, before anything is shown."""
        try:
            self.ledger.require_coordinator(order)
        except OutOfTurn as error:
            raise Refusal(Status.REFUSED_CONFLICT, str(error)) from error

    @property
    def _watched(self) -> dict[str, Key]:
        """The first keys of the others' logs."""
        own = self.ledger.log.origin
        return {origin: key for origin, key in self._roster.logs.items() if origin != own}

    def _noted(self, order: Order, status: Status) -> Status:
        """Note a refusal; return the status that is answered.

        Refusals are entries, but for orders to others or that nobody entitled has signed. What
        has no entry, because the site has withdrawn, its disk is full, or the order was
        reserved before, is answered ``failed``: else the ledger would gainsay the answer.
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

    def _admit(self, order: Order, model: Arrays) -> Request:
        """Check everything that can be checked without data; return what is to be reserved."""
        if order.site != self.name or order.plan != self.plan.digest:
            raise Refusal(Status.REFUSED_PLAN, "not the plan that this site approved")
        if order.round > self.plan.last_round:
            raise Refusal(Status.REFUSED_PLAN, f"the plan has {self.plan.last_round} rounds")
        if order.purpose == "train" and not self.plan.trains:
            raise Refusal(Status.REFUSED_PLAN, "the plan trains nothing")
        if order.purpose == "evaluate" and not has_gate_release(self.plan, order.round):
            raise Refusal(
                Status.REFUSED_PLAN, "the plan has no metrics from the gate in this round"
            )
        self.guard.look(self.plan, order.run)
        try:
            code = code_digest(self.plan)  # before the trainer imports what the plan names
            self._trainer.require_source()
        except InputError as error:
            raise Refusal(Status.REFUSED_POLICY, str(error)) from error
        try:
            tested = self.guard.tested(self._trainer.self_test())
        except SelfTestFailed as error:
            raise Refusal(Status.REFUSED_SELF_TEST, str(error)) from error
        shapes = self._trainer.shapes()
        if order.parameters != tuple(shapes):
            raise Refusal(
                Status.REFUSED_PARAMETERS, "not the parameters that the plan trains (H17)"
            )
        if fault := misfit(shapes, model):
            raise Refusal(Status.REFUSED_PARAMETERS, fault)
        if not self.plan.trains and order.model != self._trainer.begins():
            raise Refusal(Status.REFUSED_PARAMETERS, "not the weights that the plan has measured")
        self.guard.require_size(self.plan, sum(array.size for array in model.values()))
        evaluation = order.purpose == "evaluate"
        event = gate_event(self.plan) if evaluation else self._trainer.event
        return Request(order, event, self.guard.data_set, code, tested)

    def _already_released(self, order: Order) -> Release | None:
        """Return the release of the same order again; refuse another one for its slot.

        A crash may have come between storing a release and committing it: its charge is
        still reserved, so it is committed now. A release without a charge is dropped.
        """
        release, committed = self.outbox.get(order.slot), self.ledger.committed(order.slot)
        if release is None:
            if committed is not None:
                raise Refusal(Status.REFUSED_CONFLICT, "answered before, and no longer kept")
            return None
        if release.order != order.digest:
            raise Refusal(
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

    def _reserve(self, request: Request) -> Reservation:
        """Debit, after naming what an earlier process left open: its charge is kept."""
        for left in self.ledger.pending():
            self._log.warning("%s: was left open by a process that ended", left.slot)
            self.outbox.remove(left.slot)
            self.ledger.abort(left, data_opened=True, reason="recovered")
            self._tell_attempts(left.slot)
        try:
            return self.ledger.reserve(request)
        except BudgetExceeded as error:
            raise Refusal(Status.REFUSED_BUDGET, str(error)) from error
        except OutOfTurn as error:
            raise Refusal(Status.REFUSED_CONFLICT, str(error)) from error
        except PlanClosed as error:
            raise Refusal(Status.REFUSED_PLAN, str(error)) from error
        except SitePaused as error:
            raise Refusal(Status.REFUSED_PAUSED, str(error)) from error

    def _train_and_commit(self, order: Order, model: Arrays, reservation: Reservation) -> Answer:
        """From here on data is open: the only failure that leaves is ``failed`` (H30)."""
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
        self._abort(reservation)
        return Answer(Status.FAILED)

    def _tell_committed(self, order: Order) -> None:
        """Let the trainer add what this update left out to the next one; at worst it is lost."""
        if self.plan.compression is None:
            return
        try:
            self._trainer.committed(order)
        except Exception as error:
            self._log.warning("%s: the rest of this update is lost: %s", order.slot, error)

    def _store(self, order: Order, reservation: Reservation, made: Made) -> Release:
        """Store the release, then commit it: neither is lost if the process dies between."""
        population = self.ledger.book.population_of(self.guard.data_set)
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
        self.outbox.forget_before(order.run, _KEPT_RELEASES)
        return release

    def _commit(self, reservation: Reservation, release: Release) -> None:
        facts = release.facts
        self.ledger.commit(
            reservation,
            ev.from_json(facts["event"]),
            facts["digest"],
            reproducible=facts["reproducible"],
        )

    def _abort(self, reservation: Reservation) -> None:
        try:
            if self.ledger.pending(reservation.slot):
                self.ledger.abort(reservation, data_opened=True)
            self._tell_attempts(reservation.slot)
        except Exception as error:  # whatever it is: the answer stays the same
            self._log.error("%s: the abort was not noted: %r", reservation.slot, error)

    def _tell_attempts(self, slot: str) -> None:
        """Say in the operator's log what a failure means for the plan."""
        plan = self.ledger.book.plan_of(slot.partition("/")[0])
        failed, most = self.ledger.attempts(plan)
        if failed < most:
            text = "%s: the charge stays; attempt %d of %d in a row that failed (max_attempts)"
            self._log.warning(text, slot, failed, most)
            return
        self._log.warning(
            "%s: the charge stays; %d attempts failed in a row, so plan %s is closed here and "
            "costs no more. What failed is said above: mend it, then %s opens it again",
            slot, failed, plan, how_to_open(self.ledger.book, plan),
        )  # fmt: skip
