"""Exact match and F1 of predicted spans of tokens.

The scores of a record are [exact, f1]: whether the predicted span is the right one, and the
harmonic mean of precision and recall over its tokens (Rajpurkar et al. 2016, there over words). A
record whose answer was cut away has 0 for both.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from privet.common.tasks import shares

Array = npt.NDArray[Any]
NAMES = ("f1", "exact_match")


def best(start: Tensor, end: Tensor) -> tuple[Tensor, Tensor]:
    """Return the first and the last token of each record's likeliest span, both [B].

    Args:
        start: log-likelihood of each place as the first token [B, T].
        end: of each place as the last token, which is never before the first, [B, T].
    """
    likeliest, place = start.cummax(1)
    last = (likeliest + end).argmax(1)
    return place.gather(1, last[:, None])[:, 0], last


def overlap(first: Tensor, last: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """Return the scores of each record, [B, 2].

    Args:
        first: token of each predicted span [B].
        last: the last one.
        start: first token of the right span [B]; below 0 if there is none.
        end: its last one.
    """
    both = torch.minimum(last, end) - torch.maximum(first, start) + 1
    total = (last - first) + (end - start) + 2
    f1 = torch.where(start >= 0, 2 * both.clamp(min=0) / total, 0.0)
    exact = (first == start) & (last == end)
    return torch.stack([exact.to(f1.dtype), f1], 1)


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
