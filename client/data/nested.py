"""Convert cells that are lists or bytes, of the columns of a Parquet file that a plan reads so.

::

    a list of texts             a list of Python's str, or None
    a list of whole numbers     an array of 64-bit integers
    a list of other numbers     an array of doubles; a null is NaN
    bytes                       bytes
    a struct with "bytes"       these bytes; nothing else of it is read, and no path is opened

Each cell is converted alone. One that is too long, or cannot be read, is its own record's fault.
"""

from __future__ import annotations

from array import array
from typing import Any

import pyarrow as pa

from privet.common.cells import MAX_CELL_CHARACTERS, odd_text

MAX_ITEMS = 1 << 22
"""Numbers of one list; about four minutes of sound at 16 kHz."""
MAX_BYTES = 1 << 24
"""Bytes of one cell."""


class OddCellError(ValueError):
    """A cell that cannot be used, with the reason in words that quote no cell."""


def is_nested(kind: pa.DataType) -> bool:
    """Whether :func:`nested_cell` reads cells of a type."""
    if _is_list(kind):
        item = kind.value_type
        return _is_string(item) or pa.types.is_integer(item) or pa.types.is_floating(item)
    if pa.types.is_struct(kind):
        place = kind.get_field_index("bytes")
        return place >= 0 and _is_bytes(kind.field(place).type)
    return _is_bytes(kind)


def nested_cell(cell: pa.Scalar) -> Any:
    """Return one cell; None if it is null.

    Args:
        cell: of a type that :func:`is_nested` names.

    Raises:
        OddCellError: if it is too long, or has an item that is no text.
    """
    if not cell.is_valid:
        return None
    if _is_list(cell.type):
        return _list(cell.values)
    if pa.types.is_struct(cell.type):
        cell = cell["bytes"]
        if not cell.is_valid:
            return None
    data = cell.as_buffer()
    if data.size > MAX_BYTES:
        raise OddCellError("is too long")
    return data.to_pybytes()


def _list(items: Any) -> Any:
    if len(items) > MAX_ITEMS:
        raise OddCellError("is too long")
    if _is_string(items.type):
        return _texts(items)
    if pa.types.is_integer(items.type) and not items.null_count:
        return array("q", items.cast(pa.int64()).to_numpy().tobytes())
    numbers = items.cast(pa.float64()).to_numpy(zero_copy_only=False)
    return array("d", numbers.tobytes())


def _texts(items: Any) -> list[str | None]:
    if items.nbytes > 4 * MAX_CELL_CHARACTERS + 16 * len(items):
        raise OddCellError("is too long")
    texts: list[str | None] = items.to_pylist()
    if sum(len(text or "") for text in texts) > MAX_CELL_CHARACTERS:
        raise OddCellError("is too long")
    if any(text is not None and odd_text(text) for text in texts):
        raise OddCellError("lists what is no text")
    return texts


def _is_list(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    )


def _is_string(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _is_bytes(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))
