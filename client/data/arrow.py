"""Convert the cells of a Parquet file, each alone, by the type that its column declares.

Pandas is not used for this, because its columns change type with their cells: one null turns whole
numbers into floats, and 2^53 + 1 into another number.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from privet.client.data.nested import OddCellError, is_nested, nested_cell
from privet.common.cells import MAX_CELL_CHARACTERS, odd_text, plain
from privet.common.errors import DataError

LEFT_OUT = b"privet.left_out"
"""Under which a snapshot of a database names the rows that are not in it."""
MAX_NAMED = 1000
"""Rows that it names."""


@dataclass
class LeftOut:
    """Rows of a table that did not fit its declaration.

    Attributes:
        count: number of these rows.
        named: the first of them, by their number from 1, each with the reason.
    """

    count: int = 0
    named: dict[int, str] = field(default_factory=dict)

    def add(self, row: int, why: str) -> None:
        """Count a row.

        Args:
            row: number of the row, from 1.
            why: the reason, in words that quote no cell. It is kept for the first :data:`MAX_NAMED`
                rows only.
        """
        self.count += 1
        if len(self.named) < MAX_NAMED:
            self.named[row] = why

    def metadata(self) -> dict[str, str]:
        """Return the file's metadata that :meth:`of` reads."""
        return {LEFT_OUT.decode(): json.dumps({"count": self.count, "named": self.named})}

    @classmethod
    def of(cls, file: pq.ParquetFile) -> LeftOut:
        """Read the metadata of a snapshot; any other file leaves nothing out."""
        text = (file.metadata.metadata or {}).get(LEFT_OUT)
        if text is None:
            return cls()
        value = json.loads(text)
        return cls(int(value["count"]), {int(row): str(why) for row, why in value["named"].items()})


def read_parquet(
    path: Path, chosen: Callable[[Sequence[str]], list[str]], nested: Collection[str] = ()
) -> tuple[list[str], list[list[Any]], dict[int, str], LeftOut]:
    """Read columns of a Parquet file.

    Args:
        path: the file.
        chosen: returns the columns to read, in order, from the file's columns.
        nested: columns whose cells may be lists or bytes (:mod:`.nested`).

    Returns:
        The names; the cells of each column, as None, bool, int, float or str, and those of a nested
        column as :mod:`.nested` returns them; the rows, from 0,
        with a cell that cannot be read, each with the reason; and the rows of a database that its
        snapshot left out.

    Raises:
        DataError: if a column has a type that is not supported.
    """
    file = pq.ParquetFile(path)
    names = chosen(file.schema_arrow.names)
    for name in names:
        kind = file.schema_arrow.field(name).type
        if not (name in nested and is_nested(kind)):
            _require_read(name, kind)
    table = file.read(columns=names)
    bad: dict[int, str] = {}
    cells = [_cells(name, table.column(name), bad) for name in names]
    return names, cells, bad, LeftOut.of(file)


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
        if is_nested(chunk.type):
            found += [_nested(name, cell, start + row, bad) for row, cell in enumerate(chunk)]
            continue
        chunk = _without_long(name, chunk, start, bad)
        try:
            cells = [plain(cell) for cell in chunk.to_pylist()]
        except Exception:  # one cell of the chunk: invalid UTF-8, a date beyond Python's years
            cells = [_cell(name, chunk, row, start + row, bad) for row in range(len(chunk))]
        for row, cell in enumerate(cells):
            if isinstance(cell, str) and odd_text(cell):
                bad.setdefault(start + row, f"'{name}' is too long, or holds what is no text")
        found += cells
    return found


def _nested(name: str, cell: pa.Scalar, place: int, bad: dict[int, str]) -> Any:
    try:
        return nested_cell(cell)
    except OddCellError as error:
        bad.setdefault(place, f"'{name}' {error}")
    except Exception:  # whatever it is, it is this cell's alone
        bad.setdefault(place, f"'{name}' cannot be read as {cell.type}")
    return None


def _without_long(name: str, chunk: pa.Array, start: int, bad: dict[int, str]) -> pa.Array:
    """Return the chunk with long texts left out, before any of them is a Python text."""
    if not (pa.types.is_string(chunk.type) or pa.types.is_large_string(chunk.type)):
        return chunk
    long = pc.greater(pc.binary_length(chunk), 4 * MAX_CELL_CHARACTERS).fill_null(False)
    if not pc.any(long).as_py():
        return chunk
    for row in np.flatnonzero(long.to_numpy(zero_copy_only=False)).tolist():
        bad.setdefault(start + row, f"'{name}' is too long")
    return pc.if_else(long, pa.scalar(None, chunk.type), chunk)


def _cell(name: str, chunk: pa.Array, row: int, place: int, bad: dict[int, str]) -> Any:
    try:
        return plain(chunk[row].as_py())
    except Exception:  # whatever it is, it is this cell's alone
        bad.setdefault(place, f"'{name}' cannot be read as {chunk.type}")
        return None
