"""Which dimension of a layer's input is that of records, found with batches of two sizes.

Most layers read [B, ...]; ``nn.TransformerEncoderLayer`` reads [T, B, d] unless it is set
otherwise, and a table of positions is often read once for all records. A shape alone does not say
which: T may equal B. So the model reads generated batches of :data:`SIZES` records, and the
dimension that grows with them is that of records; where none does, all records share the input.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from privet.common.compat.torch import (
    BY_INDEX,
    BY_VALUE,
    INDEXED,
    ORDERS,
    DispatchMode,
    operator_name,
    tree_leaves,
)
from privet.privacy.mechanism.clipping.methods import Batch

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

    def fits(self, shape: Sequence[int], records: int) -> bool:
        """Return whether a tensor of a shape has the same rows of each record.

        Args:
            shape: of the tensor.
            records: B.
        """
        if len(shape) != self.dimensions:
            return False
        if self.dimension == SHARED:
            return self.room is None or shape[self.room] == 1
        return shape[self.dimension] == self.rows * records


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
            return int(x.shape[0])
        if name in ORDERS:
            before = 2 if name == "topk" else 1  # topk(x, k, dim), sort(x, dim)
            dimension = kwargs.get("dim", args[before] if len(args) > before else -1)
            return int(x.shape[dimension])
        index = _index_of_rows(name, args)
        if index is None:
            return None
        is_mask = index.dtype in (torch.bool, torch.uint8)
        reads_by_mask = is_mask and name == "index"  # setting numbers by a mask moves no row
        moves = not is_mask and _moves(x, index)
        return int(x.shape[0]) if reads_by_mask or moves else None


def _index_of_rows(name: str, args: Any) -> Tensor | None:
    """Return the index or mask by which an operator reads or writes rows, or None."""
    if name in INDEXED:
        return next((one for one in args[1][:1] if one is not None), None)
    if name in BY_INDEX and len(args) > 2 and args[1] % args[0].dim() == 0:
        found: Tensor = args[2]
        return found
    return None


def _moves(x: Tensor, index: Tensor) -> bool:
    """Whether ``index`` takes the rows of ``x`` otherwise than all in their order."""
    if not index.dim() or not index.numel():
        return True
    rows = index.reshape(len(index), -1)
    in_order = torch.arange(len(rows), device=index.device).unsqueeze(1)
    return not (len(rows) == len(x) and bool((rows == in_order).all()))


def rearranged(
    read: Callable[[Batch], object], random_batch: Callable[[int, int], Batch]
) -> set[str]:
    """Return the operators by which the model rearranges rows in batches of both sizes.

    Also in batches whose records are each one place further: an index that a record brings may be
    that of its own place in every generated batch.

    Args:
        read: lets the model read a batch.
        random_batch: makes a batch of (records, seed).
    """
    found: list[set[tuple[str, float]]] = []
    for records in SIZES:
        seen = Rearranged(records)
        batch = random_batch(records, 1)
        with torch.no_grad(), seen:
            read(batch)
            read({name: tensor.roll(1, 0) for name, tensor in batch.items()})
        found.append(seen.found)
    return {name for name, _ in found[0] & found[1]}


def with_shorter_rows(batch: Batch, seed: int) -> Batch:
    """Return a batch whose records have zeros from some place on, each from another.

    Generated records may all be as long as they can be; what a model makes of padding shows here.

    Args:
        batch: of B records.
        seed: of the places.
    """
    generator = torch.Generator().manual_seed(seed)
    shorter = dict(batch)
    for name, tensor in batch.items():
        if tensor.dim() < 2 or tensor.is_floating_point() or tensor.shape[1] < 2:
            continue
        length = tensor.shape[1]
        ends = torch.randint(1, length + 1, (len(tensor), 1), generator=generator)
        kept = (torch.arange(length) < ends).to(tensor.device)
        kept = kept.view(len(tensor), length, *[1] * (tensor.dim() - 2))
        shorter[name] = torch.where(kept, tensor, torch.zeros_like(tensor))
    return shorter


def misfit(
    axes: dict[int, RecordAxes],
    modules: Iterable[nn.Module],
    read: Callable[[Batch], object],
    batch: Batch,
) -> str:
    """Return the kind of a layer that reads other rows of a batch than its axes say, or "".

    Args:
        axes: of :func:`find`.
        modules: of the model.
        read: lets the model read a batch.
        batch: to read. One that the model cannot read shows nothing.
    """
    chosen = [module for module in modules if id(module) in axes]
    records = len(next(iter(batch.values())))
    try:
        calls = _calls(chosen, lambda _: read(batch), records)
    except Exception:  # whatever a model says of records that are none for it
        return ""
    for module in chosen:
        for call in calls[id(module)]:
            if not _fits(call.inputs, axes[id(module)].inputs, records):
                return type(module).__name__
    return ""


def _fits(shapes: tuple[torch.Size, ...], axes: tuple[RecordAxis, ...], records: int) -> bool:
    return len(shapes) == len(axes) and all(
        axis.fits(shape, records) for shape, axis in zip(shapes, axes, strict=True)
    )
