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
import torch
from torch import Tensor
from torch.nn import functional

from privet.common.bio import TagScheme
from privet.common.tasks import shares

Array = npt.NDArray[Any]
NAMES = ("token_accuracy", "precision", "recall", "f1")


def counts(guess: Tensor, tags: Tensor, scheme: TagScheme | None, classes: int) -> Tensor:
    """Return the scores of each record, [B, 2 + 3 G].

    Args:
        guess: predicted class of each token [B, T].
        tags: right class of each token [B, T], below 0 where there is none.
        scheme: of the classes; None for plain tags.
        classes: number K of classes.
    """
    there = tags >= 0
    right = (guess == tags) & there
    if scheme is None:
        said, true = (
            functional.one_hot(part.clamp(min=0), classes) * there[..., None]
            for part in (guess, tags)
        )
        groups = [(said * true).sum(1), said.sum(1), true.sum(1)]
    else:
        groups = [part[:, None] for part in _span_counts(guess, tags, there, scheme)]
    total = [right.sum(1), there.sum(1)]
    return torch.cat([torch.stack(total, 1), torch.stack(groups, 2).flatten(1)], 1).float()


def _span_counts(
    guess: Tensor, tags: Tensor, there: Tensor, scheme: TagScheme
) -> tuple[Tensor, Tensor, Tensor]:
    """Return how many spans of each record are found, predicted and true, each [B]."""
    order = torch.argsort((~there).to(torch.int8), dim=1, stable=True)  # the words, in their order
    known = there.gather(1, order)
    guessed = _spans(guess.gather(1, order), known, scheme)
    true = _spans(tags.gather(1, order).clamp(min=0), known, scheme)
    same = (guessed == true).all(2) & (true[..., 0] > 0)
    return same.sum(1), (guessed[..., 0] > 0).sum(1), (true[..., 0] > 0).sum(1)


def _spans(classes: Tensor, known: Tensor, scheme: TagScheme) -> Tensor:
    """Return for each word the type of the span that begins there, or 0, and where it ends.

    ``I-X`` without a span of type X before it begins one, as in the evaluation of CoNLL.

    Args:
        classes: of each word [B, W].
        known: which words there are [B, W]; the others are last.
        scheme: of the classes.
    """
    types = torch.tensor(scheme.types, device=classes.device)[classes] * known
    marked = torch.tensor(scheme.begins, device=classes.device)[classes]
    before = functional.pad(types[:, :-1], (1, 0))
    begins = (types > 0) & (marked | (types != before))
    continued = functional.pad((types > 0) & ~begins, (0, 1))[:, 1:]  # by the next word
    width = classes.shape[1]
    place = torch.arange(width, device=classes.device).expand_as(classes)
    ends = torch.where(continued, width, place).flip(1).cummin(1).values.flip(1)
    return torch.stack([types * begins, ends * begins], 2)


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
