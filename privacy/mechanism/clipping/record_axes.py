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

from privet.common.compat.torch import (
    BY_VALUE,
    ORDERS,
    DispatchMode,
    operator_name,
    tree_leaves,
)

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
        room: of a shared tensor, the dimension of size 1 in which the records would be; None if it
            has none. By the generated batches: a real one may have a single place.
        dimensions: how many the tensor has.
    """

    dimension: int
    rows: int = 1
    room: int | None = None
    dimensions: int = 0


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
        room = next((d for d in (0, 1) if len(small) > 1 and small[d] == 1), None)
        return RecordAxis(SHARED, room=room, dimensions=len(small))
    few, many = SIZES
    if len(small) == len(large):
        for dimension, (one, other) in enumerate(zip(small, large, strict=True)):
            if one and one * many == other * few:
                return RecordAxis(dimension, one // few, dimensions=len(small))
    return RecordAxis(UNKNOWN)


class Rearranged(DispatchMode):  # type: ignore[no-untyped-call]
    """Sees what puts rows in an order, or takes rows, by what the records hold.

    A layer behind it reads rows whose records cannot be known by their number: packed tokens, rows
    sorted by length. Their count may be right by chance.

    Attributes:
        records: in the batch.
        found: names of the operators, each with the size of the dimension that it rearranges, as a
            multiple of the records: what grows with the records has the same in every batch.
    """

    def __init__(self, records: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.records = records
        self.found: set[tuple[str, float]] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        name = operator_name(func)
        size = self._rearranged(name, args, kwargs or {})
        if size is not None:
            self.found.add((name, size / self.records))
        return made

    def _rearranged(self, name: str, args: Any, kwargs: Any) -> int | None:
        """Return the size of the dimension whose rows an operator rearranges, or None."""
        x = args[0] if args and isinstance(args[0], Tensor) and args[0].dim() else None
        if x is None:
            return None
        if name in BY_VALUE:
            return x.shape[0]
        if name in ORDERS:
            before = 2 if name == "topk" else 1  # topk(x, k, dim), sort(x, dim)
            dimension = kwargs.get("dim", args[before] if len(args) > before else -1)
            return int(x.shape[dimension])
        index: Any = None
        if name == "index":
            given = [index for index in args[1] if index is not None]
            if any(one.dtype in (torch.bool, torch.uint8) for one in given):
                return x.shape[0]
            index = args[1][0]
        elif name in ("index_select", "gather") and args[1] % x.dim() == 0:
            index = args[2]
        return x.shape[0] if index is not None and _moves(x, index) else None


def _moves(x: Tensor, index: Tensor) -> bool:
    """Whether ``index`` takes the rows of ``x`` otherwise than all in their order."""
    if not index.dim() or not index.numel():
        return True
    rows = index.reshape(len(index), -1)
    in_order = torch.arange(len(rows), device=index.device).unsqueeze(1)
    return not (len(rows) == len(x) and bool((rows == in_order).all()))


def rearranged(run: Callable[[int], object]) -> set[str]:
    """Return the operators by which the model rearranges rows in batches of both sizes.

    Args:
        run: lets the model read a generated batch of that many records.
    """
    found: list[set[tuple[str, float]]] = []
    for records in SIZES:
        seen = Rearranged(records)
        with torch.no_grad(), seen:
            run(records)
        found.append(seen.found)
    return {name for name, _ in found[0] & found[1]}
