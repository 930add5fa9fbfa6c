"""Say when a classifier is worth no more than the same answer each time.

Its accuracy alone hides that: of 5,574 messages of which 87 % are no spam, a model that finds none
has an accuracy of .87.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from privet.common.plan import Plan
from privet.common.tasks.measure import CLASSES, measure_of_kind
from privet.common.tasks.metrics import confusion_of, from_histogram

Array = npt.NDArray[Any]
_LITTLE = 0.01
"""Share of all records that a model must know beyond the most frequent class, where chance would
be more."""
_LOUD = 100.0
"""A table says nothing of fewer records than this many standard deviations of its noise."""
_RANKS = 0.6
"""AUC from which scores are worth another threshold."""
_ADVICE = (
    "If the same plan with --no-dp does no better, settings or records are at fault, not the noise"
)


def weakness_of_scores(
    scores: Array,
    labels: Array,
    classes: Sequence[str],
    auc: float | None,
    *,
    is_private: bool = True,
) -> str:
    """Say whether a model does no better than the most frequent class; "" if it does.

    Args:
        scores: [N, K] of the test records.
        labels: [N] class numbers.
        classes: K names.
        auc: of the scores.
        is_private: False leaves out the advice to try it without privacy.
    """
    if scores.ndim != 2 or scores.shape[1] != len(classes) or not len(labels):
        return ""
    if labels.dtype.kind not in "iu":
        return ""
    known = (labels >= 0) & (labels < len(classes))
    if not known.all() or len(np.unique(labels)) < 2:
        return ""
    confusion = np.zeros((len(classes), len(classes)))
    np.add.at(confusion, (labels, scores.argmax(1)), 1)
    advice = f". {_ADVICE}" if is_private else ""
    return _said(confusion, classes, auc, 0.0, "test records", advice)


def weakness_of_tables(tables: Mapping[str, Any], plan: Plan) -> str:
    """Say the same of the sites' noised tables, as far as the noise lets it be known.

    Args:
        tables: by site.
        plan: of the run.
    """
    classes = plan.task.labels
    arrays = [np.asarray(table, dtype=np.float64) for table in tables.values()]
    if measure_of_kind(plan.task.kind) is not CLASSES or not arrays or len(classes) < 2:
        return ""
    shape = CLASSES.shape(plan)
    if any(array.shape != shape for array in arrays):
        return ""  # of a user's own task
    table = np.sum(arrays, axis=0)
    # Each cell has its own noise; a cell of the confusion joins several of them.
    noise = plan.metrics.noise_multiplier * math.sqrt(len(arrays) * table.size)
    auc = from_histogram(table)["auc"]
    what = "test records, by noised counts"
    return _said(confusion_of(table), classes, auc, noise, what, f". {_ADVICE}")


def _said(
    confusion: Array,
    classes: Sequence[str],
    auc: float | None,
    noise: float,
    what: str,
    advice: str,
) -> str:
    """Return the sentence, or "".

    Args:
        confusion: [K, K] counts by label and answer.
        classes: K names.
        auc: of the scores.
        noise: standard deviation of the noise in the sum of all counts.
        what: the records are called.
        advice: at its end, where no other is known.
    """
    total = float(confusion.sum())
    if total <= _LOUD * noise:
        return ""
    most = int(confusion.sum(1).argmax())
    said = int(confusion.sum(0).argmax())
    # Against always answering `most`, only records that one of the two gets right count (McNemar
    # 1947): those of other classes that the model knows, and those of `most` that it does not.
    won = float(np.trace(confusion) - confusion[most, most])
    lost = float(confusion[most].sum() - confusion[most, most])
    chance = math.hypot(math.sqrt(max(won, 0.0) + max(lost, 0.0)), 2 * noise)
    if won - lost > min(chance, _LITTLE * total):
        return ""
    other = total - float(confusion[:, said].sum())
    hits, of_most = float(np.trace(confusion)), float(confusion[most].sum())
    right, always = (min(1.0, max(0.0, count / total)) for count in (hits, of_most))
    if other <= 2 * noise:
        text = (
            f"the model answers '{classes[said]}' for {'all' if not noise else 'nearly all'} {what}"
        )
    else:
        text = (
            f"the model's accuracy, {right:.3f}, is not clearly better than always answering "
            f"'{classes[most]}', {always:.3f} (of {round(total):,} {what})"
        )
    if auc is not None and auc >= _RANKS and len(classes) == 2:
        return f"{text}. Its scores do rank them (AUC {auc:.2f}): choose another threshold than ½"
    return text + advice


__all__ = ["weakness_of_scores", "weakness_of_tables"]
