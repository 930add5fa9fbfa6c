"""The gradient engine: one model, wrapped once by Opacus, one clipped sum per call."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NewType

import numpy as np
import numpy.typing as npt
import torch
from opacus.grad_sample import GradSampleModule
from opacus.grad_sample.grad_sample_module_fast_gradient_clipping import (
    GradSampleModuleFastGradientClipping,
)
from opacus.validators import ModuleValidator
from torch import Tensor, nn

from privet.common.errors import InputError, SelfTestFailed

# The first layers see inputs without gradients, which is what they should see.
warnings.filterwarnings("ignore", message="Full backward hook is firing")

Batch = dict[str, Tensor]
Loss = Callable[[nn.Module, Batch], Tensor]
"""Maps a model and a batch of B records to B losses, one for each record."""

RawGradients = NewType("RawGradients", list[Tensor])
"""Per-record gradients, one tensor [B, *shape] a parameter. They have no wire encoding."""


@dataclass(frozen=True)
class ClippedSum:
    """Sum over units of clipped gradients; removing one unit moves it by ``clip`` at most.

    Attributes:
        tensors: one tensor a trained parameter, in the engine's order.
        clip: the L2 bound that was applied to each unit.
    """

    tensors: tuple[Tensor, ...]
    clip: float


class GradientEngine:
    """Computes clipped sums for one model.

    Args:
        model: its trainable parameters are those with ``requires_grad``.
        loss: per-record losses.
        mode: see :mod:`privet.privacy.clipping`.
        micro_batch: most records in memory at once; a unit is never cut in two.
        one_record_each: each unit is one record, so that ``auto`` may choose ghost norms.

    Raises:
        SelfTestFailed: if Opacus finds a layer that mixes records (a batch norm).
        InputError: if the model has no trainable parameter or the mode is unknown.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        *,
        mode: str = "auto",
        micro_batch: int = 256,
        one_record_each: bool = True,
    ) -> None:
        self.model = model
        self.micro_batch = micro_batch
        self.named = {n: p for n, p in model.named_parameters() if p.requires_grad}
        if not self.named:
            raise InputError("the model has no trainable parameter")
        self.parameters = list(self.named.values())
        self._loss = loss
        self.mode = _choose(model, mode, one_record_each)
        faults = ModuleValidator.validate(model, strict=False)
        if faults:
            raise SelfTestFailed(
                "Opacus refuses the model: " + "; ".join(str(fault) for fault in faults)
            )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if self.mode == "opacus-ghost":
                self._wrapped: Any = GradSampleModuleFastGradientClipping(
                    model, loss_reduction="sum", max_grad_norm=1.0, strict=False
                )
            else:
                self._wrapped = GradSampleModule(
                    model,
                    loss_reduction="sum",
                    strict=False,
                    force_functorch=self.mode == "functorch",
                )

    def per_sample(self, batch: Batch) -> RawGradients:
        """Return per-record gradients [B, *shape] of every trained parameter.

        Raises:
            SelfTestFailed: if a parameter has none, so that it would escape clipping (H17).
        """
        self._clear()
        self._loss(self._wrapped, batch).sum().backward()
        gradients = []
        for name, parameter in self.named.items():
            sample = getattr(parameter, "grad_sample", None)
            if isinstance(sample, list):
                sample = torch.stack(sample).sum(0) if len(sample) > 1 else sample[0]
            if sample is None:
                raise SelfTestFailed(
                    f"parameter '{name}' has no per-sample gradient: freeze it, or use "
                    "clipping = 'functorch' (H17)"
                )
            gradients.append(sample.detach())
        self._clear()
        return RawGradients(gradients)

    def clipped_sum(
        self, examples: Batch, owner: npt.NDArray[np.int64], units: int, clip: float
    ) -> ClippedSum:
        """Return the sum of the clipped gradients of ``units`` units.

        Args:
            examples: the records, tensors with first dimension B.
            owner: [B] place of each record's unit, ascending, below ``units``.
            units: number of units; one without records contributes nothing.
            clip: L2 bound C of a unit's gradient (the sum over its records).

        A unit whose gradient is not finite contributes nothing (H7). An empty batch gives
        zeros (H19).
        """
        total = [torch.zeros_like(parameter) for parameter in self.parameters]
        if self.mode == "opacus-ghost" and len(np.unique(owner)) != len(owner):
            raise InputError("clipping 'opacus-ghost' is for unit 'record' only")
        for rows, people in _micro_batches(owner, self.micro_batch):
            batch = {name: tensor[rows] for name, tensor in examples.items()}
            try:
                if self.mode == "opacus-ghost":
                    part = self._ghost(batch, clip)
                else:
                    part = self._instantiated(batch, people, clip)
            except BaseException:
                self._forget()
                raise
            for running, value in zip(total, part, strict=True):
                running.add_(value)
        return ClippedSum(tuple(total), clip)

    def losses(self, batch: Batch) -> Tensor:
        """Return the per-record losses [B], without hooks and without clipping."""
        with self.hooks_off():
            return self._loss(self._wrapped, batch)

    @contextmanager
    def hooks_off(self) -> Iterator[None]:
        """Run the model without Opacus's hooks for a while."""
        self._wrapped.disable_hooks()
        try:
            yield
        finally:
            self._wrapped.enable_hooks()

    def plain_sum(self, examples: Batch) -> list[Tensor]:
        """Return the sum of un-clipped gradients. Not private; for comparison runs only."""
        self._clear()
        count = len(next(iter(examples.values())))
        with self.hooks_off():
            for start in range(0, count, self.micro_batch):
                rows = slice(start, start + self.micro_batch)
                batch = {name: tensor[rows] for name, tensor in examples.items()}
                self._loss(self._wrapped, batch).sum().backward()
        sums = [torch.zeros_like(p) if p.grad is None else p.grad.detach() for p in self.parameters]
        self._clear()
        return sums

    def _instantiated(
        self, batch: Batch, people: npt.NDArray[np.int64], clip: float
    ) -> list[Tensor]:
        gradients: list[Tensor] = self.per_sample(batch)
        count = int(people[-1]) + 1
        if count != len(people):
            index = torch.as_tensor(people, device=gradients[0].device)
            gradients = [
                g.new_zeros(count, *g.shape[1:]).index_add_(0, index, g) for g in gradients
            ]
        squares = torch.stack([g.flatten(1).square().sum(1) for g in gradients]).sum(0)
        factors = _clip_factors(squares, clip)
        if not bool(torch.isfinite(squares).all()):
            gradients = [torch.nan_to_num(g, 0.0, 0.0, 0.0) for g in gradients]
        return [torch.tensordot(factors, g, dims=1) for g in gradients]

    def _ghost(self, batch: Batch, clip: float) -> list[Tensor]:
        self._clear()
        losses = self._loss(self._wrapped, batch)
        losses.sum().backward(retain_graph=True)
        squares = torch.stack([_norms(n, p).square() for n, p in self.named.items()]).sum(0)
        self._clear()
        keep = torch.isfinite(squares)
        if not bool(keep.all()):
            # A record without a finite gradient would poison the joint backward pass. Norms
            # and gradients must come of one pass: dropout draws another mask in the next.
            if not bool(keep.any()):
                return [torch.zeros_like(p) for p in self.parameters]
            return self._ghost({name: tensor[keep] for name, tensor in batch.items()}, clip)
        factors = _clip_factors(squares, clip)
        with self.hooks_off():
            (losses * factors).sum().backward()
        part = [torch.zeros_like(p) if p.grad is None else p.grad.detach() for p in self.parameters]
        self._clear()
        return part

    def _forget(self) -> None:
        """Drop what Opacus's hooks hold of a pass that did not end."""
        self._clear()
        for parameter in self.parameters:
            parameter._forward_counter = 0  # type: ignore[attr-defined]
        for module in self.model.modules():
            for kept in ("activations", "max_batch_len"):
                if hasattr(module, kept):
                    delattr(module, kept)

    def _clear(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None
            parameter.grad_sample = None  # type: ignore[attr-defined]
            parameter._norm_sample = None  # type: ignore[attr-defined]


def _norms(name: str, parameter: Tensor) -> Tensor:
    """Return the per-record norms [B] that Opacus left on the parameter."""
    norms: Tensor | None = parameter._norm_sample  # type: ignore[attr-defined]
    if norms is None:
        raise SelfTestFailed(
            f"parameter '{name}' has no per-sample norm: freeze it, or use "
            "clipping = 'functorch' (H17)"
        )
    return norms


def _clip_factors(squares: Tensor, clip: float) -> Tensor:
    """Return min(1, C / norm) for squared norms; 0 where the norm is not finite."""
    norms = squares.sqrt()
    factors = (clip / norms.clamp(min=1e-30)).clamp(max=1.0)
    # A float32 product may exceed the bound by rounding; stay a hair below it.
    factors = torch.where(factors < 1.0, factors * (1.0 - 1e-6), factors)
    return torch.where(torch.isfinite(norms), factors, torch.zeros_like(factors))


def _choose(model: nn.Module, mode: str, one_record_each: bool) -> str:
    if mode == "auto":
        owners = [
            module
            for module in model.modules()
            if any(p.requires_grad for p in module.parameters(recurse=False))
        ]
        head_only = len(owners) == 1 and isinstance(owners[0], nn.Linear)
        return "opacus-ghost" if head_only and one_record_each else "opacus-hooks"
    if mode not in ("opacus-hooks", "opacus-ghost", "functorch"):
        raise InputError(f"clipping mode '{mode}' is not known")
    return mode


def _micro_batches(
    owner: npt.NDArray[np.int64], most: int
) -> Iterator[tuple[slice, npt.NDArray[np.int64]]]:
    """Cut records into runs of at most ``most`` that never part a unit's records.

    A unit with more records than ``most`` makes a run of its own.
    """
    start = 0
    while start < len(owner):
        end = min(start + most, len(owner))
        if end < len(owner):
            cut = int(np.searchsorted(owner, owner[end], side="left"))
            end = cut if cut > start else int(np.searchsorted(owner, owner[end], side="right"))
        people = np.unique(owner[start:end], return_inverse=True)[1]
        yield slice(start, end), people
        start = end
