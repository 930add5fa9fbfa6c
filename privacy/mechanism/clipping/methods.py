"""What a way to compute clipped sums has to offer, and the one bound that all apply."""

from __future__ import annotations

import threading
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


_BLOCK = 1 << 16
"""Numbers that are widened at once: they stay in cache."""
_KEPT = threading.local()
"""The memory that they are widened in; new memory for each call costs as much as the sum."""


HAIR = 1e-6
"""By this share what is clipped stays below the bound, as a float32 product may round upwards."""
_SMALLEST = torch.finfo(torch.float32).tiny


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
    """Return min(1, C / norm) for squared norms [U]; 0 where the norm is not finite.

    Args:
        squares: in double precision, see :func:`squares_of`.
        clip: the bound C.
    """
    norms = squares.double().sqrt()
    factors = (clip / norms.clamp(min=1e-300)).clamp(max=1.0)
    # A float32 product may exceed the bound by rounding; stay a hair below it.
    factors = torch.where(factors < 1.0, factors * (1.0 - HAIR), factors)
    # Below float32's normal numbers a factor would be rounded by more: such a unit adds nothing.
    counts = torch.isfinite(norms) & (factors >= _SMALLEST)
    return torch.where(counts, factors, torch.zeros_like(factors))


def squares_of(rows: Tensor) -> Tensor:
    """Return the squared norm of each row of [U, n], computed in double precision.

    In single precision the sum of 2e8 squares comes out 2.9 % too small, and squares of numbers
    below 1e-19 or above 1e19 are lost or infinite: the bound on a unit would not hold, or the
    unit would be left out. On a CPU rows are widened block by block, in cache.

    Args:
        rows: gradients, a row for each unit.
    """
    if rows.dtype == torch.float64 or rows.device.type != "cpu":
        norms: Tensor = torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64)
        return norms.square()
    units, width = rows.shape
    if not units or not width:
        return torch.zeros(units, dtype=torch.float64)
    step = max(1, min(width, _BLOCK // units))
    kept: Tensor | None = getattr(_KEPT, "block", None)
    if kept is None or kept.numel() < units * step:
        kept = _KEPT.block = torch.empty(max(_BLOCK, units * step), dtype=torch.float64)
    if step == width:
        wide = kept[: rows.numel()].view(rows.shape).copy_(rows)
        return torch.linalg.vector_norm(wide, dim=1).square_()  # type: ignore[no-any-return]
    total = torch.zeros(units, dtype=torch.float64)
    for start in range(0, width, step):
        part = rows[:, start : start + step]
        wide = kept[: part.numel()].view(part.shape).copy_(part)
        total += torch.linalg.vector_norm(wide, dim=1).square_()
    return total


def wide_type(like: Tensor) -> torch.dtype:
    """Return the type that gradients are held and added in: never less than single precision."""
    wide: torch.dtype = torch.promote_types(like.dtype, torch.float32)
    return wide


def rounding_bound(units: int, clip: float, dtype: torch.dtype = torch.float32) -> float:
    """Return how far a clipped sum can be from the sum in real arithmetic of what was clipped.

    Each of the n terms is at most C long and goes through at most n + 1 roundings (its product
    with the factor, and every addition after it, in whatever order), so that the error is at most
    (n + 1) u / (1 - (n + 1) u) · n C, with u half a unit in the last place (Higham 2002, 4.2). Two
    neighbouring sums are then at most C plus twice that apart (Casacuberta et al. 2022): what is
    proved in double precision does not hold to the last digit in single.

    Args:
        units: in one batch, n.
        clip: the bound C.
        dtype: that the sum is made in.
    """
    lost = (units + 1) * torch.finfo(dtype).eps / 2
    return units * clip * lost / (1 - lost) if lost < 1 else float("inf")
