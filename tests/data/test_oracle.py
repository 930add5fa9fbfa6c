"""Oracle by python-oracledb, as far as it goes without a server.

None can be run here. The driver, its connections that fail, and TLS are tried for real; of the
statements only their texts are known, and of the cells only what is made of the driver's values.
"""

from __future__ import annotations

import inspect
import socket
import ssl
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import oracledb
import pytest
import sqlalchemy as sa
import sqlglot
from sqlalchemy.dialects.oracle import oracledb as dialect
from tls_kit import certificate

from privet.client.data import loader, oracle
from privet.client.data.loader import probe_database, take_snapshot
from privet.client.data.oracle import OracleDatabase
from privet.client.data.server_dialect import Field
from privet.client.data.sql import probe
from privet.common.errors import DataError, InputError, SourceUnavailableError
from privet.privacy.database import Database

Make = Callable[..., Any]
PASSWORD = "hunter2-4417"


def database_of(port: int, settings: str = "", host: str = "127.0.0.1", **changes: Any) -> Database:
    value = {
        "url": f"oracle+oracledb://reader@{host}:{port}/EHRPDB{settings}",
        "table": "RECORDS", "password_variable": "DB_PASSWORD", **changes,
    }  # fmt: skip
    return Database.model_validate(value)


def text_of_statement(fields: list[Field], schema: str = "OWN", table: str = "RECORDS") -> str:
    source = sa.table(
        sa.quoted_name(table, quote=True),
        *(sa.column(sa.quoted_name(field.name, quote=True)) for field in fields),
        schema=sa.quoted_name(schema, quote=True),
    )
    columns = [OracleDatabase().column(source.c[field.name], field) for field in fields]
    found = [column for column in columns if column is not None]
    assert len(found) == len(fields)
    return str(OracleDatabase().select(source, found).compile(dialect=dialect.dialect()))


C = '"OWN"."RECORDS".'
TEXTS = [
    (Field("X", "number", 10, 0), f"""to_char({C}"X", 'TM9', 'NLS_NUMERIC_CHARACTERS=''.,''')"""),
    (Field("X", "varchar2"), f'{C}"X"'),
    (Field("X", "binary_double"), f'{C}"X"'),
    (Field("X", "date"), f"""to_char({C}"X", 'SYYYY-MM-DD"T"HH24:MI:SS')"""),
    (Field("X", "timestamp"), f"""to_char({C}"X", 'SYYYY-MM-DD"T"HH24:MI:SS.FF9')"""),
    (
        Field("X", "timestamp with time zone"),
        f"""to_char({C}"X", 'SYYYY-MM-DD"T"HH24:MI:SS.FF9TZH:TZM')""",
    ),
]


@pytest.mark.parametrize(("field", "selected"), TEXTS, ids=[field.exact for field, _ in TEXTS])
def test_the_statement_of_a_column(field: Field, selected: str) -> None:
    assert text_of_statement([field]) == (
        f'SELECT {selected} AS c0, 0 AS too_long \nFROM "OWN"."RECORDS" ORDER BY '
        f'CASE WHEN ({C}"X" IS NULL) THEN 1 ELSE 0 END, {C}"X"'
    )


def test_the_statement_of_a_large_text() -> None:
    long = f'dbms_lob.getlength({C}"N") > 1048576'
    start = f'CASE WHEN ({long}) THEN NULL ELSE dbms_lob.substr({C}"N", 1000, 1) END'
    assert text_of_statement([Field("N", "clob")]) == (
        f'SELECT CASE WHEN ({long}) THEN NULL ELSE {C}"N" END AS c0, '
        f'CASE WHEN ({long}) THEN 1 ELSE 0 END AS too_long \nFROM "OWN"."RECORDS" ORDER BY '
        f"CASE WHEN ({start} IS NULL) THEN 1 ELSE 0 END, {start}, "
        f'CASE WHEN ({long}) THEN NULL ELSE dbms_lob.getlength({C}"N") END'
    )


@pytest.mark.parametrize("name", ["it's", 'a "quoted" one', "100%", "lower", ":bind", "LONG"])
def test_names_are_quoted_and_keep_their_case(name: str) -> None:
    inside = name.replace('"', '""')
    text = text_of_statement([Field(name, "varchar2")], schema=name, table=name)
    assert text.startswith(f'SELECT "{inside}"."{inside}"."{inside}" AS c0')


@pytest.mark.parametrize("statement", [oracle.OBJECT, oracle.VIEW, oracle.COLUMNS])
def test_the_catalogue_is_asked_by_select_with_binds(statement: str) -> None:
    text = str(sa.text(statement).compile(dialect=dialect.dialect()))
    assert text == statement  # the binds are Oracle's own
    assert text.startswith("SELECT ")
    assert ";" not in text
    sqlglot.parse_one(text, dialect="oracle", error_level=sqlglot.ErrorLevel.RAISE)


def test_a_transaction_is_read_only_from_its_first_query_on() -> None:
    assert oracle.SESSION[-1] == "SET TRANSACTION READ ONLY"
    assert all(text.startswith("ALTER SESSION SET ") for text in oracle.SESSION[:-1])


CELLS: list[tuple[Field, Any, Any]] = [
    (Field("x", "number", 10, 0), "-17", -17),
    (Field("x", "number", None, 0), "9007199254740993", 9007199254740993),
    (Field("x", "number", 5, -2), "12300", 12300),
    (Field("x", "number", 8, 2), "1234.5", 1234.5),
    (Field("x", "number", 8, 2), ".5", 0.5),
    (Field("x", "number"), "9007199254740993", "9007199254740993"),
    (Field("x", "number"), "-.50", "-0.5"),
    (Field("x", "number"), "1E+3", "1000"),
    (Field("x", "number"), "100", "100"),
    (Field("x", "float", 126), "1.25", 1.25),
    (Field("x", "binary_float"), 0.5, 0.5),
    (Field("x", "binary_double"), float("nan"), float("nan")),
    (Field("x", "boolean"), True, True),
    (Field("x", "varchar2"), "  NA ✓ ", "  NA ✓ "),
    (Field("x", "varchar2"), "", None),
    (Field("x", "clob"), "", None),
    (Field("x", "char"), "ab   ", "ab"),
    (Field("x", "nchar"), "   ", None),
    (Field("x", "date"), " 2024-02-29T12:00:00", "2024-02-29T12:00:00"),
    (Field("x", "date"), "-0044-03-15T00:00:00", "-0044-03-15T00:00:00"),
    (Field("x", "timestamp"), " 2024-02-29T12:00:00.123456789", "2024-02-29T12:00:00.123456"),
    (
        Field("x", "timestamp with time zone"),
        " 2024-02-29T12:00:00.000000000+05:30",
        "2024-02-29T06:30:00+00:00",
    ),
    (
        Field("x", "timestamp with local time zone"),
        " 9999-12-31T23:00:00.000000000-05:00",
        "9999-12-31T23:00:00.000000000-05:00",
    ),
    (Field("x", "number", 10, 0), None, None),
]


@pytest.mark.parametrize(("field", "cell", "expected"), CELLS)
def test_a_cell_is_read_as_its_column_is_declared(field: Field, cell: Any, expected: Any) -> None:
    column = OracleDatabase().column(sa.column("x"), field)
    assert column is not None
    assert repr(column.read(cell)) == repr(expected)


@pytest.mark.parametrize(
    ("field", "cell"),
    [
        (Field("x", "number", None, 0), "9" * 30),
        (Field("x", "number", 10, 0), "1.5"),
        (Field("x", "number", 10, 2), "~"),
        (Field("x", "varchar2"), b"SECRET"),
        (Field("x", "varchar2"), b"SECRET\xff".decode("utf-8", "surrogateescape")),
        (Field("x", "clob"), "SECRET\0"),
    ],
)
def test_a_cell_that_does_not_fit_costs_its_row_and_is_not_quoted(field: Field, cell: Any) -> None:
    column = OracleDatabase().column(sa.column("x"), field)
    assert column is not None
    with pytest.raises(ValueError, match="column 'x' has a") as caught:
        column.read(cell)
    assert "SECRET" not in str(caught.value)


@pytest.mark.parametrize(
    "kind", ["raw", "blob", "long", "xmltype", "json", "rowid", "sdo_geometry"]
)
def test_other_types_are_not_read(kind: str) -> None:
    assert OracleDatabase().column(sa.column("x"), Field("x", kind)) is None


def test_the_driver_takes_what_it_is_told() -> None:
    """Names that only a connection would miss."""
    assert {"call_timeout", "outputtypehandler"} <= set(dir(oracledb.Connection))
    assert {"arraysize", "size", "encoding_errors"} <= set(
        inspect.signature(oracledb.Cursor.var).parameters
    )
    assert {"type_code", "internal_size"} <= set(dir(oracledb.FetchInfo))
    assert oracledb.is_thin_mode()
    assert oracle.context(database_of(1, "?sslmode=require").server()).verify_mode == ssl.CERT_NONE


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@pytest.fixture
def policies(policy_of: Make, monkeypatch: pytest.MonkeyPatch) -> Make:
    monkeypatch.setenv("DB_PASSWORD", PASSWORD)

    def make(port: int, settings: str = "", **changes: Any) -> Any:
        url = f"oracle+oracledb://reader@127.0.0.1:{port}/EHRPDB{settings}"
        return policy_of(url, ["X"], password_variable="DB_PASSWORD", **changes)

    return make


@pytest.mark.parametrize("settings", ["", "?sslmode=require"])
def test_a_closed_port_passes(settings: str, policies: Make) -> None:
    with pytest.raises(
        SourceUnavailableError, match="EHRPDB.*cannot be reached.*DPY-6005"
    ) as caught:
        probe_database(policies(closed_port(), settings), "records")
    assert PASSWORD not in str(caught.value)


@pytest.mark.parametrize("settings", ["", "?sslmode=require"])
@pytest.mark.parametrize("says", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n" * 9, b"\0" * 64])
def test_what_is_no_server_ends_in_time(
    says: bytes, settings: str, policies: Make, odd_server: Callable[[bytes], int], tmp_path: Path
) -> None:
    start = time.monotonic()
    with pytest.raises(DataError, match="database 'EHRPDB' at 127.0.0.1") as caught:
        take_snapshot(policies(odd_server(says), settings, timeout=3.0), "records", tmp_path)
    assert time.monotonic() - start < 15
    assert PASSWORD not in str(caught.value)
    if says == b"":
        assert "took longer than 3 s (sql.timeout)" in str(caught.value)


class TlsListener:
    """TLS without a database behind it; ``heard`` is what came through."""

    def __init__(self, own: Path) -> None:
        self.heard: list[bytes] = []
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(own)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection:
                try:
                    with self._context.wrap_socket(connection, server_side=True) as secured:
                        self.heard.append(secured.recv(4096))
                except OSError:
                    pass

    def close(self) -> None:
        self._listener.close()


@pytest.mark.parametrize(
    ("shown", "mode", "trusted"),
    [
        ("own", "verify-full", True),
        ("stranger", "verify-full", False),
        ("other-name", "verify-full", False),
        ("stranger", "require", True),
    ],
)
def test_nothing_is_said_to_a_server_that_was_not_meant(
    shown: str, mode: str, trusted: bool, tmp_path: Path
) -> None:
    own = roots = certificate(tmp_path / "own.pem", "localhost")
    if shown == "stranger":
        own = certificate(tmp_path / "stranger.pem", "localhost")
    elif shown == "other-name":
        own = roots = certificate(tmp_path / "other.pem", "db.example.org")
    server = TlsListener(own)
    settings = f"?sslmode={mode}" + (f"&sslrootcert={roots}" if mode == "verify-full" else "")
    try:
        with pytest.raises(DataError, match="database 'EHRPDB' at localhost") as caught:
            probe(database_of(server.port, settings, "localhost"), ("X",), password=PASSWORD)
    finally:
        server.close()
    assert bool(b"".join(server.heard)) == trusted
    assert PASSWORD not in str(caught.value)
    if not trusted:  # somebody has to change something first
        assert not isinstance(caught.value, SourceUnavailableError)


def test_a_file_of_certificates_has_to_be_there() -> None:
    database = database_of(1, "?sslmode=verify-full&sslrootcert=no.pem")
    with pytest.raises(DataError, match=r"no\.pem: there is no such file of certificates"):
        probe(database, ("X",), password=PASSWORD)


@pytest.mark.parametrize(
    ("text", "said", "passing"),
    [
        ("ORA-01017: invalid username/password; SECRET", "login failed.*ORA-01017", False),
        ("ORA-01555: snapshot too old", "undo retention", True),
        ("ORA-01033: initialization or shutdown in progress", "error ORA-01033", True),
        ("ORA-01722: unable to convert 'SECRET' to a number", "error ORA-01722 of Oracle$", False),
        ("something with a SECRET", "its driver failed .DatabaseError.", False),
    ],
)
def test_an_error_is_its_code_and_never_its_text(text: str, said: str, passing: bool) -> None:
    error = sa.exc.DBAPIError("SELECT", None, oracledb.DatabaseError(text))
    with pytest.raises(DataError, match=said) as caught:
        raise DataError(OracleDatabase().said(error))
    assert "SECRET" not in str(caught.value)
    assert OracleDatabase().may_pass(error) == passing


def test_a_driver_that_is_missing_is_named_with_its_extra(
    policies: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader.importlib.util, "find_spec", lambda name: name != "oracledb" or None)
    with pytest.raises(InputError, match=r"oracledb is not installed.*\[oracle\]"):
        take_snapshot(policies(1), "records", tmp_path)


def test_a_name_in_small_letters_has_a_hint() -> None:
    assert "'RECORDS'" in OracleDatabase().spelling("records")
    assert OracleDatabase().spelling("RECORDS") == ""
