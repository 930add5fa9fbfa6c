"""One architecture to try, made-up records for it, and its per-record losses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

Batch = dict[str, Tensor]
PLACES, WORDS, WIDTH, CLASSES = 12, 120, 16, 3


@dataclass(frozen=True)
class Architecture:
    """One model to try.

    Attributes:
        name: of the architecture.
        group: ``torch``, ``transformers`` or ``peft``.
        make: builds the model.
        loss: per-record losses of a model and a batch.
        random_batch: makes a batch of (records, seed).
        is_coupled: whether its records depend on each other, so that it must be refused.
    """

    name: str
    group: str
    make: Callable[[], nn.Module]
    loss: Callable[[nn.Module, Batch], Tensor]
    random_batch: Callable[[int, int], Batch]
    is_coupled: bool = False


def texts(count: int, seed: int) -> Batch:
    """Return token ids of different lengths, their mask, a class and a target for each place."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 100, (count, PLACES), generator=generator)
    lengths = torch.randint(PLACES // 2, PLACES + 1, (count,), generator=generator)
    mask = (torch.arange(PLACES) < lengths.unsqueeze(1)).long()
    ids[:, 1] = 2  # some classifiers read the last end of a text
    return {
        "input_ids": ids * mask,
        "attention_mask": mask,
        "label": torch.randint(0, CLASSES, (count,), generator=generator),
        "target": torch.randint(3, 100, (count, PLACES), generator=generator),
    }


def numbers(name: str, *shape: int) -> Callable[[int, int], Batch]:
    """Return what makes real numbers of a shape under a name, with a class."""

    def make(count: int, seed: int) -> Batch:
        generator = torch.Generator().manual_seed(seed)
        return {
            name: torch.randn(count, *shape, generator=generator),
            "label": torch.randint(0, CLASSES, (count,), generator=generator),
        }

    return make


def class_loss(model: nn.Module, batch: Batch) -> Tensor:
    """Cross entropy of one class for each record."""
    return functional.cross_entropy(scores_of(model, batch), batch["label"], reduction="none")


def token_loss(model: nn.Module, batch: Batch) -> Tensor:
    """Mean cross entropy over places, from scores [B, L, V]."""
    scores = scores_of(model, batch)
    target = batch["target"][:, : scores.shape[1]]
    scores = scores[:, : target.shape[1]].transpose(1, 2)
    return functional.cross_entropy(scores, target, reduction="none").mean(1)


def tag_loss(model: nn.Module, batch: Batch) -> Tensor:
    """Mean cross entropy of a class for each place."""
    return token_loss(model, {**batch, "target": batch["target"] % CLASSES})


def decoder_loss(model: nn.Module, batch: Batch) -> Tensor:
    """As :func:`token_loss`, of an encoder-decoder."""
    return token_loss(model, {**batch, "decoder_input_ids": batch["target"]})


def scores_of(model: nn.Module, batch: Batch) -> Tensor:
    """Return what a model makes of a batch: a tensor, or the logits of a hub's output."""
    given = {name: t for name, t in batch.items() if name not in ("label", "target")}
    made: Any = model(**given)
    if isinstance(made, Tensor):
        return made
    found: Tensor = made.logits if "logits" in made else made[0]
    return found
