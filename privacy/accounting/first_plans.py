"""Which first plans of a ledger are composed: no more than a verifier can finish.

How δ is shared follows from a population's first plan by several compositions
(privacy/accounting/delta_shares.py). A reservation that is given back makes room for another first
plan, and a ledger may have many populations; so a ledger could be made to be expensive. Therefore
the first plans of one ledger, each once for a population, are composed in the order in which they
came to be first while the sum of their costs is within :data:`MAX_SECONDS`. One that would exceed
it counts as not known, and adds nothing: the Rényi filter holds its population with the full δ
(docs/reference/evidence-format.md).

Whether a plan is composed is settled when it becomes the first, before anything of
its population was released under it, and never changes: the sum only grows. So the
split of δ is still a constant on all paths, as privacy/accounting/delta_shares.py asks.

Costs are estimates from the events (privacy/accounting/pld_size.py); no clock decides. They are
rounded up to seconds, and a plan's author chooses its noise: a site and the verifier of its ledger
may read a cost at a border differently. Such a plan has two readings here. Where they decide
whether a plan is composed, it is not known to be either, and what is charged must be admitted both
ways.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable

from privet.privacy.accounting import gaussian_dp
from privet.privacy.accounting.delta_shares import most_extra
from privet.privacy.accounting.events import Counts
from privet.privacy.accounting.pld import GRID
from privet.privacy.accounting.pld_size import costs_us
from privet.privacy.accounting.units import Relation

MAX_SECONDS = 1800
"""Of all first plans of one ledger. A plan as people write them takes 10 to 100."""


def seconds(planned: Counts, once: Counts, relation: Relation) -> tuple[int, int]:
    """Return about how long the compositions of a first plan take; 0 if none is made.

    The least and the most that rounding makes of it: at no border they are the same.

    With at most L extra attempts it is composed as it is, with the binary digits of
    L + 1 numbers of attempts more, and once for the δ that it uses.

    Args:
        planned: all that the plan may do.
        once: what one more attempt at each of its releases adds.
        relation: of the population.
    """
    if not planned or gaussian_dp.squares(planned, relation) is not None:
        return 0, 0
    compositions = 2 + (most_extra(planned, once) + 1).bit_length()
    least, most = (
        math.ceil(compositions * cost / 1e6) for cost in costs_us(planned, relation, GRID)
    )
    return least, most


def composed(costs: Iterable[tuple[Hashable, tuple[int, int]]]) -> dict[Hashable, bool | None]:
    """Return which first plans are composed; None where that depends on how a cost is read.

    Args:
        costs: all first plans in their order, each with its :func:`seconds`. A plan that
            comes again is the same.
    """
    found: dict[Hashable, bool | None] = {}
    least_sum = most_sum = 0
    for plan, (least, most) in costs:
        if plan in found or least_sum + least > MAX_SECONDS:
            found.setdefault(plan, False)
        elif most_sum + most <= MAX_SECONDS:
            least_sum, most_sum = least_sum + least, most_sum + most
            found[plan] = True
        else:  # the reading that has no room for it adds nothing
            most_sum = min(MAX_SECONDS, most_sum + most)
            found[plan] = None
    return found
