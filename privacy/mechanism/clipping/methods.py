"""What every clipping method offers, and the norm, the factor and the bound that all use."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import NewType, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

Batch = dict[str, Tensor]
Loss = Callable[[nn.Module, Batch], Tensor]
"""Maps a model and a batch of B records to B losses, one for each record."""
UnitOfRecord = npt.NDArray[np.int64]
"""[B] index of each record's unit among the units of a micro-batch, ascending from 0."""

LOSS_WEIGHT = "privet.weight"
"""Factors [B] of the losses, which the start-up test adds to a batch: NaN spoils a record whose
input has no place for it (token ids)."""

RawGradients = NewType("RawGradients", list[Tensor])
"""Per-sample gradients, one tensor [B, *shape] a parameter. They have no wire encoding."""

CLIP_MARGIN = 1e-6
"""Clipped gradients stay below the bound by this share, as a float32 product may round upwards."""

_MIN_FACTOR = torch.finfo(torch.float32).tiny
_BLOCK = 1 << 16
"""Numbers that are converted to double at once: they stay in cache."""
_SCRATCH = threading.local()
"""The memory they are converted into; new memory for each call costs as much as the sum."""


class ClippingMethod(Protocol):
    """One way to compute per-unit gradients, clip and sum them."""

    max_units: int | None
    """Units that a micro-batch may hold, None for any number."""
    is_tested: bool
    """Whether the start-up test has passed."""

    def prepare(self, random_batch: Callable[[int, int], Batch]) -> None:
        """Learn from generated batches what the method has to know of the model.

        Args:
            random_batch: makes a batch of (records, seed).
        """
        ...

    def per_sample(self, batch: Batch) -> list[Tensor]:
        """Return per-sample gradients [B, *shape] of every trained parameter."""
        ...

    def clipped_sum(
        self, micro_batches: Iterable[tuple[Batch, UnitOfRecord]], clip: Bound
    ) -> list[Tensor]:
        """Return Σ_u min(1, C / ‖G_u‖) G_u over the units of all micro-batches.

        Args:
            micro_batches: records, with the unit of each.
            clip: the L2 bound C.
        """
        ...

    def losses(self, batch: Batch) -> Tensor:
        """Return the losses [B] of a pass from which no gradient is recorded."""
        ...

    def pause(self) -> None:
        """Record nothing until :meth:`resume`."""
        ...

    def resume(self) -> None:
        """Record again."""
        ...

    def reset(self) -> None:
        """Drop what is held of a pass, also of one that did not end."""
        ...

    def close(self) -> None:
        """Leave the model as it was before."""
        ...

    @property
    def reduced_precision(self) -> bool:
        """Whether gradients were computed in less than single precision."""
        ...


class PlainMethod:
    """Base of the methods that set no hooks: outside of a pass the model is as it was.

    Args:
        model: stays as it is.
        loss: per-record losses.
        named: the trained parameters.
    """

    max_units: int | None = None
    is_tested = False

    def __init__(self, model: nn.Module, loss: Loss, named: Mapping[str, Tensor]) -> None:
        self.model, self._loss, self.named = model, loss, named

    def prepare(self, random_batch: Callable[[int, int], Batch]) -> None:
        """As :meth:`ClippingMethod.prepare`: there is nothing to learn."""

    def losses(self, batch: Batch) -> Tensor:
        """As :meth:`ClippingMethod.losses`."""
        return self._loss(self.model, batch)

    def pause(self) -> None:
        """As :meth:`ClippingMethod.pause`: nothing is recorded outside of a pass."""

    def resume(self) -> None:
        """As :meth:`ClippingMethod.resume`."""

    def reset(self) -> None:
        """As :meth:`ClippingMethod.reset`."""
        for parameter in self.named.values():
            parameter.grad = None

    def close(self) -> None:
        """As :meth:`ClippingMethod.close`."""
        self.reset()

    @property
    def reduced_precision(self) -> bool:
        """As :attr:`ClippingMethod.reduced_precision`."""
        return is_reduced_precision(self.named.values())


def with_loss_weight(loss: Loss) -> Loss:
    """Return a loss that multiplies by :data:`LOSS_WEIGHT`, where a batch has it."""

    def weighted(model: nn.Module, batch: Batch) -> Tensor:
        if LOSS_WEIGHT not in batch:
            return loss(model, batch)
        inputs = {name: tensor for name, tensor in batch.items() if name != LOSS_WEIGHT}
        return loss(model, inputs) * batch[LOSS_WEIGHT]

    return weighted


@dataclass(frozen=True)
class AutomaticBound:
    """Bring every unit's gradient close to the bound C, those below it too.

    c_u = C / (‖G_u‖ + γ) with γ = :data:`STABILITY` (AUTO-S of Bu et al. 2022, arXiv 2206.07136):
    ‖c_u G_u‖ < C, so that sensitivity and event are those of plain clipping. C only scales the
    step, and is no setting to be found. Without γ a gradient of rounding errors alone would be
    lifted to C.

    Attributes:
        limit: C.
    """

    limit: float


STABILITY = 0.01
"""γ, in units of a gradient's norm."""
Bound = float | AutomaticBound
"""An L2 bound C of one unit's gradient: plain, or with the automatic rule."""


def limit_of(bound: Bound) -> float:
    """Return C.

    Args:
        bound: with either rule.
    """
    return bound.limit if isinstance(bound, AutomaticBound) else bound


def clip_factors(squared_norms: Tensor, clip: Bound) -> Tensor:
    """Return the clip factors c_u = min(1, C / ‖G_u‖), [U]; 0 where the norm is not finite.

    With :class:`AutomaticBound` they are C / (‖G_u‖ + γ).

    A factor below 1 is made smaller by :data:`CLIP_MARGIN`: it is rounded to float32 and multiplied
    there, each with a relative error of 2⁻²⁴ = 6e-8, and the product must not pass the bound. A
    factor below float32's normal numbers would lose more than that, so its unit adds nothing.

    Args:
        squared_norms: ‖G_u‖² [U] in double precision, see :func:`squared_row_norms`.
        clip: the L2 bound C.
    """
    norms = squared_norms.double().sqrt()
    if isinstance(clip, AutomaticBound):
        factors = clip.limit / (norms + STABILITY) * (1.0 - CLIP_MARGIN)
    else:
        factors = (clip / norms.clamp(min=1e-300)).clamp(max=1.0)
        factors = torch.where(factors < 1.0, factors * (1.0 - CLIP_MARGIN), factors)
    usable = torch.isfinite(norms) & (factors >= _MIN_FACTOR)
    return torch.where(usable, factors, torch.zeros_like(factors))


def sum_of_per_sample(
    per_sample: Callable[[Batch], list[Tensor]],
    micro_batches: Iterable[tuple[Batch, UnitOfRecord]],
    clip: Bound,
    parameters: Iterable[Tensor],
) -> list[Tensor]:
    """Return Σ_u c_u G_u from per-sample gradients that are all held.

    Args:
        per_sample: returns the gradients [B, *shape] of a micro-batch, one for each parameter.
        micro_batches: records, with the unit of each.
        clip: the L2 bound C.
        parameters: the trained parameters.
    """
    total = [torch.zeros_like(p, dtype=accumulation_dtype(p)) for p in parameters]
    for batch, unit_of in micro_batches:
        # Never narrower than float32: rounding a factor to bfloat16 would pass the bound.
        gradients = [g.to(accumulation_dtype(g)) for g in per_sample(batch)]
        units = int(unit_of[-1]) + 1
        if units != len(unit_of):
            index = torch.as_tensor(unit_of, device=gradients[0].device)
            gradients = [
                g.new_zeros(units, *g.shape[1:]).index_add_(0, index, g) for g in gradients
            ]
        squared_norms = torch.stack([squared_row_norms(g.flatten(1)) for g in gradients]).sum(0)
        factors = clip_factors(squared_norms, clip)
        if not bool(torch.isfinite(squared_norms).all()):
            gradients = [torch.nan_to_num(g, 0.0, 0.0, 0.0) for g in gradients]
        for running, g in zip(total, gradients, strict=True):
            running.add_(torch.tensordot(factors.to(g.dtype), g, dims=1))
    return total


def squared_row_norms(rows: Tensor) -> Tensor:
    """Return the squared L2 norm of each row of [U, n], computed in double precision.

    A norm that comes out too small lets its unit pass the bound. In single precision the sum of 2e8
    squares is 2.9 % too small, because each addition to a large running sum rounds away most of a
    small square; squares of numbers below 1e-22 vanish, and those of numbers above 2e19 are
    infinite, so that the unit is left out. In double the sum of n squares is right to n 2⁻⁵³.

    On a CPU rows are converted block by block, in cache.

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
    scratch = _scratch(units * step)
    if step == width:
        wide = scratch[: rows.numel()].view(rows.shape).copy_(rows)
        return torch.linalg.vector_norm(wide, dim=1).square_()  # type: ignore[no-any-return]
    total = torch.zeros(units, dtype=torch.float64)
    for start in range(0, width, step):
        part = rows[:, start : start + step]
        wide = scratch[: part.numel()].view(part.shape).copy_(part)
        total += torch.linalg.vector_norm(wide, dim=1).square_()
    return total


def _scratch(count: int) -> Tensor:
    """Return kept memory of this thread for ``count`` doubles or more."""
    kept: Tensor | None = getattr(_SCRATCH, "block", None)
    if kept is None or kept.numel() < count:
        kept = _SCRATCH.block = torch.empty(max(_BLOCK, count), dtype=torch.float64)
    return kept


def accumulation_dtype(like: Tensor) -> torch.dtype:
    """Return the type that gradients are held and summed in: never less than single precision."""
    wide: torch.dtype = torch.promote_types(like.dtype, torch.float32)
    return wide


def is_reduced_precision(parameters: Iterable[Tensor]) -> bool:
    """Return whether a parameter holds less than single precision."""
    single = torch.finfo(torch.float32).eps
    return any(torch.finfo(one.dtype).eps > single for one in parameters)


def rounding_bound(units: int, clip: float, dtype: torch.dtype = torch.float32) -> float:
    """Return how far a clipped sum can be from the sum in real arithmetic of the clipped terms.

    Each of the n terms is at most C long and goes through at most n + 1 roundings (its product
    with the factor, and every addition after it, in whatever order), so that the error is at most
    (n + 1) u / (1 - (n + 1) u) · n C, with u half a unit in the last place (Higham 2002, 4.2). Two
    neighbouring sums are then at most C plus twice that apart (Casacuberta et al. 2022): what is
    proved in double precision does not hold to the last digit in single.

    Args:
        units: in one batch, n.
        clip: the L2 bound C.
        dtype: that the sum is made in.
    """
    lost = (units + 1) * torch.finfo(dtype).eps / 2
    return units * clip * lost / (1 - lost) if lost < 1 else float("inf")
