"""Read CSV, TSV and Parquet files so that no record depends on another (H6).

Every cell of a text file is text, and every cell of a Parquet file has its column's type: nothing
is guessed from a column's other cells (:mod:`privet.common.cells` says what a cell means). A record
that cannot be read is left out and named, and the other records are read as if it did not exist.

:mod:`.text_file` reads text files, :mod:`.arrow` reads Parquet files.
"""

from __future__ import annotations

import io
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pandas as pd

from privet.client.data.arrow import read_parquet
from privet.client.data.suffix import is_parquet, separator_of
from privet.client.data.text_file import as_table, open_text, records, take_header
from privet.common.errors import DataError
from privet.common.printable import counted
from privet.common.text_format import PLAIN, TextFormat


@dataclass(frozen=True)
class RecordFault:
    """A record that cannot be used.

    Attributes:
        place: its line in a text file, or its number in a table, both from 1.
        why: in words that quote no cell.
    """

    place: int
    why: str


@dataclass(frozen=True)
class Table:
    """The records of a file, one row each.

    Attributes:
        frame: cells of dtype object: text, or Python's own int, float, bool; None is missing; in
            nested columns lists, arrays and bytes (:mod:`.nested`). Its index is a record's place:
            the line in a text file, the row's number in another.
        faults: records that cannot be read, which are not in ``frame``.
        counted: unit of the index, ``line`` or ``row``.
        unnamed: number of further records that cannot be read, beyond ``faults``.
    """

    frame: pd.DataFrame
    faults: tuple[RecordFault, ...] = ()
    counted: str = "line"
    unnamed: int = 0


def read_table(
    path: Path,
    columns: Sequence[str] | None = None,
    *,
    multiline: bool = False,
    nested: Collection[str] = (),
    form: TextFormat = PLAIN,
    numbers: Collection[str] = (),
) -> Table:
    """Read a CSV (``.csv``, ``.csv.gz``, ``.tsv``, ``.tsv.gz``) or Parquet file.

    Args:
        path: the file.
        columns: to read, in this order; None reads all.
        multiline: whether quoted cells of a text file may hold line breaks.
        nested: columns of a Parquet file whose cells may be lists or bytes.
        form: how a text file writes its cells.
        numbers: columns whose cells are read as numbers: a decimal comma counts in them alone.

    Raises:
        DataMissingError: if there is no such file.
        DataError: if it cannot be read as a table, names a column twice, or lacks one. A fault of a
            single record raises nothing; see :class:`Table`.
    """
    with as_table(path):
        if is_parquet(path):
            found = _from_parquet(path, columns, nested)
        else:
            with open_text(path) as stream:
                found = read_text(
                    stream, separator_of(path), columns, multiline=multiline, form=form,
                    numbers=numbers,
                )  # fmt: skip
    return found


def read_text(
    stream: IO[bytes],
    separator: str = ",",
    columns: Sequence[str] | None = None,
    *,
    multiline: bool = False,
    form: TextFormat = PLAIN,
    numbers: Collection[str] = (),
) -> Table:
    """Read the content of a text file; see :func:`read_table`.

    Args:
        stream: the file's bytes, decompressed.
        separator: one character between two cells, unless ``form`` says another.
        columns: to read, in this order; None reads all.
        multiline: whether quoted cells may hold line breaks.
        form: how the file writes its cells.
        numbers: columns whose cells are read as numbers.

    Raises:
        DataError: if the names of the columns cannot be read, one is there twice, or one is
            missing.
    """
    separator = form.separator_or(separator)
    found = records(stream, separator, multiline=multiline, encoding=form.encoding)
    header = take_header(found, separator)
    wanted = _chosen(header, columns)
    chosen = [(header.index(name), name in numbers) for name in wanted]
    rows: list[list[str | None]] = []
    lines: list[int] = []
    faults: list[RecordFault] = []
    for line, cells in found:
        if isinstance(cells, str):
            faults.append(RecordFault(line, cells))
        elif len(cells) != len(header):
            count = counted(len(cells), "cell")
            faults.append(RecordFault(line, f"{count}, where the columns are {len(header)}"))
        else:
            rows.append([form.cell(cells[place], is_number=number) for place, number in chosen])
            lines.append(line)
    return Table(_frame(rows, wanted, lines), tuple(faults), "line")


def _frame(rows: list[list[Any]], names: Sequence[str], places: list[int]) -> pd.DataFrame:
    index = pd.Index(places, dtype="int64")
    cells = {
        name: pd.Series([row[place] for row in rows], dtype=object, index=index)
        for place, name in enumerate(names)
    }
    return pd.DataFrame(cells, index=index, columns=pd.Index(list(names), dtype=object))


def _chosen(header: Sequence[str], columns: Sequence[str] | None) -> list[str]:
    """Return which columns are read, in order.

    Raises:
        DataError: if one is not there, or is there twice.
    """
    if columns is None:
        columns = header
    for name in columns:
        if name not in header:
            raise DataError(f"there is no column '{name}'")
        if header.count(name) > 1:
            raise DataError(f"the column '{name}' is there twice")
    return list(columns)


def _from_parquet(path: Path, columns: Sequence[str] | None, nested: Collection[str]) -> Table:
    names, cells, bad, before = read_parquet(path, lambda header: _chosen(header, columns), nested)
    count = max(map(len, cells), default=0)
    kept = [row for row in range(count) if row not in bad]
    rows = {
        name: pd.Series([column[row] for row in kept], dtype=object)
        for name, column in zip(names, cells, strict=True)
    }
    frame = pd.DataFrame(rows, columns=pd.Index(names, dtype=object))
    frame.index = pd.Index([row + 1 for row in kept], dtype="int64")
    faults = [RecordFault(row + 1, why) for row, why in sorted(bad.items())]
    faults += [RecordFault(row, f"in the database: {why}") for row, why in before.named.items()]
    return Table(frame, tuple(faults), "row", before.count - len(before.named))


def text_table(text: str, separator: str = ",") -> Table:
    """Read a text as a CSV file, with quoted line breaks; see :func:`read_text`.

    Args:
        text: the file's content.
        separator: one character between two cells.

    Raises:
        DataError: as :func:`read_text`.
    """
    return read_text(io.BytesIO(text.encode("utf-8", "surrogateescape")), separator, multiline=True)
