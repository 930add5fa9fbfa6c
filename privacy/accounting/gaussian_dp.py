"""Gaussian differential privacy: what plain Gaussian noise costs, exactly.

Noise of standard deviation σ on a value of L2 sensitivity Δ is μ-GDP with μ = Δ/σ. Such
mechanisms compose by Σ μ², also where each μ is chosen after the results of the earlier
ones (see privacy/accounting/renyi_filter.py), and

    δ(ε) = Φ(−ε/μ + μ/2) − e^ε Φ(−ε/μ − μ/2)

is not a bound but the value itself (Balle and Wang 2018, Theorem 8; Dong, Roth and Su
2022, Corollary 2.13). This is no use of the central limit theorem, which
``accounting.epsilon`` refuses: nothing is taken for Gaussian that is not.
"""

from __future__ import annotations

import math
from functools import lru_cache

from privet.privacy.accounting.events import (
    Counts,
    DiscreteGaussian,
    Event,
    Gaussian,
    PoissonSampled,
)
from privet.privacy.accounting.units import Relation

_MIN_MU = 1e-9
_LOG_ROOT_TWO_PI = math.log(2 * math.pi) / 2


def as_gaussian(event: Event) -> float | None:
    """Return μ of one run of ``event`` under add or remove, or None if it is no plain Gaussian.

    This function alone says which events count as Gaussian noise without sampling. A discrete
    Gaussian counts as the continuous one that dominates it: it is made from that one's output
    without reading the data again, to a factor below 1 + 1e-70 for a whole table
    (:attr:`~privet.privacy.accounting.events.DiscreteGaussian.dominating`), which no number of
    releases makes visible in a double, however they are chosen.
    """
    match event:
        case Gaussian(deviation, sensitivity):
            return sensitivity / deviation
        case DiscreteGaussian() if (continuous := event.dominating) is not None:
            return as_gaussian(continuous)
        case PoissonSampled(1, inner):
            return as_gaussian(inner)
    return None


def squares(counts: Counts, relation: Relation) -> float | None:
    """Return Σ μ² of all charges, or None if one of them is not plain Gaussian noise.

    Args:
        counts: the events, each with its number.
        relation: under ``replace_one`` a value moves by at most twice its sensitivity.
    """
    terms = []
    for event, count in counts:
        mu = as_gaussian(event)
        if mu is None:
            return None
        terms.append(relation.moves**2 * count * mu**2)
    return math.fsum(terms)


def delta_of(mu: float, epsilon: float) -> float:
    """Return δ of a μ-GDP mechanism at ε, by the module's formula.

    Args:
        mu: μ, sensitivity ÷ standard deviation; 0 for a mechanism that reveals nothing.
        epsilon: ε.
    """
    return math.exp(_log_delta(mu, epsilon)) if mu > 0 else 0.0


@lru_cache(maxsize=1024)
def mu_of(epsilon: float, delta: float) -> float:
    """Return the largest μ that costs at most (ε, δ); 0 if there is none.

    Args:
        epsilon: ε.
        delta: δ.
    """
    if epsilon < 0 or delta <= 0:
        return 0.0
    goal, high = math.log(delta), 1.0
    if _log_delta(_MIN_MU, epsilon) > goal:
        return 0.0
    while _log_delta(high, epsilon) <= goal:
        high *= 2
    from scipy.optimize import brentq

    found = brentq(lambda mu: _log_delta(mu, epsilon) - goal, _MIN_MU, high, xtol=1e-14, rtol=1e-13)
    return float(found) * (1 - 1e-12)  # the root's own error must not let a larger μ pass


def epsilon_of(mu: float, delta: float) -> float:
    """Return the least ε at which a μ-GDP mechanism has at most δ.

    Args:
        mu: μ, sensitivity ÷ standard deviation.
        delta: δ; infinity is returned if it is not positive.
    """
    if mu <= 0:
        return 0.0
    if math.isinf(mu) or delta <= 0:
        return math.inf
    goal = math.log(delta)
    if _log_delta(mu, 0.0) <= goal:
        return 0.0
    high = mu * mu / 2 + mu * math.sqrt(2 * abs(goal)) + 1  # the tail bound of the loss
    from scipy.optimize import brentq

    return float(brentq(lambda epsilon: _log_delta(mu, epsilon) - goal, 0.0, high, xtol=1e-12))


def _log_delta(mu: float, epsilon: float) -> float:
    """Return ln δ, without cancelling where δ is tiny.

    With a = −ε/μ + μ/2, b = −ε/μ − μ/2 and the normal density φ, φ(a) = e^ε φ(b); so
    δ = φ(a) (R(−a) − R(−b)) with Mills' ratio R.
    """
    a, b = -epsilon / mu + mu / 2, -epsilon / mu - mu / 2
    log_density = -a * a / 2 - _LOG_ROOT_TWO_PI
    # R(−a) overflows where a is large, and elsewhere Φ(a) and e^ε Φ(b) may be nearly equal.
    if a > 0:
        from scipy.special import ndtr

        part = ndtr(a) - math.exp(log_density) * _mills(-b)
        log_density = 0.0
    else:
        part = _mills(-a) - _mills(-b)
    if part <= 0:
        return -math.inf
    return log_density + math.log(part)


def _mills(x: float) -> float:
    from scipy.special import erfcx

    return math.sqrt(math.pi / 2) * float(erfcx(x / math.sqrt(2)))
