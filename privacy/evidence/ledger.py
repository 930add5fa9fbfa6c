"""What a site spent, promised and refused: reserve before data is read, commit what ran.

::

    Site ── Ledger ── Log ── Store (SQLite)
              │         └─ Merkle tree, signed head
              └─ LedgerState: what the entries add up to, and which may come next

Here are charges; what a site registers and decides is in ledger_decisions.py, the file and its
keys are in ledger_base.py.

:class:`Ledger` turns a site's wishes into entries, under the store's lock, and promises
nothing that is not on disk. A reservation that was not given back counts in full, so a
crash over-counts and never forgets. The budget belongs to a **population**, over all its
runs and data sets. The rules are those of docs/reference/evidence-format.md.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from privet.common.errors import (
    BudgetExceededError,
    LedgerError,
    PlanClosedError,
    SiteClosedError,
    SitePausedError,
)
from privet.common.order import Order
from privet.privacy.accounting import events as ev
from privet.privacy.accounting.events import Counts
from privet.privacy.accounting.pld import GRID, privacy_loss
from privet.privacy.accounting.renyi_filter import Cap, History, decide, decide_whole
from privet.privacy.accounting.units import PrivacyLoss, Relation
from privet.privacy.evidence.charges import history_of, is_composed, plan_attempts, plan_events
from privet.privacy.evidence.ledger_base import FILE
from privet.privacy.evidence.ledger_decisions import PAUSED, LedgerDecisions
from privet.privacy.evidence.ledger_state import Reservation


@dataclass(frozen=True)
class Request:
    """What is to be reserved.

    Attributes:
        order: the order that asks.
        event: what it will cost.
        data_set: whose records will be opened.
        code: digest of the code that will run.
        self_tests: rows of the assumption register that were tested for this model.
    """

    order: Order
    event: ev.Event
    data_set: str
    code: str = ""
    self_tests: tuple[str, ...] = ()


class Ledger(LedgerDecisions):
    """The ledger of one site: what was reserved, what ran, what is left.

    It is made, with the same arguments and errors, as
    :class:`~privet.privacy.evidence.ledger_base.LedgerBase`.
    """

    def reserve(
        self, request: Request, still_allowed: Callable[[], None] = lambda: None
    ) -> Reservation:
        """Debit the request's event durably, or leave everything as it was.

        Args:
            request: what is to be reserved.
            still_allowed: raises where policy or approval forbid it. It is called under the lock:
                what other processes decided until then counts, and nothing can be decided between
                it and the debit.

        Raises:
            BudgetExceededError: if the population's cap does not cover it.
            OutOfTurnError: if the order's slot was taken, or its run was begun with other code.
            PlanClosedError: if the plan failed as often in a row as it may.
            SiteClosedError: if the site has withdrawn, or the budget was closed.
            SitePausedError: if the site has paused.
            LedgerError: if it cannot be stored.
        """
        order = request.order
        with self.log.writing():
            name = self.state.population_of(request.data_set)
            population = self.state.populations[name]
            if self.state.withdrawn or population.closed:
                raise SiteClosedError("the site has withdrawn, or closed this budget")
            if self.state.paused:
                raise SitePausedError(PAUSED)
            self.state.require_turn(order, request.data_set, request.code)
            self._require_open_plan(order.plan)
            still_allowed()
            self._require_cover(name, request)
            entry = self.log.append(
                "reserved",
                "order",
                order.digest,
                population=name,
                data_set=request.data_set,
                **_slot_fields(order),
                code=request.code,
                event=ev.to_json(request.event),
                self_tests=list(request.self_tests),
            )
            return self.state.open[entry.sequence]

    def attempts(self, plan: str) -> tuple[int, int]:
        """Return how many attempts of a plan (by digest) failed in a row, and how many may."""
        self.log.refresh()
        return self.state.failures(plan), plan_attempts(self.log.store, plan)

    def require_open_plan(self, plan: str) -> None:
        """Check that a plan (by digest) was not closed by its failures.

        Raises:
            PlanClosedError: if it failed as often in a row as it may.
        """
        self.log.refresh()
        self._require_open_plan(plan)

    def refuse(self, order: Order, status: str) -> bool:
        """Note that an order was refused: once, and not one that was reserved before.

        Args:
            order: that was refused.
            status: with which the site answers.

        Returns:
            Whether an entry says so with this status, now or before.
        """
        with self.log.writing():
            if not self.state.is_answered(order) and not self.state.withdrawn:
                self.log.append(
                    "refused", "order", order.digest, **_slot_fields(order), status=status
                )
            return self.state.refusal(order) == status

    def require_coordinator(self, order: Order) -> None:
        """Check that nobody else began the order's run.

        Raises:
            OutOfTurnError: if another coordinator did.
        """
        self.log.refresh()
        self.state.require_coordinator(order)

    def refusal(self, order: Order) -> str | None:
        """Return the status that an order was refused with, or None."""
        self.log.refresh()
        return self.state.refusal(order)

    def commit(
        self, reservation: Reservation, event: ev.Event, release: str, *, reproducible: bool = False
    ) -> int:
        """Say that ``event`` ran and which release came of it; return the entry's number.

        Args:
            reservation: it must be open.
            event: must fit what was reserved.
            release: digest of the release.
            reproducible: its noise came from a seed, so it protects nobody.

        Raises:
            LedgerError: if the reservation is not open, or what ran does not fit. The
                charge then stays, under an entry that says so.
        """
        fitting = True
        with self.log.writing():
            reserved = self._require_open(reservation)
            fitting = ev.covers(reserved.event, event)
            if fitting:
                kind = "metric-released" if "/evaluate/" in reserved.slot else "released"
                return self.log.append(
                    kind,
                    "release",
                    release,
                    reservation=reserved.number,
                    order=reserved.order,
                    digest=release,
                    event=ev.to_json(event),
                    reproducible=reproducible,
                ).sequence
            self._abort(reserved, data_opened=True, reason="does-not-fit")
        raise LedgerError(
            f"{reservation.slot}: what ran ({ev.to_json(event)}) does not fit what was "
            f"reserved ({ev.to_json(reservation.event)}); the charge is kept"
        )

    def abort(self, reservation: Reservation, *, data_opened: bool, reason: str = "failed") -> None:
        """End a reservation without a release; the charge stays once data was opened.

        Args:
            reservation: it must be open.
            data_opened: whether records were read under it.
            reason: ``failed`` or ``recovered``.
        """
        with self.log.writing():
            self._abort(self._require_open(reservation), data_opened=data_opened, reason=reason)

    def committed(self, slot: str) -> str | None:
        """Return the digest of the release committed for ``slot``, or None."""
        self.log.refresh()
        return self.state.released.get(slot, (None, None))[1]

    def entry_of(self, slot: str) -> int | None:
        """Return the number of the entry that released ``slot``, or None."""
        self.log.refresh()
        return self.state.released.get(slot, (None, None))[0]

    def pending(self, slot: str | None = None) -> list[Reservation]:
        """Return the reservations that are open, of ``slot`` or of all."""
        self.log.refresh()
        return [item for item in self.state.open.values() if slot in (None, item.slot)]

    def history(self, population: str | None = None) -> list[ev.Event]:
        """Return every event that counts against a population (the only one by default)."""
        self.log.refresh()
        charges = self.state.charges(self._population(population)).values()
        return [
            event if count == 1 else ev.Repeated(event, count)
            for run in charges
            for event, count in run.items()
        ]

    def spent(self, population: str | None = None, *, grid: float = GRID) -> PrivacyLoss:
        """Return what a population's history costs: the ε of record, or on a coarser grid.

        Args:
            population: its name; the only one by default.
            grid: of the distributions.
        """
        self.log.refresh()
        name = self._population(population)
        budget = self.state.populations[name].budget
        return privacy_loss(
            self.history(name), budget.delta, budget.unit, budget.relation, grid=grid
        )

    def charges(self, population: str) -> History:
        """Return what was charged to a population, by run; nothing if it is not registered."""
        self.log.refresh()
        return history_of(self.log.store, self.state, population)

    def is_composed(
        self, population: str, plan: str, events: tuple[Counts, Counts], relation: Relation
    ) -> bool | None:
        """Return whether a plan counts as known if it is a population's first one.

        None where it may count as either (privacy/accounting/first_plans.py).

        Args:
            population: registered or not.
            plan: its digest.
            events: all that a run of it may do, and what one more attempt adds.
            relation: of the population.
        """
        return is_composed(self.log.store, self.state, population, plan, events, relation)

    def require_whole_run(self, data_set: str, run: str, plan: str) -> None:
        """Check, for a run that was not charged yet, that its whole plan would be covered.

        A run that cannot come to its end would only waste what is left.

        Args:
            data_set: whose population would be charged.
            run: its name.
            plan: its digest.

        Raises:
            BudgetExceededError: if the population's cap does not cover the plan (by digest).
        """
        self.log.refresh()
        name = self.state.population_of(data_set)
        cap, history, events = self._standing(name, plan)
        if run in history or events is None:
            return
        composed = self.is_composed(name, plan, events, cap.relation)
        decision = decide_whole(cap, history, *events, composed=composed)
        if not decision.allowed:
            raise BudgetExceededError(
                f"run '{run}' would not come to its end: {decision.against(cap)}; "
                f"{self.spent(name)} is spent"
            )

    def _require_open_plan(self, plan: str) -> None:
        failed, most = self.state.failures(plan), plan_attempts(self.log.store, plan)
        if failed >= most:
            raise PlanClosedError(
                f"plan {plan} is closed here: {failed} of its attempts failed in a row, and their "
                f"charges stay (training.max_attempts = {most})"
            )

    def _require_cover(self, name: str, request: Request) -> None:
        """Check that the population's cap covers the request (accounting/renyi_filter.py)."""
        order = request.order
        cap, history, events = self._standing(name, order.plan)
        composed = events is None or self.is_composed(name, order.plan, events, cap.relation)
        decision = decide(
            cap, history, order.run, request.event, *(events or (None,)), composed=composed
        )
        if not decision.allowed:
            raise BudgetExceededError(
                f"{order.slot}: {decision.against(cap)}; {self.spent(name)} is spent"
            )

    def _standing(
        self, population: str, plan: str
    ) -> tuple[Cap, History, tuple[Counts, Counts] | None]:
        """Return a population's cap and charges, and :func:`plan_events` of ``plan``."""
        store, budget = self.log.store, self.state.populations[population].budget
        cap = Cap(budget.epsilon, budget.delta, budget.unit, budget.relation)
        return cap, history_of(store, self.state, population), plan_events(store, plan)

    def _require_open(self, reservation: Reservation) -> Reservation:
        found = self.state.open.get(reservation.number)
        if found is None or found != reservation:
            raise LedgerError(f"{reservation.slot}: reservation {reservation.number} is not open")
        return found

    def _abort(self, reservation: Reservation, *, data_opened: bool, reason: str) -> None:
        self._append_plain(
            "aborted", reservation=reservation.number, data_opened=data_opened, reason=reason
        )

    def _population(self, name: str | None) -> str:
        if name is not None:
            return name
        if len(self.state.populations) != 1:
            raise LedgerError("name a population: the ledger has several, or none")
        return next(iter(self.state.populations))


def read_history(folder: Path, population: str) -> History:
    """Return what was charged to ``population`` by the ledger in ``folder``, by run.

    Needs no key. No ledger yet, or a population that is not in it, means no charges.

    Args:
        folder: holds ``ledger.db``.
        population: its name.

    Raises:
        LedgerError: if the ledger cannot be read.
    """
    if not (folder / FILE).exists():
        return {}
    ledger = Ledger.read(folder)
    found = ledger.charges(population)
    ledger.log.store.close()
    return found


def _slot_fields(order: Order) -> dict[str, Any]:
    if len(order.keyid) != 64:
        raise LedgerError(f"{order.slot}: an order that nobody signed has no place in a ledger")
    return {
        "run": order.run,
        "round": order.round,
        "attempt": order.attempt,
        "purpose": order.purpose,
        "order": order.digest,
        "keyid": order.keyid,
        "plan": order.plan,
        "model": order.model,
    }
