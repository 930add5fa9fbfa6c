"""Read the records of a CSV or TSV file, each from its own bytes.

If records are single lines, each line is split off, decoded and parsed alone, so that a damaged
line costs only itself (level b of the neighbours in docs/reference/honesty.md). If quoted cells may
hold line breaks, a quote that is never closed swallows the lines after it, up to the longest
record; then the file's owner vouches for its quoting. Pandas is not needed.
"""

from __future__ import annotations

import contextlib
import csv
import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO, cast

from privet.client.data.suffix import separator_of
from privet.common.errors import DataError, DataMissingError
from privet.common.text_format import PLAIN, TextFormat

MAX_RECORD_BYTES = 1 << 20
"""The longest record; a longer one is left out, and is never held in memory whole."""
_BOM = b"\xef\xbb\xbf"
_CHUNK = 1 << 16
_TOO_LONG = f"longer than {MAX_RECORD_BYTES >> 20} MiB"
_NUL = "a NUL character"
_QUOTES = "a quote that is not closed or not at the border of its cell, or a lone CR"

csv.field_size_limit(MAX_RECORD_BYTES)

Cells = list[str] | str
"""The cells of a record, or why it cannot be read."""


@contextlib.contextmanager
def as_table(path: Path) -> Iterator[None]:
    """Name a file in the error if it is not there, or cannot be read as a table.

    Raises:
        DataMissingError: if there is no such file.
        DataError: for whatever is raised within.
    """
    try:
        if not path.is_file():
            raise DataMissingError(f"{path}: there is no such file")
        yield
    except DataMissingError:
        raise
    except DataError as error:
        said = str(error)
        if str(path) not in said:
            said = f"{path}: {said}"
        raise type(error)(said) from None
    except Exception as error:  # what it says may quote the file
        raise DataError(f"{path}: cannot be read as a table ({type(error).__name__})") from error


def open_text(path: Path) -> IO[bytes]:
    """Open a text file, compressed or not, to read its bytes.

    Raises:
        OSError: if it cannot be opened.
    """
    opened = gzip.open if path.suffix.lower() == ".gz" else open
    return cast(IO[bytes], opened(path, "rb"))


def header_of(path: Path, form: TextFormat = PLAIN) -> list[str]:
    """Return the names of a text file's columns.

    Args:
        path: the file.
        form: how it writes its cells.

    Raises:
        DataError: if they cannot be read.
        OSError: if the file cannot be read.
    """
    separator = form.separator_or(separator_of(path))
    with open_text(path) as stream:
        return take_header(records(stream, separator, encoding=form.encoding), separator)


def take_header(found: Iterator[tuple[int, Cells]], separator: str) -> list[str]:
    """Return the names of the columns, from the first record.

    Args:
        found: the records of :func:`records`; the first one is consumed.
        separator: one character between two cells.

    Raises:
        DataError: if they cannot be read, or have another separator than the file's name says.
    """
    for line, cells in found:
        if isinstance(cells, str):
            raise DataError(f"line {line}, which names the columns, cannot be read: {cells}")
        other = [mark for mark in ",;\t|" if mark != separator and mark in cells[0]]
        if len(cells) == 1 and other:
            raise DataError(
                f"line {line} names one column, {cells[0][:60]!r}: cells are to be separated by "
                f"{separator!r} in a file of this name, not by {other[0]!r}. Declare it: "
                f"format = {{ separator = {json.dumps(other[0])} }} under [data] of a plan, or in "
                "the data set of a policy"
            )
        return cells
    raise DataError("the file is empty: its first line should name the columns")


def records(
    stream: IO[bytes], separator: str, *, multiline: bool = False, encoding: str = "utf-8"
) -> Iterator[tuple[int, Cells]]:
    """Yield each record with the number of its first line, from 1; empty lines are skipped.

    Args:
        stream: the file.
        separator: one character between two cells.
        multiline: whether quoted cells may hold line breaks.
        encoding: of the file's characters, each of which has bytes of its own.
    """
    if multiline:
        return _joined(_lines(stream), separator, encoding)
    return _apart(_lines(stream), separator, encoding)


def _lines(stream: IO[bytes]) -> Iterator[tuple[int, bytes | None]]:
    """Yield each line with its number, its end included; None for one that is too long."""
    number, first = 0, True
    while data := stream.readline(MAX_RECORD_BYTES + 1):
        number += 1
        if first:
            if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
                raise DataError("the file is UTF-16: save it as UTF-8")
            data, first = data.removeprefix(_BOM), False
        if len(data) > MAX_RECORD_BYTES and not data.endswith(b"\n"):
            while (rest := stream.readline(_CHUNK)) and not rest.endswith(b"\n"):
                pass
            yield number, None
            continue
        yield number, data


def _apart(
    lines: Iterator[tuple[int, bytes | None]], separator: str, encoding: str
) -> Iterator[tuple[int, Cells]]:
    """Yield a record for each line, from that line alone."""
    for number, data in lines:
        if data is None:
            yield number, _TOO_LONG
        elif line := data.removesuffix(b"\n").removesuffix(b"\r"):
            yield number, _parsed(line, separator, encoding)


def _parsed(data: bytes, separator: str, encoding: str) -> Cells:
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError:
        return _not_text(encoding)
    if "\0" in text:
        return _NUL
    if '"' not in text and "\r" not in text:
        return text.split(separator)
    try:
        cells = list(csv.reader([text], delimiter=separator, strict=True))
    except csv.Error:
        return _QUOTES
    return cells[0] if len(cells) == 1 else "a line end within the record"


def _not_text(encoding: str) -> str:
    return f"bytes that are not {encoding.upper()}"


def _joined(
    lines: Iterator[tuple[int, bytes | None]], separator: str, encoding: str
) -> Iterator[tuple[int, Cells]]:
    """Yield records that may span several lines, by their quotes.

    A fault ends its record; reading continues with the next line.
    """
    last = 0
    taken = 0

    def texts() -> Iterator[str]:
        nonlocal last, taken
        for number, data in lines:
            last = number
            taken += len(data or b"")
            if data is None or taken > MAX_RECORD_BYTES:
                raise _Overlong
            # Surrogates stand for bytes that are not text, until the record is whole.
            yield data.decode(encoding, "surrogateescape")

    reader = csv.reader(texts(), delimiter=separator, strict=True)
    while True:
        begins, taken = last + 1, 0
        try:
            cells = next(reader, None)
        except _Overlong:
            # A generator ends with what it raised; the lines after it need a new one.
            reader = csv.reader(texts(), delimiter=separator, strict=True)
            yield begins, _TOO_LONG
            continue
        except csv.Error:
            if last < begins:
                return
            yield begins, _QUOTES
            continue
        if cells is None:
            return
        if not cells:
            continue
        if any("\0" in cell for cell in cells):
            yield begins, _NUL
            continue
        try:
            "".join(cells).encode("utf-8")
        except UnicodeEncodeError:
            yield begins, _not_text(encoding)
            continue
        yield begins, cells


class _Overlong(Exception):
    """A record is longer than may be held in memory."""
