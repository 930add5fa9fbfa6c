"""What all layer rules share: a forward of ours for one layer, and what its backward hands over.

A rule computes the layer's own numbers by a custom autograd function. Its backward returns the
gradient of the input as autograd would, and in place of Σ_u G_u of the weights it calls
:meth:`Rule.on_backward` with what per-unit gradients are made of: the layer's activations (what it
read) and backprops (the gradient of the summed loss with respect to its output). Module hooks would
see activation checkpointing twice, and autograd would still compute weight gradients.

In the formulas B is the number of records, U that of units, T the rows of a unit: all rows of all
its records. :meth:`~.per_unit_gradients.PerUnitGradients.group_by_unit` brings [B, L, n] to
[U, T, n].
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from privet.privacy.mechanism.clipping.parameter_gradients import ParameterGradients
from privet.privacy.mechanism.clipping.per_unit_gradients import PerUnitGradients
from privet.privacy.mechanism.clipping.record_axes import SHARED, RecordAxes, RecordAxis

Forward = Callable[..., Tensor]


class Unsupported(Exception):
    """A layer that book-keeping does not know, or is used in a way that it does not."""


class Rule:
    """How one layer's per-unit gradients are read off a backward pass.

    Args:
        module: the layer; stays as it is.
        per_unit: where its gradients go.
        own: the gradients of its trained parameters, by their names in the layer.
    """

    weight: ParameterGradients | None = None
    bias: ParameterGradients | None = None
    axes: RecordAxes | None = None
    """Where the records are in the input; None takes the first dimension."""

    def __init__(
        self, module: nn.Module, per_unit: PerUnitGradients, own: dict[str, ParameterGradients]
    ) -> None:
        self.module: Any = module
        self.per_unit = per_unit
        self.weight, self.bias = own.get("weight"), own.get("bias")

    def __call__(self, *given: Tensor, **named: Tensor) -> Tensor:
        """As the layer's own forward, whose one argument may have its name.

        Raises:
            Unsupported: if the layer's parameters are others than when the rule was made.
        """
        if len(given) + len(named) != 1:
            raise Unsupported(f"a {type(self.module).__name__} is called with several arguments")
        self._require_same("weight", self.weight)
        self._require_same("bias", self.bias)
        x = given[0] if given else next(iter(named.values()))
        axis = self.axis_of(x)
        if axis == 0:
            return self.forward(x)
        if axis == 1:
            return self.forward(x.transpose(0, 1)).transpose(0, 1)
        if axis != SHARED:
            raise Unsupported(f"a {type(self.module).__name__} reads records in dimension {axis}")
        return self._for_each(x)

    def axis_of(self, x: Tensor, place: int = 0) -> int:
        """Return the dimension of records in a tensor that the layer reads.

        Args:
            x: the tensor.
            place: its number among the layer's arguments that are tensors.

        Raises:
            Unsupported: if the dimension is not known, or has another size than the records.
        """
        if self.axes is None:
            return 0
        if not self.axes.is_known or place >= len(self.axes.inputs):
            raise Unsupported(f"the records that a {type(self.module).__name__} reads are unknown")
        axis = self.axes.inputs[place]
        if axis.dimension >= x.dim() and self.per_unit.records == 1:
            return 0  # a model may squeeze a batch of one
        require_rows(x, axis, self.per_unit.records)
        return axis.dimension

    def _for_each(self, x: Tensor) -> Tensor:
        """Return the output for an input that all records share: once for each of them."""
        assert self.axes is not None
        room, records = self.axes.inputs[0].room, self.per_unit.records
        if (
            room == 1 and x.dim() > 2
        ):  # [T, 1, ...] among [T, B, ...]; [T, 1] are T rows of a number
            return self.forward(x.transpose(0, 1).expand(records, -1, *x.shape[2:])).transpose(0, 1)
        x = x if room == 0 else x.unsqueeze(0)
        return self.forward(x.expand(records, *x.shape[1:]))

    def _require_same(self, name: str, own: ParameterGradients | None) -> None:
        now: Tensor | None = getattr(self.module, name, None)
        if own is None:
            replaced = now is not None and now.requires_grad
        else:
            replaced = now is not own.parameter
        if replaced:
            raise Unsupported(f"the {name} of a {type(self.module).__name__} was replaced")

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output."""
        raise NotImplementedError

    def on_backward(self, *saved: Any) -> None:
        """Record what a backward pass gives, unless it is another pass than the engine's.

        Args:
            saved: of the layer's forward, as :meth:`record` takes it; backprops last.
        """
        if self.per_unit.recording:
            self.per_unit.reduced_precision |= saved[-1].dtype in (torch.bfloat16, torch.float16)
            self.record(*saved)

    def record(self, *saved: Any) -> None:
        """Add the layer's contribution to the per-unit gradients of its parameters."""
        raise NotImplementedError


def require_rows(x: Tensor, axis: RecordAxis, records: int) -> None:
    """Check that a tensor has as many rows of each record as the generated batches had.

    A number that changes with the records is that of packed tokens, which may be a multiple of the
    records by chance.

    Raises:
        Unsupported: if it has another number.
    """
    if not axis.fits(x.shape, records):
        raise Unsupported(
            f"a layer reads {tuple(x.shape)}, where {axis.rows} rows of each of {records} records "
            f"are expected in dimension {axis.dimension} of {axis.dimensions}"
        )


def by_record(x: Tensor, records: int) -> Tensor:
    """Return [m · B, ..., n] as [B, L, n], the rows of each record.

    Args:
        x: activations or backprops of a layer.
        records: B.

    Raises:
        Unsupported: if the first dimension is not of records.
    """
    if records == 1:
        return x.reshape(1, -1, x.shape[-1])  # a model may have squeezed it
    if x.dim() < 2 or x.shape[0] % records:
        raise Unsupported(f"a layer reads {tuple(x.shape)}, which is not of {records} records")
    return x.reshape(records, -1, x.shape[-1])


def compute_type(x: Tensor) -> Tensor:
    """Return ``x`` in the type that autocast would compute with."""
    device = x.device.type
    if torch.is_autocast_enabled(device):
        return x.to(torch.get_autocast_dtype(device))
    return x
