"""Read tables and views of SQL Server by pymssql.

- One transaction under ``SNAPSHOT`` isolation sees one state. There is no weaker way: if the
  database does not allow it, the operator reads what the database's owner must change.
- The connection sends only ``SET`` and ``SELECT``, and the transaction is rolled back. SQL Server
  has no read-only transactions: only the user's rights make sure that the user cannot write.
- The connection is TLS with a checked certificate. pymssql has no arguments for that, so FreeTDS,
  the library in it, gets them from a configuration file of this process alone.
- Text arrives as UTF-16 bytes and dates as text, and both are converted here: a cell that cannot be
  converted costs its own row, not the query.

pymssql and FreeTDS are under the LGPL: they are loaded as the separate, replaceable package that
they are, and only where ``privet[sqlserver]`` was installed.
"""

from __future__ import annotations

import contextlib
import os
import re
import ssl
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import sqlalchemy as sa
import sqlglot
from sqlalchemy.dialects import mssql
from sqlglot import exp
from sqlglot.errors import SqlglotError

from privet.client.data.server_dialect import Field, Found, ServerDialect, flag
from privet.client.data.sql_column import (
    Column,
    as_boolean,
    as_moment,
    as_number,
    as_text,
    as_time,
    as_utc_moment,
    as_whole,
)
from privet.client.data.view_types import WIDE, Kind
from privet.common.cells import MAX_CELL_CHARACTERS
from privet.common.compat.databases import sql_server_numbers
from privet.common.errors import DataError
from privet.privacy.database import Database, Server

_CONNECT_SECONDS = 10
_SESSION = (
    "SET ARITHABORT ON", "SET CONCAT_NULL_YIELDS_NULL ON", "SET ANSI_NULLS ON",
    "SET ANSI_PADDING ON", "SET ANSI_WARNINGS ON", "SET QUOTED_IDENTIFIER ON",
    "SET LANGUAGE us_english", "SET DATEFORMAT ymd", "SET DEADLOCK_PRIORITY LOW",
    "SET TEXTSIZE 2147483647", "SET TRANSACTION ISOLATION LEVEL SNAPSHOT",
)  # fmt: skip
"""What each session begins with; the time limit of locks comes from the policy."""

OBJECT = """\
SELECT TOP 1 s.name, o.name, RTRIM(o.type), o.object_id, m.definition,
 COALESCE(t.is_external, 0), HAS_PERMS_BY_NAME(DB_NAME(), 'DATABASE', 'VIEW DEFINITION'),
 (SELECT COUNT(*) FROM sys.security_predicates p WHERE p.target_object_id = o.object_id)
FROM sys.objects o JOIN sys.schemas s ON s.schema_id = o.schema_id
LEFT JOIN sys.tables t ON t.object_id = o.object_id
LEFT JOIN sys.sql_modules m ON m.object_id = o.object_id
WHERE o.name = :named AND o.type IN ('U', 'V', 'SN', 'IF', 'TF', 'FT')
 AND s.name IN (COALESCE(:own, :near, SCHEMA_NAME()), COALESCE(:own, 'dbo'))
ORDER BY CASE WHEN s.name = COALESCE(:own, :near, SCHEMA_NAME()) THEN 0 ELSE 1 END"""
COLUMNS = """\
SELECT c.name, TYPE_NAME(c.system_type_id), c.precision, c.scale,
 CASE WHEN c.is_computed = 1 AND COALESCE(k.is_persisted, 0) = 0 THEN 1 ELSE 0 END
FROM sys.columns c LEFT JOIN sys.computed_columns k
 ON k.object_id = c.object_id AND k.column_id = c.column_id
WHERE c.object_id = :key ORDER BY c.column_id"""

_WHOLE = ("tinyint", "smallint", "int", "bigint")
_DECIMAL = ("decimal", "numeric", "money", "smallmoney")
_FLOAT = ("real", "float")
_TEXT = ("char", "varchar", "nchar", "nvarchar", "text", "ntext")
_MOMENT = ("smalldatetime", "datetime", "datetime2")
_TIME = ("date", "time", "datetimeoffset", *_MOMENT)

_KNOWN = {
    3952: "the database does not allow snapshot isolation, by which one state is read: its owner "
    "runs ALTER DATABASE … SET ALLOW_SNAPSHOT_ISOLATION ON",
    3961: "a table was altered while it was read",
    18456: "login failed: the user or the password is wrong, or may not log in",
    4060: "there is no such database, or the user may not open it",
    229: "permission denied: the user may not read the table",
    230: "permission denied: the user may not read a column",
    208: "an object that the view names is not there",
    1205: "the server ended the query to solve a deadlock",
    1222: "the table was locked for longer than 'sql.timeout'",
    20009: "the server cannot be reached",
    20002: "the connection failed: it is no SQL Server, or TLS failed (sslmode, sslrootcert)",
    20003: "the server did not answer in time",
    20004: "the connection was cut",
    20006: "the connection was cut",
    20018: "the server refused the login",
    20017: "the server closed the connection",
    20047: "the connection was cut",
}
_PASSING = {
    1205, 1222, 3961, 20002, 20003, 20004, 20006, 20009, 20017, 20047,
    # Starting, stopping, recovering, or short of resources; the last five are Azure's words.
    921, 922, 927, 6005, 17142, 17187, 10928, 10929, 40197, 40501, 40613,
}  # fmt: skip


_ODD_KINDS = {"SN": "a synonym"}
_ENCRYPTION = {"disable": "request"}


class SqlServer(ServerDialect):
    """The dialect of SQL Server."""

    language = "tsql"
    title = "SQL Server"

    def engine(self, database: Database, password: str | None) -> sa.Engine:
        """Return an engine; its connections need the context of :func:`protected`.

        Args:
            database: as in the policy.
            password: of its user, or None if it needs none.
        """
        return sa.create_engine(
            "mssql+pymssql://", connect_args=arguments(database, password), poolclass=sa.NullPool
        )

    def begin(self, connection: sa.Connection, database: Database) -> None:
        """Do nothing: each transaction of the session sees one state (:data:`_SESSION`).

        Args:
            connection: newly opened.
            database: as in the policy.
        """

    def find(
        self, connection: sa.Connection, schema: str | None, name: str, within: str | None = None
    ) -> Found | None:
        """Return the table or view of a name.

        Args:
            connection: whose user reads the table.
            schema: the name's schema; None for ``within``, or the user's own and then ``dbo``.
            name: as the catalogue has it.
            within: schema of the view whose definition uses the name; None for a name of the
                policy.

        Returns:
            The object; None if this user sees none of that name.
        """
        row = connection.execute(
            sa.text(OBJECT), {"named": name, "own": schema, "near": within}
        ).first()
        if row is None:
            return None
        own, called, kind, key, definition, external, may_see, predicates = row
        fault, query = "", None
        if kind not in ("U", "V"):
            fault = _ODD_KINDS.get(kind, "a function")
        elif external:
            fault = "an external table"
        elif predicates:
            fault = "a table or view under row-level security"
        elif not may_see:
            fault = (
                "in a database where this user cannot see views' definitions and row-level "
                "security (GRANT VIEW DEFINITION TO the user)"
            )
        elif kind == "V":
            query = selection(definition)
            if query is None:
                fault = "a view that renames its columns, or cannot be read"
        return Found(own, called, fault, query, key)

    def fields(self, connection: sa.Connection, found: Found) -> list[Field]:
        """Return the columns of a table or view.

        Args:
            connection: whose user reads it.
            found: of :meth:`find`.
        """
        rows = connection.execute(sa.text(COLUMNS), {"key": found.key})
        return [
            Field(
                name,
                kind or "a type of the server's own language",
                digits if kind in ("decimal", "numeric") else None,
                scale,
                bool(computed),
            )
            for name, kind, digits, scale, computed in rows
        ]

    def kind(self, field: Field) -> Kind:
        """Return the kind of values with which a column may be compared."""
        if field.type in _TEXT:
            return "text"
        if field.type in _DECIMAL and (field.digits or 0) > WIDE:
            return "wide"
        if field.type in (*_WHOLE, *_DECIMAL, *_FLOAT, "bit"):
            return "number"
        return "time" if field.type in _TIME else "other"

    def column(self, cell: sa.ColumnElement[Any], field: Field) -> Column | None:
        """Return how a column is stored in the snapshot.

        Args:
            cell: the column in the statement.
            field: its declaration.

        Returns:
            The column; None for a type that is not supported.
        """
        if field.type == "bit":
            return Column(field.name, pa.bool_(), as_boolean, (cell,), cell)
        if field.type in _WHOLE:
            return Column(field.name, pa.int64(), as_whole, (cell,), cell)
        if field.type in (*_DECIMAL, *_FLOAT):
            return Column(field.name, pa.float64(), as_number, (cell,), cell)
        if field.type == "uniqueidentifier":
            return Column(field.name, pa.string(), as_text, (cell,), cell)
        if field.type in _TEXT:
            text = sa.cast(cell, mssql.NVARCHAR())
            length: sa.ColumnElement[Any] = sa.func.datalength(text)
            # SQL Server ignores blanks at an end when it compares: the length distinguishes them.
            order = (text.collate("Latin1_General_100_BIN2"), length)
            convert = unpadded if field.type in ("char", "nchar") else decoded
            selected = sa.cast(text, mssql.VARBINARY("max"))  # type: ignore[no-untyped-call]
            long = length > flag(2 * MAX_CELL_CHARACTERS)
            return Column(field.name, pa.string(), convert, order, selected, long)
        if field.type in _TIME:
            style = flag({"date": 23}.get(field.type, 121))
            written: sa.ColumnElement[Any] = sa.func.convert(
                sa.literal_column("NVARCHAR(40)"), cell, style
            )
            kept = _WRITTEN.get(field.type, as_moment)
            return Column(field.name, pa.string(), kept, (cell,), written)
        return None

    def said(self, error: sa.exc.DBAPIError) -> str:
        """Return the error's number and our own text for it: a server's text may quote cells."""
        numbers = sql_server_numbers(error.orig)
        if not numbers:
            return f"{self.title} or its driver failed ({type(error.orig or error).__name__})"
        known = _KNOWN.get(numbers[0])
        place = f"error {numbers[0]} of {self.title}"
        return f"{known} ({place})" if known else place

    def may_pass(self, error: sa.exc.DBAPIError) -> bool:
        """Return whether the connection or the server's present state caused the error."""
        numbers = sql_server_numbers(error.orig)
        return bool(numbers) and numbers[0] in _PASSING


_WRITTEN: dict[str, Callable[[Any], str]] = {
    "date": as_text,
    "time": as_time,
    "datetimeoffset": as_utc_moment,
}


def decoded(cell: Any) -> str:
    """Return a text from its bytes in UTF-16.

    Raises:
        ValueError: if they are no UTF-16.
    """
    if not isinstance(cell, bytes):
        raise TypeError
    return cell.decode("utf-16-le")


def unpadded(cell: Any) -> str:
    """Return a CHAR(n) without its padding blanks."""
    return decoded(cell).rstrip(" ")


def selection(definition: str | None) -> exp.Expression | None:
    """Return the query in a view's definition; None if it cannot be parsed."""
    if definition is None:
        return None
    text = re.sub(r"\s+WITH\s+CHECK\s+OPTION\s*;?\s*$", "", definition, flags=re.IGNORECASE)
    try:
        made = sqlglot.parse_one(text, dialect="tsql")
    except SqlglotError:
        return None
    query: Any = made.args.get("expression")
    if not isinstance(made, exp.Create) or getattr(made.this, "expressions", None):
        return None
    if not isinstance(query, exp.Query):
        return None
    found: exp.Expression = made.args["expression"]
    return found


def arguments(database: Database, password: str | None) -> dict[str, Any]:
    """Return pymssql's arguments for a connection.

    Args:
        database: as in the policy.
        password: of its user, or None if it needs none.
    """
    server = database.server()
    milliseconds = int(1000 * database.timeout)
    return {
        "server": server.host,
        "port": str(server.port),
        "user": server.user,
        "password": password,
        "database": server.name,
        "login_timeout": min(_CONNECT_SECONDS, int(database.timeout)),
        "timeout": int(database.timeout),
        "charset": "UTF-8",
        "appname": "privet",
        "tds_version": "7.4",
        "encryption": _ENCRYPTION.get(server.sslmode, "require"),
        "read_only": True,
        "conn_properties": [*_SESSION, f"SET LOCK_TIMEOUT {milliseconds}"],
    }


@contextlib.contextmanager
def protected(server: Server) -> Iterator[None]:
    """Make FreeTDS connect as ``sslmode`` says, within this context.

    FreeTDS checks no certificate unless its configuration names the trusted ones.

    Raises:
        DataError: if there is no file of trusted certificates.
    """
    before = os.environ.get("FREETDSCONF")
    with tempfile.TemporaryDirectory(prefix="privet-") as folder:
        path = Path(folder) / "freetds.conf"
        path.write_text(configuration(server), encoding="utf-8")
        os.environ["FREETDSCONF"] = str(path)
        try:
            yield
        finally:
            if before is None:
                del os.environ["FREETDSCONF"]
            else:
                os.environ["FREETDSCONF"] = before


def configuration(server: Server) -> str:
    """Return FreeTDS's configuration for a server.

    Raises:
        DataError: if there is no file of trusted certificates.
    """
    lines = ["[global]", "tds version = 7.4", "client charset = UTF-8", "text size = 2147483647"]
    lines.append(f"encryption = {_ENCRYPTION.get(server.sslmode, 'require')}")
    if server.sslmode == "verify-full":
        trusted = server.sslrootcert or ssl.get_default_verify_paths().cafile
        if trusted is None or not Path(trusted).is_file():
            raise DataError(
                f"{trusted or 'the machine'}: there is no such file of certificates: name it with "
                "'sslrootcert' in 'url'"
            )
        lines.append(f"ca file = {Path(trusted).absolute()}")
        lines.append("check certificate hostname = yes")
    return "\n".join(lines) + "\n"
