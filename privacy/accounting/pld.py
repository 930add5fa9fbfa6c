"""ε from events, by dp-accounting.

The number of record is dp-accounting's PLD at grid 1e-4 with pessimistic estimates, a
rigorous upper bound. Rényi accounting is the ceiling: an independent computation that
must come out higher. GDP approximations are refused: they under-report (a central limit
is not a bound).

A distribution drops its far tail, 10⁻¹⁵ a convolution, and counts it as an infinite loss.
At a δ of that size its ε is infinite or useless, and the number of record is the other
upper bound, the Rényi ceiling (privacy/accounting/ceiling.py): always the smaller of the two. A
history that would take too long to compose (privacy/accounting/pld_size.py) has the ceiling alone,
and :func:`remark` says so.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

from privet.common.errors import InputError
from privet.privacy.accounting.events import (
    DiscreteGaussian,
    Event,
    Gaussian,
    NonPrivate,
    PoissonSampled,
    Repeated,
    group,
)
from privet.privacy.accounting.pld_size import grid_for
from privet.privacy.accounting.units import PrivacyLoss, Relation, Unit

if TYPE_CHECKING:
    import dp_accounting as dp
    from dp_accounting.pld import privacy_loss_distribution as pld

    from privet.common.compat.dp_accounting import SelfComposition

# dp-accounting, and SciPy, are imported where something is computed: that takes more than a second,
# and most commands of an operator compute nothing.
Accountant = Literal["pld", "rdp"]
GRID = 1e-4
"""Discretisation of the number of record."""
LIVE_GRID = 1e-3
"""Of an ε during a run: an upper bound, too, a little higher and about three times quicker."""
_FAR = 1e9
"""An ε beyond all finite losses."""
REMARK = "the Rényi ceiling: the history is too large for privacy loss distributions"


def epsilon(
    events: Iterable[Event],
    delta: float,
    relation: Relation = Relation.ADD_OR_REMOVE_ONE,
    *,
    accountant: Accountant = "pld",
    grid: float = GRID,
    reading: float = 1.0,
) -> float:
    """Return ε at ``delta`` of all ``events`` composed; ``inf`` if one is not private.

    Args:
        events: what happened, in any order; equal events are grouped first.
        delta: between 0 and 1.
        relation: neighbouring relation.
        accountant: ``pld`` (the number of record: the smaller of the PLD's ε and the Rényi
            ceiling) or ``rdp`` (dp-accounting's Rényi accountant alone).
        grid: discretisation interval of the PLD accountant; a coarser one is taken where
            the distribution would not fit into memory.
        reading: of sizes (privacy/accounting/pld_size.py); 1 but for a cap at a border.

    Raises:
        InputError: for an accountant that is not sound, or one that cannot treat the events.
    """
    if accountant not in ("pld", "rdp"):
        raise InputError(
            f"accountant '{accountant}' is not accepted: use 'pld' or 'rdp' "
            "(GDP gives an approximation below the true ε)"
        )
    if not 0 < delta < 1:
        raise InputError(f"delta must lie between 0 and 1, not {delta}")
    grouped = group(events)
    if any(_is_non_private(event) for event, _ in grouped):
        return math.inf
    return _epsilon(grouped, delta, relation, accountant, grid, reading) if grouped else 0.0


def delta_at(
    events: Iterable[Event],
    target: float,
    relation: Relation = Relation.ADD_OR_REMOVE_ONE,
    *,
    grid: float = GRID,
    reading: float = 1.0,
) -> float:
    """Return the δ at which all ``events`` composed cost ε = ``target``.

    Of two upper bounds the smaller, as :func:`epsilon` has it.
    """
    grouped = group(events)
    if any(_is_non_private(event) for event, _ in grouped):
        return 1.0
    from privet.privacy.accounting import ceiling

    bound = ceiling.delta(grouped, target, relation)
    found = _composed(grouped, relation, grid, reading)
    return bound if found is None else min(bound, float(found.get_delta_for_epsilon(target)))


def tails(
    events: Iterable[Event],
    relation: Relation = Relation.ADD_OR_REMOVE_ONE,
    *,
    grid: float = GRID,
    reading: float = 1.0,
) -> float:
    """Return the probability that the distribution of ``events`` counts as an infinite loss.

    How much it is depends on the rounding of Fourier transforms; 0 where none is made.
    """
    grouped = group(events)
    if any(_is_non_private(event) for event, _ in grouped):
        return 0.0
    found = _composed(grouped, relation, grid, reading)
    return 0.0 if found is None else float(found.get_delta_for_epsilon(_FAR))


def remark(
    events: Iterable[Event], relation: Relation = Relation.ADD_OR_REMOVE_ONE, *, grid: float = GRID
) -> str:
    """Return why the ε of ``events`` is not composed by PLD but their ceiling; "" if it is."""
    grouped = group(events)
    if any(_is_non_private(event) for event, _ in grouped):
        return ""
    return REMARK if grid_for(grouped, relation, grid) is None else ""


@lru_cache(maxsize=4096)
def _epsilon(
    grouped: tuple[tuple[Event, int], ...],
    delta: float,
    relation: Relation,
    accountant: Accountant,
    grid: float,
    reading: float,
) -> float:
    if accountant == "pld":
        from privet.privacy.accounting import ceiling

        found = _composed(grouped, relation, grid, reading)
        bound = ceiling.epsilon(grouped, delta, relation)
        return bound if found is None else min(bound, found.get_epsilon_for_delta(delta))
    if relation is not Relation.ADD_OR_REMOVE_ONE:
        raise InputError(
            "the Rényi accountant does not double the sensitivity under 'replace_one'; "
            "use 'pld' for this relation"
        )
    import dp_accounting as dp
    from dp_accounting import rdp

    # Orders for which the series does not converge are left out, which can only raise ε.
    logging.getLogger("absl").setLevel(logging.ERROR)
    engine = rdp.RdpAccountant(neighboring_relation=_neighbours(relation))
    for event, count in grouped:
        try:
            engine.compose(to_dp_event(event), count)
        except dp.UnsupportedEventError as error:
            raise InputError(f"accountant 'rdp' cannot treat {event}: {error}") from error
    return float(engine.get_epsilon(delta))


def _neighbours(relation: Relation) -> dp.NeighboringRelation:
    import dp_accounting as dp

    return {
        Relation.ADD_OR_REMOVE_ONE: dp.NeighboringRelation.ADD_OR_REMOVE_ONE,
        Relation.REPLACE_ONE: dp.NeighboringRelation.REPLACE_ONE,
    }[relation]


def to_dp_event(event: Event) -> dp.DpEvent:
    """Translate to dp-accounting's vocabulary, with the noise multiplier of add or remove.

    It has no word for a discrete Gaussian, which has the Rényi divergence of the continuous one at
    most (Canonne, Kamath and Steinke 2020, Theorem 14).

    Raises:
        InputError: for a sampled discrete Gaussian, of which no bound is known here.
    """
    import dp_accounting as dp

    match event:
        case Gaussian(std, sensitivity) | DiscreteGaussian(std, sensitivity):
            return dp.GaussianDpEvent(std / sensitivity)
        case PoissonSampled(_, DiscreteGaussian()):
            raise InputError(f"no bound is known for {event}")
        case PoissonSampled(rate, inner):
            return dp.PoissonSampledDpEvent(rate, to_dp_event(inner))
        case Repeated(inner, count):
            return dp.SelfComposedDpEvent(to_dp_event(inner), count)
        case NonPrivate():
            return dp.NonPrivateDpEvent()


@lru_cache(maxsize=4)
def _composed(
    grouped: tuple[tuple[Event, int], ...], relation: Relation, finest: float, reading: float = 1.0
) -> pld.PrivacyLossDistribution | None:
    """Return the distribution of all events, on the finest grid that it fits on, if any."""
    for event, _ in grouped:
        _require_known(event)
    grid = grid_for(grouped, relation, finest, reading)
    if grid is None:
        return None
    from dp_accounting.pld import privacy_loss_distribution as pld

    total = pld.identity(value_discretization_interval=grid)
    for event, count in grouped:
        total = total.compose(_distribution(event, count, relation, grid))
    return total


def _require_known(event: Event) -> None:
    """Check that the distribution of ``event`` is known."""
    match event:
        # Of a discrete Gaussian of small σ none is known: it is too large for any grid.
        case Gaussian() | PoissonSampled(_, Gaussian()) | DiscreteGaussian():
            return
        case _:
            raise InputError(f"no privacy loss distribution is known for {event}")


def _distribution(
    event: Event, count: int, relation: Relation, grid: float
) -> pld.PrivacyLossDistribution:
    """Return the privacy loss distribution of ``event`` run ``count`` times.

    The same steps as dp-accounting's ``PLDAccountant`` takes, so the same values to the
    last bit; but the costly part, the distribution of one sampled event, is kept between
    calls, because a history grows by the same event round after round.
    """
    if isinstance(event, DiscreteGaussian):
        event = event.dominating or event
    if isinstance(event, Gaussian):
        from dp_accounting.pld import privacy_loss_distribution as pld

        # Gaussians compose to a Gaussian: exact, and free of the grid's error.
        return pld.from_gaussian_mechanism(
            event.standard_deviation / event.sensitivity / math.sqrt(count),
            value_discretization_interval=grid,
            neighboring_relation=_neighbours(relation),
        )
    return _once(event, relation, grid).times(count)


@lru_cache(maxsize=64)
def _once(event: Event, relation: Relation, grid: float) -> SelfComposition:
    from privet.common.compat.dp_accounting import SelfComposition

    return SelfComposition(_of_one(event, relation, grid))


def _of_one(event: Event, relation: Relation, grid: float) -> pld.PrivacyLossDistribution:
    from dp_accounting.pld import privacy_loss_distribution as pld

    rate, inner = 1.0, event
    if isinstance(event, PoissonSampled):
        rate, inner = event.sample_rate, event.event
    assert isinstance(inner, Gaussian)  # _require_known
    return pld.from_gaussian_mechanism(
        inner.standard_deviation / inner.sensitivity,
        value_discretization_interval=grid,
        sampling_prob=rate,
        neighboring_relation=_neighbours(relation),
    )


def _is_non_private(event: Event) -> bool:
    if isinstance(event, PoissonSampled):
        return _is_non_private(event.event)
    return not isinstance(event, Gaussian | DiscreteGaussian)


def privacy_loss(
    events: Iterable[Event], delta: float, unit: Unit, relation: Relation, *, grid: float = GRID
) -> PrivacyLoss:
    """Return the composed guarantee of ``events`` with δ, unit, relation and :func:`remark`."""
    grouped = [Repeated(event, count) for event, count in group(events)]
    found = epsilon(grouped, delta, relation, grid=grid)
    return PrivacyLoss(found, delta, unit, relation, remark(grouped, relation, grid=grid))
