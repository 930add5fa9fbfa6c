"""The cap of a population over its whole life, whoever asks for what and when.

Within one run what may happen is fixed before it starts, so its whole plan is composed
once, by privacy loss distributions. Once anything else is asked for, people chose it after
seeing results, and composition theorems for parameters fixed in advance do not hold (H29).
Then a Rényi filter holds the cap (Feldman and Zrnic 2021): with orders Λ it lets an event
happen while some α in Λ has Σ ρ(α) ≤ B(α), where

    B(α) = ε − ln((α−1)/α) + (ln(δ/|Λ|) + ln α)/(α−1)

is the budget that converts to (ε, δ/|Λ|) (Canonne, Kamath and Steinke 2020, Proposition
12); outcomes are split by the order that lasted, and each share costs δ/|Λ| at most.

The two ways share one δ. Whether a first run that only loss distributions admit goes on,
or is left for something else, may depend on its results, so both can use up δ. The filter
therefore gets what the first run's plan leaves: δ less the δ of that plan at the cap's ε,
or all of δ where the filter admits that plan in whole.

Nothing here reads or writes anything.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import dp_accounting as dp
from dp_accounting import rdp

from privet.common.errors import InputError
from privet.privacy import accounting
from privet.privacy.events import (
    Counts,
    DiscreteGaussian,
    Event,
    Gaussian,
    Laplace,
    MixtureOfGaussians,
    PoissonSampled,
    Repeated,
    group,
    within,
)
from privet.privacy.units import PrivacyLoss, Relation, Unit

ORDERS = (2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 48, 64, 128, 256, 512)
SLACK = 5e-7
"""For rounding: half of what the verifier allows, so that it never sees more than was let in."""
LEAST_RATIO = 0.2
"""Noise below this fraction of the sensitivity has no distribution that a verifier composes."""

Rule = Literal["no cap", "one run", "filter"]


@dataclass(frozen=True)
class Cap:
    """The life-time cap of a population; ``epsilon`` None is no cap (simulations only)."""

    epsilon: float | None
    delta: float
    unit: Unit
    relation: Relation


@dataclass(frozen=True)
class Charges:
    """What one run was charged so far, and all that its plan may ever do.

    ``planned`` None: the plan is not known, so the run is held by the filter alone.
    """

    counts: Counts
    planned: Counts | None = None


History = Mapping[str, Charges]
"""Charges by run, in the order in which the runs were first charged."""


@dataclass(frozen=True)
class Decision:
    """Whether an event may happen, by which rule, and the figures behind it.

    Attributes:
        allowed: the answer.
        rule: ``one run``: all charges are within one plan, whose composition fits the cap;
            ``filter``: the Rényi filter; ``no cap``.
        epsilon: what the rule counts, to be compared with the cap: ε of the whole plan, or
            of all charges as the filter sees them; 0 without a cap.
        order: the order that decided; None but for the filter.
    """

    allowed: bool
    rule: Rule
    epsilon: float
    order: int | None = None

    def against(self, cap: Cap) -> str:
        """Return the decision in words, with δ, unit and relation (H27)."""
        if cap.epsilon is None:
            return "this population has no cap"
        loss = PrivacyLoss(max(0.0, self.epsilon), cap.delta, cap.unit, cap.relation)
        what = "the whole plan costs" if self.rule == "one run" else "the filter counts"
        return f"{what} {loss}, the cap is ε {cap.epsilon:g}"


def rho(event: Event, relation: Relation = Relation.ADD_OR_REMOVE_ONE) -> tuple[float, ...]:
    """Return an upper bound of the Rényi divergence of ``event`` at each of ORDERS.

    Infinite for what is not private and for what no bound is known for.
    """
    return tuple(
        math.fsum(count * _rho(single, relation)[place] for single, count in group([event]))
        for place in range(len(ORDERS))
    )


@lru_cache(maxsize=1024)
def _rho(event: Event, relation: Relation) -> tuple[float, ...]:
    add = relation is Relation.ADD_OR_REMOVE_ONE
    match event:
        # The discrete one diverges no more (Canonne, Kamath and Steinke 2020, Theorem 14).
        case Gaussian(std, sensitivity) | DiscreteGaussian(std, sensitivity):
            ratio = (sensitivity if add else 2 * sensitivity) / std
            return tuple(order * ratio**2 / 2 for order in ORDERS)
        case PoissonSampled(rate, Gaussian() as inner) if add and rate < 1:
            noise = inner.standard_deviation / inner.sensitivity
            return _accountant(dp.PoissonSampledDpEvent(rate, dp.GaussianDpEvent(noise)))
        case Laplace(scale, sensitivity) if add:
            return _accountant(dp.LaplaceDpEvent(scale / sensitivity))
        # Sampling never costs more than none (the divergence is jointly quasi-convex).
        case PoissonSampled(_, Gaussian() | Laplace() as inner):
            return _rho(inner, relation)
        case MixtureOfGaussians() if add:
            return _rho(event.dominating, relation)
        case _:
            return (math.inf,) * len(ORDERS)


def _accountant(event: dp.DpEvent) -> tuple[float, ...]:
    logging.getLogger("absl").setLevel(logging.ERROR)
    engine = rdp.RdpAccountant(orders=list(ORDERS))
    return tuple(float(value) for value in engine.compose(event).rdp)


def budget(epsilon: float, delta: float) -> tuple[float, ...]:
    """Return B(α) at each of ORDERS; −∞ where ``delta`` is not positive."""
    return tuple(epsilon - _overhead(order, delta) for order in ORDERS)


def _overhead(order: int, delta: float) -> float:
    """Return what the conversion from ρ to ε adds at ``order`` for a share of ``delta``."""
    if delta <= 0:
        return math.inf
    share = math.log(delta / len(ORDERS))
    return math.log((order - 1) / order) - (share + math.log(order)) / (order - 1)


def spent(counts: Counts, relation: Relation) -> tuple[float, ...]:
    """Return Σ ρ(α) of all charges at each of ORDERS."""
    terms = [(count, _rho(event, relation)) for event, count in counts if count]
    return tuple(
        math.fsum(count * values[place] for count, values in terms) for place in range(len(ORDERS))
    )


def filter_epsilon(counts: Counts, delta: float, relation: Relation) -> tuple[float, int]:
    """Return ε of all charges as the filter counts them, and the order that gives it."""
    sums = zip(spent(counts, relation), ORDERS, strict=True)
    return min((total + _overhead(order, delta), order) for total, order in sums)


def fits(counts: Counts, epsilon: float, delta: float, relation: Relation) -> bool:
    """Whether the filter lets all of ``counts`` happen under (``epsilon``, ``delta``)."""
    return not counts or filter_epsilon(counts, delta, relation)[0] <= epsilon + SLACK


def decide(cap: Cap, history: History, run: str, event: Event, planned: Counts | None) -> Decision:
    """Say whether ``event`` of ``run`` may happen after ``history``.

    A run whose whole plan was found to fit needs no new composition for its later events:
    what is part of a multiset costs no more than the whole.

    Args:
        cap: of the population.
        history: all charges so far that were not given back.
        run: the run that asks.
        event: what it asks for.
        planned: all that the run's plan may ever do; the same at each of its events.

    Raises:
        InputError: if the run was charged under another plan before.
    """
    return _decide(cap, history, run, group([event]), planned)


def decide_whole(cap: Cap, history: History, planned: Counts) -> Decision:
    """Say whether a new run of a plan may be begun and would come to its end."""
    new = max(history, key=len, default="") + "+"
    return _decide(cap, history, new, planned, planned)


def _decide(
    cap: Cap, history: History, run: str, asked: Counts, planned: Counts | None
) -> Decision:
    if run in history and history[run].planned != planned:
        raise InputError(f"run '{run}' was charged under another plan before")
    if cap.epsilon is None:
        return Decision(True, "no cap", 0.0)
    before = history[run].counts if run in history else ()
    after = {key: value for key, value in history.items() if value.counts}
    after[run] = Charges(merged([before, asked]), planned)
    first = next(iter(after.values()))
    if len(after) == 1 and first.planned is not None and within(first.counts, first.planned):
        whole = _plan_epsilon(cap, first.planned)
        if whole <= cap.epsilon + SLACK:
            return Decision(True, "one run", whole)
    total = merged(charges.counts for charges in after.values())
    counted, order = filter_epsilon(total, delta_left(cap, first.planned), cap.relation)
    return Decision(counted <= cap.epsilon + SLACK, "filter", counted, order)


@lru_cache(maxsize=64)
def delta_left(cap: Cap, first_plan: Counts | None) -> float:
    """Return the δ that the population's first plan leaves to the filter."""
    if cap.epsilon is None or first_plan is None:
        return cap.delta
    if fits(first_plan, cap.epsilon, cap.delta, cap.relation):
        return cap.delta  # the filter holds the first run, too: nothing is spent beside it
    if _plan_epsilon(cap, first_plan) > cap.epsilon + SLACK:
        return cap.delta  # the first run was never admitted but by the filter
    return cap.delta - accounting.delta_at(
        _as_events(first_plan), cap.epsilon + SLACK, cap.relation
    )


def runs_that_fit(cap: Cap, history: History, planned: Counts) -> int | None:
    """Return how many runs of one plan may still be begun and finished; None without a cap."""
    if cap.epsilon is None:
        return None
    charged = [charges for charges in history.values() if charges.counts]
    plan = charged[0].planned if charged else planned
    used = spent(merged(charges.counts for charges in charged), cap.relation)
    room = budget(cap.epsilon, delta_left(cap, plan))
    each = spent(planned, cap.relation)
    whole = [
        math.floor((have - gone + SLACK) / cost) if cost > 0 and gone < math.inf else 0
        for have, gone, cost in zip(room, used, each, strict=True)
        if have > -math.inf
    ]
    alone = not charged and _plan_epsilon(cap, planned) <= cap.epsilon + SLACK
    return max(0, int(alone), *whole)


def merged(parts: Iterable[Counts]) -> Counts:
    """Return the sum of several counts."""
    return group(event for counts in parts for event in _as_events(counts))


def _plan_epsilon(cap: Cap, planned: Counts) -> float:
    if any(_ratio(event) < LEAST_RATIO for event, _ in planned):
        return math.inf  # as the verifier has it: only the filter can admit it
    try:
        return accounting.epsilon(_as_events(planned), cap.delta, cap.relation)
    except InputError:
        return math.inf  # no composition is known: only the filter can admit it


def _ratio(event: Event) -> float:
    """Return noise by sensitivity."""
    match event:
        case PoissonSampled(_, inner):
            return _ratio(inner)
        case (
            Gaussian(noise, sensitivity)
            | DiscreteGaussian(noise, sensitivity)
            | Laplace(noise, sensitivity)
        ):
            return noise / sensitivity
        case MixtureOfGaussians():
            return event.standard_deviation / max(event.sensitivities)
    return math.inf


def _as_events(counts: Counts) -> list[Event]:
    return [Repeated(event, count) for event, count in counts]
