"""What the first run's plan leaves of δ to each rule, by the format page.

Whether a first run is finished, or left for another, may depend on its results: what its plan
can use of δ, where no filter holds it whole, is not there twice.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from privet.privacy.audit.verify.cost import accounting
from privet.privacy.audit.verify.cost.accounting import FILTER_ORDERS
from privet.privacy.audit.verify.cost.gaussian import largest, log_delta, square
from privet.privacy.audit.verify.cost.plans import AuditedPlan
from privet.privacy.audit.verify.formats.events import Event


@dataclass(frozen=True)
class AuditedSplit:
    """δ of the Rényi filter; Σ μ² of the Gaussian one (None: none); extra attempts of one run."""

    renyi: float
    room: float | None
    extra: int


def split(plan: AuditedPlan | None, cap: float, delta: float, relation: str) -> AuditedSplit:
    """Return the split after a first run of ``plan`` (None: not known).

    Args:
        plan: of the run that was charged first.
        cap: ε of the population, with the allowance for rounding.
        delta: of the population.
        relation: of the population.
    """
    if plan is None or not plan.planned:
        return AuditedSplit(delta, None, -1)
    planned = plan.planned
    squares = [square(event, relation) for event in planned]
    if None not in squares:
        return _of_gaussians(math.fsum(s for s in squares if s is not None), cap, delta)
    if not accounting.fits(planned, delta, relation, cap):
        return AuditedSplit(delta, None, -1)
    limit = plan.most_extra

    def is_held(extra: int) -> bool:
        return _renyi_holds(plan.with_more(extra), cap, delta, relation)

    if is_held(limit):
        return AuditedSplit(delta, None, limit)
    held = _last(is_held, limit)
    # The filter admits the plan: extra attempts may take a tenth of δ from later plans, not more.
    share = delta if held < 0 else delta / 10

    def is_composed(extra: int) -> bool:
        return accounting.fits(plan.with_more(extra), share, relation, cap)

    extra = max(held, 0, _last(is_composed, limit))
    if extra == held:
        return AuditedSplit(delta, None, extra)
    used = accounting.delta_at(plan.with_more(extra), cap, relation)
    return AuditedSplit(max(0.0, delta - used), None, extra)


def _of_gaussians(total: float, cap: float, delta: float) -> AuditedSplit:
    used = 0.99 * delta
    room = largest(cap, used) ** 2
    if room < total <= largest(cap, delta) ** 2:  # a plan that was calibrated to the whole cap
        used = max(used, math.exp(log_delta(math.sqrt(total), cap)))
        room = total * (1 + 1e-9)
    return AuditedSplit(max(0.0, delta - used), room, -1)


def _renyi_holds(events: list[Event], cap: float, delta: float, relation: str) -> bool:
    parts = len(FILTER_ORDERS)
    return any(
        math.fsum(e.count * accounting.rho(e.mechanism, order, relation) for e in events)
        + accounting.converted(order, delta, parts)
        <= cap
        for order in FILTER_ORDERS
    )


def _last(holds: Callable[[int], bool], limit: int) -> int:
    """Return the last of 0 to ``limit`` that holds, as all before it do; -1 if none."""
    low, high = -1, limit + 1
    while high - low > 1:
        middle = (low + high) // 2
        if holds(middle):
            low = middle
        else:
            high = middle
    return low
