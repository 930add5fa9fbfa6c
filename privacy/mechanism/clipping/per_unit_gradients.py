"""The per-unit gradients of all trained parameters, and which records belong to which unit.

::

    layers ── add_linear / add_lookup / … ──► ParameterGradients, one a parameter
                                                │ squared_norms()      ‖G_u‖² = Σ over parameters
                                                ▼
                                              c_u = min(1, C / ‖G_u‖)
                                                │ add_weighted_sum()   Σ_u c_u G_u
                                                ▼
                                              totals, one flat tensor a buffer
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from privet.common.errors import SelfTestError
from privet.privacy.mechanism.clipping.methods import accumulation_dtype, squared_row_norms
from privet.privacy.mechanism.clipping.parameter_gradients import (
    GradientBuffer,
    ParameterGradients,
    only_finite,
)

_SMALL = 1 << 11
"""Parameters of at most this many numbers share one buffer: one norm and one product for all."""


class PerUnitGradients:
    """What one pass over a micro-batch leaves.

    Args:
        parameters: the gradients of each trained parameter, in the parameters' order.

    Attributes:
        records: B, of the pass.
        units: U, of the pass.
        recording: whether gradients are those of the pass: a loss may take gradients of its own.
        reduced_precision: whether a layer computed in less than single precision.
    """

    def __init__(self, parameters: Sequence[ParameterGradients]) -> None:
        self.parameters = list(parameters)
        self.buffers = _buffers(self.parameters)
        self.records = self.units = 0
        self._most = 1
        self._slots: Tensor | None = None
        self.recording = False
        self.reduced_precision = False

    def begin_pass(self, records: int, counts: Tensor | None) -> None:
        """Begin a pass over ``records`` records.

        Args:
            records: B.
            counts: [U] records of each unit, which follow each other; None for one each.
        """
        self.records, self._slots, self._most = records, None, 1
        self.recording = False
        self.units = records if counts is None else len(counts)
        if counts is not None and records:
            self._most = int(counts.max())
            if bool((counts != self._most).any()):
                starts = torch.repeat_interleave(counts.cumsum(0) - counts, counts)
                unit = torch.repeat_interleave(torch.arange(len(counts)), counts)
                self._slots = unit * self._most + torch.arange(records) - starts
        for one in self.parameters:
            one.begin_pass()

    def group_by_unit(self, x: Tensor) -> Tensor:
        """Return [B, T, n] as [U, R · T, n], R the most records of a unit: its rows side by side.

        A unit with fewer records is filled up with zeros, which add nothing to gᵀ a.
        """
        if self._most == 1:
            return x
        if self._slots is not None:
            room = x.new_zeros(self.units * self._most, *x.shape[1:])
            x = room.index_copy_(0, self._slots.to(x.device), x)
        return x.reshape(self.units, -1, *x.shape[2:])

    def squared_norms(self) -> Tensor:
        """Return ‖G_u‖² [U] over all parameters, in double precision.

        A parameter that no record used has a gradient of zero.

        Raises:
            SelfTestError: if a parameter has a gradient from elsewhere, which would escape
                clipping (H17).
        """
        for one in self.parameters:
            if one.parameter.grad is not None:
                raise SelfTestError(
                    f"H17: parameter '{one.name}' has a gradient outside its layer, which "
                    "book-keeping does not clip: use clipping = 'auto'"
                )
        parts = [one.ghost_squared_norms() for one in self.parameters if one.is_ghost]
        parts += [squared_row_norms(rows) for _, rows in self.instantiated()]
        if not parts:
            device = self.parameters[0].parameter.device
            return torch.zeros(self.units, dtype=torch.float64, device=device)
        return torch.stack(parts).sum(0)

    def add_weighted_sum(
        self, totals: list[Tensor], factors: Tensor, finite: Tensor | None
    ) -> None:
        """Add Σ_u c_u G_u of the pass to ``totals``.

        Args:
            totals: of :meth:`zeros`, one for each buffer.
            factors: c_u [U].
            finite: [U] units whose norm is finite; None for all.
        """
        total_of = {id(b): total for b, total in zip(self.buffers, totals, strict=True)}
        for buffer, rows in self.instantiated():
            rows = only_finite(rows, finite)
            total_of[id(buffer)].addmv_(rows.t(), factors.to(rows.dtype))
        for buffer in self.buffers:
            parts = buffer.split(total_of[id(buffer)])
            for one, part in zip(buffer.parameters, parts, strict=True):
                if one.is_ghost:
                    one.add_weighted_sum(part, factors, finite)

    def zeros(self) -> list[Tensor]:
        """Return totals to add to, a flat tensor for each buffer."""
        first = [buffer.parameters[0].parameter for buffer in self.buffers]
        return [
            like.new_zeros(buffer.width, dtype=accumulation_dtype(like))
            for buffer, like in zip(self.buffers, first, strict=True)
        ]

    def by_parameter(self, totals: list[Tensor]) -> list[Tensor]:
        """Return totals as tensors of the parameters' shapes, in their order."""
        found: dict[int, Tensor] = {}
        for buffer, total in zip(self.buffers, totals, strict=True):
            for one, part in zip(buffer.parameters, buffer.split(total), strict=True):
                found[id(one)] = part
        return [found[id(one)] for one in self.parameters]

    def instantiated(self) -> list[tuple[GradientBuffer, Tensor]]:
        """Return each buffer with gradients, [U, width]; what has none there is zero."""
        found = []
        for buffer in self.buffers:
            if not any(one.is_instantiated for one in buffer.parameters):
                continue
            for one in buffer.parameters:
                if not one.is_instantiated:
                    one.instantiated(self.units).zero_()
            found.append((buffer, buffer.rows[: self.units]))
        return found


def _buffers(parameters: list[ParameterGradients]) -> list[GradientBuffer]:
    """Return a buffer for all small parameters of one type and device, and one for each other."""
    groups: dict[tuple[torch.dtype, torch.device], list[ParameterGradients]] = {}
    large = []
    for one in parameters:
        if one.parameter.numel() > _SMALL:
            large.append(GradientBuffer([one]))
        else:
            groups.setdefault((one.parameter.dtype, one.parameter.device), []).append(one)
    buffers = [GradientBuffer(group) for group in groups.values()] + large
    for buffer in buffers:
        column = 0
        for one in buffer.parameters:
            one.use_buffer(buffer, column)
            column += one.parameter.numel()
    return buffers
