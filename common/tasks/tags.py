"""Token accuracy and F1 of tags, from counts of each record.

The scores of a record are [right, tokens], and for each group [found, predicted, true]: how many
spans or tags are predicted where they are, how many are predicted, and how many there are. In BIO
one group has all spans, and a span is found if its first and last word and its type are predicted
(Tjong Kim Sang and De Meulder 2003); of plain tags each class is a group.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from privet.common.tasks import shares

Array = npt.NDArray[Any]
NAMES = ("token_accuracy", "precision", "recall", "f1")


def from_scores(scores: Array, labels: Array) -> dict[str, float | None]:
    """Return token accuracy; and precision, recall and F1, a mean over groups that occur.

    Args:
        scores: [N, 2 + 3 G], see the module.
        labels: unused.
    """
    del labels
    total = np.asarray(scores, dtype=np.float64).sum(0)
    if len(total) < 5 or not total[1] > 0:
        return dict.fromkeys(NAMES)
    found, predicted, true = total[2:].reshape(-1, 3).T
    occurs = predicted + true > 0
    figures: dict[str, float | None] = dict.fromkeys(NAMES)
    figures["token_accuracy"] = float(total[0] / total[1])
    if occurs.any():
        found, predicted, true = (part[occurs] for part in (found, predicted, true))
        figures["precision"] = float((found / np.maximum(predicted, 1)).mean())
        figures["recall"] = float((found / np.maximum(true, 1)).mean())
        figures["f1"] = float((2 * found / (predicted + true)).mean())
    return figures


def cells(scores: Array, labels: Array, shape: tuple[int, int]) -> Array:
    """Return each record's bin of its share of right tokens; -1 for a record without tokens.

    Args:
        scores: [N, 2 + 3 G], see the module; finite.
        labels: unused.
        shape: (1, bins).
    """
    del labels
    if scores.ndim != 2 or scores.shape[1] < 5:
        return np.full(len(scores), -1, dtype=np.int64)
    tokens = scores[:, 1].astype(np.float64)
    return shares.cells(np.where(tokens > 0, scores[:, 0] / np.maximum(tokens, 1), -1.0), shape[1])


def from_histogram(table: Array) -> dict[str, float | None]:
    """Compute token accuracy from a (noised) table: the mean over units, exact to one bin.

    Spans of several records cannot be counted with one cell for each record: there is no F1.
    """
    return {**dict.fromkeys(NAMES), "token_accuracy": shares.means(table)[0]}
