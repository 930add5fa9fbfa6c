"""What the rules know of a plan: public facts, in the terms of their formulas."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Literal

from privet.common.plan import Plan
from privet.common.sections.task import TableTask

Family = Literal["linear", "deep", "other"]
"""``linear``: the gradient of a record is its input times its error; ``deep``: other networks that
are trained from their first layer on; ``other``: no rule was found yet."""
HEAD_SCALE = 4.0
"""Length of a frozen encoder's features: a head's bias then has a seventeenth of the gradient."""
_DEEP = ("dense", "ft-transformer")


@dataclass(frozen=True)
class Facts:
    """A plan as the rules see it.

    Attributes:
        plan: with schema defaults where it says nothing.
    """

    plan: Plan

    @property
    def family(self) -> Family:
        """Which rule applies."""
        model, task = self.plan.model, self.plan.task
        if self.plan.privacy is not None and self.plan.privacy.is_central:
            return "other"
        if model.reads_features:
            return "linear"
        if not isinstance(task, TableTask) or not self.plan.trains:
            return "other"
        if model.kind == "linear":
            return "linear"
        return "deep" if model.kind in _DEEP else "other"

    @property
    def is_private(self) -> bool:
        """Whether noise is added."""
        return self.plan.privacy is not None

    @property
    def units(self) -> float:
        """Nominal units of the sites of a round."""
        whole = sum(site.nominal_size for site in self.plan.sites)
        return whole * self.sites / len(self.plan.sites)

    @property
    def sites(self) -> int:
        """Sites of a round."""
        return self.plan.sites_in_a_round

    def width(self, scale: float) -> float:
        """Return the length of a linear model's typical input, its bias included.

        A numeric feature fills [-2, 2], and is some √2 from 0; a categorical one is a single 1.

        Args:
            scale: factor on the input; of a head, the length of its features.
        """
        task = self.plan.task
        squares = 1
        if not self.plan.model.reads_features:
            assert isinstance(task, TableTask)
            squares = 2 * len(task.numeric) + len(task.categorical)
        return math.sqrt(scale**2 * squares + 1)

    @functools.cached_property
    def mu(self) -> float:
        """The budget as Gaussian differential privacy: μ of one Gaussian that takes it whole.

        All of a run's unsampled steps together are that Gaussian, however many they are.
        """
        from dp_accounting.pld import accountant, common

        privacy = self.plan.privacy
        assert privacy is not None
        terms = common.DifferentialPrivacyParameters(privacy.epsilon, privacy.delta)
        changed = 2.0 if privacy.relation == "replace_one" else 1.0
        return 1 / float(accountant.get_smallest_gaussian_noise(terms, 1, changed))

    def noise(self, rounds: int, steps: int, sample_rate: float) -> float:
        """Return about the noise multiplier that the budget asks for; no claim rests on it.

        For sampled steps it is the limit of many of them (Bu et al. 1911.11607, corollary 5.4).

        Args:
            rounds: of the run.
            steps: of a round.
            sample_rate: chance of a unit to be in a step.
        """
        privacy = self.plan.privacy
        assert privacy is not None
        if privacy.noise_multiplier is not None:
            return privacy.noise_multiplier
        taken = max(1.0, rounds * steps * self.sites / len(self.plan.sites))
        if sample_rate == 1:
            return math.sqrt(taken) / self.mu
        return 1 / math.sqrt(math.log1p((self.mu / sample_rate) ** 2 / taken))
