"""Which dimension of a layer's input is that of records, found with batches of two sizes.

Most layers read [B, ...]; ``nn.TransformerEncoderLayer`` reads [T, B, d] unless it is set
otherwise, and a table of positions is often read once for all records. A shape alone does not say
which: T may equal B. So the model reads generated batches of :data:`SIZES` records, and the
dimension that grows with them is that of records; where none does, all records share the input.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from privet.common.compat.torch import tree_leaves

SIZES: Final = (3, 5)
"""Numbers of records of the two batches; they have no common divisor."""
SHARED: Final = -1
"""In place of a dimension: all records have this input in common."""


UNKNOWN: Final = -2
"""In place of a dimension: the shape changes, and no dimension grows with the records."""


@dataclass(frozen=True)
class RecordAxis:
    """Where the records are in one tensor.

    Attributes:
        dimension: of the records; :data:`SHARED` or :data:`UNKNOWN` where there is none.
        rows: of each record in it. Windows of an image, or places, may be folded into the dimension
            of records; packed tokens, whose number depends on the records, have no number of rows.
    """

    dimension: int
    rows: int = 1


@dataclass(frozen=True)
class RecordAxes:
    """The dimensions of records in a layer's calls.

    Attributes:
        inputs: of each tensor among the arguments, in order.
        outputs: of each tensor of the result.
        is_the_same: whether all calls of the layer have the same.
    """

    inputs: tuple[RecordAxis, ...]
    outputs: tuple[RecordAxis, ...]
    is_the_same: bool = True

    @property
    def is_known(self) -> bool:
        """Whether every tensor has a dimension of records, or is shared, in the same way always."""
        axes = (*self.inputs, *self.outputs)
        return self.is_the_same and all(one.dimension != UNKNOWN for one in axes)


@dataclass(frozen=True)
class _Call:
    """The shapes of one call of a layer."""

    inputs: tuple[torch.Size, ...]
    outputs: tuple[torch.Size, ...]

    def axes(self, larger: _Call) -> tuple[tuple[RecordAxis, ...], tuple[RecordAxis, ...]]:
        """Return the dimensions that grow from this call to one with more records."""
        return _grown(self.inputs, larger.inputs), _grown(self.outputs, larger.outputs)


def find(modules: Iterable[nn.Module], run: Callable[[int], object]) -> dict[int, RecordAxes]:
    """Return the record axes of each module that is called, by its ``id``.

    Args:
        modules: of the model.
        run: lets the model read a generated batch of that many records.
    """
    chosen = list(modules)
    small, large = (_calls(chosen, run, records) for records in SIZES)
    return {
        key: _axes(calls, large[key])
        for key, calls in small.items()
        if calls and len(calls) == len(large[key])
    }


def tensors_of(value: Any) -> list[Tensor]:
    """Return the tensors in nested arguments or results, in order."""
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]


def _calls(
    modules: list[nn.Module], run: Callable[[int], object], records: int
) -> dict[int, list[_Call]]:
    """Return the calls of each module while the model reads ``records`` records."""
    calls: dict[int, list[_Call]] = {id(module): [] for module in modules}

    def note(module: nn.Module, given: Any, named: Any, made: Any) -> None:
        inputs, outputs = tensors_of((given, named)), tensors_of(made)
        calls[id(module)].append(
            _Call(tuple(t.shape for t in inputs), tuple(t.shape for t in outputs))
        )

    handles: list[RemovableHandle] = []
    try:
        handles += [m.register_forward_hook(note, with_kwargs=True) for m in modules]
        with torch.no_grad():
            run(records)
    finally:
        for handle in handles:
            handle.remove()
    return calls


def _axes(small: list[_Call], large: list[_Call]) -> RecordAxes:
    found = {one.axes(other) for one, other in zip(small, large, strict=True)}
    inputs, outputs = next(iter(found))
    return RecordAxes(inputs, outputs, len(found) == 1)


def _grown(small: tuple[torch.Size, ...], large: tuple[torch.Size, ...]) -> tuple[RecordAxis, ...]:
    if len(small) != len(large):
        return (RecordAxis(UNKNOWN),)
    return tuple(_axis(one, other) for one, other in zip(small, large, strict=True))


def _axis(small: torch.Size, large: torch.Size) -> RecordAxis:
    """Return the first dimension whose size is a multiple of the records, the same in both."""
    if small == large:
        return RecordAxis(SHARED)
    few, many = SIZES
    if len(small) == len(large):
        for dimension, (one, other) in enumerate(zip(small, large, strict=True)):
            if one and one * many == other * few:
                return RecordAxis(dimension, one // few)
    return RecordAxis(UNKNOWN)
