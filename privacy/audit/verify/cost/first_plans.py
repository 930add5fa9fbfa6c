"""Which first plans of a ledger are composed, by the format page: a ledger is read in bounded time.

The others count as not known. From the events alone, so that no clock decides.
"""

from __future__ import annotations

import math

from privet.privacy.audit.verify.cost import accounting
from privet.privacy.audit.verify.cost.gaussian import square
from privet.privacy.audit.verify.cost.plans import AuditedPlan

#: Of all first plans of one ledger.
MAX_SECONDS = 1800


def seconds(plan: AuditedPlan, relation: str) -> int:
    """Return about how long the compositions of a first plan take; 0 if none is made.

    Args:
        plan: the first plan of a population.
        relation: of the population.
    """
    planned = plan.planned
    if all(square(event, relation) is not None for event in planned):
        return 0
    compositions = 2 + (plan.most_extra + 1).bit_length()
    return math.ceil(compositions * accounting.seconds(planned, relation))


class FirstPlans:
    """The first plans of one ledger, in the order in which they came to be first."""

    def __init__(self) -> None:
        self._total = 0

    def add(self, plan: AuditedPlan, relation: str) -> bool:
        """Return whether the next first plan of a population is composed, and count it if so.

        Args:
            plan: that is first now.
            relation: of the population.
        """
        cost = seconds(plan, relation)
        if self._total + cost > MAX_SECONDS:
            return False
        self._total += cost
        return True
