"""The gradient engine: one model, one clipping method, one clipped sum per call."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from privet.common.errors import BypassError, InputError, PrivetError, SelfTestError
from privet.privacy.mechanism.clipping.methods import (
    Batch,
    ClippingMethod,
    Loss,
    RawGradients,
    UnitOfRecord,
    with_loss_weight,
)

MODES = ("auto", "bookkeeping", "opacus-hooks", "functorch")

_REAL = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
Sizes = Callable[[Batch], Tensor | None]
_LOG = logging.getLogger("privet.clipping")


@dataclass(frozen=True)
class ClippedSum:
    """Σ_u min(1, C / ‖G_u‖) G_u over units; removing one unit moves it by ``clip`` at most.

    Attributes:
        tensors: one tensor a trained parameter, in the engine's order.
        clip: the L2 bound C that was applied to each unit.
    """

    tensors: tuple[Tensor, ...]
    clip: float


class GradientEngine:
    """Computes clipped sums for one model.

    Args:
        model: its trainable parameters are those with ``requires_grad``.
        loss: per-record losses.
        mode: see :mod:`privet.privacy.mechanism.clipping`.
        micro_batch: most records in memory at once; a unit is never cut in two.
        sizes: how long each record of a batch is, [B], or None if that is not known; units of
            like length are computed together, so that a model can leave padding out. It has no
            effect on a unit's contribution but rounding.

    Attributes:
        mode: that is used; never ``auto``.

    Raises:
        SelfTestError: if a layer mixes records (a batch norm).
        InputError: if the model has no trainable parameter, the mode is unknown, or it does
            not know a layer.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        *,
        mode: str = "auto",
        micro_batch: int = 256,
        sizes: Sizes = lambda batch: None,
    ) -> None:
        self.model = model
        self._sizes = sizes
        self.micro_batch = micro_batch
        self.named = {n: p for n, p in model.named_parameters() if p.requires_grad}
        if not self.named:
            raise InputError("the model has no trainable parameter")
        if mode not in MODES:
            raise InputError(f"clipping mode '{mode}' is not known; use one of {', '.join(MODES)}")
        self.parameters = list(self.named.values())
        for name, parameter in self.named.items():
            if parameter.dtype not in _REAL:
                raise InputError(
                    f"parameter '{name}' is of type {parameter.dtype}: privacy is for real numbers "
                    "of 16 to 64 bits; freeze it, or keep real and imaginary part apart"
                )
        self._loss = with_loss_weight(loss)
        self._automatic = mode == "auto"
        self.mode, self._method = self._choose(mode)

    def per_sample(self, batch: Batch) -> RawGradients:
        """Return per-sample gradients [B, *shape] of every trained parameter.

        Raises:
            SelfTestError: if a parameter has none, so that it would escape clipping (H17).
        """
        return RawGradients(self._method.per_sample(batch))

    def clipped_sum(
        self, examples: Batch, owner: npt.NDArray[np.int64], units: int, clip: float
    ) -> ClippedSum:
        """Return the sum of the clipped gradients of ``units`` units.

        A unit whose gradient is not finite contributes nothing (H7). An empty batch gives
        zeros (H19).

        Args:
            examples: the records, tensors with first dimension B.
            owner: [B] index of each record's unit, ascending, below ``units``.
            units: number of units; one without records contributes nothing.
            clip: L2 bound C of a unit's gradient (the sum over its records).

        Raises:
            InputError: if ``owner`` does not fit.
        """
        records = len(next(iter(examples.values())))
        if len(owner) != records or (records and (np.diff(owner) < 0).any()):
            raise InputError(f"'owner' must ascend and name the unit of each of {records} records")
        if records and not 0 <= owner[0] <= owner[-1] < units:
            raise InputError(f"'owner' names a unit outside 0 to {units - 1}")
        counts = np.bincount(owner, minlength=1)
        sizes = self.sizes(examples)
        if counts.max() > 1 or sizes is not None:
            order = _similar_units_together(owner, counts, sizes)
            rows = torch.as_tensor(order)
            examples = {name: tensor[rows] for name, tensor in examples.items()}
            owner = owner[order]
        micro_batches = (
            ({name: tensor[rows] for name, tensor in examples.items()}, unit_of)
            for rows, unit_of in _micro_batches(owner, self.micro_batch, self._method.max_units)
        )
        try:
            return ClippedSum(tuple(self._method.clipped_sum(micro_batches, clip)), clip)
        except BaseException:
            self._method.reset()
            raise

    def sizes(self, batch: Batch) -> Tensor | None:
        """Return how long each record of a batch is, [B] on the CPU; None if that is not known.

        Raises:
            InputError: if the function that says it returns something else.
        """
        records = len(next(iter(batch.values())))
        sizes = self._sizes(batch) if records else None
        if sizes is None:
            return None
        whole = isinstance(sizes, Tensor) and not (sizes.is_floating_point() or sizes.is_complex())
        if not whole or sizes.shape != (records,):
            raise InputError(f"'sizes' must return one whole number for each of {records} records")
        return sizes.detach().cpu().long()

    def losses(self, batch: Batch) -> Tensor:
        """Return the per-record losses [B], without hooks and without clipping."""
        with self.hooks_off():
            return self._method.losses(batch)

    @contextmanager
    def hooks_off(self) -> Iterator[None]:
        """Run the model for a while without recording any gradient."""
        self._method.pause()
        try:
            yield
        finally:
            self._method.resume()

    def plain_sum(self, examples: Batch) -> list[Tensor]:
        """Return the sum of un-clipped gradients. Not private; for comparison runs only."""
        self._clear()
        count = len(next(iter(examples.values())))
        sizes = self.sizes(examples)
        if sizes is not None:
            order = torch.argsort(sizes, stable=True)
            examples = {name: tensor[order] for name, tensor in examples.items()}
        with self.hooks_off():
            for start in range(0, count, self.micro_batch):
                rows = slice(start, start + self.micro_batch)
                batch = {name: tensor[rows] for name, tensor in examples.items()}
                self._method.losses(batch).sum().backward()
        sums = [torch.zeros_like(p) if p.grad is None else p.grad.detach() for p in self.parameters]
        self._clear()
        return sums

    def fall_back(self, why: str) -> bool:
        """Continue with Opacus, where book-keeping was chosen automatically and does not fit.

        Returns:
            False if another mode was asked for, or is used already.
        """
        if not self._automatic or self.mode != "bookkeeping":
            return False
        _LOG.warning("clipping continues with opacus-hooks: %s", why)
        self._method.close()
        self.mode, self._method = self._opacus("opacus-hooks")
        return True

    @property
    def max_records(self) -> int:
        """Records that a forward pass has at most where each is a unit: a micro-batch."""
        most = self._method.max_units
        return self.micro_batch if most is None else min(most, self.micro_batch)

    @property
    def reduced_precision(self) -> bool:
        """Whether gradients were computed in less than single precision, as far as was seen."""
        return self._method.reduced_precision

    def close(self) -> None:
        """Leave the model as it was before the engine was made, but for what it learnt."""
        self._method.close()

    def require_same_parameters(self) -> None:
        """Check that the model's trained parameters are those that the engine was made for.

        Raises:
            BypassError: if another took the place of one.
        """
        now = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
        for name in now.keys() | self.named.keys():
            if now.get(name) is not self.named.get(name):
                raise BypassError(
                    f"the model's parameter '{name}' is not the one that the engine was made for: "
                    "make a new engine after replacing, freezing or thawing parameters"
                )

    def _choose(self, mode: str) -> tuple[str, ClippingMethod]:
        from privet.privacy.mechanism.clipping.bookkeeping import BookKeeping

        if mode not in ("auto", "bookkeeping"):
            return self._opacus(mode)
        try:
            return "bookkeeping", BookKeeping(self.model, self._loss, self.named)
        except PrivetError:
            raise
        except Exception as error:
            if mode == "bookkeeping":
                raise InputError(
                    f"clipping 'bookkeeping' does not fit this model: {error}; use 'auto'"
                ) from None
            _LOG.warning("clipping by opacus-hooks, book-keeping does not fit: %s", error)
            return self._opacus("opacus-hooks")

    def _opacus(self, mode: str) -> tuple[str, ClippingMethod]:
        # Not above: it takes a second to load, and mostly nobody needs it.
        from privet.privacy.mechanism.clipping.opacus import OpacusHooks

        try:
            functorch = mode == "functorch"
            return mode, OpacusHooks(self.model, self._loss, self.named, functorch=functorch)
        except PrivetError:
            raise
        except Exception as error:
            reason = str(error).partition("\n")[0]
            raise SelfTestError(f"H16: Opacus cannot treat this model: {reason}") from error

    def _clear(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None


def _similar_units_together(
    owner: npt.NDArray[np.int64], counts: npt.NDArray[np.int64], sizes: Tensor | None
) -> npt.NDArray[np.int64]:
    """Return the order of records that puts units of as many, and as long, records together.

    No unit is then filled up to the size of another. A unit's records follow each other, as before.

    Args:
        owner: [B] unit of each record, ascending.
        counts: [U] records of each unit.
        sizes: [B] length of each record, or None.
    """
    longest = np.zeros(len(counts), np.int64)
    if sizes is not None:
        np.maximum.at(longest, owner, sizes.numpy())
    return np.lexsort((owner, longest[owner], counts[owner])).astype(np.int64)


def _micro_batches(
    owner: npt.NDArray[np.int64], most: int, max_units: int | None = None
) -> Iterator[tuple[slice, UnitOfRecord]]:
    """Cut records into runs of at most ``most`` that never part a unit's records.

    A unit with more records than ``most`` makes a run of its own. ``owner`` need not ascend, but
    a unit's records follow each other.

    Args:
        owner: [B] unit of each record.
        most: records of a run.
        max_units: units of a run, None for any number.
    """
    firsts = np.flatnonzero(np.diff(owner, prepend=-1))
    ends = np.append(firsts[1:], len(owner))
    unit = 0
    while unit < len(firsts):
        start = firsts[unit]
        last = int(np.searchsorted(ends, start + most, side="right"))
        if max_units is not None:
            last = min(last, unit + max_units)
        last = max(last, unit + 1)
        end = ends[last - 1]
        unit_of = np.repeat(np.arange(last - unit), ends[unit:last] - firsts[unit:last])
        yield slice(int(start), int(end)), unit_of
        unit = last
