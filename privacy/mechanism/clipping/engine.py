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

from privet.common.errors import (
    BypassError,
    CoupledRecordsError,
    InputError,
    PrivetError,
    SelfTestError,
)
from privet.privacy.mechanism.clipping.methods import (
    Batch,
    Bound,
    ClippingMethod,
    Loss,
    RawGradients,
    UnitOfRecord,
    limit_of,
    with_loss_weight,
)

AUTOMATIC = ("bookkeeping", "vmap", "one-by-one")
"""The ways that ``auto`` tries, in this order: the first that passes the start-up test is taken.

Opacus's hooks are none of them: where a layer is called a second time for some records, they give
its gradients to the first ones of the batch, without a word."""
MODES = ("auto", "bookkeeping", "opacus-hooks", "functorch", "vmap", "one-by-one")

_REAL = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
Sizes = Callable[[Batch], Tensor | None]
_LOG = logging.getLogger("privet.clipping")


@dataclass(frozen=True)
class ClippedSum:
    """Σ_u c_u G_u over units, ‖c_u G_u‖ ≤ C; removing one unit moves it by ``clip`` at most.

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
        refused: by mode that ``auto`` has passed over, why.

    Raises:
        CoupledRecordsError: if a layer mixes records (a batch norm that trains).
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
        # torch's fused attention for inference computes other numbers than training does, past the
        # layers' own forwards, and may cut places that are padding in the whole batch.
        torch.backends.mha.set_fastpath_enabled(False)
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
        _require_no_renormalised_table(model)
        self._batch_norms = _batch_norms(model)
        self._require_separate_records()
        self.refused: dict[str, str] = {}
        self._automatic = mode == "auto"
        self._left = iter(AUTOMATIC)
        self.mode = mode
        if not self._automatic:
            self._method = self._make(mode)
        elif not self._next():
            raise SelfTestError(f"no way to clip this model was found: {self.refused}")

    def prepare(self, random_batch: Callable[[int, int], Batch]) -> None:
        """Learn from generated batches which dimensions of layers are of records.

        Args:
            random_batch: makes a batch of (records, seed).
        """
        self._method.is_tested = False
        self._method.prepare(random_batch)

    def passed_tests(self, records: int) -> None:
        """Note that the start-up test has passed.

        Args:
            records: of the largest batch that was tested: a forward pass has no more of them.
        """
        self._method.is_tested = True
        if records:
            self.micro_batch = min(self.micro_batch, records)

    def per_sample(self, batch: Batch) -> RawGradients:
        """Return per-sample gradients [B, *shape] of every trained parameter.

        Raises:
            SelfTestError: if a parameter has none, so that it would escape clipping (H17).
        """
        return RawGradients(self._method.per_sample(batch))

    def clipped_sum(
        self, examples: Batch, owner: npt.NDArray[np.int64], units: int, clip: Bound
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
        self._require_separate_records()
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
            made = tuple(self._method.clipped_sum(micro_batches, clip))
            return ClippedSum(made, limit_of(clip))
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

    def gradient_within(self, batch: Batch, row: int) -> tuple[Tensor, list[Tensor]]:
        """Return the loss of one record of a batch, and its gradient, by plain autograd.

        Nothing is clipped and no hook is set: it says whether records depend on each other.

        Args:
            batch: B records, in one pass.
            row: number of the record.

        Returns:
            The loss and a tensor for each trained parameter, zero where the loss does not use it.
        """
        self._clear()
        with self.hooks_off():
            loss = self._method.losses(batch)[row]
            if loss.requires_grad:
                loss.backward()
        made = [torch.zeros_like(p) if p.grad is None else p.grad.detach() for p in self.parameters]
        self._clear()
        return loss.detach(), made

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
        """Continue with the next way that ``auto`` knows, where the present one fails a test.

        Args:
            why: of the start-up test.

        Returns:
            False if a mode was asked for, or no other is left.
        """
        if not self._automatic:
            return False
        self.refused[self.mode] = why
        self._method.close()
        if not self._next():
            return False
        _LOG.info("clipping continues with %s: %s", self.mode, why)
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

    def _next(self) -> bool:
        """Take the next automatic way that can be made for this model; False if none is left."""
        for mode in self._left:
            try:
                self._method = self._make(mode)
            except Exception as error:
                self.refused[mode] = str(error).partition("\n")[0] or repr(error)
                continue
            self.mode = mode
            return True
        return False

    def _make(self, mode: str) -> ClippingMethod:
        """Return the method of a mode.

        Raises:
            InputError: if it does not fit the model.
        """
        # Not above: Opacus takes a second to load, and mostly nobody needs it.
        from privet.privacy.mechanism.clipping.bookkeeping import BookKeeping
        from privet.privacy.mechanism.clipping.one_by_one import OneByOne
        from privet.privacy.mechanism.clipping.vmap import WholeModelVmap

        given = (self.model, self._loss, self.named)
        try:
            if mode == "bookkeeping":
                return BookKeeping(*given)
            if mode == "vmap":
                return WholeModelVmap(*given)
            if mode == "one-by-one":
                return OneByOne(*given)
            from privet.privacy.mechanism.clipping.opacus import OpacusHooks

            return OpacusHooks(*given, functorch=mode == "functorch")
        except PrivetError:
            raise
        except Exception as error:
            reason = str(error).partition("\n")[0]
            raise InputError(
                f"clipping '{mode}' does not fit this model: {reason}; use 'auto'"
            ) from error

    def _require_separate_records(self) -> None:
        """Refuse layers whose output for a record depends on the others, as they are now.

        Raises:
            CoupledRecordsError: naming the layer.
        """
        for name, module in self._batch_norms:
            if module.training or not module.track_running_stats:
                raise CoupledRecordsError(
                    f"H6: '{name}' ({type(module).__name__}) mixes records, so that no bound of "
                    "one unit's gradient holds; write batch_norm = 'group' or 'frozen' into "
                    "the plan's [model]: group norms take its place, or it keeps the statistics "
                    "that it was trained with"
                )

    def _clear(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None


def _require_no_renormalised_table(model: nn.Module) -> None:
    """Refuse a table that each lookup writes to: the rows that change are those that were read.

    Raises:
        InputError: naming the table.
    """
    for name, module in model.named_modules():
        if getattr(module, "max_norm", None) is not None and hasattr(module, "embedding_dim"):
            raise InputError(
                f"'{name}' ({type(module).__name__}) has max_norm, which changes the rows that a "
                "batch reads: which ones would be seen. Leave max_norm out"
            )


def _batch_norms(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return the layers that compute with statistics over records while they train."""
    found = []
    for name, module in model.named_modules():
        mixes = isinstance(module, nn.modules.batchnorm._BatchNorm)
        remembers = isinstance(module, nn.modules.instancenorm._InstanceNorm)
        if mixes or (remembers and module.track_running_stats):
            found.append((name, module))
    return found


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
