"""Read tables and views of databases, read-only, through SQLAlchemy.

The statements are SQLAlchemy's own: reflection, and one ``SELECT`` of quoted names. They run in one
read-only transaction that sees one state of the database throughout:

- PostgreSQL: ``REPEATABLE READ, READ ONLY``; rows come by a cursor of the server.
- SQLite: the file is opened with ``mode=ro``, under ``PRAGMA query_only``.
- SQL Server and Oracle: :mod:`.sql_server`, :mod:`.oracle`.

A column's type comes from its declaration and never from its cells: whole numbers, decimals (as
64-bit floats), booleans, and text; dates and times are ISO 8601 text, in UTC where they have a
zone. A SQLite column of no known type is text, cell by cell. A row with a cell that does not fit
its declaration is left out and named in the snapshot (:data:`~.arrow.LEFT_OUT`); the other rows are
the same as without it. Rows are in the order of the columns as the policy names them, NULL last and
text by code point, so that a snapshot does not depend on how a database stores its rows.

SQLAlchemy is under the MIT licence. psycopg is under the LGPL-3: it is loaded as the separate,
replaceable package that it is, and only where ``privet[sql]`` was installed.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pyarrow as pa
import pyarrow.parquet as pq
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from privet.client.data.arrow import LeftOut
from privet.client.data.server_dialect import ServerDialect
from privet.client.data.sql_column import (
    Column,
    as_boolean,
    as_moment,
    as_number,
    as_text,
    as_time,
    as_unpadded,
    as_whole,
)
from privet.client.data.view import coupling
from privet.common.cells import MAX_CELL_CHARACTERS, text_of
from privet.common.compat.databases import postgres_refuses
from privet.common.errors import DataError, DataMissingError, SourceUnavailableError
from privet.privacy.database import Database

_CHUNK = 10_000
"""Rows in memory at once."""
_CONNECT_SECONDS = 10
_PASSING_STATES = ("08", "53", "57P")
"""Classes of SQLSTATE: connection, resources (as connections), the operator's intervention."""


def write_snapshot(
    database: Database,
    columns: tuple[str, ...],
    out: Path,
    *,
    password: str | None = None,
    vouched: bool = False,
) -> None:
    """Write the named columns of a table to a Parquet file, and make it durable.

    Args:
        database: as in the policy; it names the table.
        columns: of the table, in the order of the file.
        out: the file; its content is replaced.
        password: of the database's user; None if it needs none.
        vouched: whether the site states that rows of a view that is not plain are independent.

    Raises:
        DataMissingError: if there is no such database file or table.
        DataError: if the database does not answer, refuses, or lacks a column; or if the table is a
            view that is not plain, without the site's statement.
    """
    try:
        with reading(database, password) as connection:
            if not vouched:
                require_plain(connection, database, columns)
            _copy(connection, database, columns, out)
    except sa.exc.DBAPIError as error:
        raise DataError(f"{database}: {_said(database, error)}") from None
    except sa.exc.SQLAlchemyError as error:
        raise DataError(f"{database}: {_first_line(error)}") from None
    except UnicodeError:  # what it says quotes a cell
        raise DataError(f"{database}: the driver could not decode a text") from None


def require_plain(
    connection: sa.Connection, database: Database, columns: tuple[str, ...] = ()
) -> None:
    """Check that each row of the policy's table follows from one stored record alone.

    Args:
        connection: as :func:`reading` opens it.
        database: names the table.
        columns: columns to read; a server may compute one when it is read.

    Raises:
        DataError: if the catalogue does not show that.
    """
    if dialect := dialect_of(database):
        why = dialect.coupling(connection, database, columns)
    else:
        why = coupling(connection, database)
    if why:
        raise DataError(
            f"{database}: {why}, so one record may change the rows of others (H6). Name a table, "
            "or a view that only chooses columns of one table and rows by their own columns; or "
            "say in the data set's 'independent' why its rows do not depend on each other"
        )


def probe(
    database: Database,
    columns: tuple[str, ...],
    *,
    password: str | None = None,
    vouched: bool = False,
) -> None:
    """Connect, and check by their declarations that the named columns can be read.

    Only the catalogue is queried: its answer depends neither on a row nor on the number of rows.

    Args:
        database: as in the policy; it names the table.
        columns: of the table.
        password: of the database's user; None if it needs none.
        vouched: as for :func:`write_snapshot`.

    Raises:
        DataMissingError, DataError: as :func:`write_snapshot`, except for faults of values.
        SourceUnavailableError: if the database does not answer at present.
    """
    try:
        with reading(database, password) as connection:
            if not vouched:
                require_plain(connection, database, columns)
            _columns(connection, database, columns)
    except sa.exc.DBAPIError as error:
        dialect = dialect_of(database)
        passing = dialect.may_pass(error) if dialect else _may_pass(error)
        kind = SourceUnavailableError if passing else DataError
        raise kind(f"{database}: {_said(database, error)}") from None
    except sa.exc.SQLAlchemyError as error:
        raise DataError(f"{database}: {_first_line(error)}") from None


def dialect_of(database: Database) -> ServerDialect | None:
    """Return the dialect of a SQL Server or an Oracle; None for other databases."""
    if database.dbms == "mssql":
        from privet.client.data.sql_server import SqlServer

        return SqlServer()
    if database.dbms == "oracle":
        from privet.client.data.oracle import OracleDatabase

        return OracleDatabase()
    return None


def _said(database: Database, error: sa.exc.DBAPIError) -> str:
    dialect = dialect_of(database)
    return dialect.said(error) if dialect else _first_line(error.orig or error)


def _may_pass(error: sa.exc.DBAPIError) -> bool:
    """Return whether the database may answer the same catalogue query later.

    If a connection is refused at its start, PostgreSQL's library gives only a text and no code:
    known texts tell which faults need a person.
    """
    if not isinstance(error, sa.exc.OperationalError):
        return False
    text = str(error.orig or error)
    if isinstance(error.orig, sqlite3.Error):
        return "locked" in text or "busy" in text
    if code := getattr(error.orig, "sqlstate", None):
        return str(code).startswith(_PASSING_STATES)
    return not postgres_refuses(text)


def _declared(
    connection: sa.Connection, database: Database, names: tuple[str, ...]
) -> dict[str, sa.types.TypeEngine[Any]]:
    """Return how all columns of the table are declared.

    Raises:
        DataMissingError: if the table is not there.
        DataError: if one of ``names`` is not.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", sa.exc.SAWarning)
            found = sa.inspect(connection).get_columns(database.table, schema=database.table_schema)
    except sa.exc.NoSuchTableError:
        raise DataMissingError(
            f"{database}: there is no table or view '{database.place}' that this user may see"
        ) from None
    declared = {column["name"]: column["type"] for column in found}
    if missing := [name for name in names if name not in declared]:
        raise DataError(f"{database}: '{database.place}' has no column '{missing[0]}'")
    return declared


@contextlib.contextmanager
def reading(database: Database, password: str | None = None) -> Iterator[sa.Connection]:
    """Open one read-only transaction, which is never committed.

    Args:
        database: as in the policy.
        password: of its user; None if it needs none.

    Yields:
        The connection.

    Raises:
        DataMissingError: if there is no such database file.
        sqlalchemy.exc.DBAPIError: if the database cannot be opened.
    """
    dialect = dialect_of(database)
    if dialect is not None:
        engine = dialect.engine(database, password)
    else:
        engine = _sqlite(database) if database.file else _postgresql(database, password)
    try:
        with protection(database), engine.connect() as connection:
            if dialect is not None:
                dialect.begin(connection, database)
            elif database.file:
                connection.exec_driver_sql("PRAGMA query_only = ON")
                connection.exec_driver_sql("BEGIN")
            else:
                milliseconds = str(int(1000 * database.timeout))
                settings = {
                    "statement_timeout": milliseconds,
                    "timezone": "UTC",
                    "datestyle": "ISO",
                }
                for name, value in settings.items():
                    connection.execute(sa.select(sa.func.set_config(name, value, True)))
            yield connection
            connection.rollback()
    finally:
        engine.dispose()


def protection(database: Database) -> contextlib.AbstractContextManager[None]:
    """Return the context in which a connection is protected as the policy says."""
    if database.dbms != "mssql":
        return contextlib.nullcontext()
    from privet.client.data.sql_server import protected

    return protected(database.server())


def _sqlite(database: Database) -> sa.Engine:
    path = Path(str(database.file)).absolute()
    if not path.is_file():
        raise DataMissingError(f"{database}: there is no such file")
    uri = f"file:{quote(str(path))}?mode=ro"

    def connect() -> sqlite3.Connection:
        # Its own transactions: isolation_level None leaves BEGIN to us.
        made = sqlite3.connect(uri, uri=True, timeout=_CONNECT_SECONDS, isolation_level=None)
        # Bytes that are not UTF-8 are one cell's fault; else the whole query would fail.
        made.text_factory = _decoded
        return made

    return sa.create_engine("sqlite://", creator=connect, poolclass=sa.NullPool)


def _postgresql(database: Database, password: str | None) -> sa.Engine:
    settings: dict[str, Any] = {
        "application_name": "privet",
        "connect_timeout": min(_CONNECT_SECONDS, int(database.timeout)),
        # No password but the policy's: none from a file in this user's home.
        "passfile": os.devnull,
        **database.connection(),
    }
    if password is not None:
        settings["password"] = password
    return sa.create_engine(
        "postgresql+psycopg://",
        connect_args=settings,
        poolclass=sa.NullPool,
        isolation_level="REPEATABLE READ",
        execution_options={"postgresql_readonly": True},
    )


def _copy(connection: sa.Connection, database: Database, names: tuple[str, ...], out: Path) -> None:
    query, columns = _query(connection, database, names)
    schema = pa.schema([(column.name, column.arrow) for column in columns])
    count, left_out = 0, LeftOut()
    streamed = connection.execution_options(
        stream_results=True,
        max_row_buffer=_CHUNK,
        # pymssql searches names for placeholders of parameters, unless it gets no parameters.
        no_parameters=database.dbms == "mssql",
    )
    with (
        streamed.execute(query) as rows,
        out.open("wb") as stream,
        pq.ParquetWriter(stream, schema) as writer,
    ):
        for chunk in rows.partitions(_CHUNK):
            kept_rows = []
            for row in chunk:
                count += 1
                try:
                    if row[-1]:
                        raise ValueError(f"a text has more than {MAX_CELL_CHARACTERS:,} bytes")
                    kept = [c.read(cell) for c, cell in zip(columns, row[:-1], strict=True)]
                except ValueError as fault:
                    left_out.add(count, str(fault))
                    continue
                kept_rows.append(kept)
            arrays = [
                pa.array([row[place] for row in kept_rows], column.arrow)
                for place, column in enumerate(columns)
            ]
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema))
        writer.add_key_value_metadata(left_out.metadata())
    with out.open("rb") as written:
        os.fsync(written.fileno())


def _query(
    connection: sa.Connection, database: Database, names: tuple[str, ...]
) -> tuple[sa.Select[Any], list[Column]]:
    """Return the one statement that reads the columns, and how they are kept."""
    if dialect := dialect_of(database):
        table, columns = dialect.columns(connection, database, names)
        return dialect.select(table, columns), columns
    columns = _columns(connection, database, names)
    chosen = [
        column.bounded(column.selected).label(f"c{place}") for place, column in enumerate(columns)
    ]
    longs = [
        sa.func.coalesce(c.long, sa.literal_column("0 = 1")) for c in columns if c.long is not None
    ]
    longer = sa.or_(sa.false(), *longs)
    order = (column.bounded(cell).nulls_last() for column in columns for cell in column.order)
    return sa.select(*chosen, longer.label("long")).order_by(*order), columns


def _table(database: Database, names: tuple[str, ...]) -> sa.TableClause:
    """Return the table with its columns; every name is quoted, whatever is in it."""
    quoted: list[sa.ColumnClause[Any]] = [
        sa.column(sa.quoted_name(name, quote=True)) for name in names
    ]
    return sa.table(
        sa.quoted_name(database.table, quote=True),
        *quoted,
        schema=sa.quoted_name.construct(database.table_schema, quote=True),
    )


def _columns(connection: sa.Connection, database: Database, names: tuple[str, ...]) -> list[Column]:
    """Return how the columns are kept, by their declarations.

    Raises:
        DataMissingError: if the table is not there.
        DataError: if a column is not, or is of a kind that is not read.
    """
    if dialect := dialect_of(database):
        return dialect.columns(connection, database, names)[1]
    declared, table = _declared(connection, database, names), _table(database, names)
    return [_column(database, table, name, _plain(declared[name])) for name in names]


def _column(
    database: Database, table: sa.TableClause, name: str, declared: sa.types.TypeEngine[Any]
) -> Column:
    cell = table.c[name]
    long = _long(database, cell)
    unsure = isinstance(declared, sa.Numeric | sa.types.NullType)
    if database.file and unsure and not isinstance(declared, sa.Float):
        # SQLite calls any declaration that it does not know numeric, and views have none. Each cell
        # has a type of its own there, and is kept as text.
        return Column(name, pa.string(), _stored, (cell,), cell, long)
    if isinstance(declared, sa.Boolean):
        return Column(name, pa.bool_(), as_boolean, (cell,), cell, long)
    if isinstance(declared, sa.Integer):
        return Column(name, pa.int64(), as_whole, (cell,), cell, long)
    if isinstance(declared, sa.Numeric | sa.Float):
        return Column(name, pa.float64(), as_number, (cell,), cell, long)
    if isinstance(declared, sa.Date | sa.DateTime | sa.Time):
        if database.file:
            convert = as_moment if isinstance(declared, sa.DateTime) else as_text
            return Column(name, pa.string(), convert, (cell.collate("BINARY"),), cell, long)
        # As text: Python has no date beyond its years, and one such cell would end the query.
        text = sa.cast(cell, sa.Text)
        return Column(name, pa.string(), _MOMENTS[_kind_of(declared)], (text.collate("C"),), text)
    if isinstance(declared, sa.String | sa.Uuid):
        by_code = cell.collate("BINARY") if database.file else sa.cast(cell, sa.Text).collate("C")
        convert = as_text
        if isinstance(declared, sa.CHAR) and not database.file:
            convert = as_unpadded
        if not database.file and isinstance(declared, sa.String):
            long = sa.func.octet_length(sa.cast(cell, sa.Text)) > MAX_CELL_CHARACTERS
        return Column(name, pa.string(), convert, (by_code,), cell, long)
    raise DataError(
        f"{database}: column '{name}' of '{database.place}' is of type {declared!r}, which is "
        "not read: make a view that casts it to a number or a text"
    )


def _long(database: Database, cell: sa.ColumnElement[Any]) -> sa.ColumnElement[Any] | None:
    """Return whether a cell of SQLite is too long, whatever its column declares."""
    if not database.file:
        return None
    return sa.func.length(sa.cast(cell, sa.LargeBinary)) > MAX_CELL_CHARACTERS


def _plain(declared: sa.types.TypeEngine[Any]) -> sa.types.TypeEngine[Any]:
    """Return the type under a domain of PostgreSQL."""
    while isinstance(declared, postgresql.DOMAIN):
        declared = declared.data_type
    return declared


_MOMENTS: dict[str, Callable[[Any], str]] = {
    "date": as_text,
    "datetime": as_moment,
    "time": as_time,
}


def _kind_of(declared: sa.types.TypeEngine[Any]) -> str:
    if isinstance(declared, sa.DateTime):
        return "datetime"
    return "time" if isinstance(declared, sa.Time) else "date"


class _NoText:
    """The value of a SQLite cell whose bytes are not UTF-8."""


def _decoded(data: bytes) -> Any:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return _NoText()


def _stored(cell: Any) -> str:
    """Return a cell of SQLite as text, by its own storage class."""
    if isinstance(cell, int | float | str):
        return text_of(cell)
    raise TypeError


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]
