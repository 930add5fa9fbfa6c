"""Decide whether the conditions of a view of SQL Server or Oracle can fail for a cell (H6).

PostgreSQL refuses to create a view that compares a text with a number. SQL Server and Oracle
convert cell by cell when the view is read: one text that is no number ends the query for all. So
each column of a view must be a declared column of its source, and a comparison may convert nothing
but a constant:

========= ============================================================================== column may
be compared with =========
============================================================================== text texts, and other
text columns number numbers, and columns of the same type (in Oracle: any number columns) time SQL
Server: texts; Oracle: ``DATE`` and ``TIMESTAMP`` constants; columns of the same type other SQL
Server: texts =========
==============================================================================

Names that only look like columns, such as Oracle's ``ROWNUM``, are no declared columns.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from sqlglot import exp

from privet.client.data.view import conditions

Kind = Literal["text", "number", "wide", "time", "other"]

MAX_DIGITS = 15
"""Digits of a number in a condition; with more, SQL Server's common type can overflow."""
MAX_FRACTION = 9
WIDE = 28
"""SQL Server's ``DECIMAL`` of more digits has no room for a fraction beside it: kind ``wide``."""

_COMPARISONS = (
    exp.EQ, exp.NEQ, exp.GT, exp.GTE, exp.LT, exp.LTE, exp.Between, exp.In, exp.Like, exp.ILike,
)  # fmt: skip
_TEXTS = (exp.National, exp.RawString)
_TIMES = (exp.DataType.Type.DATE, exp.DataType.Type.TIMESTAMP)


@dataclass(frozen=True)
class Declared:
    """The facts about a column that a condition depends on.

    Attributes:
        kind: of the values with which it may be compared.
        exact: its complete type, as the database spells it.
    """

    kind: Kind
    exact: str


def type_fault(tree: exp.Expression, dialect: str, columns: Mapping[str, Declared]) -> str | None:
    """Return why a plain query can fail, or uses a name that is no column of its source; or None.

    Args:
        tree: a query that :func:`~.view.plain_source` finds plain.
        dialect: ``tsql`` or ``oracle``.
        columns: of the table or view from which it selects, by name.
    """
    known = _folded(dialect, columns)
    source = tree.find(exp.Table) or exp.Table()
    owners = {"", source.alias_or_name.casefold()}
    for column in tree.find_all(exp.Column):
        if isinstance(column.this, exp.Star):
            continue
        name = _name(dialect, column.this)
        if name not in known or column.table.casefold() not in owners:
            return f"uses '{column.name}', which is no column of '{source.name}'"
    for node in conditions(tree):
        if isinstance(node, _COMPARISONS) and not _is_safe(node, dialect, known):
            return "compares values of different kinds, a conversion that can fail"
    return None


def _folded(dialect: str, columns: Mapping[str, Declared]) -> dict[str, Declared]:
    """Return the columns by the names that queries may call them; not those that share one."""
    if dialect != "tsql":
        return dict(columns)
    names = [name.casefold() for name in columns]
    return {n: kind for n, kind in zip(names, columns.values(), strict=True) if names.count(n) == 1}


def _name(dialect: str, name: exp.Expression) -> str:
    if dialect == "tsql":
        return name.name.casefold()
    return name.name if name.args.get("quoted") else name.name.upper()


def _is_safe(node: exp.Expression, dialect: str, known: Mapping[str, Declared]) -> bool:
    """Return whether a comparison needs no conversion that a cell could make fail."""
    sides = _sides(node)
    columns = [known[_name(dialect, s.this)] for s in sides if isinstance(s, exp.Column)]
    constants = [side for side in sides if not isinstance(side, exp.Column | exp.Null)]
    kinds = {column.kind for column in columns}
    if len(kinds) != 1:
        return False  # nothing but constants, or several kinds
    kind = kinds.pop()
    if isinstance(node, exp.Like | exp.ILike) and kind != "text":
        return False
    # Oracle's numbers are of one kind; two texts of other lengths compare everywhere.
    any_length = kind == "text" or (kind == "number" and dialect == "oracle")
    if len({column.exact for column in columns}) > 1 and not any_length:
        return False
    return all(_fits(constant, kind, dialect) for constant in constants)


def _sides(node: exp.Expression) -> list[exp.Expression]:
    """Return the two or more sides of a comparison."""
    if isinstance(node, exp.Between):
        sides = [node.this, node.args["low"], node.args["high"]]
    elif isinstance(node, exp.In):
        sides = [node.this, *node.expressions]
    else:
        sides = [node.this, node.expression]
    return [side.unnest() for side in sides]


def _fits(constant: exp.Expression, kind: Kind, dialect: str) -> bool:
    """Return whether a constant meets a column without a conversion of the column."""
    if kind in ("number", "wide"):
        inner = constant.this.unnest() if isinstance(constant, exp.Neg) else constant
        return isinstance(inner, exp.Literal) and not inner.is_string and _is_short(inner, kind)
    if kind == "text" or dialect == "tsql":
        is_string = isinstance(constant, exp.Literal) and bool(constant.is_string)
        return is_string or isinstance(constant, _TEXTS)
    return kind == "time" and _is_moment(constant)


def _is_moment(constant: exp.Expression) -> bool:
    """Return whether a constant is written as a date or a time that Oracle accepts."""
    if not isinstance(constant, exp.DateStrToDate | exp.StrToTime | exp.Cast):
        return False
    if isinstance(constant, exp.Cast) and constant.to.this not in _TIMES:
        return False
    return isinstance(constant.this, exp.Literal)


def _is_short(number: exp.Expression, kind: Kind) -> bool:
    whole, _, fraction = str(number.this).lower().partition("e")[0].partition(".")
    if len(whole) + len(fraction) > MAX_DIGITS:
        return False
    return len(fraction) <= (0 if kind == "wide" else MAX_FRACTION)
