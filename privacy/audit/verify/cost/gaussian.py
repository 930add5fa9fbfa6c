"""Plain Gaussian noise: μ = sensitivity by deviation, Σ μ², and the largest μ within (ε, δ).

Source: Balle and Wang 2018, Theorem 8 (δ of a Gaussian mechanism at ε). Standard library only.
"""

from __future__ import annotations

import math
from functools import lru_cache

from privet.privacy.audit.verify.formats.events import Event

# A discrete Gaussian of σ from 1000 on is what a continuous one of variance σ² - 3² becomes when an
# integer is drawn around its output with parameter 3: to a factor within 1e-76 for each number.
SMOOTHING = 3.0
MIN_SIGMA = 1000.0
_FAR = 4.0


def square(event: Event, relation: str) -> float | None:
    """Return count · μ² of ``event``, or None if it is not Gaussian noise without sampling.

    Replacing a record moves a value by up to twice the sensitivity.

    Args:
        event: of any mechanism.
        relation: ``add_or_remove_one`` or ``replace_one``.
    """
    part = event.mechanism
    scale = part.scale
    if part.type == "discrete" and scale >= MIN_SIGMA:
        scale = math.sqrt(scale**2 - SMOOTHING**2)
    elif part.type != "gaussian" or part.rate != 1:
        return None
    size = max(part.sensitivities)
    if relation == "replace_one":
        size *= 2
    try:
        return event.count * (size / scale) ** 2
    except OverflowError:
        return math.inf


def _tail(x: float) -> float:
    """Return the normal tail beyond ``x`` ≥ 0 divided by the normal density at ``x``."""
    if x < _FAR:
        return math.sqrt(math.pi / 2) * math.exp(x * x / 2) * math.erfc(x / math.sqrt(2))
    value = x  # the continued fraction x + 1/(x + 2/(x + 3/(x + ...))), from its far end
    for k in range(150, 0, -1):
        value = x + k / value
    return 1 / value


def log_delta(mu: float, epsilon: float) -> float:
    """Return ln δ of Gaussian noise of ``mu`` at ``epsilon``.

    Args:
        mu: sensitivity by standard deviation.
        epsilon: of (ε, δ).
    """
    near, far = epsilon / mu - mu / 2, epsilon / mu + mu / 2
    log_density = -near * near / 2 - math.log(2 * math.pi) / 2
    # The tail below 0 grows without bound; above, the other form subtracts nearly equal numbers.
    if near >= 0:
        share = _tail(near) - _tail(far)
    else:
        share = math.erfc(near / math.sqrt(2)) / 2 - math.exp(log_density) * _tail(far)
        log_density = 0.0
    if share <= 0:
        return -math.inf
    return log_density + math.log(share)


@lru_cache(maxsize=1024)
def largest(epsilon: float, delta: float) -> float:
    """Return the largest μ whose δ at ``epsilon`` is at most ``delta``, by bisection.

    Args:
        epsilon: of (ε, δ).
        delta: of (ε, δ).
    """
    if delta <= 0:
        return 0.0
    goal, low, high = math.log(delta), 0.0, 1.0
    while log_delta(high, epsilon) <= goal:
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        if log_delta(middle, epsilon) <= goal:
            low = middle
        else:
            high = middle
    return low
