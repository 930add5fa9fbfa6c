"""The Rényi filter: a bound for mechanisms that are chosen after results.

With orders Λ it lets an event happen while some α in Λ has Σ ρ(α) ≤ B(α), where

    B(α) = ε − ln((α−1)/α) + (ln(δ/|Λ|) + ln α)/(α−1)

is the budget that converts to (ε, δ/|Λ|) (Canonne, Kamath and Steinke 2020, Proposition
12). That holds under full adaptivity (Feldman and Zrnic 2021); outcomes are split by the
order that lasted, and each share costs δ/|Λ| at most (Lécuyer 2021).
"""

from __future__ import annotations

import logging
import math
from functools import lru_cache

from privet.privacy.accounting.events import (
    Counts,
    DiscreteGaussian,
    Event,
    Gaussian,
    PoissonSampled,
    group,
)
from privet.privacy.accounting.units import Relation

ORDERS = (2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 48, 64, 128, 256, 512)
SLACK = 5e-7
"""For rounding: half of what the verifier allows, so that it never sees more than was let in."""


def rho(event: Event, relation: Relation = Relation.ADD_OR_REMOVE_ONE) -> tuple[float, ...]:
    """Return an upper bound of the Rényi divergence of ``event`` at each of ORDERS.

    Args:
        event: what ran.
        relation: between neighbouring data sets; under ``replace_one`` a value moves twice as far.

    Returns:
        Infinity for an event that is not private, or for which no bound is known.
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
            ratio = relation.moves * sensitivity / std
            return tuple(order * ratio**2 / 2 for order in ORDERS)
        case PoissonSampled(rate, Gaussian() as inner) if add and rate < 1:
            noise = inner.standard_deviation / inner.sensitivity
            return _accountant(rate, noise)
        # Sampling never costs more than none (the divergence is jointly quasi-convex).
        case PoissonSampled(_, Gaussian() as inner):
            return _rho(inner, relation)
        case _:
            return (math.inf,) * len(ORDERS)


def _accountant(rate: float, noise: float) -> tuple[float, ...]:
    # Here and not above: it takes a second, and most commands of an operator compute nothing.
    import dp_accounting as dp
    from dp_accounting import rdp

    event = dp.PoissonSampledDpEvent(rate, dp.GaussianDpEvent(noise))
    logging.getLogger("absl").setLevel(logging.ERROR)
    engine = rdp.RdpAccountant(orders=list(ORDERS))
    return tuple(float(value) for value in engine.compose(event).rdp)


def budget(epsilon: float, delta: float) -> tuple[float, ...]:
    """Return B(α) at each of ORDERS, as in the module's formula.

    Args:
        epsilon: ε of the cap.
        delta: δ of the filter, shared evenly among ORDERS; −∞ is returned if it is not positive.
    """
    return tuple(epsilon - _overhead(order, delta) for order in ORDERS)


def _overhead(order: int, delta: float) -> float:
    """Return what the conversion from ρ to ε adds at ``order`` for a share of ``delta``."""
    if delta <= 0:
        return math.inf
    share = math.log(delta / len(ORDERS))
    return math.log((order - 1) / order) - (share + math.log(order)) / (order - 1)


def spent(counts: Counts, relation: Relation) -> tuple[float, ...]:
    """Return Σ ρ(α) of all charges at each of ORDERS.

    Args:
        counts: the events that were charged, each with its number.
        relation: between neighbouring data sets.
    """
    terms = [(count, _rho(event, relation)) for event, count in counts if count]
    return tuple(
        math.fsum(count * values[place] for count, values in terms) for place in range(len(ORDERS))
    )


def filter_epsilon(counts: Counts, delta: float, relation: Relation) -> tuple[float, int]:
    """Return ε of all charges as the filter counts them, and the order that gives it.

    Args:
        counts: the events that were charged, each with its number.
        delta: δ of the filter.
        relation: between neighbouring data sets.
    """
    sums = zip(spent(counts, relation), ORDERS, strict=True)
    return min((total + _overhead(order, delta), order) for total, order in sums)


def fits(counts: Counts, epsilon: float, delta: float, relation: Relation) -> bool:
    """Return whether the filter admits all charges under a cap, with :data:`SLACK` for rounding.

    Args:
        counts: the charges, the one that is asked for included.
        epsilon: ε of the cap.
        delta: δ of the filter.
        relation: between neighbouring data sets.
    """
    return admits(counts, epsilon + SLACK, delta, relation)


def admits(counts: Counts, epsilon: float, delta: float, relation: Relation) -> bool:
    """Return the same as :func:`fits`, without an allowance for rounding.

    Args:
        counts: the charges, the one that is asked for included.
        epsilon: ε of the cap.
        delta: δ of the filter.
        relation: between neighbouring data sets.
    """
    return not counts or filter_epsilon(counts, delta, relation)[0] <= epsilon
