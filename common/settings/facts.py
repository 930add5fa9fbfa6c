"""What the rules know of a plan: public facts, in the terms of their formulas."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Literal

Family = Literal["linear", "other"]
"""``linear``: the gradient of a record is its input times its error; ``other``: no rule was found
yet."""
HEAD_SCALE = 4.0
"""Length of a frozen encoder's features: a head's bias then has a seventeenth of the gradient."""


@dataclass(frozen=True)
class Facts:
    """A plan as the rules see it.

    Attributes:
        task, model: their kinds.
        trains: whether there are rounds of training.
        reads_features: whether the model is a head on features of a frozen encoder.
        classes: number of them; 1 where there are none.
        numeric, categorical: numbers of features of a table; 0 of other tasks.
        sizes: nominal size of each site.
        sites: that take part in a round.
        budget: ε and δ; None without privacy.
        changed: how much one unit changes a sum, in clip bounds: 2 where one replaces another.
        noise_multiplier: σ, if the plan says it.
        is_central: whether the coordinator adds the noise.
    """

    task: str
    model: str
    trains: bool
    reads_features: bool
    classes: int
    numeric: int
    categorical: int
    sizes: tuple[int, ...]
    sites: int
    budget: tuple[float, float] | None
    changed: float = 1.0
    noise_multiplier: float | None = None
    is_central: bool = False

    @property
    def family(self) -> Family:
        """Which rule applies."""
        if self.is_central or not self.trains:
            return "other"
        is_table = self.numeric + self.categorical > 0
        if self.reads_features or (is_table and self.model == "linear"):
            return "linear"
        return "other"

    @property
    def is_private(self) -> bool:
        """Whether noise is added."""
        return self.budget is not None

    @property
    def units(self) -> float:
        """Nominal units of the sites of a round."""
        return sum(self.sizes) * self.sites / len(self.sizes)

    def width(self, scale: float) -> float:
        """Return the length of a linear model's typical input, its bias included.

        A numeric feature fills [-2, 2], and is some √2 from 0; a categorical one is a single 1.

        Args:
            scale: factor on the input; of a head, the length of its features.
        """
        squares = 1 if self.reads_features else 2 * self.numeric + self.categorical
        return math.sqrt(scale**2 * squares + 1)

    @functools.cached_property
    def mu(self) -> float:
        """The budget as Gaussian differential privacy: μ of one Gaussian that takes it whole.

        All of a run's unsampled steps together are that Gaussian, however many they are.
        """
        from dp_accounting.gaussian_mechanism import get_sigma_gaussian

        assert self.budget is not None
        return 1 / (self.changed * float(get_sigma_gaussian(*self.budget)))

    def noise(self, rounds: int, steps: int, sample_rate: float) -> float:
        """Return about the noise multiplier that the budget asks for; no claim rests on it.

        For sampled steps it is the limit of many of them (Bu et al. 1911.11607, corollary 5.4).

        Args:
            rounds: of the run.
            steps: of a round.
            sample_rate: chance of a unit to be in a step.
        """
        if self.noise_multiplier is not None:
            return self.noise_multiplier
        taken = max(1.0, rounds * steps * self.sites / len(self.sizes))
        if sample_rate == 1:
            return math.sqrt(taken) / self.mu
        return 1 / math.sqrt(math.log1p((self.mu / sample_rate) ** 2 / taken))
