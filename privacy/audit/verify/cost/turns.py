"""Which sites take part in which round of a plan that has only some of them in each."""

from __future__ import annotations

import hashlib
import json
from collections import deque

MAX_TURNS = 2_000_000
"""Most turns of a plan: sites of a round times rounds."""


def turns(sites: list[str], count: int, seed: int, rounds: int) -> list[frozenset[str]]:
    """Return the sites of each round. They take turns, in cycles; each cycle has its own order.

    Args:
        sites: all of the plan's.
        count: sites of a round.
        seed: of the plan.
        rounds: of the plan.
    """
    found: list[frozenset[str]] = []
    queue: deque[str] = deque()
    cycle = 0
    for _ in range(rounds):
        taken = {queue.popleft() for _ in range(min(count, len(queue)))}
        if len(taken) < count:
            cycle += 1
            text = json.dumps(["privet/schedule/v1", seed, cycle], separators=(",", ":"))
            key = hashlib.sha256(text.encode()).digest()
            # Who is in this round already has the next turn of the new cycle in a later round.
            for site in sorted(sites, key=lambda one: hashlib.sha256(key + one.encode()).digest()):
                if len(taken) < count and site not in taken:
                    taken.add(site)
                else:
                    queue.append(site)
        found.append(frozenset(taken))
    return found
