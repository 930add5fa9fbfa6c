"""The cap of a population over its whole life, for any sequence of requests by anyone.

**One run.** What a run may do is fixed before it starts, so its whole plan is composed
once, by privacy loss distributions, with a constant number of extra attempts (charges of
attempts that broke are kept). Theorems about parameters fixed in advance apply (H29),
although results may decide the order of the releases, the retries and the end: draw one
sample of every mechanism's dominating pair beforehand, extra ones included; whichever
mechanism the analyst asks for next is a post-processing of its own sample (Blackwell), so
all that is seen is a post-processing of the product of the pairs. That the bound is for a
*fixed* multiset is needed: ``extra`` depends on plan and cap, never on what was charged.

**Later plans** are chosen after results, and a filter holds the cap. If the population's
first plan is plain Gaussian noise, a Gaussian filter admits further plain Gaussians while
Σ μ² ≤ μ(ε, δ_G)², with the exact μ (privacy/accounting/gaussian_dp.py; Smith and Thakurta 2022;
Koskela, Tobaben and Honkela 2023). It loses nothing to adaptivity: a μ-GDP mechanism is a
post-processing of N(0, μ²) against N(μ², μ²), which is the increment over a time of μ² of
a Brownian path without drift against one with drift 1. Each mechanism takes the next
stretch of one path, of a length chosen after the path so far; all that is seen is a
post-processing of the path up to the time μ(ε, δ_G)², whose likelihood ratio depends on
its end alone: N(0, μ²) against N(μ², μ²) once more. All else is held by a Rényi filter
(privacy/accounting/renyi.py), which sums over all charges, those of the Gaussian filter included.

The rules share one δ: privacy/accounting/delta_shares.py has the split and its proof.

Nothing here reads or writes anything.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from privet.common.errors import InputError
from privet.privacy.accounting import gaussian_dp, pld
from privet.privacy.accounting.delta_shares import (
    Shares,
    as_events,
    enlarged,
    excess,
    plan_epsilon,
    shares,
)
from privet.privacy.accounting.delta_shares import merged as merged
from privet.privacy.accounting.events import Counts, Event, group
from privet.privacy.accounting.renyi import ORDERS as ORDERS
from privet.privacy.accounting.renyi import SLACK as SLACK
from privet.privacy.accounting.renyi import budget as budget
from privet.privacy.accounting.renyi import filter_epsilon as filter_epsilon
from privet.privacy.accounting.renyi import fits as fits
from privet.privacy.accounting.renyi import rho as rho
from privet.privacy.accounting.renyi import spent as spent
from privet.privacy.accounting.units import PrivacyLoss, Relation, Unit

Rule = Literal["no cap", "one run", "gaussian filter", "filter"]
_COUNTS: dict[Rule, str] = {
    "one run": "the whole plan costs",
    "gaussian filter": "the Gaussian filter counts",
    "filter": "the filter counts",
}


@dataclass(frozen=True)
class Cap:
    """The lifetime cap of a population; ``epsilon`` None is no cap (simulations only)."""

    epsilon: float | None
    delta: float
    unit: Unit
    relation: Relation


@dataclass(frozen=True)
class Charges:
    """What one run was charged so far, and all that its plan may ever do.

    ``planned`` None: the plan is not known, so the run is held by the filter alone.
    ``once`` is what one more attempt at each of its releases adds; () is each event once.
    ``composed`` False: as a first plan it counts as not known (privacy/accounting/first_plans.py).
    None: it may count as either, and what is asked for must be admitted both ways.
    """

    counts: Counts
    planned: Counts | None = None
    once: Counts = ()
    composed: bool | None = True

    def as_first(self) -> list[Charges]:
        """Return the charges as those of a population's first run, in each way that they count."""
        unknown = Charges(self.counts)
        return {True: [self], False: [unknown], None: [self, unknown]}[self.composed]


History = Mapping[str, Charges]
"""Charges by run, in the order in which the runs were first charged."""


@dataclass(frozen=True)
class Decision:
    """Whether an event may happen, by which rule, and the numbers behind it.

    Attributes:
        allowed: the answer.
        rule: ``one run``: all charges are within one plan, and few more attempts, whose
            composition fits the cap; ``gaussian filter``: all charges are plain Gaussian
            noise; ``filter``: the Rényi filter; ``no cap``.
        epsilon: what the rule counts, to be compared with the cap: ε of the whole plan, or
            of all charges as the filter sees them; 0 without a cap.
        order: the order that decided; None but for the Rényi filter.
        remark: what is to be known about ``epsilon``.
    """

    allowed: bool
    rule: Rule
    epsilon: float
    order: int | None = None
    remark: str = ""

    def against(self, cap: Cap) -> str:
        """Return the decision in words, with δ, unit and relation (H27)."""
        if cap.epsilon is None:
            return "this population has no cap"
        loss = PrivacyLoss(max(0.0, self.epsilon), cap.delta, cap.unit, cap.relation, self.remark)
        what = _COUNTS[self.rule]
        return f"{what} {loss}, the cap is ε {cap.epsilon:g}"


def decide(
    cap: Cap,
    history: History,
    run: str,
    event: Event,
    planned: Counts | None,
    once: Counts = (),
    *,
    composed: bool | None = True,
) -> Decision:
    """Say whether ``event`` of ``run`` may happen after ``history``.

    A run whose whole plan was found to fit needs no new composition for its later events:
    what is part of a multiset costs no more than the whole.

    Args:
        cap: of the population.
        history: all charges so far that were not given back.
        run: the run that asks.
        event: what it asks for.
        planned: all that the run's plan may ever do; the same at each of its events.
        once: what one more attempt at each of the plan's releases adds.
        composed: whether the plan is composed if it is the first
            (privacy/accounting/first_plans.py).

    Raises:
        InputError: if the run was charged under another plan before.
    """
    return _decide(cap, history, run, Charges(group([event]), planned, once, composed))


def decide_whole(
    cap: Cap, history: History, planned: Counts, once: Counts = (), *, composed: bool | None = True
) -> Decision:
    """Decide whether a new run of a plan may begin, and could finish.

    Args:
        cap: of the population.
        history: all charges so far that were not given back.
        planned: all that the plan may ever do.
        once: the events that one more attempt at each of its releases adds.
        composed: whether the plan is composed if it is the first
            (privacy/accounting/first_plans.py).
    """
    new = max(history, key=len, default="") + "+"
    return _decide(cap, history, new, Charges(planned, planned, once, composed))


def _decide(cap: Cap, history: History, run: str, asked: Charges) -> Decision:
    if run in history and history[run].planned != asked.planned:
        raise InputError(f"run '{run}' was charged under another plan before")
    if cap.epsilon is None:
        return Decision(True, "no cap", 0.0)
    before = history.get(run, Charges(())).counts
    after = {key: value for key, value in history.items() if value.counts}
    composed = after.get(run, asked).composed
    after[run] = Charges(merged([before, asked.counts]), asked.planned, asked.once, composed)
    # Where rounding leaves open how the first plan counts, the verifier may read it either way.
    ways = [_decide_after(cap, after, first) for first in next(iter(after.values())).as_first()]
    return next((found for found in ways if not found.allowed), ways[0])


def _decide_after(cap: Cap, after: History, first: Charges) -> Decision:
    """Say whether ``after`` is within the cap, where ``first`` was charged first."""
    assert cap.epsilon is not None
    if len(after) == 1 and (found := _as_planned(cap, first)) is not None:
        return found
    share = _shares(cap, first)
    found = _one_run(cap, first, share) if len(after) == 1 else None
    total = merged(charges.counts for charges in after.values())
    if found is None:
        found = _by_gaussians(cap, total, share)
    if found is not None and found.allowed:
        return found
    counted, order = filter_epsilon(total, share.renyi, cap.relation)
    if counted <= cap.epsilon + SLACK or found is None:
        return Decision(counted <= cap.epsilon + SLACK, "filter", counted, order)
    return found


def _shares(cap: Cap, first: Charges) -> Shares:
    assert cap.epsilon is not None
    return shares(cap.epsilon, cap.delta, cap.relation, first.planned, first.once)


def _as_planned(cap: Cap, first: Charges) -> Decision | None:
    """Return that a run which is alone and within its plan may continue; None if not for sure.

    The usual case, for which nobody need know how δ is shared.
    """
    planned = first.planned
    if planned is None or gaussian_dp.squares(planned, cap.relation) is not None:
        return None
    if excess(first.counts, planned, first.once) != 0 or cap.epsilon is None:
        return None
    epsilon = plan_epsilon(planned, cap.delta, cap.relation)
    if epsilon > cap.epsilon + SLACK:
        return None
    remark = pld.remark(as_events(planned), cap.relation)
    return Decision(True, "one run", epsilon, remark=remark)


def _one_run(cap: Cap, first: Charges, share: Shares) -> Decision | None:
    """Return the decision for a run that is alone, if its plan's composition admits it."""
    planned, once = first.planned, first.once
    if planned is None:
        return None
    extra = excess(first.counts, planned, once)
    if extra is None:
        return None
    whole = enlarged(planned, once, extra)
    if share.room is None:
        if extra > share.extra:
            return None
        epsilon = plan_epsilon(whole, cap.delta, cap.relation)
        remark = pld.remark(as_events(whole), cap.relation)
        return Decision(True, "one run", epsilon, remark=remark)
    found = _by_gaussians(cap, whole, share)
    if found is None or not found.allowed:
        return None
    return Decision(True, "one run", found.epsilon)


def _by_gaussians(cap: Cap, counts: Counts, share: Shares) -> Decision | None:
    """Return what the Gaussian filter says to ``counts``; None where it does not apply."""
    squares = gaussian_dp.squares(counts, cap.relation)
    if squares is None or share.room is None:
        return None
    epsilon = gaussian_dp.epsilon_of(math.sqrt(squares), cap.delta - share.renyi)
    return Decision(squares <= share.room, "gaussian filter", epsilon)


def runs_that_fit(
    cap: Cap, history: History, planned: Counts, once: Counts = (), *, composed: bool | None = True
) -> int | None:
    """Return how many runs of one plan may still begin and finish; None without a cap.

    Args:
        cap: of the population.
        history: all charges so far that were not given back.
        planned: all that the plan may ever do.
        once: the events that one more attempt at each of its releases adds.
        composed: whether the plan is composed if it is the first
            (privacy/accounting/first_plans.py).
    """
    if cap.epsilon is None:
        return None
    charged = [charges for charges in history.values() if charges.counts]
    first = [*charged, Charges((), planned, once, composed)][0]
    total = merged(charges.counts for charges in charged)
    return min(
        _runs_left(cap, total, planned, _shares(cap, way), alone=not charged)
        for way in first.as_first()
    )


def _runs_left(cap: Cap, total: Counts, planned: Counts, share: Shares, *, alone: bool) -> int:
    assert cap.epsilon is not None
    used, each = spent(total, cap.relation), spent(planned, cap.relation)
    whole = [
        math.floor((have - gone + SLACK) / cost) if cost > 0 and gone < math.inf else 0
        for have, gone, cost in zip(budget(cap.epsilon, share.renyi), used, each, strict=True)
        if have > -math.inf
    ]
    known = alone and share.extra >= 0
    return max(0, int(known), _gaussians_that_fit(cap, share, total, planned), *whole)


def _gaussians_that_fit(cap: Cap, share: Shares, total: Counts, planned: Counts) -> int:
    held = gaussian_dp.squares(total, cap.relation)
    each = gaussian_dp.squares(planned, cap.relation)
    if share.room is None or held is None or not each:
        return 0
    return max(0, math.floor((share.room - held) / each))
