"""How fine a grid the distributions of a history get, and whether they are made at all.

The rule of the format page, from the events alone, so that no clock decides.
"""

from __future__ import annotations

import math

from privet.privacy.audit.verify.formats.events import Mechanism

#: Grids of privacy loss distributions, the finest first.
GRIDS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
_POINTS_OF_ONE = 2**21
_POINTS_OF_ALL = 2**23
_MAX_COUNT = 10**7
_MAX_MICROSECONDS = 8e7

Merged = list[tuple[Mechanism, int]]


def is_plain(part: Mechanism) -> bool:
    """Return whether a mechanism is Gaussian noise without sampling."""
    return part.type == "gaussian" and part.rate == 1


def order_two(part: Mechanism, otherwise: float) -> float:
    """Return the Renyi divergence of order 2 of a mixture, or ``otherwise`` of what is none.

    Args:
        part: the mechanism.
        otherwise: its divergence if it is no mixture.
    """
    if part.type != "mixture":
        return otherwise
    pairs = [
        (size / part.scale, share)
        for size, share in zip(part.sensitivities, part.probabilities, strict=True)
        if share > 0
    ]
    top = max(size for size, _ in pairs) ** 2
    total = math.fsum(p * q * math.exp(s * t - top) for s, p in pairs for t, q in pairs)
    return top + math.log(total)


def size_of(merged: Merged, spread: float, twice: bool) -> tuple[float | None, float]:
    """Return the grid for a history and the microseconds it takes; None, 0 if they are too many.

    Args:
        merged: mechanisms with their counts, all plain Gaussians as one.
        spread: twice the ε of the history at δ 1e-15, as the format page has it.
        twice: the relation is ``replace_one``.
    """
    factor = 2 if twice else 1
    spread *= factor * factor
    widths = []
    for part, count in merged:
        if count > _MAX_COUNT and not is_plain(part):
            return None, 0.0
        if part.scale <= 0:  # so little noise that its square is no number
            return None, 0.0
        if part.type == "discrete":  # of so small a σ that no distribution is known
            return None, 0.0
        ratio = factor * max(part.sensitivities) / part.scale
        widths.append((ratio * ratio + 20 * ratio, _weight(part)))
    largest = max(width for width, _ in widths)
    fitting = [g for g in GRIDS if largest <= _POINTS_OF_ONE * g and spread <= _POINTS_OF_ALL * g]
    cost = math.fsum(weight * width for width, weight in widths) + 3 * spread * len(widths)
    # What takes too long was made to: no coarser grid is tried, the ceiling stands for it.
    if not fitting or cost > _MAX_MICROSECONDS * fitting[0]:
        return None, 0.0
    return fitting[0], cost / fitting[0]


def _weight(part: Mechanism) -> float:
    """Return the microseconds that one point takes."""
    if part.type == "mixture":
        return 60.0 + len(part.sensitivities)
    return 2.0 if part.rate == 1 else 6.0
