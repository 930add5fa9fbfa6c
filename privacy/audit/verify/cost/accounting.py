"""Two accountants: Rényi (ours, integer orders) and privacy loss distributions (dp-accounting).

Sources: Mironov 2017 (Laplace, table II), Mironov, Talwar and Zhang 2019, section 3.3
(Poisson-sampled Gaussian), Canonne, Kamath and Steinke 2020, Proposition 12 (conversion) and
Theorem 14 (discrete Gaussian), Peikert 2010, Theorem 3.1 (discrete from continuous Gaussian),
Feldman and Zrnic 2021 and Lécuyer 2021 (the filter).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

from privet.privacy.audit.verify.cost.gaussian import MIN_SIGMA, SMOOTHING
from privet.privacy.audit.verify.cost.size import order_two, size_of
from privet.privacy.audit.verify.formats.events import RELATIONS, REPLACE, Event, Mechanism

#: The orders of the filter.
FILTER_ORDERS = (2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 48, 64, 128, 256, 512)
#: The orders of the ceiling.
CEILING_ORDERS = (*range(2, 65), 72, 80, 96, 112, 128, 160, 192, 256, 384, 512)
#: Comparisons of ε allow this much for rounding.
SLACK = 1e-6
GRID = 1e-4
_NORMAL = ("gaussian", "discrete")

# With more mechanisms the ceiling takes the orders of the filter.
_MAX_MECHANISMS = 200
_TINY = 1e-15
_TOO_LARGE = "too large for privacy loss distributions: the Rényi ceiling"
_TOO_SMALL = "of a delta below what privacy loss distributions resolve: the Rényi ceiling"


def _log_expm1(x: float) -> float:
    return math.log(math.expm1(x)) if x < 30 else x + math.log1p(-math.exp(-x))


def _sampled_gaussian(rate: float, ratio: float, order: int) -> float:
    """Return ρ of a Poisson-sampled Gaussian.

    The terms k = 0 and 1 of the sum are 1 minus the rest of a binomial distribution, so the
    sum is 1 + Σ_{k≥2} C(α,k) (1-q)^(α-k) q^k (exp((k²-k)/(2σ²)) - 1), without cancellation.
    """
    log_q, log_rest, top = math.log(rate), math.log1p(-rate), math.lgamma(order + 1)
    terms = [
        top - math.lgamma(k + 1) - math.lgamma(order - k + 1)
        + k * log_q + (order - k) * log_rest
        + _log_expm1((k * k - k) / (2 * ratio * ratio))
        for k in range(2, order + 1)
    ]  # fmt: skip
    most = max(terms)
    log_sum = most + math.log(math.fsum(math.exp(term - most) for term in terms))
    # ln(1 + e^x), of which e^x alone would overflow.
    log_moment = max(log_sum, 0.0) + math.log1p(math.exp(-abs(log_sum)))
    return log_moment / (order - 1)


def _laplace(ratio: float, order: int) -> float:
    first = math.log(order / (2 * order - 1)) + (order - 1) / ratio
    second = math.log((order - 1) / (2 * order - 1)) - order / ratio
    high, low = max(first, second), min(first, second)
    return max(0.0, (high + math.log1p(math.exp(low - high))) / (order - 1))


@lru_cache(maxsize=1 << 16)
def rho(mechanism: Mechanism, order: int, relation: str) -> float:
    """Return the Rényi divergence ρ(α) of one run of ``mechanism``, or infinity.

    Args:
        mechanism: that runs once.
        order: α, an integer from 2.
        relation: ``add_or_remove_one`` or ``replace_one``.
    """
    if mechanism.type == "none" or not mechanism.sensitivities:
        return math.inf
    size, rate = max(mechanism.sensitivities), mechanism.rate
    if mechanism.type == "laplace":
        rate = 1.0
    elif mechanism.type == "mixture":
        pairs = zip(mechanism.sensitivities, mechanism.probabilities, strict=True)
        rate = min(1.0, math.fsum(share for part, share in pairs if part > 0))
    if rate == 0 or size == 0:
        return 0.0
    try:
        if relation == REPLACE and mechanism.type not in _NORMAL:
            return math.inf
        if mechanism.type == "laplace":
            return _laplace(mechanism.scale / size, order)
        if relation == REPLACE:  # without sampling it costs no less, and the sum moves twice as far
            size, rate = 2 * size, 1.0
        ratio = mechanism.scale / size
        if rate == 1:
            return order / (2 * ratio * ratio)
        return _sampled_gaussian(rate, ratio, order)
    except (OverflowError, ZeroDivisionError, ValueError):
        return math.inf


def converted(order: int, delta: float, split: int = 1) -> float:
    """Return what ``order`` adds to Σ ρ for an ε at ``delta / split``.

    Args:
        order: α, an integer from 2.
        delta: of (ε, δ).
        split: among how many orders δ is divided.
    """
    # Canonne, Kamath and Steinke 2020, Proposition 12.
    return math.log((order - 1) / order) - (math.log(delta / split) + math.log(order)) / (order - 1)


def ceiling(charges: Iterable[Event], delta: float, relation: str) -> float:
    """Return ε by Rényi divergences, an upper bound; infinity if an event is not private.

    Args:
        charges: events, with their counts.
        delta: of (ε, δ).
        relation: ``add_or_remove_one`` or ``replace_one``.
    """
    events = list(charges)
    if not events:
        return 0.0
    orders = CEILING_ORDERS if len(events) <= _MAX_MECHANISMS else FILTER_ORDERS
    best = min(
        math.fsum(event.count * rho(event.mechanism, order, relation) for event in events)
        + converted(order, delta)
        for order in orders
    )
    return max(0.0, best)


def _merged(charges: Iterable[Event], relation: str) -> list[tuple[Mechanism, int]] | None:
    """Return mechanisms with their counts, all plain Gaussians as one; None if not private."""
    counts: dict[Mechanism, int] = {}
    inverse = 0.0  # plain Gaussians compose to one exactly, which costs one distribution
    for event in charges:
        part = event.mechanism
        if part.type == "none" or (part.type not in _NORMAL and relation == REPLACE):
            return None
        if part.type == "gaussian" and part.rate == 1:
            inverse += event.count * (max(part.sensitivities) / part.scale) ** 2
        elif part.type == "discrete" and part.scale >= MIN_SIGMA:
            reduced = math.sqrt(part.scale**2 - SMOOTHING**2)
            inverse += event.count * (max(part.sensitivities) / reduced) ** 2
        elif max(part.sensitivities) > 0:
            counts[part] = counts.get(part, 0) + event.count
    merged = sorted(counts.items(), key=repr)
    if inverse > 0:
        merged.append((Mechanism("gaussian", 1 / math.sqrt(inverse), (1.0,)), 1))
    return merged


def _grid(events: list[Event], merged: list[tuple[Mechanism, int]], relation: str) -> float | None:
    """Return the grid on which the history is composed; None if that would cost too much."""
    return _size(events, merged, relation)[0]


def _size(
    events: list[Event], merged: list[tuple[Mechanism, int]], relation: str
) -> tuple[float | None, float]:
    second = math.fsum(
        e.count * order_two(e.mechanism, rho(e.mechanism, 2, RELATIONS[0])) for e in events
    )
    spread = 2 * min(ceiling(events, _TINY, RELATIONS[0]), second - math.log(_TINY))
    return size_of(merged, spread, relation == REPLACE)


def seconds(charges: Iterable[Event], relation: str) -> float:
    """Return about how long a composition takes, by the format page; 0 where none is made.

    Args:
        charges: events, with their counts.
        relation: ``add_or_remove_one`` or ``replace_one``.
    """
    events = list(charges)
    try:
        merged = _merged(events, relation)
        if not merged:
            return 0.0
        return _size(events, merged, relation)[1] / 1e6
    except (ArithmeticError, ValueError, MemoryError, IndexError, TypeError):
        return 0.0


def _dp_event(mechanism: Mechanism) -> Any:
    from dp_accounting import dp_event

    ratio = mechanism.scale / max(mechanism.sensitivities)
    if mechanism.type == "mixture":
        return dp_event.MixtureOfGaussiansDpEvent(
            mechanism.scale, list(mechanism.sensitivities), list(mechanism.probabilities)
        )
    simple = dp_event.GaussianDpEvent
    if mechanism.type == "laplace":
        simple = dp_event.LaplaceDpEvent
    if mechanism.rate == 1:
        return simple(ratio)
    return dp_event.PoissonSampledDpEvent(mechanism.rate, simple(ratio))


@lru_cache(maxsize=1024)
def _pld(
    merged: tuple[tuple[Mechanism, int], ...], grid: float, delta: float, relation: str
) -> tuple[float, float]:
    """Return ε at ``delta``, and the probability that is counted as an infinite loss."""
    accountant = _composed(merged, grid, relation)
    return float(accountant.get_epsilon(delta)), float(accountant.get_delta(1e9))


@lru_cache(maxsize=8)
def _composed(merged: tuple[tuple[Mechanism, int], ...], grid: float, relation: str) -> Any:
    import dp_accounting
    from dp_accounting import pld

    relations = dp_accounting.NeighboringRelation
    chosen = relations.REPLACE_ONE if relation == REPLACE else relations.ADD_OR_REMOVE_ONE
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        accountant = pld.PLDAccountant(chosen, value_discretization_interval=grid)
        for mechanism, count in merged:
            accountant.compose(_dp_event(mechanism), count)
        return accountant


def renyi_delta(charges: Iterable[Event], epsilon: float, relation: str) -> float:
    """Return an upper bound of δ at ``epsilon`` by Rényi divergences.

    Args:
        charges: events, with their counts.
        epsilon: of (ε, δ).
        relation: ``add_or_remove_one`` or ``replace_one``.
    """
    events, least = list(charges), 0.0
    for order in CEILING_ORDERS:
        total = math.fsum(e.count * rho(e.mechanism, order, relation) for e in events)
        log = (order - 1) * (total - epsilon) - math.log(order - 1)
        least = min(least, log + order * math.log1p(-1 / order))
    return math.exp(least)


def delta_at(charges: Iterable[Event], epsilon: float, relation: str) -> float:
    """Return δ at ``epsilon``, the smaller of two bounds; 1 where there are none.

    Args:
        charges: events, with their counts.
        epsilon: of (ε, δ).
        relation: ``add_or_remove_one`` or ``replace_one``.
    """
    events = list(charges)
    try:
        merged = _merged(events, relation)
        if merged is None:
            return 1.0
        if not merged:
            return 0.0
        bound = renyi_delta(events, epsilon, relation)
        grid = _grid(events, merged, relation)
        if grid is None:
            return bound
        return min(bound, float(_composed(tuple(merged), grid, relation).get_delta(epsilon)))
    except (ArithmeticError, ValueError, MemoryError, IndexError, TypeError):
        return 1.0


def contradict(value: float, bound: float, charges: Iterable[Event]) -> bool:
    """Return whether ε by distributions is above its Rényi ceiling by more than its grid explains.

    Rounding losses to the grid h adds at most h²/4 to the variance of each of n losses, so
    ε can be too large by a few times h √n / 2. It is an upper bound all the same.

    Args:
        value: ε by distributions.
        bound: the Rényi ceiling.
        charges: events, with their counts.
    """
    runs = math.fsum(event.count for event in charges)
    return value > bound * (1 + 1e-3) + 1e-3 + 2 * GRID * math.sqrt(runs)


def epsilon(charges: Iterable[Event], delta: float, relation: str) -> tuple[float, float, str]:
    """Return ε, its Rényi ceiling, and a remark.

    ε is by privacy loss distributions. The ceiling stands for it, and the remark says so, where
    distributions would take too much memory or time (verify/size.py), and where what they count
    as an infinite loss is not small against ``delta``. It stands for it, too, where the rounding
    to the grid alone makes the distributions come out above it.

    Args:
        charges: events, with their counts.
        delta: of (ε, δ).
        relation: ``add_or_remove_one`` or ``replace_one``.
    """
    events = list(charges)
    bound = ceiling(events, delta, relation)
    try:
        merged = _merged(events, relation)
        if merged is None:
            return math.inf, math.inf, ""
        if not merged:
            return 0.0, bound, ""
        grid = _grid(events, merged, relation)
        if grid is None:
            return bound, bound, _TOO_LARGE
        value, tail = _pld(tuple(merged), grid, delta, relation)
        if value <= bound or (tail <= delta / 1000 and contradict(value, bound, events)):
            return value, bound, ""
        if tail > delta / 1000:
            return bound, bound, _TOO_SMALL
        return bound, bound, ""
    except (ArithmeticError, ValueError, MemoryError, IndexError, TypeError) as error:
        return bound, bound, f"dp-accounting failed ({type(error).__name__}): the Rényi ceiling"


def fits(charges: Iterable[Event], delta: float, relation: str, cap: float) -> bool:
    """Return whether what is fixed in advance costs at most ``cap`` at ``delta``.

    A distribution cuts off tails of about 1e-15 a convolution, and counts them as infinite losses.
    Where exactly depends on the rounding of a Fourier transform; so that much is allowed in δ.

    Args:
        charges: events, with their counts.
        delta: of (ε, δ).
        relation: ``add_or_remove_one`` or ``replace_one``.
        cap: ε that it may cost.
    """
    events = list(charges)
    # Where the ceiling suffices, no distribution need be made.
    if ceiling(events, delta, relation) <= cap or epsilon(events, delta, relation)[0] <= cap:
        return True
    merged = _merged(events, relation)
    if not merged:
        return False
    grid = _grid(events, merged, relation)
    if grid is None:
        return False
    try:
        _, tail = _pld(tuple(merged), grid, delta, relation)
        return _pld(tuple(merged), grid, delta + tail, relation)[0] <= cap
    except (ArithmeticError, ValueError, MemoryError, IndexError, TypeError):
        return False
