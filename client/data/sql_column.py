"""How a database's column is stored in a snapshot: its type, and the rule for one cell."""

from __future__ import annotations

import datetime as dt
import re
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import pyarrow as pa
import sqlalchemy as sa

from privet.common.cells import odd_text


@dataclass(frozen=True)
class Column:
    """How a column is stored.

    Attributes:
        name: as in the table.
        arrow: its type in the snapshot.
        convert: converts a cell to that type.
        order: expressions that order the rows; the first is NULL where the cell is.
        selected: the expression that is read.
        long: whether a cell is too long to be read; None for a type without a length.
    """

    name: str
    arrow: pa.DataType
    convert: Callable[[Any], Any]
    order: tuple[sa.ColumnElement[Any], ...]
    selected: sa.ColumnElement[Any]
    long: sa.ColumnElement[Any] | None = None

    def bounded(self, cell: sa.ColumnElement[Any]) -> sa.ColumnElement[Any]:
        """Return ``cell``, or NULL if it is too long for a database's sorter."""
        return cell if self.long is None else sa.case((self.long, sa.null()), else_=cell)

    def read(self, cell: Any) -> Any:
        """Convert a cell.

        Raises:
            ValueError: naming the column, not the cell.
        """
        try:
            kept = None if cell is None else self.convert(cell)
            if self.arrow == pa.int64() and kept is not None and not -(2**63) <= kept < 2**63:
                raise ValueError
        except (ValueError, TypeError, ArithmeticError):
            raise ValueError(
                f"column '{self.name}' has a value that is not {_IN_WORDS[str(self.arrow)]}, "
                "as it is declared"
            ) from None
        if isinstance(kept, str) and odd_text(kept):
            raise ValueError(f"column '{self.name}' has a text that is too long, or is no text")
        return kept


_IN_WORDS = {
    "int64": "a whole number of 64 bits",
    "double": "a number",
    "bool": "true or false",
    "string": "a text, date or time",
}


_BLANK_BEFORE_OFFSET = re.compile(r" (?=[+-][0-9]{2}:[0-9]{2}$)")


def as_whole(cell: Any) -> int:
    """Return a whole number as it is.

    Raises:
        TypeError: if it is anything else.
    """
    if isinstance(cell, bool) or not isinstance(cell, int):
        raise TypeError
    return cell


def as_number(cell: Any) -> float:
    """Return a number as a double.

    Raises:
        TypeError: if it is none.
    """
    if not isinstance(cell, int | float | Decimal):
        raise TypeError
    return float(cell)


def as_boolean(cell: Any) -> bool:
    """Return true or false.

    Raises:
        ValueError: if it is neither.
    """
    if cell not in (0, 1):
        raise ValueError
    return bool(cell)


def as_text(cell: Any) -> str:
    """Return a text as it is, and a date, time, number or UUID as text.

    Raises:
        TypeError: if it is anything else.
    """
    if isinstance(cell, str):
        return cell
    if isinstance(cell, dt.date | dt.time):
        return cell.isoformat()
    if isinstance(cell, int | float | Decimal | uuid.UUID):
        return str(cell)
    raise TypeError


def as_unpadded(cell: Any) -> str:
    """Return a CHAR(n) without its padding blanks, which mean nothing."""
    return as_text(cell).rstrip(" ")


def as_moment(cell: Any) -> str:
    """Return date and time in one form; databases write them with a blank or a T.

    A date that Python does not know, like ``infinity``, stays as it is written.
    """
    text = as_text(cell)
    try:
        return dt.datetime.fromisoformat(text).isoformat()
    except ValueError:
        return text


def as_utc_moment(cell: Any) -> str:
    """Convert date and time with an offset to UTC; keep it as written if UTC has no such date.

    A server that converts to UTC itself would end the query at one cell that it cannot convert.
    """
    text = _BLANK_BEFORE_OFFSET.sub("", as_text(cell))
    try:
        moment = dt.datetime.fromisoformat(text)
        # Without an offset Python would take this machine's.
        return text if moment.tzinfo is None else moment.astimezone(dt.UTC).isoformat()
    except (ValueError, OverflowError):
        return text


def as_time(cell: Any) -> str:
    """Return a time of the day in one form."""
    text = as_text(cell)
    try:
        return dt.time.fromisoformat(text).isoformat()
    except ValueError:
        return text
