"""Whether a record's loss or gradient depends on the records beside it (H6), by plain autograd."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from privet.common.errors import CoupledRecordsError
from privet.privacy.mechanism import exactness as ex
from privet.privacy.mechanism.clipping import GradientEngine
from privet.privacy.mechanism.clipping.methods import Batch

FINE, TOLERANCE, COARSE = 1e-5, 1e-4, 3e-2
"""Shares by which numbers may differ in double and single precision, and in less."""


class Closeness:
    """Whether tensors are the same up to rounding.

    Args:
        tolerance: share of a parameter's largest number.
        rounding: share of a whole gradient by which rounding is known to move it.
    """

    def __init__(self, tolerance: float = TOLERANCE, rounding: float = 0.0) -> None:
        self.tolerance = tolerance
        # What is exactly zero (a key's bias in attention) is rounding in both, and not by how
        # much the one's rounding differs from the other's.
        self._floor = max(1e-3, 10 * rounding / tolerance)

    def floor(self, gradients: Sequence[Tensor]) -> float:
        """Return the least scale that differences of these are measured by."""
        return self._floor * max((float(g.abs().max()) for g in gradients if g.numel()), default=1)

    def __call__(self, one: Tensor, two: Tensor, floor: float = 0.0) -> bool:
        """Compare; ``floor`` is the least scale that differences are measured by."""
        if not one.numel():
            return True
        scale = max(float(one.abs().max()), float(two.abs().max()), floor)
        apart = float((one - two).abs().max())
        return bool(torch.isfinite(one).all()) and apart <= self.tolerance * scale


def require_uncoupled(
    engine: GradientEngine,
    batch: Batch,
    other: Batch,
    told: Sequence[int] | None = None,
    close: Closeness | None = None,
    before: Callable[[], None] = lambda: None,
    alone: Sequence[Sequence[Tensor]] | None = None,
) -> None:
    """Loss and gradient of the first and the last record must not move when the others change.

    By plain autograd, so that a clipping method that does not fit accuses no model. Both, because
    each record may depend on those before it only, or after it only.

    Args:
        engine: the engine.
        batch: records.
        other: others, as many.
        told: records of ``batch`` whose gradients rounding does not decide; None for all.
        close: what is the same.
        before: called before each pass.
        alone: the gradients of single records, if they can be compared; None if not.
    """
    close = close or Closeness()
    here, there = _with_a_loss(engine, batch, before), _with_a_loss(engine, other, before)
    # Zero times a gradient that is no number is none: a record without a loss would hide the rest.
    count = min(len(here), len(there))
    if count < min(ex.count_of(batch), 2):
        return  # whether it takes the others with it is seen at the size of a real batch, and by H7
    stable = {place for place, row in enumerate(here[:count]) if told is None or row in told}
    if alone is not None:
        alone = [alone[row] for row in here[:count]]
    batch = {name: tensor[here[:count]] for name, tensor in batch.items()}
    other = {name: tensor[there[:count]] for name, tensor in other.items()}
    for kept in {0, count - 1} & stable:
        mixed = {name: tensor.clone() for name, tensor in other.items()}
        for name, tensor in batch.items():
            mixed[name][kept] = tensor[kept]
        before()
        loss, mine = engine.gradient_within(batch, kept)
        before()
        other_loss, others = engine.gradient_within(mixed, kept)
        if not losses_agree(loss, other_loss, close):
            share = _share(loss, other_loss)
            moved = f"{share:.1%}"
            raise CoupledRecordsError(
                "H6: the loss of one record depends on the other records: among others it moves by "
                f"{moved} of itself (batch mean, contrastive loss, router); no per-unit bound holds"
            )
        floor = close.floor(mine)
        if alone is not None:
            for name, first, second in zip(engine.named, mine, alone[kept], strict=True):
                if not close(first, second, floor):
                    raise CoupledRecordsError(
                        f"H6: the gradient of one record in '{name}' depends on whether other "
                        "records are beside it; no per-unit bound holds"
                    )
        for name, first, second in zip(engine.named, mine, others, strict=True):
            if not close(first, second, floor):
                raise CoupledRecordsError(
                    f"H6: the gradient of one record in '{name}' depends on the other records "
                    "(batch mean, contrastive loss, router); no per-unit bound holds"
                )


def _with_a_loss(engine: GradientEngine, batch: Batch, before: Callable[[], None]) -> list[int]:
    """Return the numbers of the records whose losses are finite."""
    before()
    with torch.no_grad():
        finite = torch.isfinite(engine.losses(batch))
    return [row for row, is_finite in enumerate(finite.tolist()) if is_finite]


def losses_agree(
    one: Tensor, two: Tensor, close: Callable[[Tensor, Tensor], bool] = torch.equal
) -> bool:
    """Return whether two passes gave the same losses.

    A model may have none for some record (attention over an empty text is not a number). That says
    nothing of the others, as long as both passes have it for the same records.

    Args:
        one: losses of a pass.
        two: of another, of the same shape.
        close: whether finite losses are the same.
    """
    finite = torch.isfinite(one)
    return torch.equal(finite, torch.isfinite(two)) and close(
        torch.where(finite, one, 0.0), torch.where(finite, two, 0.0)
    )


def _share(one: Tensor, two: Tensor) -> float:
    """Return how far two numbers are apart, as a share of the first."""
    return float((one - two).abs() / one.abs().clamp(min=1e-30))
