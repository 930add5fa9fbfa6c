"""The gradient engine: one model, one way to compute its clipped sums, one sum per call."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from privet.common.errors import InputError
from privet.privacy.clipping.methods import (
    Batch,
    Loss,
    Method,
    People,
    RawGradients,
    weighable,
)

MODES = ("auto", "bookkeeping", "opacus-hooks", "opacus-ghost", "functorch")

_LOG = logging.getLogger("privet.clipping")


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

    Attributes:
        mode: the way that is used; never ``auto``.

    Raises:
        SelfTestFailed: if a layer mixes records (a batch norm).
        InputError: if the model has no trainable parameter, the mode is unknown, or it does
            not know a layer.
    """

    def __init__(
        self, model: nn.Module, loss: Loss, *, mode: str = "auto", micro_batch: int = 256
    ) -> None:
        self.model = model
        self.micro_batch = micro_batch
        self.named = {n: p for n, p in model.named_parameters() if p.requires_grad}
        if not self.named:
            raise InputError("the model has no trainable parameter")
        if mode not in MODES:
            raise InputError(f"clipping mode '{mode}' is not known; use one of {', '.join(MODES)}")
        self.parameters = list(self.named.values())
        self._loss = weighable(loss)
        self._automatic = mode == "auto"
        self.mode, self._method = self._choose(mode)

    def per_sample(self, batch: Batch) -> RawGradients:
        """Return per-record gradients [B, *shape] of every trained parameter.

        Raises:
            SelfTestFailed: if a parameter has none, so that it would escape clipping (H17).
        """
        return RawGradients(self._method.per_sample(batch))

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
        counts = np.bincount(owner, minlength=1)
        if self.mode == "opacus-ghost" and counts.max() > 1:
            raise InputError("clipping 'opacus-ghost' is for unit 'record' only")
        if counts.max() > 1:
            # Units of as many records side by side: none is filled up to the size of another.
            order = np.argsort(counts[owner], kind="stable")
            rows = torch.as_tensor(order)
            examples = {name: tensor[rows] for name, tensor in examples.items()}
            owner = owner[order]
        parts = (
            ({name: tensor[rows] for name, tensor in examples.items()}, people)
            for rows, people in _micro_batches(owner, self.micro_batch, self._method.most_units)
        )
        try:
            return ClippedSum(tuple(self._method.clipped_sum(parts, clip)), clip)
        except BaseException:
            self._method.forget()
            raise

    def losses(self, batch: Batch) -> Tensor:
        """Return the per-record losses [B], without hooks and without clipping."""
        with self.hooks_off():
            return self._method.plain(batch)

    @contextmanager
    def hooks_off(self) -> Iterator[None]:
        """Run the model for a while without anything that watches it."""
        self._method.pause()
        try:
            yield
        finally:
            self._method.resume()

    def plain_sum(self, examples: Batch) -> list[Tensor]:
        """Return the sum of un-clipped gradients. Not private; for comparison runs only."""
        self._clear()
        count = len(next(iter(examples.values())))
        with self.hooks_off():
            for start in range(0, count, self.micro_batch):
                rows = slice(start, start + self.micro_batch)
                batch = {name: tensor[rows] for name, tensor in examples.items()}
                self._method.plain(batch).sum().backward()
        sums = [torch.zeros_like(p) if p.grad is None else p.grad.detach() for p in self.parameters]
        self._clear()
        return sums

    def fall_back(self, why: str) -> bool:
        """Go on with Opacus, where book-keeping was chosen by itself and does not fit.

        Returns:
            False if another way was asked for, or is used already.
        """
        if not self._automatic or self.mode != "bookkeeping":
            return False
        _LOG.warning("clipping goes on with opacus-hooks", extra={"why": why})
        self._method.forget()
        self.mode, self._method = self._opacus("opacus-hooks")
        return True

    def _choose(self, mode: str) -> tuple[str, Method]:
        from privet.privacy.clipping.bookkeeping import BookKeeping
        from privet.privacy.clipping.layers import Unsupported

        if mode not in ("auto", "bookkeeping"):
            return self._opacus(mode)
        try:
            return "bookkeeping", BookKeeping(self.model, self._loss, self.named)
        except Unsupported as error:
            if mode == "bookkeeping":
                raise InputError(
                    f"clipping 'bookkeeping' does not fit this model: {error}; use 'auto'"
                ) from None
            _LOG.info("clipping by opacus-hooks", extra={"why": error})
            return self._opacus("opacus-hooks")

    def _opacus(self, mode: str) -> tuple[str, Method]:
        # Not above: it takes a second to load, and mostly nobody needs it.
        from privet.privacy.clipping.opacus import OpacusGhost, OpacusHooks

        if mode == "opacus-ghost":
            return mode, OpacusGhost(self.model, self._loss, self.named)
        functorch = mode == "functorch"
        return mode, OpacusHooks(self.model, self._loss, self.named, functorch=functorch)

    def _clear(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None


def _micro_batches(
    owner: npt.NDArray[np.int64], most: int, most_units: int | None = None
) -> Iterator[tuple[slice, People]]:
    """Cut records into runs of at most ``most`` that never part a unit's records.

    A unit with more records than ``most`` makes a run of its own. ``owner`` need not ascend, but
    a unit's records follow each other.
    """
    firsts = np.flatnonzero(np.diff(owner, prepend=-1))
    ends = np.append(firsts[1:], len(owner))
    unit = 0
    while unit < len(firsts):
        start = firsts[unit]
        last = int(np.searchsorted(ends, start + most, side="right"))
        if most_units is not None:
            last = min(last, unit + most_units)
        last = max(last, unit + 1)
        end = ends[last - 1]
        people = np.repeat(np.arange(last - unit), ends[unit:last] - firsts[unit:last])
        yield slice(int(start), int(end)), people
        unit = last
