"""What one cell of a table means: one rule for each use, applied to each cell alone (H6).

A cell is what its file says. In a CSV or TSV file every cell is text; in a Parquet file or a
database it has the type that its column declares. Each function reads one cell alone, so no
record can change what another one means: ``01`` stays ``01`` whatever the other cells are.

::

    cell ─┬─ text_of      its text, for texts, groups and pages
          ├─ number_of    a number, NaN where it is missing
          ├─ Codes.find   the place of a declared category or label
          └─ person_of    who a record is about (:mod:`privet.common.person_id`)

Neither numpy, pandas nor torch is needed.
"""

from __future__ import annotations

import datetime as dt
import math
import re
import uuid
from collections.abc import Iterable, Sequence
from decimal import Decimal
from typing import Any

MAX_CELL_CHARACTERS = 1 << 20
"""The longest cell; a record with a longer one is left out."""
MISSING = frozenset(("", "NA", "N/A", "NaN", "nan", "null", "NULL", "None", "?"))
"""Texts that stand for a missing number. As a category or a label they are like any other."""

_NUMBER = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_INFINITE = re.compile(r"[+-]?inf(?:inity)?", re.IGNORECASE)
_TRUTH = {"true": 1.0, "false": 0.0}
MAX_NUMBER_CHARACTERS = 400
"""The longest text that is read as a number; the longest double has some 330 digits."""


def plain(cell: Any) -> Any:
    """Return a cell as None, bool, int, float or str, whatever library its type is of."""
    if cell is None or isinstance(cell, str | bool | int):
        return cell
    if isinstance(cell, float):
        return None if math.isnan(cell) else float(cell)
    if isinstance(cell, dt.date | dt.time):
        return None if cell != cell else cell.isoformat()  # NaT is a datetime that is not itself
    if isinstance(cell, Decimal | uuid.UUID):
        return str(cell)
    item = getattr(cell, "item", None)
    if callable(item):
        return plain(item())
    # pandas' NA compares as itself to nothing.
    return None if type(cell).__name__ in ("NAType", "NaTType") else str(cell)


def odd_text(text: str) -> bool:
    """Whether a cell's text is too long, or holds a code point that is no character."""
    if len(text) > MAX_CELL_CHARACTERS or "\0" in text:
        return True
    if text.isascii():
        return False
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def is_missing(cell: Any) -> bool:
    """Whether a cell is empty: None, NaN, or a text of blanks."""
    cell = plain(cell)
    return cell is None or (isinstance(cell, str) and not cell.strip())


def text_of(cell: Any) -> str:
    """Return a cell as text: a text as it is written, a whole number without a decimal point."""
    if isinstance(cell, str):
        return cell
    cell = plain(cell)
    if cell is None:
        return ""
    if isinstance(cell, float) and cell.is_integer():
        return str(int(cell))
    return str(cell)


def number_of(cell: Any) -> float:
    """Return a cell as a number; NaN where it is missing or infinite.

    Texts are read as decimal numbers in ASCII digits, with a point and an exponent; ``true`` and
    ``false`` are 1 and 0.

    Raises:
        ValueError: if it is no number. The message does not quote the cell.
    """
    if not isinstance(cell, str):
        cell = plain(cell)
        if cell is None:
            return math.nan
        if not isinstance(cell, str):
            return _finite(cell)
    text = cell.strip()
    if len(text) <= MAX_NUMBER_CHARACTERS and _NUMBER.fullmatch(text):
        return _finite(float(text))
    if text in MISSING or _INFINITE.fullmatch(text):
        return math.nan
    if (truth := _TRUTH.get(text.lower())) is not None:
        return truth
    raise ValueError("is not a number")


def _finite(number: float) -> float:
    try:
        found = float(number)
    except OverflowError:  # a whole number beyond all doubles
        return math.nan
    return found if math.isfinite(found) else math.nan


class Codes:
    """The places of declared values: categories of a feature, or classes.

    A text matches the declared text that is the same but for outer blanks. A number, of a column
    that declares numbers, matches by value: 1.0 is "1". A truth value matches "true" or "1".

    Args:
        values: as they are declared, in order.
    """

    def __init__(self, values: Sequence[str]) -> None:
        self._texts: dict[str, int] = {}
        self._numbers: dict[float, int] = {}
        self._truths: dict[bool, int] = {}
        for place, value in enumerate(values):
            text = value.strip()
            self._texts.setdefault(text, place)
            if _NUMBER.fullmatch(text) and len(text) <= MAX_NUMBER_CHARACTERS:
                self._numbers.setdefault(float(text), place)
        for names, truth in ((("true", "1"), True), (("false", "0"), False)):
            places = {text.lower(): place for text, place in self._texts.items()}
            found = [places[name] for name in names if name in places]
            if found:
                self._truths[truth] = found[0]

    def find(self, cell: Any) -> int | None:
        """Return the place of a cell's value, or None if it is not declared."""
        if isinstance(cell, str):
            return self._texts.get(cell.strip())
        cell = plain(cell)
        if isinstance(cell, bool):
            return self._truths.get(cell)
        if isinstance(cell, int | float):
            return self._texts.get(text_of(cell), self._numbers.get(_exact(cell)))
        return None if cell is None else self._texts.get(cell.strip())

    def find_each(self, cells: Iterable[Any]) -> list[int | None]:
        """Return :meth:`find` of each cell."""
        return [self.find(cell) for cell in cells]


def _exact(number: float) -> float:
    """Return a number as a float, or NaN where that would be another number."""
    try:
        found = float(number)
    except OverflowError:
        return math.nan
    return found if found == number else math.nan
