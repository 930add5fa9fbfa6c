"""Augmentation: changed copies of a record, drawn again in each step.

A copy depends on one record and one random number of its own, never on two records (no mixup). A
record's copies count as records of the same unit, so that the bound on a unit holds for all of them
together (De et al. 2022 average over them in the same way). The start-up test H6 checks this.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from privet.common.tasks import Batch
from privet.common.tasks.hashing import mixed, shares

Augment = Callable[[Batch, Tensor], Batch]
"""Makes copies [B] of records [B] with a random 64-bit number each, [B]."""

_SHARE = 0.1
"""Of cells or tokens that are hidden."""


def chain(*steps: Augment) -> Augment | None:
    """Return the composition of these steps, each with its own numbers; None for no step."""
    if not steps:
        return None

    def augment(batch: Batch, words: Tensor) -> Batch:
        for number, step in enumerate(steps):
            batch = step(batch, mixed(words + number))
        return batch

    return augment


def hide(batch: Batch, words: Tensor) -> Batch:
    """Hide a tenth of a table's cells, as if they were empty.

    Args:
        batch: of :class:`privet.common.tasks.tabular.TabularTask`, B records.
        words: one random int64 for each record, [B].
    """
    numeric, categorical = batch["numeric"], batch["categorical"]
    columns = numeric.shape[1] + categorical.shape[1]
    hidden = shares(words, columns) < _SHARE
    cells, choices = hidden[:, : numeric.shape[1]], hidden[:, numeric.shape[1] :]
    return {
        **batch,
        "numeric": numeric.masked_fill(cells, 0.0),
        "missing": batch["missing"].masked_fill(cells, 1.0),
        "categorical": categorical.masked_fill(choices, 0),
    }


def flip(batch: Batch, words: Tensor) -> Batch:
    """Mirror half of the images left to right.

    Args:
        batch: with ``pixels`` [B, C, H, W].
        words: one random int64 for each record, [B].
    """
    pixels = batch["pixels"]
    turned = shares(words, 1)[:, :, None, None] < 0.5
    return {**batch, "pixels": torch.where(turned, pixels.flip(3), pixels)}


def shift(batch: Batch, words: Tensor) -> Batch:
    """Move each image by up to one pixel, vertically and horizontally; the border gets -1.

    Args:
        batch: with ``pixels`` [B, C, H, W] in [-1, 1].
        words: one random int64 for each record, [B].
    """
    pixels = batch["pixels"]
    _, channels, height, width = pixels.shape
    moves = (shares(words, 2) * 3).long()  # 0, 1, 2
    wide = functional.pad(pixels, (1, 1, 1, 1), value=-1.0)
    rows = moves[:, :1] + torch.arange(height, device=pixels.device)
    columns = moves[:, 1:] + torch.arange(width, device=pixels.device)
    found = wide.gather(2, rows[:, None, :, None].expand(-1, channels, -1, width + 2))
    found = found.gather(3, columns[:, None, None, :].expand(-1, channels, height, -1))
    return {**batch, "pixels": found}


def drop(name: str, tokens: Any) -> Augment:
    """Return a step that masks a tenth of a text's tokens.

    Args:
        name: key of the token rows in a batch.
        tokens: how numbers are used, a :class:`~privet.common.models.tokens.Tokens`.
    """

    def augment(batch: Batch, words: Tensor) -> Batch:
        rows = batch[name]
        hidden = (shares(words, rows.shape[1]) < _SHARE) & (rows != tokens.padding)
        for special in tokens.special:
            hidden &= rows != special
        return {**batch, name: rows.masked_fill(hidden, tokens.mask)}

    return augment
