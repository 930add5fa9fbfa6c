"""The metrics gate: one noised histogram for all figures of an evaluation (H13).

Each unit adds a total weight of at most 1 to the cells of a histogram of score bin by
label (or of guess by label), shared equally among its records, so the L2 sensitivity
under add or remove is 1. Accuracy, precision, recall, F1 and AUC are read from the
noised table and cost nothing more.
"""

from __future__ import annotations

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
    bins: int,
    noise_multiplier: float,
    stream: Stream | None = None,
) -> tuple[Array, ev.Event]:
    """Return the noised table and what it cost.

    Args:
        scores: [N, K] class probabilities; a row that is not finite counts for nothing.
        labels: [N] class numbers.
        units: which records belong to which unit.
        bins: score bins (two classes).
        noise_multiplier: standard deviation of the noise in each cell.
        stream: randomness; None draws a new key from the operating system.
    """
    sizes = np.diff(units.starts)
    weights = np.zeros(len(labels))
    weights[units.records] = np.repeat(1.0 / np.maximum(sizes, 1), sizes)
    finite = np.isfinite(scores).all(1)
    table = histogram(scores[finite], labels[finite], weights[finite], bins)
    noise = (stream or Stream.fresh()).normal(table.size).reshape(table.shape)
    return table + noise * noise_multiplier, event(noise_multiplier)
