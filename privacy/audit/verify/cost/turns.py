"""Which sites take part in which round of a plan that has only some of them in each."""

from __future__ import annotations

import hashlib
import json
from array import array
from collections import Counter
from collections.abc import Iterable
from functools import cached_property

MAX_TURNS = 2_000_000
"""Most turns of a plan: sites of a round times rounds."""
_MAX_NAME = 64
"""Most characters of a site's name."""


class Turns:
    """The sites of each round. They take turns, in cycles; each cycle has its own order.

    Nothing is computed before somebody asks: a bundle may have plans that nobody used.

    Args:
        sites: names of all sites of the plan.
        count: sites of a round.
        seed: of the plan.
        rounds: of the plan.

    Raises:
        ValueError: if there are more turns than are counted, or a name is none.
    """

    def __init__(self, sites: list[str], count: int, seed: int, rounds: int) -> None:
        if not 1 <= count <= len(sites) or count * rounds > MAX_TURNS:
            raise ValueError("out of range")
        if any(len(site) > _MAX_NAME or not site.isascii() for site in sites):
            raise ValueError("of sites without proper names")
        self._sites, self._seed, self._rounds = sites, seed, rounds
        self.count = count

    @property
    def total(self) -> int:
        """How many turns there are."""
        return self.count * self._rounds

    @property
    def most(self) -> int:
        """In how many rounds a site takes part at most: a cycle has every site once."""
        return -(-self.total // len(self._sites))

    def most_of(self, rounds: Iterable[int]) -> int:
        """In how many of these rounds a site takes part at most.

        Args:
            rounds: numbers, from 1.
        """
        taken = Counter(place for number in rounds for place in self._round(number))
        return max(taken.values(), default=0)

    def has(self, site: str, number: int) -> bool:
        """Whether a site takes part in a round.

        Args:
            site: its name.
            number: of the round, from 1 to the last.
        """
        place = self._places.get(site)
        return place is not None and place in self._round(number)

    def sites_of(self, number: int) -> frozenset[str]:
        """Return the sites of a round.

        Args:
            number: of the round, from 1 to the last.
        """
        return frozenset(self._sites[place] for place in self._round(number))

    def _round(self, number: int) -> array[int]:
        return self._order[(number - 1) * self.count : number * self.count]

    @cached_property
    def _places(self) -> dict[str, int]:
        return {site: place for place, site in enumerate(self._sites)}

    @cached_property
    def _order(self) -> array[int]:
        """The places of the sites of all rounds, one round after another."""
        found = array("I")
        queue: list[int] = []  # the rest of a cycle, its next site last
        cycle = 0
        for _ in range(self._rounds):
            taken = [queue.pop() for _ in range(min(self.count, len(queue)))]
            if len(taken) < self.count:
                cycle += 1
                # Who is in this round already keeps its turn of the new cycle for a later one.
                there, later = set(taken), []
                for place in self._cycle(cycle):
                    if len(taken) < self.count and place not in there:
                        taken.append(place)
                    else:
                        later.append(place)
                queue = later[::-1]
            found.extend(taken)
        return found

    def _cycle(self, number: int) -> list[int]:
        text = json.dumps(["privet/schedule/v1", self._seed, number], separators=(",", ":"))
        key = hashlib.sha256(text.encode()).digest()
        hashes = [hashlib.sha256(key + site.encode()).digest() for site in self._sites]
        return sorted(range(len(hashes)), key=hashes.__getitem__)
