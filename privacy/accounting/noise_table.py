"""How much noise a budget asks for, by the steps that share it and the rate of sampling.

What counts for training is not the noise multiplier σ of one step but what all steps add to the
model: each adds noise of σ C / (q N) to the mean gradient of N units, so that steps of the same
total length add σ C / (q N √steps).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from privet.common.errors import InputError
from privet.common.plan import Plan
from privet.privacy.accounting.noise_calibration import calibrated

STEPS = (10, 40, 160, 640)
RATES = (0.05, 0.2, 0.5, 1.0)


@dataclass(frozen=True)
class PlannedNoise:
    """The noise of one choice.

    Attributes:
        steps: of a site in the whole run.
        sample_rate: chance of a unit to be in a step.
        noise_multiplier: σ that it asks for.
    """

    steps: int
    sample_rate: float
    noise_multiplier: float

    @property
    def total(self) -> float:
        """What all steps add to the model, for a learning rate of 1 / steps and one unit.

        Divided by a site's number of units, it is the site's noise in the mean gradient, as a share
        of the clip bound.
        """
        return self.noise_multiplier / (self.sample_rate * math.sqrt(self.steps))


def planned_noise(
    plan: Plan, steps: Sequence[int] | None = None, rates: Sequence[float] | None = None
) -> Iterator[PlannedNoise]:
    """Yield the noise of each number of steps and rate of sampling, for the plan's budget.

    Args:
        plan: says ε, δ, relation, and what its metrics cost; its own rounds and steps do not count.
        steps: of a site in the whole run, one in each round; None takes ``STEPS``.
        rates: of sampling; None takes ``RATES``.

    Raises:
        InputError: if the plan has no privacy, or the coordinator adds the noise.
    """
    privacy = plan.privacy
    if privacy is None or privacy.is_central:
        raise InputError(
            f"plan '{plan.name}' adds no noise at its sites: it needs a [privacy] section with "
            "trust = 'local'"
        )
    for count in steps or STEPS:
        for rate in rates or RATES:
            training = plan.training.model_copy(
                update={"rounds": count, "steps": 1, "sample_rate": rate}
            )
            free = privacy.model_copy(update={"noise_multiplier": None})
            strategy = plan.strategy.model_copy(update={"sites_per_round": None})
            found = calibrated(
                plan.model_copy(
                    update={"training": training, "privacy": free, "strategy": strategy}
                )
            ).privacy
            assert found is not None and found.noise_multiplier is not None
            yield PlannedNoise(count, rate, found.noise_multiplier)
