"""The metrics gate: one noised histogram for all figures of an evaluation (H13).

Each unit adds a total weight of at most 1 to the cells of a histogram (of score bin by label,
of guess by label, or of loss per token), shared equally among its records, so the L2 sensitivity
under add or remove is 1. All figures are read from the noised table and cost nothing more.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from privet.common.tasks.metrics import histogram
from privet.privacy import events as ev
from privet.privacy.noise import Stream
from privet.privacy.units import UnitIndex

Array = npt.NDArray[Any]


def event(noise_multiplier: float) -> ev.Event:
    """Return the event of one gate release."""
    return ev.Gaussian(noise_multiplier, 1.0)


def noised_histogram(
    scores: Array,
    labels: Array,
    units: UnitIndex,
    *,
    table: Callable[[Array, Array, Array, int], Array] = histogram,
    bins: int,
    noise_multiplier: float,
    stream: Stream | None = None,
) -> tuple[Array, ev.Event]:
    """Return the noised table and what it cost.

    Args:
        scores: [N, K] of each record; a row that is not finite counts for nothing.
        labels: [N] class numbers.
        units: which records belong to which unit.
        table: makes the histogram of scores, labels, weights [N] and bins; a record adds its
            weight to one cell.
        bins: of scores or losses.
        noise_multiplier: standard deviation of the noise in each cell.
        stream: randomness; None draws a new key from the operating system.
    """
    sizes = np.diff(units.starts)
    weights = np.zeros(len(labels))
    weights[units.records] = np.repeat(1.0 / np.maximum(sizes, 1), sizes)
    finite = np.isfinite(scores).all(1)
    counted = table(scores[finite], labels[finite], weights[finite], bins)
    noise = (stream or Stream.fresh()).normal(counted.size).reshape(counted.shape)
    return counted + noise * noise_multiplier, event(noise_multiplier)
