"""The cap of one population, held at every prefix of its ledger.

Charges of one run within its plan are held by the composition of the whole plan, by privacy
loss distributions, once. All other states are held by the Rényi filter, in fixed-point
integers, which neither drift nor cancel when a charge is given back.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

from privet.privacy.audit.verify import accounting
from privet.privacy.audit.verify.accounting import FILTER_ORDERS, SLACK
from privet.privacy.audit.verify.events import Event
from privet.privacy.audit.verify.plans import Plan

_ONE = 1 << 64


@dataclass(frozen=True)
class Charge:
    """One reservation, as far as its cost is concerned; ``plan`` is None if it is not fixed."""

    run: str
    purpose: str
    event: Event
    plan: Plan | None


class Filter:
    """Σ ρ(α) ≤ B(α) for some α in Λ, with the δ that the first run's plan leaves."""

    def __init__(self, cap: float, delta: float, relation: str) -> None:
        self._cap, self._delta, self._relation = cap, delta, relation
        self._sums = [0] * len(FILTER_ORDERS)
        self._infinite = [0] * len(FILTER_ORDERS)
        self._bounds: dict[Plan | None, list[int] | None] = {}
        self._cost: dict[Event, list[int]] = {}
        self._last = 0

    def _limits(self, delta: float) -> list[int] | None:
        """Return B(α) by order; None where nothing of δ is left."""
        if delta <= 0:
            return None
        split = len(FILTER_ORDERS)
        return [
            math.floor((self._cap - accounting.converted(order, delta, split) + SLACK) * _ONE)
            for order in FILTER_ORDERS
        ]

    def _limits_after(self, first: Plan | None) -> list[int] | None:
        """Return B(α) where the first run's plan is ``first`` (None: not known).

        Whether that run is finished, or left for another, may depend on its results: what its
        plan can use of δ, where the filter does not hold it whole, is not there twice.
        """
        if first not in self._bounds:
            left = self._delta
            whole = [] if first is None else first.planned
            if whole and not self._covers(whole, self._limits(left)):
                spent, _, _ = accounting.epsilon(whole, left, self._relation)
                if spent <= self._cap + SLACK:
                    left -= accounting.delta_at(whole, self._cap + SLACK, self._relation)
            self._bounds[first] = self._limits(left)
        return self._bounds[first]

    def _covers(self, events: list[Event], limits: list[int] | None) -> bool:
        costs = [self._fixed(event) for event in events]
        return limits is not None and any(
            all(cost[place] >= 0 for cost in costs) and sum(cost[place] for cost in costs) <= limit
            for place, limit in enumerate(limits)
        )

    def _fixed(self, event: Event) -> list[int]:
        """Return ρ of ``event`` by order, rounded up; -1 stands for infinity."""
        cost = self._cost.get(event)
        if cost is None:
            values = [
                event.count * accounting.rho(event.mechanism, order, self._relation)
                for order in FILTER_ORDERS
            ]
            cost = [-1 if math.isinf(v) else math.ceil(v * _ONE) for v in values]
            self._cost[event] = cost
        return cost

    def add(self, event: Event, sign: int) -> None:
        """Charge ``event`` (sign 1), or give it back (sign -1)."""
        sums, infinite = self._sums, self._infinite
        for place, value in enumerate(self._fixed(event)):
            if value < 0:
                infinite[place] += sign
            else:
                sums[place] += sign * value

    def holds(self, first: Plan | None) -> bool:
        """Return whether the cap holds for all charges now, after a first run of ``first``."""
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


class Budget:
    """The charges of one population with its cap (None: no cap)."""

    def __init__(self, cap: float | None, delta: float, relation: str) -> None:
        self.cap, self.delta, self.relation = cap, delta, relation
        self.counts: Counter[Event] = Counter()
        self.charges = 0
        self.fault: tuple[int, str] | None = None
        self._filter = None if cap is None else Filter(cap, delta, relation)
        self._runs: Counter[str] = Counter()
        self._order: dict[str, int] = {}
        self._plans: list[tuple[str, Plan | None]] = []
        self._present: list[int] = []
        self._kinds: Counter[tuple[str, Plan | None, str]] = Counter()
        self._loose = 0
        self._whole: dict[Plan, bool] = {}

    @property
    def runs(self) -> int:
        """How many runs the charges belong to."""
        return len(self._runs)

    @property
    def enforced_by(self) -> str:
        """What holds the cap now: ``pld``, ``filter`` or ``none``."""
        if self.cap is None:
            return "none"
        plan = self._one_run()
        return "pld" if not self.charges or (plan and self._fits(plan)) else "filter"

    def add(self, sequence: int, charge: Charge, sign: int = 1) -> None:
        """Charge a reservation, or give it back; then the cap must hold."""
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
        if self.fault is None and self.charges:
            self._check(sequence)

    def _one_run(self) -> Plan | None:
        """Return the plan if all charges are one run's and no more than it fixes."""
        if len(self._runs) != 1 or self._loose or len(self._kinds) > 2:
            return None
        run, plan, _ = next(iter(self._kinds))
        if plan is None or any(other is not plan for _, other, _ in self._kinds):
            return None
        trained = self._kinds.get((run, plan, "train"), 0)
        evaluated = self._kinds.get((run, plan, "evaluate"), 0)
        if trained > plan.trainings or evaluated > plan.evaluations:
            return None
        return plan

    def _arrive(self, charge: Charge) -> None:
        """Keep the runs with charges that count in a heap, by when they were first charged.

        A run whose charges were all given back never was; charged again, it comes after the others.
        """
        self._order[charge.run] = len(self._plans)
        self._plans.append((charge.run, charge.plan))
        heapq.heappush(self._present, self._order[charge.run])

    def _is_past(self, place: int) -> bool:
        run = self._plans[place][0]
        return not self._runs[run] or self._order[run] != place

    def _first_plan(self) -> Plan | None:
        """Return the plan of the run that was charged first, of those that still are."""
        while self._present and self._is_past(self._present[0]):
            heapq.heappop(self._present)
        return self._plans[self._present[0]][1] if self._present else None

    def _check(self, sequence: int) -> None:
        plan = self._one_run()
        if plan is not None and self._fits(plan):
            return
        if self._filter is not None and not self._filter.holds(self._first_plan()):
            what = "its plan is above the cap, and " if plan is not None else ""
            self.fault = (sequence, f"{what}the Renyi filter of the population is overrun")

    def _fits(self, plan: Plan) -> bool:
        """Whether all that the plan fixes is within the cap, by privacy loss distributions."""
        if plan not in self._whole:
            spent, _, _ = accounting.epsilon(plan.planned, self.delta, self.relation)
            self._whole[plan] = self.cap is None or spent <= self.cap + SLACK
        return self._whole[plan]
