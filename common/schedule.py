"""Which sites take part in which round, where a plan has only some of them in each."""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cached_property

from privet.common.canonical import canonical_json

MAX_TURNS = 2_000_000
"""Most turns of a plan: sites of a round times rounds. All of them are counted."""
_MADE = 64
"""Rounds whose sites are kept by name."""


class Schedule:
    """The sites of each round: a public function of the plan, with no site twice in a round.

    The sites take turns. In each cycle every site has one turn, in an order that a hash of seed and
    cycle gives; a round takes the next ones. So no site takes part in more than one round more than
    another, and everybody can compute who does. Because the schedule is public, it hides nobody:
    no privacy is gained by it (no amplification), and a site's cost is that of its own rounds.

    Args:
        sites: names, in the plan's order.
        count: sites of a round.
        seed: of the plan.
        rounds: of the plan.

    Example::

        Schedule(["North", "East", "South"], 2, seed=0, rounds=3).sites_in(1)
    """

    def __init__(self, sites: Sequence[str], count: int, seed: int, rounds: int) -> None:
        self._sites, self._count, self._seed = tuple(sites), count, seed
        self._rounds = rounds
        self._made: dict[int, frozenset[str]] = {}

    def sites_in(self, number: int) -> frozenset[str]:
        """Return the sites that take part in a round.

        Args:
            number: of the round, from 1; beyond the last one nobody takes part.
        """
        if number not in self._made:
            if len(self._made) > _MADE:
                self._made.clear()
            self._made[number] = frozenset(self._sites[place] for place in self._round(number))
        return self._made[number]

    @cached_property
    def participants(self) -> frozenset[str]:
        """The sites that take part in any round."""
        return frozenset(self._sites[place] for place in set(self._turns))

    def most(self, rounds: Iterable[int]) -> int:
        """Return in how many of some rounds a site takes part at most.

        Args:
            rounds: their numbers, from 1.
        """
        turns = Counter(place for number in rounds for place in self._round(number))
        return max(turns.values(), default=0)

    def _round(self, number: int) -> array[int]:
        if not 1 <= number <= self._rounds:
            return array("I")
        return self._turns[(number - 1) * self._count : number * self._count]

    @cached_property
    def _turns(self) -> array[int]:
        """The places of the sites of all rounds, one round after another."""
        turns = array("I")
        waiting: list[int] = []
        cycle = 0
        for _ in range(self._rounds):
            round_, waiting = waiting[: self._count], waiting[self._count :]
            if len(round_) < self._count:
                cycle += 1
                order = self._order(cycle)
                last = set(round_)
                first = [one for one in order if one not in last][: self._count - len(round_)]
                taken = set(first)
                waiting = [one for one in order if one not in taken]
                round_ = [*round_, *first]
            turns.extend(round_)
        return turns

    def _order(self, cycle: int) -> list[int]:
        seed = hashlib.sha256(canonical_json(["privet/schedule/v1", self._seed, cycle])).digest()
        hashes = [hashlib.sha256(seed + site.encode()).digest() for site in self._sites]
        return sorted(range(len(hashes)), key=hashes.__getitem__)
