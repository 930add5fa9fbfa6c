"""How large a privacy loss distribution becomes, told from the events before it is made.

The losses of one run of a mechanism of μ = Δ/σ, without the 10⁻²² of mass beyond, spread
over μ² + 20μ; those of a whole history over twice its ε at δ 10⁻¹⁵ (:func:`_spread`), and
four times that under ``replace_one``. These are estimates of size, no privacy bounds. From
them come a grid on which the distributions fit into memory, and a cost by which a history that was
made to be expensive is recognised: it is then accounted at its Rényi ceiling. All of it follows
from the events alone, never from a clock, so that a site and its verifier
(docs/reference/evidence-format.md) come to one answer.
"""

from __future__ import annotations

import math
from functools import lru_cache

from privet.privacy.accounting.events import Counts, Event, Gaussian, PoissonSampled
from privet.privacy.accounting.gaussian_dp import as_gaussian
from privet.privacy.accounting.units import Relation

GRIDS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
MAX_POINTS_ONE_RUN = 2**21
MAX_POINTS_TOTAL = 2**23
MAX_COUNT = 10**7
"""Of one mechanism. Beyond, the rounding of that many convolutions is no longer small."""
MAX_COST_US = 8e7
"""Little more than a minute. Two mechanisms never cost more, so a plan alone is always composed."""
HAIR = 1e-9
"""What two computations of one size differ by at most, relatively."""
_SMALLEST_DELTA = 1e-15
_MICROSECONDS, _GAUSSIAN_MICROSECONDS = 6.0, 2.0
"""What a point of a distribution costs: of a sampled mechanism, and of plain Gaussian noise."""


def grid_for(
    counts: Counts, relation: Relation, finest: float, reading: float = 1.0
) -> float | None:
    """Return the grid on which ``counts`` are composed; None if they cost too much.

    Args:
        counts: all events, with how often each happened.
        relation: neighbouring relation.
        finest: the grid that is wished for.
        reading: one of :func:`readings`.
    """
    return _size(counts, relation, finest, reading)[0]


def readings(counts: Counts, relation: Relation, finest: float) -> tuple[float, ...]:
    """Return by what a size may be multiplied so that another grid is found; 1 comes first.

    A sum in another order has other last bits, and may be on the other side of a bound.
    """
    found: dict[float | None, float] = {}
    for reading in (1.0, 1 - HAIR, 1 + HAIR):
        found.setdefault(grid_for(counts, relation, finest, reading), reading)
    return tuple(found.values())


def costs_us(counts: Counts, relation: Relation, finest: float) -> tuple[float, float]:
    """Return about how many microseconds ``counts`` take to compose, 0 if they are not.

    The least and the most that any computation of it finds (:func:`readings`).
    """
    costs = [_size(counts, relation, finest, reading)[1] for reading in (1 - HAIR, 1.0, 1 + HAIR)]
    return min(costs), max(costs)


@lru_cache(maxsize=4096)
def _size(
    counts: Counts, relation: Relation, finest: float, reading: float
) -> tuple[float | None, float]:
    """Return the grid and the microseconds of a composition; None and 0 if it is too large."""
    weighted = [(relation.moves * mu, cost) for mu, cost in _parts(counts)]
    spread = reading * relation.moves**2 * _spread(counts)
    if any(count > MAX_COUNT for event, count in counts if as_gaussian(event) is None):
        return None, 0.0
    widths = [(reading * (mu * mu + 20 * mu), cost) for mu, cost in weighted]
    widest = max((width for width, _ in widths), default=0.0)
    for grid in (finest, *(one for one in GRIDS if one > finest)):
        if widest <= MAX_POINTS_ONE_RUN * grid and spread <= MAX_POINTS_TOTAL * grid:
            cost = math.fsum(cost * width for width, cost in widths) + 3 * spread * len(widths)
            if cost > MAX_COST_US * grid:  # made to be expensive: the ceiling stands for it
                break
            return grid, cost / grid
    return None, 0.0


def _spread(counts: Counts) -> float:
    """Return twice the ε at 10⁻¹⁵ by Rényi divergences, or by those of order 2 if that is less."""
    add = Relation.ADD_OR_REMOVE_ONE
    from privet.privacy.accounting import ceiling

    second = math.fsum(count * ceiling.order_two(event) for event, count in counts)
    return 2 * min(
        ceiling.epsilon(counts, _SMALLEST_DELTA, add), second - math.log(_SMALLEST_DELTA)
    )


def _parts(counts: Counts) -> list[tuple[float, float]]:
    """Return μ and the cost of a point in µs for each mechanism; plain Gaussians are one."""
    parts, squares = [], 0.0
    for event, count in counts:
        mu = as_gaussian(event)
        if mu is None:
            parts.append((_mu(event), _MICROSECONDS))
        else:
            squares += count * mu**2
    if squares:
        parts.append((math.sqrt(squares), _GAUSSIAN_MICROSECONDS))
    return parts


def _mu(event: Event) -> float:
    match event:
        case PoissonSampled(_, inner):
            return _mu(inner)
        case Gaussian(noise, sensitivity):
            return sensitivity / noise
    return math.inf
