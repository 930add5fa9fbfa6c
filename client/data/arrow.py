"""Cells of a Parquet file, each converted alone from the type that its column declares.

Never by way of pandas, whose columns change type with their cells: one null makes whole numbers
floats, and 2^53 + 1 another number.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from privet.common.cells import plain
from privet.common.errors import DataError

MAX_CELL_CHARACTERS = 1 << 20
"""The longest cell; a record with a longer one is left out."""


def read_parquet(
    path: Path, chosen: Callable[[Sequence[str]], list[str]]
) -> tuple[list[str], list[list[Any]], dict[int, str]]:
    """Read columns of a Parquet file.

    Args:
        path: the file.
        chosen: says which of its columns are read, in order.

    Returns:
        The names; the cells of each column, as None, bool, int, float or str; and the rows, from 0,
        that hold a cell that cannot be read, each with the reason.

    Raises:
        DataError: if a column is of a type that is not read.
    """
    file = pq.ParquetFile(path)
    names = chosen(file.schema_arrow.names)
    for name in names:
        _require_read(name, file.schema_arrow.field(name).type)
    table = file.read(columns=names)
    bad: dict[int, str] = {}
    cells = [_cells(name, table.column(name), bad) for name in names]
    return names, cells, bad


def _require_read(name: str, kind: pa.DataType) -> None:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_nested(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        raise DataError(
            f"the column '{name}' is of type {kind}, which is not read: store numbers or texts"
        )


def _cells(name: str, column: pa.ChunkedArray, bad: dict[int, str]) -> list[Any]:
    found: list[Any] = []
    for chunk in column.chunks:
        start = len(found)
        try:
            cells = [plain(cell) for cell in chunk.to_pylist()]
        except Exception:  # one cell of the chunk: invalid UTF-8, a date beyond Python's years
            cells = [_cell(name, chunk, row, start + row, bad) for row in range(len(chunk))]
        for row, cell in enumerate(cells):
            if isinstance(cell, str) and _odd(cell):
                bad.setdefault(start + row, f"'{name}' is too long, or holds what is no text")
        found += cells
    return found


def _cell(name: str, chunk: pa.Array, row: int, place: int, bad: dict[int, str]) -> Any:
    try:
        return plain(chunk[row].as_py())
    except Exception:  # whatever it is, it is this cell's alone
        bad.setdefault(place, f"'{name}' cannot be read as {chunk.type}")
        return None


def _odd(text: str) -> bool:
    if len(text) > MAX_CELL_CHARACTERS or "\0" in text:
        return True
    if text.isascii():
        return False
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False
