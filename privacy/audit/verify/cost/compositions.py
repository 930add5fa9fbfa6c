"""The compositions of one bundle that decide about no cap: few enough to come to an end.

They are those for the ε that is reported, of populations and of releases without a finished run,
and those that tell whether a plan costs more than it asks for. Each history is counted
once, by the estimate of the format page, in the order in which the bundle is read.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable

from privet.privacy.audit.verify.cost import accounting
from privet.privacy.audit.verify.formats.events import Event

#: Of all histories of one bundle.
MAX_SECONDS = 3600
PASSED_OVER = "not composed, after what else this bundle takes to compose: the Rényi ceiling"

_History = tuple[frozenset[tuple[Event, int]], float, str]


class Compositions:
    """Composes histories while there is time for them."""

    def __init__(self) -> None:
        self._total = 0
        #: Histories that are composed, with what came of it if that was asked for.
        self._known: dict[_History, tuple[float, float, str] | None] = {}

    def may(self, charges: Iterable[Event], delta: float, relation: str) -> bool:
        """Return whether a history may be composed at a δ, and count it if so.

        Args:
            charges: events, with their counts.
            delta: of (ε, δ).
            relation: ``add_or_remove_one`` or ``replace_one``.
        """
        return self._may(list(charges), delta, relation)[0]

    def epsilon(
        self, charges: Iterable[Event], delta: float, relation: str
    ) -> tuple[float, float, str]:
        """Return ε, its Rényi ceiling and a remark, as the accounting has them.

        The ceiling stands for ε where there is no time left, and the remark says so.

        Args:
            charges: events, with their counts.
            delta: of (ε, δ).
            relation: ``add_or_remove_one`` or ``replace_one``.
        """
        events = list(charges)
        allowed, key = self._may(events, delta, relation)
        if not allowed:
            bound = accounting.ceiling(events, delta, relation)
            return bound, bound, PASSED_OVER
        found = None if key is None else self._known[key]
        if found is None:
            found = accounting.epsilon(events, delta, relation)
            if key is not None:
                self._known[key] = found
        return found

    def _may(
        self, events: list[Event], delta: float, relation: str
    ) -> tuple[bool, _History | None]:
        """Return whether a history may be composed, and what it is known by if it is composed."""
        key = (frozenset(Counter(events).items()), delta, relation)
        if key in self._known:
            return True, key
        cost = math.ceil(accounting.seconds(events, relation))
        if not cost:
            return True, None
        if self._total + cost > MAX_SECONDS:
            return False, None
        self._total += cost
        self._known[key] = None
        return True, key
