"""What a way to compute clipped sums has to offer, and the one bound that all apply."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NewType, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

Batch = dict[str, Tensor]
Loss = Callable[[nn.Module, Batch], Tensor]
"""Maps a model and a batch of B records to B losses, one for each record."""
People = npt.NDArray[np.int64]
"""[B] place of each record's unit among the units of a micro-batch, ascending from 0."""

WEIGHT = "privet.weight"
"""Factors [B] of the losses, which the start-up test adds to a batch: NaN spoils a record whose
input has no place for it (token numbers)."""

RawGradients = NewType("RawGradients", list[Tensor])
"""Per-record gradients, one tensor [B, *shape] a parameter. They have no wire encoding."""


class Method(Protocol):
    """One way to compute per-unit gradients, clip and sum them."""

    most_units: int | None
    """Units that a micro-batch may hold, None for any number."""

    def per_sample(self, batch: Batch) -> list[Tensor]:
        """Return per-record gradients [B, *shape] of every trained parameter."""
        ...

    def clipped_sum(self, parts: Iterable[tuple[Batch, People]], clip: float) -> list[Tensor]:
        """Return the sum over all units of all micro-batches, each clipped to ``clip``."""
        ...

    def plain(self, batch: Batch) -> Tensor:
        """Return the losses of a pass that nothing watches."""
        ...

    def pause(self) -> None:
        """Watch nothing until :meth:`resume`."""
        ...

    def resume(self) -> None:
        """Watch again."""
        ...

    def forget(self) -> None:
        """Drop what is held of a pass, also of one that did not end."""
        ...

    def close(self) -> None:
        """Leave the model as it was before."""
        ...

    @property
    def coarse(self) -> bool:
        """Whether gradients were computed in less than single precision."""
        ...


def weighable(loss: Loss) -> Loss:
    """Return a loss that minds :data:`WEIGHT`."""

    def weighed(model: nn.Module, batch: Batch) -> Tensor:
        if WEIGHT not in batch:
            return loss(model, batch)
        inputs = {name: tensor for name, tensor in batch.items() if name != WEIGHT}
        return loss(model, inputs) * batch[WEIGHT]

    return weighed


def clip_factors(squares: Tensor, clip: float) -> Tensor:
    """Return min(1, C / norm) for squared norms [U]; 0 where the norm is not finite."""
    norms = squares.double().sqrt()
    factors = (clip / norms.clamp(min=1e-300)).clamp(max=1.0)
    # A float32 product may exceed the bound by rounding; stay a hair below it.
    factors = torch.where(factors < 1.0, factors * (1.0 - 1e-6), factors)
    return torch.where(torch.isfinite(norms), factors, torch.zeros_like(factors))
