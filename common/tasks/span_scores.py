"""What the words of a text, or an answer's place in it, score: on the device of the model.

The metrics are computed elsewhere, without torch (:mod:`privet.common.tasks.tags`,
:mod:`privet.common.tasks.spans`).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from privet.common.bio import TagScheme


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
