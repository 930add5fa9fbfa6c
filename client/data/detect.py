"""Detect how a text file writes its cells: for its owner, never during a run (H6).

What is found is a proposal that a person reads and writes into a plan or a policy.
"""

from __future__ import annotations

import csv
import re
from collections import Counter
from pathlib import Path
from typing import get_args

from privet.client.data.suffix import is_parquet, separator_of
from privet.client.data.text_file import open_text
from privet.common.cells import MISSING
from privet.common.errors import DataError
from privet.common.text_format import Encoding, Separator, TextFormat

_MOST_BYTES = 1 << 24
"""Of a file that are read."""
_LINES = 2000
_BOMS = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}
_POINT = re.compile(r"[+-]?[0-9]+\.[0-9]+")
_COMMA = re.compile(r"[+-]?[0-9]+,[0-9]+")
_NUMBER = re.compile(r"[+-]?[0-9]+([.,][0-9]+)?")
_MARKERS = ("n/a", "N/A", "NA", "na", "-", "--", ".", "k.A.", "k. A.", "null", "unknown", "missing")


def detected(path: Path, *, header_only: bool = False) -> TextFormat:
    """Return the format that a file's bytes suggest.

    Args:
        path: a CSV or TSV file, or a Parquet file, which has none.
        header_only: whether nothing but the first line may be read: the decimal sign and what is
            missing stay as they are by default, and the encoding is that of the first line.

    Raises:
        DataError: if it is UTF-16, where one lost byte would change all that follows.
        OSError: if it cannot be read.
    """
    if is_parquet(path):
        return TextFormat()
    with open_text(path) as stream:
        data = stream.readline(_MOST_BYTES) if header_only else stream.read(_MOST_BYTES)
    if data[:2] in _BOMS or b"\0" in data[:200]:
        raise DataError(
            f"{path}: the file is UTF-16, in which one lost byte changes all records that follow. "
            f"Write it as UTF-8: iconv -f UTF-16 -t UTF-8 {path.name} > utf8-{path.name}"
        )
    encoding = _encoding(data)
    text = data.decode(encoding, "replace").removeprefix("\ufeff")
    by_name = separator_of(path)
    separator = _separator(text.splitlines()[:_LINES], by_name)
    if header_only:
        return _format(separator, by_name, encoding)
    rows = list(csv.reader(text.splitlines()[:_LINES], delimiter=separator))
    cells = [cell.strip() for row in rows[1:] for cell in row]
    commas = sum(bool(_COMMA.fullmatch(cell)) for cell in cells)
    points = sum(bool(_POINT.fullmatch(cell)) for cell in cells)
    decimal = "," if separator != "," and commas > points else "."
    return _format(separator, by_name, encoding, decimal, _missing(rows))


def _format(
    separator: str,
    by_name: str,
    encoding: str,
    decimal: str = ".",
    na: tuple[str, ...] = (),
) -> TextFormat:
    said = None if separator == by_name else separator
    return TextFormat.model_validate(
        {"separator": said, "decimal": decimal, "encoding": encoding, "na": na}
    )


def _encoding(data: bytes) -> str:
    for encoding in get_args(Encoding):
        # Every byte is a character of latin-1, so that control characters tell it apart.
        if encoding == "latin-1":
            continue
        try:
            data[: data.rfind(b"\n") + 1 or None].decode(encoding)
        except UnicodeDecodeError:
            continue
        return str(encoding)
    return "latin-1"


def _separator(lines: list[str], by_name: str) -> str:
    """Return the mark that the first line has most, and the others as often."""
    if not lines:
        return by_name
    counts = {mark: lines[0].count(mark) for mark in get_args(Separator)}
    if counts[by_name] and counts[by_name] == max(counts.values()):
        return by_name
    same = {
        mark: sum(line.count(mark) == count for line in lines[:50])
        for mark, count in counts.items()
        if count
    }
    return max(same, key=lambda mark: (same[mark], counts[mark]), default=by_name)


def _missing(rows: list[list[str]]) -> tuple[str, ...]:
    """Return marks of missing values in columns of numbers, beyond those known."""
    found: Counter[str] = Counter()
    width = len(rows[0]) if rows else 0
    for place in range(width):
        cells = [row[place].strip() for row in rows[1:] if len(row) == width]
        other = Counter(cell for cell in cells if cell and not _NUMBER.fullmatch(cell))
        numbers = sum(bool(_NUMBER.fullmatch(cell)) for cell in cells)
        if numbers > sum(other.values()):
            found += Counter({c: n for c, n in other.items() if c in _MARKERS and c not in MISSING})
    return tuple(sorted(found))
