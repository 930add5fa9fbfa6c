"""How the δ of a population is shared among the rules that hold its cap.

Which rule holds the cap at the end of an outcome path may depend on results. So the paths
are split into classes, and if class j is within ε at δ_j, all are at Σ δ_j: for any set S
of outcomes P(S) = Σ P(S ∩ class j) ≤ e^ε Q(S) + Σ δ_j. A class is bounded by an analyst
that asks as the real one does and stops before the first charge that would leave it. There
are three:

**One run** (privacy/accounting/renyi_filter.py): all charges are one run's, within its plan and
``extra`` more attempts at each release. **Gaussian filter**: all charges are plain Gaussian noise
with Σ μ² ≤ ``room``. **Rényi filter**: all others.

The split follows from the cap and the *first* plan, which is chosen before anything of the
population was released; so each share is a constant on all paths. (A reservation whose
data was never opened is given back before a site reserves again, so whose plan is the
first depends on no result either.)

*The first plan is plain Gaussian noise only.* One run within its plan is then within the
Gaussian filter if the plan is, and needs no class of its own. The filter gets 0.99 δ, or
what the plan alone needs if that is more (a plan calibrated to the whole cap); the Rényi
filter gets what remains. Neither counts δ twice, and 1 % of δ is less than 0.1 % of ε.

*Other first plans.* No Gaussian filter. If the Rényi filter, with all of δ, admits the
plan with the extra attempts, one run is within that class, and the filter has all of δ.
Else δ is what the plan with its extra attempts uses at ε, by its composition, and the rest
is the filter's. ``extra`` is the largest number, up to a tenth of the plan's own attempts
or four, with which the composition stays within (ε, δ); but where the filter admits the
plan itself, within (ε, δ/10), so that later plans lose no more than a tenth of δ to the
kept charges of the first.

*Rounding.* A site and the verifier of its ledger compare with a little more than ε, the
verifier with more (privacy/accounting/renyi.py). For a sum of charges that suffices, but not here:
with a little more ε the filter may admit a plan, or its composition one more attempt, and the other
classes then get *less*. A plan's author chooses its noise, and so whether that happens between the
two. So each class gets the least that it has anywhere from :data:`SLACK` to :data:`MAX_SLACK`:
what the ledger admits the verifier admits, whatever it sees. No class has more than in a split that
is sound, so this one is sound.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache

from privet.common.errors import InputError
from privet.privacy.accounting import gaussian_dp, pld, renyi
from privet.privacy.accounting.events import Counts, Event, Repeated, group
from privet.privacy.accounting.pld import GRID
from privet.privacy.accounting.pld_size import readings
from privet.privacy.accounting.renyi import SLACK
from privet.privacy.accounting.units import Relation

GAUSSIAN_SHARE = 0.99
"""Of δ, for the Gaussian filter."""
SMALL_SHARE = 0.1
"""Of δ, for extra attempts at a first plan that the Rényi filter admits."""
MIN_EXTRA = 4
EXTRA_SHARE = 10
MAX_SLACK = 3 * SLACK
"""Of ε: as far above what the verifier allows (twice SLACK) as SLACK is below."""
_HAIR = 1 + 5e-10
"""Half of what the verifier allows to the squares of a plan, relatively."""


@dataclass(frozen=True)
class Shares:
    """What a first plan leaves to each rule.

    Attributes:
        renyi: δ of the Rényi filter.
        room: the most Σ μ² of the Gaussian filter; None where there is none.
        extra: with how many more attempts than planned the first run is judged by its
            composition; -1 if it is not even as planned.
    """

    renyi: float
    room: float | None = None
    extra: int = -1


@lru_cache(maxsize=64)
def shares(
    epsilon: float, delta: float, relation: Relation, planned: Counts | None, once: Counts
) -> Shares:
    """Return how δ is shared after a first run of a plan (None: not known).

    Args:
        epsilon: of the cap.
        delta: of the cap.
        relation: of the population.
        planned: all that the plan may do.
        once: what one more attempt at each of its releases adds; () is each event once.
    """
    if not planned:
        return Shares(delta)
    low, high = epsilon + SLACK, epsilon + MAX_SLACK
    squares = gaussian_dp.squares(planned, relation)
    if squares is not None:
        return _gaussian_shares(low, high, delta, squares)
    return _Split(planned, once, delta, relation, low, high).least()


@dataclass(frozen=True)
class _Split:
    """The splits after a first plan with sampling, for all caps from ``low`` to ``high``."""

    planned: Counts
    once: Counts
    delta: float
    relation: Relation
    low: float
    high: float

    def least(self) -> Shares:
        """Return the least that each rule has in any of the splits."""
        if not self._may_compose(0, self.delta):
            return Shares(self.delta)
        known, limit = self._composes(0, self.delta), most_extra(self.planned, self.once)
        held = _largest(lambda extra: self._admits(extra, self.low), limit)
        if held == limit:
            return Shares(self.delta, extra=held if known else -1)
        most_held = _largest(lambda extra: self._admits(extra, self.high), limit)
        # Where a cap may be on either side, the larger share goes to the most attempts that are
        # perhaps composed, and the smaller one to those that surely are.
        wide, narrow = self._share_beside(held), self._share_beside(most_held)
        most = max(0, _largest(lambda extra: self._may_compose(extra, wide), limit))
        sure = max(0, held, _largest(lambda extra: self._composes(extra, narrow), limit))
        left = self.delta
        if most > held:
            left -= self._used(most)
        return Shares(max(0.0, left), extra=sure if known else -1)

    def _share_beside(self, held: int) -> float:
        """Return the δ of compositions if the filter admits up to ``held`` attempts; -1: none."""
        return self.delta if held < 0 else SMALL_SHARE * self.delta

    def _with(self, extra: int) -> Counts:
        return enlarged(self.planned, self.once, extra)

    def _admits(self, extra: int, cap: float) -> bool:
        return renyi.admits(self._with(extra), cap, self.delta, self.relation)

    def _composes(self, extra: int, delta: float) -> bool:
        """Whether the composition is within (ε, ``delta``) at every cap."""
        return plan_epsilon(self._with(extra), delta, self.relation) <= self.low

    def _may_compose(self, extra: int, delta: float) -> bool:
        """Whether it is at some cap, as the verifier sees it, who allows the tails twice."""
        counts = self._with(extra)
        if min(_epsilons(counts, delta, self.relation)) <= self.high:
            return True
        tails = _tails(counts, self.relation)
        larger = delta + 2 * tails
        return tails > 0 and min(_epsilons(counts, larger, self.relation)) <= self.high

    def _used(self, extra: int) -> float:
        """Return the most δ that the plan with ``extra`` more attempts uses at any cap."""
        counts = self._with(extra)
        used = max(
            pld.delta_at(as_events(counts), self.low, self.relation, reading=reading)
            for reading in readings(counts, self.relation, GRID)
        )
        # Where a distribution is cut depends on rounding: no other computation may find more.
        return used + _tails(counts, self.relation)


def _gaussian_shares(low: float, high: float, delta: float, squares: float) -> Shares:
    """Return the least shares after a plan of plain Gaussian noise, for caps in the interval."""
    used = GAUSSIAN_SHARE * delta
    room, most = (gaussian_dp.mu_of(cap, used) ** 2 for cap in (low, high))
    whole, most_whole = (gaussian_dp.mu_of(cap, delta) ** 2 for cap in (low, high))
    if squares <= room or squares > most_whole:
        return Shares(max(0.0, delta - used), room)
    used = max(used, gaussian_dp.delta_of(math.sqrt(squares), low))
    if squares <= whole:  # the room is the plan itself, but at some cap perhaps a bit less
        room = squares / _HAIR if squares <= most else squares * _HAIR
    return Shares(max(0.0, delta - used), room)


def _largest(holds: Callable[[int], bool], limit: int) -> int:
    """Return the largest number from 0 to ``limit`` for which ``holds``; -1 if none does.

    What holds for a number holds for those below it.
    """
    if not holds(0):
        return -1
    if holds(limit):
        return limit
    low, high = 0, limit
    while high - low > 1:
        middle = low + 1 if low == 0 else (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


def most_extra(planned: Counts, once: Counts) -> int:
    """Return the most extra attempts with which a first run is judged by its composition.

    Args:
        planned: all events of the plan, each with its number.
        once: the events that one more attempt at each release adds; () for each event once.
    """
    return max(MIN_EXTRA, attempts(planned, once) // EXTRA_SHARE)


def attempts(planned: Counts, once: Counts) -> int:
    """Return the most attempts at one kind of release that a plan has.

    Args:
        planned: all events of the plan, each with its number.
        once: the events that one more attempt at each release adds; () for each event once.
    """
    each = dict(once)
    return max(count // max(1, each.get(event, 1)) for event, count in planned)


def enlarged(planned: Counts, once: Counts, extra: int) -> Counts:
    """Return all events of a plan with extra attempts at each of its releases.

    Args:
        planned: all events of the plan, each with its number.
        once: the events that one more attempt at each release adds; () for each event once.
        extra: number of these attempts; negative for fewer than planned.
    """
    each = dict(once)
    return tuple((event, count + extra * each.get(event, 1)) for event, count in planned)


def excess(counts: Counts, planned: Counts, once: Counts) -> int | None:
    """Return by how many attempts charges exceed a plan; None if an event is not of the plan.

    Args:
        counts: the charges.
        planned: all events of the plan, each with its number.
        once: the events that one more attempt at each release adds; () for each event once.
    """
    limit, each, most = dict(planned), dict(once), 0
    for event, count in counts:
        if event not in limit:
            return None
        most = max(most, -(-(count - limit[event]) // max(1, each.get(event, 1))))
    return most


def plan_epsilon(counts: Counts, delta: float, relation: Relation) -> float:
    """Return ε of a whole plan; infinity if no composition is known.

    At a border of sizes the grid may differ between two computers: this is the larger value.

    Args:
        counts: all events of the plan, each with its number.
        delta: δ at which ε is computed.
        relation: between neighbouring data sets.
    """
    return max(_epsilons(counts, delta, relation))


@lru_cache(maxsize=256)
def _epsilons(counts: Counts, delta: float, relation: Relation) -> tuple[float, ...]:
    events = as_events(counts)
    try:
        return tuple(
            pld.epsilon(events, delta, relation, reading=reading)
            for reading in readings(counts, relation, GRID)
        )
    except InputError:
        return (math.inf,)  # only the filter can admit it


@lru_cache(maxsize=256)
def _tails(counts: Counts, relation: Relation) -> float:
    events = as_events(counts)
    try:
        return max(
            pld.tails(events, relation, reading=reading)
            for reading in readings(counts, relation, GRID)
        )
    except InputError:
        return 0.0


def as_events(counts: Counts) -> list[Event]:
    """Return counts as repeated events."""
    return [Repeated(event, count) for event, count in counts]


def merged(parts: Iterable[Counts]) -> Counts:
    """Return the sum of several counts."""
    return group(event for counts in parts for event in as_events(counts))
