"""Accuracy, precision, recall, F1 and AUC, from scores or from a class-by-bin histogram."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
NAMES = ("accuracy", "precision", "recall", "f1", "auc")


def from_scores(scores: Array, labels: Array) -> dict[str, float | None]:
    """Return the five metrics; of two classes for class 1, of more as macro means.

    A metric that is undefined (no records, one class only) is None.

    Args:
        scores: [N, K] class probabilities.
        labels: [N] class numbers.
    """
    if not len(labels):
        return dict.fromkeys(NAMES)
    # Not above: a site's histogram needs none of it, and it takes a third of a second to load.
    from sklearn import metrics as sk

    guess = scores.argmax(1)
    present = np.unique(labels)
    mean: dict[str, Any] = {"average": "macro", "labels": present}
    if scores.shape[1] == 2:
        mean = {"average": "binary"}
    precision, recall, f1, _ = sk.precision_recall_fscore_support(
        labels, guess, zero_division=0.0, **mean
    )
    return {
        "accuracy": float((guess == labels).mean()),
        "precision": float(precision),
        "recall": float(recall),
        "f1": float(f1),
        "auc": _auc(scores, labels, present),
    }


def _auc(scores: Array, labels: Array, present: Array) -> float | None:
    """Return the area under the ROC curve, of more than two classes the mean of one against all.

    From the ranks of the scores (Mann and Whitney 1947), with the mean rank where some are equal:
    the curve itself is not needed. Of 77 classes at ten sites the curves took 0.7 s a round, more
    than training.
    """
    if len(present) < 2:
        return None
    from scipy.stats import rankdata

    asked = np.array([1]) if scores.shape[1] == 2 else present
    scores = scores[:, asked]
    if not np.isfinite(scores).all():
        raise ValueError("a score is not finite")
    ranks = rankdata(scores, axis=0)  # [N, C], from 1
    is_class = labels[:, None] == asked  # [N, C]
    inside = is_class.sum(0).astype(np.float64)  # [C]
    above = (ranks * is_class).sum(0) - inside * (inside + 1) / 2
    return float(np.mean(above / (inside * (len(labels) - inside))))


def cells(scores: Array, labels: Array, shape: tuple[int, int]) -> Array:
    """Return each record's cell of the table that :func:`from_histogram` reads.

    Rows are labels. With two classes, columns are bins of the score of class 1, [2, bins]; with K
    classes they are predictions, [K, K]. Cells are counted row by row. A record whose label is none
    of the classes has no cell (-1). No record has one if the scores are not of the table's classes.

    Args:
        scores: [N, K], finite.
        labels: [N] class numbers.
        shape: of the table.
    """
    classes, columns = shape
    if scores.ndim != 2 or scores.shape[1] != classes or labels.shape != scores.shape[:1]:
        return np.full(len(scores), -1, dtype=np.int64)
    if labels.dtype.kind not in "iu":
        return np.full(len(scores), -1, dtype=np.int64)
    if classes == 2:
        with np.errstate(over="ignore"):
            column = np.clip(scores[:, 1] * columns, 0, columns - 1).astype(np.int64)
    else:
        column = scores.argmax(1)
    known = (labels >= 0) & (labels < classes)
    return np.where(known, labels.astype(np.int64) * columns + column, -1)


def from_histogram(table: Array) -> dict[str, float | None]:
    """Compute the metrics from a (noised) histogram; negative cells count as zero.

    A table of two rows and more columns holds score bins. A bin above one half predicts class 1,
    and so do half of the records of a middle bin. The AUC of binned scores counts ties within a bin
    as half.
    """
    table = np.maximum(np.asarray(table, dtype=np.float64), 0.0)
    total = table.sum()
    if not total > 0:
        return dict.fromkeys(NAMES)
    rows = len(table)
    confusion = confusion_of(table)
    auc = None if confusion is table else _binned_auc(table)
    hits = np.diag(confusion)
    with np.errstate(divide="ignore", invalid="ignore"):
        precision = np.nan_to_num(hits / confusion.sum(0))
        recall = np.nan_to_num(hits / confusion.sum(1))
        f1 = np.nan_to_num(2 * precision * recall / (precision + recall))
    chosen = slice(1, 2) if rows == 2 else slice(None)
    return {
        "accuracy": float(hits.sum() / total),
        "precision": float(precision[chosen].mean()),
        "recall": float(recall[chosen].mean()),
        "f1": float(f1[chosen].mean()),
        "auc": auc,
    }


def confusion_of(table: Array) -> Array:
    """Return counts by label and prediction, [K, K], of a table that :func:`from_histogram` reads.

    Args:
        table: of classes.
    """
    rows, columns = table.shape
    if rows != 2 or columns == 2:
        return table
    half = columns // 2
    above = table[:, columns - half :].sum(1)
    if columns % 2:
        above = above + table[:, half] / 2
    return np.stack([table.sum(1) - above, above], 1)


def _binned_auc(table: Array) -> float | None:
    negative, positive = table
    if not (negative.sum() > 0 and positive.sum() > 0):
        return None
    below = np.concatenate([[0.0], np.cumsum(negative)[:-1]])
    wins = (positive * (below + negative / 2)).sum()
    return float(wins / (negative.sum() * positive.sum()))
