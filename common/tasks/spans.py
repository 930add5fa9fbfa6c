"""Exact match and F1 of predicted spans of tokens.

The scores of a record are [exact, f1]: whether the predicted span is the right one, and the
harmonic mean of precision and recall over its tokens (Rajpurkar et al. 2016, there over words). A
record whose answer was cut away has 0 for both.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from privet.common.tasks import shares

Array = npt.NDArray[Any]
NAMES = ("f1", "exact_match")


def from_scores(scores: Array, labels: Array) -> dict[str, float | None]:
    """Return the means over records.

    Args:
        scores: [N, 2], see the module.
        labels: unused.
    """
    del labels
    found = np.asarray(scores, dtype=np.float64)
    if not len(found) or found.shape[1] != 2:
        return dict.fromkeys(NAMES)
    exact, f1 = found.mean(0)
    return {"f1": float(f1), "exact_match": float(exact)}


def cells(scores: Array, labels: Array, shape: tuple[int, int]) -> Array:
    """Return the bin of each record's F1; no record has one if the scores have another width.

    Args:
        scores: [N, 2], see the module; finite.
        labels: unused.
        shape: (1, bins).
    """
    del labels
    if scores.ndim != 2 or scores.shape[1] != 2:
        return np.full(len(scores), -1, dtype=np.int64)
    return shares.cells(scores[:, 1], shape[1])


def from_histogram(table: Array) -> dict[str, float | None]:
    """Compute the metrics from a (noised) table: F1 exact to one bin, exact match exactly."""
    f1, exact = shares.means(table)
    return {"f1": f1, "exact_match": exact}
