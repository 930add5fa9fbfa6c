"""One unit at a time: a forward and a backward pass for each unit, by plain autograd.

What this computes is the definition,

    G_u = ∂/∂θ Σ_{r of u} ℓ_r,

so that it is exact for every model whose records do not depend on each other: nothing is assumed of
a layer, and no hook is set. It costs what U steps of one unit cost. It is the start-up test's own
reference (H16), and the last way that ``auto`` takes.

The gradients of a unit are accumulated in kept memory, one flat tensor for each type, so that clip
and sum cost three calls for each unit, however many parameters there are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from privet.privacy.mechanism.clipping import methods
from privet.privacy.mechanism.clipping.methods import Batch, UnitOfRecord


class OneByOne(methods.PlainMethod):
    """The clipping method of the module's docstring."""

    def per_sample(self, batch: Batch) -> list[Tensor]:
        """As :meth:`ClippingMethod.per_sample`. A parameter that no record uses has zeros."""
        records = len(next(iter(batch.values())))
        parameters = self.named.values()
        made = [p.new_zeros(records, *p.shape, dtype=methods.accumulation_dtype(p))
                for p in parameters]  # fmt: skip
        with self._held() as held:
            for row in range(records):
                self._backward(held, batch, slice(row, row + 1))
                for rows, parameter in zip(made, parameters, strict=True):
                    assert parameter.grad is not None
                    rows[row] = parameter.grad
        return made

    def clipped_sum(
        self, micro_batches: Iterable[tuple[Batch, UnitOfRecord]], clip: methods.Bound
    ) -> list[Tensor]:
        """As :meth:`ClippingMethod.clipped_sum`."""
        with self._held() as held:
            totals = [torch.zeros_like(flat, dtype=methods.accumulation_dtype(flat))
                      for flat in held]  # fmt: skip
            for batch, unit_of in micro_batches:
                for records in _records_of_units(unit_of):
                    self._backward(held, batch, records)
                    self._add_clipped(totals, held, clip)
            return self._by_parameter(totals)

    def _backward(self, held: list[Tensor], batch: Batch, records: slice) -> None:
        """Leave the gradient of one unit's records in ``held``."""
        for flat in held:
            flat.zero_()
        mine = {name: tensor[records] for name, tensor in batch.items()}
        self._loss(self.model, mine).sum().backward()  # type: ignore[no-untyped-call]

    @staticmethod
    def _add_clipped(totals: list[Tensor], held: list[Tensor], clip: methods.Bound) -> None:
        """Add min(1, C / ‖G_u‖) G_u; nothing if the norm is not finite (H7)."""
        squared_norm = sum(methods.squared_row_norms(flat.unsqueeze(0)) for flat in held)
        assert isinstance(squared_norm, Tensor)
        factor = methods.clip_factors(squared_norm, clip)
        if float(factor) == 0.0:  # the host waits for the device here; NaN times 0 is NaN
            return
        for total, flat in zip(totals, held, strict=True):
            # Never narrower than float32: rounding a factor to bfloat16 would pass the bound.
            total.addcmul_(flat.to(total.dtype), factor.to(total.dtype))

    @contextmanager
    def _held(self) -> Iterator[list[Tensor]]:
        """Give every parameter a gradient in kept memory, one flat tensor for each type."""
        groups = self._groups()
        held = []
        for group in groups:
            flat = group[0].new_zeros(sum(p.numel() for p in group))
            for parameter, part in zip(group, _parts(flat, group), strict=True):
                parameter.grad = part
            held.append(flat)
        try:
            yield held
        finally:
            self.reset()

    def _groups(self) -> list[list[Tensor]]:
        groups: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
        for parameter in self.named.values():
            groups.setdefault((parameter.dtype, parameter.device), []).append(parameter)
        return list(groups.values())

    def _by_parameter(self, totals: list[Tensor]) -> list[Tensor]:
        found: dict[int, Tensor] = {}
        for group, total in zip(self._groups(), totals, strict=True):
            for parameter, part in zip(group, _parts(total, group), strict=True):
                found[id(parameter)] = part
        return [found[id(parameter)] for parameter in self.named.values()]


def _parts(flat: Tensor, group: list[Tensor]) -> list[Tensor]:
    """Return a flat tensor as tensors of the parameters' shapes."""
    parts = torch.split(flat, [p.numel() for p in group])
    return [part.view(p.shape) for p, part in zip(group, parts, strict=True)]


def _records_of_units(unit_of: UnitOfRecord) -> Iterator[slice]:
    """Yield the records of each unit, which follow each other."""
    firsts = np.flatnonzero(np.diff(unit_of, prepend=-1))
    for start, end in zip(firsts, [*firsts[1:], len(unit_of)], strict=True):
        yield slice(int(start), int(end))
