"""Read tables and views of Oracle Database by python-oracledb without Oracle's client ("thin").

- One transaction after ``SET TRANSACTION READ ONLY`` sees one state, and writes nothing.
- The connection is TLS with a checked certificate; Oracle's own encryption needs Oracle's client.
- Names are exact: a name that was created without quotes is in capitals (``PATIENT_ID``).
- ``NUMBER`` and dates arrive as text in fixed formats, whatever the session's language. Text is
  decoded with its invalid bytes kept, so that such a cell costs its own row, not the query.
- Oracle stores an empty text as NULL. By the same rule an empty CLOB counts as missing.

python-oracledb is under the Apache-2.0 licence (or the UPL-1.0, as its user likes).
"""

from __future__ import annotations

import re
import ssl
from decimal import Decimal
from typing import Any

import pyarrow as pa
import sqlalchemy as sa
from sqlglot import exp
from sqlglot.errors import SqlglotError

from privet.client.data.server_dialect import Field, Found, ServerDialect, flag
from privet.client.data.sql_column import (
    Column,
    as_boolean,
    as_moment,
    as_number,
    as_text,
    as_unpadded,
    as_utc_moment,
)
from privet.client.data.view import parsed
from privet.client.data.view_types import Kind
from privet.common.cells import MAX_CELL_CHARACTERS
from privet.common.compat.databases import oracle_codes, oracle_refuses
from privet.common.errors import DataError
from privet.privacy.database import Database, Server

_CONNECT_SECONDS = 10
SESSION = (
    "ALTER SESSION SET NLS_SORT = 'BINARY'",
    "ALTER SESSION SET NLS_COMP = 'BINARY'",
    "ALTER SESSION SET NLS_CALENDAR = 'GREGORIAN'",
    "ALTER SESSION SET TIME_ZONE = DBTIMEZONE",
    "SET TRANSACTION READ ONLY",
)
"""What a transaction begins with. In the database's own time zone no local time is moved."""

OBJECT = """\
SELECT o.owner, o.object_name, o.object_type,
 (SELECT COUNT(*) FROM all_external_tables e
  WHERE e.owner = o.owner AND e.table_name = o.object_name),
 (SELECT COUNT(*) FROM all_policies p
  WHERE p.object_owner = o.owner AND p.object_name = o.object_name)
FROM all_objects o
WHERE o.owner = COALESCE(:own, :near, SYS_CONTEXT('USERENV', 'CURRENT_SCHEMA'))
 AND o.object_name = :named
 AND o.object_type IN ('TABLE', 'VIEW', 'MATERIALIZED VIEW', 'SYNONYM')
ORDER BY o.object_type"""
VIEW = "SELECT v.text FROM all_views v WHERE v.owner = :own AND v.view_name = :named"
COLUMNS = """\
SELECT c.column_name, c.data_type, c.data_precision, c.data_scale, c.virtual_column
FROM all_tab_cols c
WHERE c.owner = :own AND c.table_name = :named AND c.hidden_column = 'NO'
ORDER BY c.internal_column_id"""

_TEXT = ("varchar2", "nvarchar2", "char", "nchar")
_LARGE = ("clob", "nclob")
_BINARY = ("binary_float", "binary_double")
_ZONED = ("timestamp with time zone", "timestamp with local time zone")
_TIME = ("date", "timestamp", *_ZONED)
_SORTED_CHARACTERS = 1000
"""Characters of a CLOB by which rows are ordered: Oracle orders by no whole one."""

_KNOWN = {
    "ORA-01017": "login failed: the user or the password is wrong",
    "ORA-28000": "login failed: the user is locked",
    "ORA-28001": "login failed: the password has expired",
    "ORA-01045": "login failed: the user lacks CREATE SESSION",
    "ORA-00942": "a table that the view names is not there, or this user may not read it",
    "ORA-01031": "this user may not do that",
    "ORA-01555": "the database keeps old states for too short a time (undo retention)",
    "ORA-12514": "the listener knows no such service",
    "ORA-12505": "the listener knows no such service",
    "DPY-6001": "the listener knows no such service",
    "DPY-6000": "the listener refused the connection",
    "DPY-6005": "the server cannot be reached, or TLS with it failed",
    "DPY-4011": "the connection was cut",
    "DPY-4024": "the server took longer than 'sql.timeout'",
    "DPY-3001": "the server asks for encryption of Oracle's own, which needs TLS instead",
}
_PASSING = {
    "ORA-00018", "ORA-00020", "ORA-01033", "ORA-01034", "ORA-01089", "ORA-01555", "ORA-03113",
    "ORA-03114", "ORA-12514", "ORA-12516", "ORA-12519", "ORA-12520", "ORA-12528", "ORA-12537",
    "ORA-12541", "DPY-6000", "DPY-6001", "DPY-6005", "DPY-4011", "DPY-4024",
}  # fmt: skip


class OracleDatabase(ServerDialect):
    """The dialect of Oracle Database."""

    language = "oracle"
    title = "Oracle"

    def engine(self, database: Database, password: str | None) -> sa.Engine:
        """Return an engine; it connects when it is first used.

        Args:
            database: as in the policy.
            password: of its user, or None if it needs none.

        Raises:
            DataError: if there is no file of trusted certificates.
        """
        return sa.create_engine(
            "oracle+oracledb://", connect_args=arguments(database, password), poolclass=sa.NullPool
        )

    def begin(self, connection: sa.Connection, database: Database) -> None:
        """Make the transaction read-only and consistent; fetch cells by :func:`fetched`.

        Args:
            connection: newly opened.
            database: as in the policy; its ``timeout`` limits each call.
        """
        driver: Any = connection.connection.dbapi_connection
        driver.call_timeout = int(1000 * database.timeout)
        driver.outputtypehandler = fetched
        for statement in SESSION:
            connection.exec_driver_sql(statement)

    def find(
        self, connection: sa.Connection, schema: str | None, name: str, within: str | None = None
    ) -> Found | None:
        """Return the table or view of a name.

        Args:
            connection: whose user reads the table.
            schema: the name's schema; None for the first that applies of ``within`` and the user's
                own.
            name: exactly as the catalogue has it.
            within: schema of the view whose definition uses the name; None for a name of the
                policy.

        Returns:
            The object; None if this user sees none of that name.
        """
        binds = {"own": schema, "near": within, "named": name}
        rows = connection.execute(sa.text(OBJECT), binds).all()
        if not rows:
            return None
        own, called, _, external, policies = rows[0]
        kinds = {row[2] for row in rows}
        fault, query = "", None
        if "MATERIALIZED VIEW" in kinds:
            fault = "a materialised view"
        elif "SYNONYM" in kinds:
            fault = "a synonym"
        elif external:
            fault = "an external table"
        elif policies:
            fault = "a table or view under row-level security"
        elif "VIEW" in kinds:
            text = connection.execute(sa.text(VIEW), {"own": own, "named": called}).scalar()
            query = selection(text)
            if query is None:
                fault = "a view whose definition cannot be read"
        return Found(own, called, fault, query)

    def fields(self, connection: sa.Connection, found: Found) -> list[Field]:
        """Return the columns of a table or view.

        Args:
            connection: whose user reads it.
            found: of :meth:`find`.
        """
        rows = connection.execute(sa.text(COLUMNS), {"own": found.schema, "named": found.name})
        return [
            Field(
                name,
                re.sub(r"\([0-9]+\)", "", str(kind)).lower(),
                None if digits is None else int(digits),
                None if scale is None else int(scale),
                virtual == "YES",
            )
            for name, kind, digits, scale, virtual in rows
        ]

    def kind(self, field: Field) -> Kind:
        """Return the kind of values with which a column may be compared."""
        if field.type in (*_TEXT, *_LARGE):
            return "text"
        if field.type in ("number", "float", *_BINARY):
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
        if field.type in ("number", "float"):
            written: sa.ColumnElement[Any] = sa.func.to_char(
                cell, _quoted("TM9"), _quoted("NLS_NUMERIC_CHARACTERS='.,'")
            )
            if field.type == "float" or (field.scale or 0) > 0:
                return Column(field.name, pa.float64(), real, (cell,), written)
            if field.scale is None:
                # Neither a double nor a whole number holds all of these, and they may be ids.
                return Column(field.name, pa.string(), digits, (cell,), written)
            return Column(field.name, pa.int64(), whole, (cell,), written)
        if field.type in _BINARY:
            return Column(field.name, pa.float64(), as_number, (cell,), cell)
        if field.type == "boolean":
            return Column(field.name, pa.bool_(), as_boolean, (cell,), cell)
        if field.type in _TEXT:
            convert = unpadded if field.type in ("char", "nchar") else text
            return Column(field.name, pa.string(), convert, (cell,), cell)
        if field.type in _LARGE:
            length: sa.ColumnElement[Any] = sa.func.dbms_lob.getlength(cell)
            start: sa.ColumnElement[Any] = sa.func.dbms_lob.substr(
                cell, flag(_SORTED_CHARACTERS), flag(1)
            )
            long = length > flag(MAX_CELL_CHARACTERS)
            return Column(field.name, pa.string(), text, (start, length), cell, long)
        if field.type in _TIME:
            form = _FORMATS.get(field.type, _MOMENT_FORMAT)
            shown: sa.ColumnElement[Any] = sa.func.to_char(cell, _quoted(form))
            moment = _zoned if field.type in _ZONED else _local
            return Column(field.name, pa.string(), moment, (cell,), shown)
        return None

    def as_stored(self, name: exp.Expression | None) -> str | None:
        """Return a view's name for an object as the catalogue has it: in capitals unless quoted."""
        if name is None:
            return None
        return str(name.name) if name.args.get("quoted") else str(name.name).upper()

    def spelling(self, name: str) -> str:
        """Return a hint about Oracle's capitals, or an empty text if ``name`` is in capitals."""
        if name == name.upper():
            return ""
        return f" (Oracle keeps names that were not quoted in capitals: '{name.upper()}')"

    def said(self, error: sa.exc.DBAPIError) -> str:
        """Return the error's code and our own text for it: a server's text may quote cells."""
        codes = _codes(error)
        known = [_KNOWN[code] for code in codes if code in _KNOWN]
        if known:
            return f"{known[0]} ({codes[0]})"
        if codes:
            return f"error {codes[0]} of {self.title}"
        return f"{self.title} or its driver failed ({type(error.orig or error).__name__})"

    def may_pass(self, error: sa.exc.DBAPIError) -> bool:
        """Return whether the connection or the server's present state caused the error."""
        if oracle_refuses(str(error.orig)):
            return False
        return bool(_PASSING & set(_codes(error)))


_MOMENT_FORMAT = 'SYYYY-MM-DD"T"HH24:MI:SS.FF9'
_ZONED_FORMAT = f"{_MOMENT_FORMAT}TZH:TZM"
_FORMATS = {
    "date": 'SYYYY-MM-DD"T"HH24:MI:SS',
    "timestamp with time zone": _ZONED_FORMAT,
    "timestamp with local time zone": _ZONED_FORMAT,
}


def _quoted(literal: str) -> sa.ColumnElement[Any]:
    """Return one of our constants as a literal of the statement."""
    doubled = literal.replace("'", "''")
    return sa.literal_column(f"'{doubled}'")


def text(cell: Any) -> str | None:
    """Return a text; None for an empty one."""
    return as_text(cell) or None


def unpadded(cell: Any) -> str | None:
    """Return a CHAR(n) without its padding blanks; None for an empty one."""
    return as_unpadded(cell) or None


def whole(cell: Any) -> int:
    """Return a whole number from its digits.

    Raises:
        ValueError: if they are no whole number.
    """
    number = _decimal(cell)
    if number != number.to_integral_value():
        raise ValueError
    return int(number)


def real(cell: Any) -> float:
    """Return a number from its digits.

    Raises:
        ValueError: if they are no number.
    """
    return float(_decimal(cell))


def digits(cell: Any) -> str:
    """Return a number as text: all its digits, no exponent, no trailing zeros."""
    number = format(_decimal(cell), "f")
    return number.rstrip("0").rstrip(".") if "." in number else number


def _decimal(cell: Any) -> Decimal:
    if not isinstance(cell, str):
        raise TypeError
    return Decimal(cell.strip())


def _local(cell: Any) -> str:
    return as_moment(as_text(cell).strip())


def _zoned(cell: Any) -> str:
    return as_utc_moment(as_text(cell).strip())


def fetched(cursor: Any, metadata: Any) -> Any:
    """Choose how a column is fetched, as python-oracledb's ``outputtypehandler``.

    A CLOB is fetched as text with its row. Text with invalid bytes arrives with surrogates, by
    which :func:`privet.common.cells.odd_text` finds it.

    Args:
        cursor: python-oracledb's.
        metadata: of the column.

    Returns:
        A variable for the column's cells; None for the driver's default.
    """
    import oracledb

    large = {
        oracledb.DB_TYPE_CLOB: oracledb.DB_TYPE_LONG,
        oracledb.DB_TYPE_NCLOB: oracledb.DB_TYPE_LONG_NVARCHAR,
    }
    texts = (
        oracledb.DB_TYPE_VARCHAR, oracledb.DB_TYPE_NVARCHAR, oracledb.DB_TYPE_CHAR,
        oracledb.DB_TYPE_NCHAR, oracledb.DB_TYPE_LONG,
    )  # fmt: skip
    kind = metadata.type_code
    if kind not in large and kind not in texts:
        return None
    # Bytes that are no text become what odd_text finds: that row is left out, no other.
    sized = kind not in large and kind != oracledb.DB_TYPE_LONG
    size = {"size": metadata.internal_size or 1} if sized else {}
    return cursor.var(
        large.get(kind, kind), arraysize=cursor.arraysize, encoding_errors="surrogateescape", **size
    )


def selection(definition: str | None) -> exp.Expression | None:
    """Return the query of a view from ``ALL_VIEWS``; None if it cannot be parsed."""
    if definition is None:
        return None
    ending = r"\s+WITH\s+(READ\s+ONLY|CHECK\s+OPTION)(\s+CONSTRAINT\s+\S+)?\s*$"
    try:
        return parsed(re.sub(ending, "", definition, flags=re.IGNORECASE), "oracle")
    except SqlglotError:
        return None


def arguments(database: Database, password: str | None) -> dict[str, Any]:
    """Return python-oracledb's arguments for a connection.

    Args:
        database: as in the policy.
        password: of its user, or None if it needs none.

    Raises:
        DataError: if there is no file of trusted certificates.
    """
    server = database.server()
    found: dict[str, Any] = {
        "user": server.user,
        "password": password,
        "host": server.host,
        "port": server.port,
        "service_name": server.name,
        "protocol": {"disable": "tcp"}.get(server.sslmode, "tcps"),
        "tcp_connect_timeout": float(min(_CONNECT_SECONDS, int(database.timeout))),
        "retry_count": 0,
        "program": "privet",
        "disable_oob": True,
    }
    if server.sslmode != "disable":
        found["ssl_context"] = context(server)
        found["ssl_server_dn_match"] = server.sslmode == "verify-full"
    return found


def context(server: Server) -> ssl.SSLContext:
    """Return the TLS context for a server.

    Raises:
        DataError: if there is no file of trusted certificates.
    """
    try:
        made = ssl.create_default_context(cafile=server.sslrootcert)
    except (OSError, ssl.SSLError):
        raise DataError(
            f"{server.sslrootcert}: there is no such file of certificates ('sslrootcert' in 'url')"
        ) from None
    made.minimum_version = ssl.TLSVersion.TLSv1_2
    if server.sslmode == "require":
        made.check_hostname = False
        made.verify_mode = ssl.CERT_NONE
    return made


def _codes(error: sa.exc.DBAPIError) -> list[str]:
    """Return the codes of an error, the driver's first."""
    return oracle_codes(error.orig, str(error.orig or error))
