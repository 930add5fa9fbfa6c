"""Decide whether each row of a table or view follows from one stored record alone (H6).

A view may join, rank, aggregate, deduplicate or limit: then one person's record changes the rows of
others before Privet sees them, and no bound on a unit holds. A stored table is *plain*; so is a
view that only chooses columns of one such table, and rows by their own columns. For anything else
the site must say why its rows do not depend on each other (the policy's ``independent``).

:mod:`.sql_server` and :mod:`.oracle` query the catalogues of SQL Server and Oracle.

sqlglot (MIT) parses the definitions, and each is compared with a short list of allowed parts.
Whatever is not on the list is not plain, such as a function, or a cast that can fail.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import sqlalchemy as sa
import sqlglot
from sqlglot import exp
from sqlglot.errors import SqlglotError

from privet.privacy.database import Database

MAX_DEPTH = 8
"""Views upon views that are followed."""

_CONDITIONS = (
    exp.And, exp.Or, exp.Not, exp.Paren, exp.EQ, exp.NEQ, exp.GT, exp.GTE, exp.LT, exp.LTE, exp.In,
    exp.Between, exp.Is, exp.Like, exp.ILike, exp.Column, exp.Identifier, exp.Literal, exp.Boolean,
    exp.Null, exp.Neg, exp.Tuple, exp.Cast, exp.DataType, exp.DataTypeParam, exp.Array, exp.Any,
    exp.National, exp.RawString, exp.DateStrToDate, exp.StrToTime,
)  # fmt: skip
"""The allowed parts of a ``WHERE``: comparisons of a row's own columns with constants."""
_TEXT = (exp.DataType.Type.TEXT, exp.DataType.Type.VARCHAR, exp.DataType.Type.CHAR)
_TYPED = ("tsql", "oracle")
_OF_TABLE = ("this", "db", "catalog", "alias", "only")
_CLAUSES = ("expressions", "from_", "from", "where", "kind", "hint", "operation_modifiers")


def coupling(connection: sa.Connection, database: Database) -> str | None:
    """Return why a row of the policy's table may depend on several records, or None.

    Args:
        connection: as :func:`privet.client.data.sql.reading` opens it.
        database: names the table.
    """
    dialect = "sqlite" if database.file else "postgres"
    schema, table = database.table_schema, database.table
    for _ in range(MAX_DEPTH):
        kind, definition = _definition(connection, dialect, schema, table)
        if kind == "table":
            return None
        if definition is None:
            return f"'{table}' is {kind}"
        found = plain_source(definition, dialect)
        if isinstance(found, str):
            return f"the view '{table}' {found}"
        schema, table = found.db or schema, found.name
    return f"'{database.table}' is a view of views of views"


def plain_source(definition: str | exp.Expression, dialect: str) -> exp.Table | str:
    """Return the table from which a plain query chooses, or in words why the query is not plain.

    Args:
        definition: a ``SELECT``, as text or parsed.
        dialect: sqlglot's name of its language. For ``tsql`` and ``oracle`` the caller must check
            the compared types as well: :func:`~.view_types.type_fault`.
    """
    try:
        tree = parsed(definition, dialect)
    except SqlglotError:
        return "has a definition that cannot be read"
    if not isinstance(tree, exp.Select):
        return f"is a {tree.key}, not a plain selection"
    table = _single_table(tree, dialect)
    if isinstance(table, str):
        return table
    return _column_fault(tree) or _row_fault(tree, dialect) or table


def _single_table(tree: exp.Select, dialect: str) -> exp.Table | str:
    """Return the one table or view from which a query selects, or in words why there is none."""
    for name, value in tree.args.items():
        if value and name not in _CLAUSES:
            return f"has a clause {name.strip('_').upper()}"
    source = tree.args.get("from_") or tree.args.get("from")
    table = getattr(source, "this", None)
    if not isinstance(table, exp.Table) or not table.name:
        return "selects from something else than one table"
    if dialect in _TYPED and (table.catalog or "@" in table.name):
        return "selects from another database"
    if odd := [name for name, value in table.args.items() if value and name not in _OF_TABLE]:
        return f"selects from a table with {odd[0].upper()}"
    return table


def _column_fault(tree: exp.Select) -> str | None:
    """Return the column that a query computes, in words; None if it only chooses columns."""
    for chosen in tree.expressions:
        column = chosen.this if isinstance(chosen, exp.Alias) else chosen
        if not isinstance(column, exp.Column | exp.Star):
            return f"computes the column '{chosen.alias_or_name}'"
    return None


def _row_fault(tree: exp.Select, dialect: str) -> str | None:
    """Return how a query chooses rows by more than their own cells, or None."""
    for node in conditions(tree):
        if fault := _condition_fault(node, dialect):
            return f"chooses rows by {fault}"
    return None


def conditions(tree: exp.Expression) -> Iterator[exp.Expression]:
    """Yield each part of the condition by which a query chooses rows, if it has one."""
    if (where := tree.args.get("where")) is not None:
        yield from where.this.walk()


def parsed(definition: str | exp.Expression, dialect: str) -> exp.Expression:
    """Return a query's tree.

    Args:
        definition: the query, as text or parsed; a parsed one is returned as it is.
        dialect: sqlglot's name of its language.

    Raises:
        SqlglotError: if it cannot be parsed.
    """
    if isinstance(definition, exp.Expression):
        return definition
    tree: Any = sqlglot.parse_one(definition, dialect=dialect)
    found: exp.Expression = tree
    return found


def _condition_fault(node: exp.Expression, dialect: str) -> str | None:
    """Return how a part of a ``WHERE`` does more than compare a row's own cells, or None."""
    if not isinstance(node, _CONDITIONS) or (
        isinstance(node, exp.StrToTime) and dialect != "oracle"
    ):
        return node.key.upper()
    if isinstance(node, exp.Cast | exp.DateStrToDate | exp.StrToTime):
        return None if _cannot_fail(node, dialect) else "a cast, which can fail"
    # SQLite takes a table's name for a list of values.
    if isinstance(node, exp.In) and not _is_list(node):
        return "another table"
    # The least of whole numbers has no negative, and a pattern of a cell's own can be none.
    if isinstance(node, exp.Neg) and not isinstance(node.this.unnest(), exp.Literal):
        return "a negative, which can fail"
    if isinstance(node, exp.Like | exp.ILike) and not _is_constant(node.expression):
        return "a pattern that is not constant"
    return None


def _cannot_fail(cast: exp.Expression, dialect: str) -> bool:
    """Return whether a cast is of a constant, or of anything to text.

    A text that is too short for its cell fails in SQL Server and in Oracle.
    """
    if isinstance(cast.this.unnest(), exp.Literal | exp.Array):
        return True
    return dialect not in _TYPED and isinstance(cast, exp.Cast) and cast.to.this in _TEXT


def _is_list(node: exp.In) -> bool:
    """Return whether an ``IN`` names its values, one by one."""
    return bool(node.expressions) and not any(
        node.args.get(key) for key in ("query", "field", "unnest")
    )


def _is_constant(node: exp.Expression) -> bool:
    inner = node.unnest()
    while isinstance(inner, exp.Cast):
        inner = inner.this.unnest()
    return isinstance(inner, exp.Literal | exp.National | exp.RawString)


def _definition(
    connection: sa.Connection, dialect: str, schema: str | None, table: str
) -> tuple[str, str | None]:
    """Return the kind of object of a name, and the ``SELECT`` of a view."""
    if dialect == "sqlite":
        row = connection.execute(
            sa.text("SELECT type, sql FROM sqlite_master WHERE name = :name COLLATE NOCASE"),
            {"name": table},
        ).first()
        if row is None or row[0] == "table":
            virtual = row is not None and str(row[1]).split()[1:2] == ["VIRTUAL"]
            return "a virtual table" if virtual else "table", None
        made = sqlglot.parse_one(str(row[1]), dialect=dialect)
        query = made.args.get("expression")
        if made.this is not None and getattr(made.this, "expressions", None):
            return "a view that renames its columns", None
        return "a view", query.sql(dialect=dialect) if query is not None else None
    row = connection.execute(
        sa.text(
            "SELECT c.relkind, CASE WHEN c.relkind = 'v' THEN pg_get_viewdef(c.oid) END, "
            "c.relrowsecurity FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n "
            "ON n.oid = c.relnamespace WHERE c.relname = :name AND "
            + ("n.nspname = :schema" if schema else "pg_catalog.pg_table_is_visible(c.oid)")
        ),
        {"name": table, "schema": schema},
    ).first()
    kinds = {"r": "table", "p": "table", "m": "a materialised view", "f": "a foreign table"}
    if row is None:
        return "table", None  # who reads it says that it is not there
    kind = row[0].decode() if isinstance(row[0], bytes) else str(row[0])
    if kind in ("r", "p") and row[2]:
        return "a table with row security", None
    return kinds.get(kind, "a view"), row[1]
