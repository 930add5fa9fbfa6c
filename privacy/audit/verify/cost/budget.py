"""The cap of one population, held at every prefix of its ledger.

Charges of one run are held by the composition of its whole plan, by privacy loss distributions,
with no more extra attempts than the page allows. Plain Gaussian noise after a first plan of plain
Gaussian noise is held by a Gaussian filter. All other states are held by the Rényi filter. Both
filters sum in fixed-point integers, which neither drift nor cancel when a charge is given back.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter
from dataclasses import dataclass
from typing import Any, Literal

from privet.privacy.audit.verify.cost import accounting
from privet.privacy.audit.verify.cost.accounting import FILTER_ORDERS, SLACK
from privet.privacy.audit.verify.cost.first_plans import FirstPlans
from privet.privacy.audit.verify.cost.gaussian import square
from privet.privacy.audit.verify.cost.plans import AuditedPlan
from privet.privacy.audit.verify.cost.split import AuditedSplit, split
from privet.privacy.audit.verify.formats.events import Event

_ONE = 1 << 64


@dataclass(frozen=True)
class AuditedCharge:
    """One reservation, as far as its cost is concerned; ``plan`` is None if it is not fixed."""

    run: str
    purpose: str
    event: Event
    plan: AuditedPlan | None


def _in_units(value: float | None) -> int:
    """Return a cost rounded up; -1 for an infinite one, or none."""
    if value is None or not math.isfinite(value):
        return -1
    return math.ceil(value * _ONE)


class Filter:
    """The two filters, with what the first run's plan leaves to each of them."""

    def __init__(
        self, cap: float, delta: float, relation: str, first_plans: FirstPlans | None = None
    ) -> None:
        self._cap, self._delta, self._relation = cap, delta, relation
        self._sums = [0] * len(FILTER_ORDERS)
        self._infinite = [0] * len(FILTER_ORDERS)
        self._squares = self._others = 0
        self._splits: dict[AuditedPlan | None, tuple[AuditedSplit, list[int] | None]] = {}
        self._first_plans = first_plans or FirstPlans()
        self._composed: dict[AuditedPlan, bool] = {}
        self._cost: dict[Event, tuple[list[int], int]] = {}
        self._last = 0

    def _limits(self, delta: float) -> list[int] | None:
        """Return B(α) by order; None where nothing of δ is left."""
        if delta <= 0:
            return None
        parts = len(FILTER_ORDERS)
        return [
            math.floor((self._cap - accounting.converted(order, delta, parts) + SLACK) * _ONE)
            for order in FILTER_ORDERS
        ]

    def composes(self, first: AuditedPlan) -> bool:
        """Return whether a first plan is composed, as it is decided when it becomes the first.

        One that is not counts as not known.
        """
        found = self._composed.get(first)
        if found is None:
            found = self._composed[first] = self._first_plans.add(first, self._relation)
        return found

    def _after(self, first: AuditedPlan | None) -> tuple[AuditedSplit, list[int] | None]:
        found = self._splits.get(first)
        if found is None:
            known = first
            if first is not None and not self.composes(first):
                known = None
            shares = split(known, self._cap + SLACK, self._delta, self._relation)
            found = self._splits[first] = shares, self._limits(shares.renyi)
        return found

    def _limits_after(self, first: AuditedPlan | None) -> list[int] | None:
        """Return B(α) where the first run's plan is ``first`` (None: not known)."""
        return self._after(first)[1]

    def extra(self, first: AuditedPlan) -> int:
        """Return how many more attempts than planned a first run may make while it is alone."""
        return self._after(first)[0].extra

    def _fixed(self, event: Event) -> tuple[list[int], int]:
        """Return ρ of ``event`` by order, and its μ², rounded up; -1 for infinity, or none."""
        cost = self._cost.get(event)
        if cost is None:
            values = [
                event.count * accounting.rho(event.mechanism, order, self._relation)
                for order in FILTER_ORDERS
            ]
            squared = _in_units(square(event, self._relation))
            cost = self._cost[event] = [_in_units(value) for value in values], squared
        return cost

    def add(self, event: Event, sign: int) -> None:
        """Charge ``event`` (sign 1), or give it back (sign -1).

        Args:
            event: that is charged.
            sign: 1, or -1 if it is given back.
        """
        # Sums of integers: what is given back leaves them exactly as they were.
        sums, infinite = self._sums, self._infinite
        costs, squared = self._fixed(event)
        for place, value in enumerate(costs):
            if value < 0:
                infinite[place] += sign
            else:
                sums[place] += sign * value
        if squared < 0:
            self._others += sign
        else:
            self._squares += sign * squared

    def holds_gaussians(self, first: AuditedPlan | None) -> bool:
        """Return whether all charges are plain Gaussians, after a first run of such, and fit."""
        room = self._after(first)[0].room
        return room is not None and not self._others and self._squares <= room * _ONE

    def has_gaussians(self, first: AuditedPlan | None) -> bool:
        """Return whether there is a Gaussian filter after a first run of ``first``."""
        return self._after(first)[0].room is not None

    def has_room(self, first: AuditedPlan, events: list[Event]) -> bool:
        """Return whether the Gaussian filter would hold ``events`` and nothing else.

        Args:
            first: plan of the run that was charged first.
            events: with their counts.
        """
        room = self._after(first)[0].room
        squares = [square(event, self._relation) for event in events]
        return room is not None and math.fsum(s or 0.0 for s in squares) <= room

    def holds(self, first: AuditedPlan | None) -> bool:
        """Return whether a filter holds all charges now, after a first run of ``first``."""
        if self.holds_gaussians(first):
            return True
        bounds = self._limits_after(first)
        if bounds is None:
            return False
        sums, infinite = self._sums, self._infinite
        if not infinite[self._last] and sums[self._last] <= bounds[self._last]:
            return True
        for place, bound in enumerate(bounds):
            if not infinite[place] and sums[place] <= bound:
                self._last = place
                return True
        return False


def _count(counter: Counter[Any], key: object, sign: int) -> None:
    counter[key] += sign
    if not counter[key]:
        del counter[key]


class AuditedBudget:
    """The charges of one population with its cap (None: no cap).

    Args:
        cap: ε of the population.
        delta: of the population.
        relation: of the population.
        first_plans: those of all populations of the ledger.
    """

    def __init__(
        self, cap: float | None, delta: float, relation: str, first_plans: FirstPlans | None = None
    ) -> None:
        self.cap, self.delta, self.relation = cap, delta, relation
        self.counts: Counter[Event] = Counter()
        self.charges = 0
        self.fault: tuple[int, str] | None = None
        self._filter = None if cap is None else Filter(cap, delta, relation, first_plans)
        self._runs: Counter[str] = Counter()
        self._order: dict[str, int] = {}
        self._plans: list[tuple[str, AuditedPlan | None]] = []
        self._present: list[int] = []
        self._kinds: Counter[tuple[str, AuditedPlan | None, str]] = Counter()
        self._loose = 0
        self._whole: dict[AuditedPlan, bool] = {}

    @property
    def runs(self) -> int:
        """How many runs the charges belong to."""
        return len(self._runs)

    @property
    def enforced_by(self) -> Literal["pld", "gaussian filter", "filter", "none"]:
        """What holds the cap now."""
        if self._filter is None:
            return "none"
        if not self.charges or self._is_one_run_that_fits():
            return "pld"
        return "gaussian filter" if self._filter.holds_gaussians(self._first_plan()) else "filter"

    def add(self, sequence: int, charge: AuditedCharge, sign: int = 1) -> None:
        """Charge a reservation, or give it back; then the cap must hold.

        Args:
            sequence: of the entry.
            charge: what it costs.
            sign: 1, or -1 if it is given back.
        """
        self.charges += sign
        _count(self.counts, charge.event, sign)
        _count(self._runs, charge.run, sign)
        if sign > 0 and self._runs[charge.run] == 1:
            self._arrive(charge)
        _count(self._kinds, (charge.run, charge.plan, charge.purpose), sign)
        self._loose += sign * (charge.plan is None)
        if self._filter is None:
            return
        self._filter.add(charge.event, sign)
        first = self._first_plan()
        if first is not None:  # it is decided now, in the order of all populations
            self._filter.composes(first)
        if self.fault is None and self.charges:
            self._check(sequence)

    def _one_run(self) -> AuditedPlan | None:
        """Return the plan if all charges are one run's and of the kinds that it fixes."""
        if len(self._runs) != 1 or self._loose or len(self._kinds) > 2:
            return None
        _, plan, _ = next(iter(self._kinds))
        if plan is None or any(other is not plan for _, other, _ in self._kinds):
            return None
        return plan

    def _is_one_run_that_fits(self) -> bool:
        """Whether the composition of one run's plan, with few more attempts, holds the charges."""
        plan = self._one_run()
        if plan is None or self._filter is None or not self._filter.composes(plan):
            return False
        run = next(iter(self._runs))
        trained, evaluated = (self._kinds.get((run, plan, p), 0) for p in ("train", "evaluate"))
        extra = plan.excess(trained, evaluated)
        if all(square(event, self.relation) is not None for event in plan.planned):
            return self._filter.has_room(plan, plan.with_more(extra))
        return self._fits(plan) if extra == 0 else extra <= self._filter.extra(plan)

    def _arrive(self, charge: AuditedCharge) -> None:
        """Keep the runs with charges that count in a heap, by when they were first charged.

        A run whose charges were all given back never was; charged again, it comes after the others.
        """
        self._order[charge.run] = len(self._plans)
        self._plans.append((charge.run, charge.plan))
        heapq.heappush(self._present, self._order[charge.run])

    def _is_past(self, place: int) -> bool:
        run = self._plans[place][0]
        return not self._runs[run] or self._order[run] != place

    def _first_plan(self) -> AuditedPlan | None:
        """Return the plan of the run that was charged first, of those that still are."""
        while self._present and self._is_past(self._present[0]):
            heapq.heappop(self._present)
        return self._plans[self._present[0]][1] if self._present else None

    def _check(self, sequence: int) -> None:
        if self._is_one_run_that_fits():
            return
        if self._filter is not None and not self._filter.holds(self._first_plan()):
            what = ""
            if self._one_run() is not None:
                what = "its plan is above the cap, and "
            first = self._first_plan()
            if first is not None and not self._filter.composes(first):
                what = "the first plans of the ledger before its own take all the time, and "
            which, verb = "the Renyi filter", "is"
            if self._filter.has_gaussians(first):
                which, verb = "the Gaussian and the Renyi filter", "are"
            self.fault = (sequence, f"{what}{which} of the population {verb} overrun")

    def _fits(self, plan: AuditedPlan) -> bool:
        """Whether all that the plan fixes is within the cap."""
        if plan not in self._whole:
            self._whole[plan] = self.cap is None or accounting.fits(
                plan.planned, self.delta, self.relation, self.cap + SLACK
            )
        return self._whole[plan]
