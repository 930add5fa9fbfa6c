"""Poisson sampling over units with a public rate (H1 to H4)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from privet.common.errors import InputError
from privet.privacy.mechanism.noise import Stream


@dataclass(frozen=True)
class PoissonSampler:
    """Each unit enters the batch independently with probability ``sample_rate``.

    There is no last partial batch, no fixed batch size and no weight: those are the ways
    in which a sampler makes the accounting false.
    """

    sample_rate: float

    def __post_init__(self) -> None:
        if not 0 < self.sample_rate <= 1:
            raise InputError(f"sample_rate must lie in (0, 1], not {self.sample_rate}")

    def draw(self, population: int, stream: Stream) -> npt.NDArray[np.int64]:
        """Return the numbers of the units in this batch; it may be empty (H19)."""
        return np.flatnonzero(stream.bernoulli(population, self.sample_rate))
