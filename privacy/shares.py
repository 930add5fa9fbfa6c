"""How the δ of a population is shared among the rules that hold its cap.

Which rule holds the cap at the end of an outcome path may depend on results. So the paths
are split into classes, and if class j is within ε at δ_j, all are at Σ δ_j: for any set S
of outcomes P(S) = Σ P(S ∩ class j) ≤ e^ε Q(S) + Σ δ_j. A class is bounded by an analyst
who asks as the real one does and stops before the first charge that would leave it. There
are three:

**One run** (privacy/filter.py): all charges are one run's, within its plan and ``extra``
more attempts at each release. **Gaussian filter**: all charges are plain Gaussian noise
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
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache

from privet.common.errors import InputError
from privet.privacy import accounting, gaussian_dp, renyi
from privet.privacy.events import Counts, Event, Repeated, group
from privet.privacy.renyi import SLACK
from privet.privacy.units import Relation

GAUSSIAN_SHARE = 0.99
"""Of δ, for the Gaussian filter."""
SMALL_SHARE = 0.1
"""Of δ, for extra attempts at a first plan that the Rényi filter admits."""
MIN_EXTRA = 4
EXTRA_SHARE = 10
_SAME = 1 + 1e-9


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
    cap = epsilon + SLACK
    squares = gaussian_dp.squares(planned, relation)
    if squares is not None:
        return _gaussian_shares(cap, delta, squares)
    if plan_epsilon(planned, delta, relation) > cap:
        return Shares(delta)

    def admitted(extra: int) -> bool:
        return renyi.admits(enlarged(planned, once, extra), cap, delta, relation)

    def composed(extra: int) -> bool:
        return plan_epsilon(enlarged(planned, once, extra), allowed, relation) <= cap

    limit = max(MIN_EXTRA, attempts(planned, once) // EXTRA_SHARE)
    if admitted(limit):
        return Shares(delta, extra=limit)
    held = _largest(admitted, limit)
    allowed = delta if held < 0 else SMALL_SHARE * delta
    extra = _largest(composed, limit) if held < limit else held
    extra = max(extra, 0 if held < 0 else held)
    if extra == held:
        return Shares(delta, extra=extra)
    whole = enlarged(planned, once, extra)
    used = accounting.delta_at(as_events(whole), cap, relation)
    return Shares(max(0.0, delta - used), extra=extra)


def _gaussian_shares(cap: float, delta: float, squares: float) -> Shares:
    room, used = gaussian_dp.mu_of(cap, GAUSSIAN_SHARE * delta) ** 2, GAUSSIAN_SHARE * delta
    if room < squares <= gaussian_dp.mu_of(cap, delta) ** 2:
        used = max(used, gaussian_dp.delta_of(math.sqrt(squares), cap))
        room = squares * _SAME
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


def attempts(planned: Counts, once: Counts) -> int:
    """Return how many attempts at one kind of release a plan has at most."""
    each = dict(once)
    return max(count // max(1, each.get(event, 1)) for event, count in planned)


def enlarged(planned: Counts, once: Counts, extra: int) -> Counts:
    """Return all that a plan may do with ``extra`` more attempts at each of its releases."""
    each = dict(once)
    return tuple((event, count + extra * each.get(event, 1)) for event, count in planned)


def excess(counts: Counts, planned: Counts, once: Counts) -> int | None:
    """Return how many more attempts than planned ``counts`` are; None if not of the plan."""
    limit, each, most = dict(planned), dict(once), 0
    for event, count in counts:
        if event not in limit:
            return None
        most = max(most, -(-(count - limit[event]) // max(1, each.get(event, 1))))
    return most


@lru_cache(maxsize=256)
def plan_epsilon(counts: Counts, delta: float, relation: Relation) -> float:
    """Return ε of a whole plan; infinite where no composition is known."""
    try:
        return accounting.epsilon(as_events(counts), delta, relation)
    except InputError:
        return math.inf  # only the filter can admit it


def as_events(counts: Counts) -> list[Event]:
    """Return counts as repeated events."""
    return [Repeated(event, count) for event, count in counts]


def merged(parts: Iterable[Counts]) -> Counts:
    """Return the sum of several counts."""
    return group(event for counts in parts for event in as_events(counts))
