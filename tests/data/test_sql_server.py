"""SQL Server by pymssql, against a stand-in that speaks TDS; see tds_kit.py for what that leaves."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import sqlglot
from tds_kit import ServerError, Table, Tds
from tls_kit import certificate

from privet.client.data import loader, sql_server
from privet.client.data.loader import probe_database, take_snapshot
from privet.client.data.server_dialect import Field
from privet.client.data.sql import probe, reading, write_snapshot
from privet.client.data.sql_server import SqlServer, configuration
from privet.client.data.tables import read_table
from privet.common.errors import DataError, DataMissingError, InputError, SourceUnavailableError
from privet.privacy.database import Database, Server

Make = Callable[..., Any]
PASSWORD = "hunter2-4417"


@pytest.fixture
def tds() -> Iterator[Tds]:
    server = Tds()
    yield server
    server.close()


def database_of(port: int, settings: str = "", **changes: Any) -> Database:
    value = {
        "url": f"mssql+pymssql://reader@127.0.0.1:{port}/ehr{settings}",
        "table": "records", "password_variable": "DB_PASSWORD", **changes,
    }  # fmt: skip
    return Database.model_validate(value)


def utf16(text: str) -> bytes:
    return text.encode("utf-16-le", "surrogatepass")


def written(tds: Tds, table: Table, out: Path, **how: Any) -> list[dict[str, Any]]:
    tds.tables["records"] = table
    names = tuple(field[0] for field in table.fields)
    write_snapshot(database_of(tds.port), names, out, password=PASSWORD, **how)
    rows: list[dict[str, Any]] = pq.read_table(out).to_pylist()
    return rows


KINDS: list[tuple[str, str, Any, Any]] = [
    ("tinyint", "int", 7, 7),
    ("bigint", "int", 9007199254740993, 9007199254740993),
    ("bit", "bit", 1, True),
    ("decimal", "decimal", "-1234.500", -1234.5),
    ("money", "money", "12.3456", 12.3456),
    ("float", "float", 0.1, 0.1),
    ("real", "real", 0.5, 0.5),
    ("varchar", "bytes", utf16("  NA ✓ "), "  NA ✓ "),
    ("nvarchar", "bytes", utf16("𝔘nicode"), "𝔘nicode"),
    ("nvarchar", "bytes", b"", ""),
    ("char", "bytes", utf16("ab   "), "ab"),
    ("ntext", "bytes", utf16("x" * 9000), "x" * 9000),
    ("uniqueidentifier", "guid", "6f1e0f5c-0000-4000-8000-00000000002a",
     "6f1e0f5c-0000-4000-8000-00000000002a"),
    ("date", "text", "2024-02-29", "2024-02-29"),
    ("time", "text", "07:08:09.5000000", "07:08:09.500000"),
    ("datetime", "text", "2024-02-29 12:00:00.000", "2024-02-29T12:00:00"),
    ("datetime2", "text", "2024-02-29 12:00:00.1234567", "2024-02-29T12:00:00.123456"),
    ("datetimeoffset", "text", "2024-02-29 12:00:00.0000000 +05:00", "2024-02-29T07:00:00+00:00"),
    ("datetimeoffset", "text", "0001-01-01 00:00:00.0000000 +05:00",
     "0001-01-01 00:00:00.0000000+05:00"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "wire", "cell", "expected"), KINDS)
def test_a_column_is_read_as_it_is_declared(
    kind: str, wire: str, cell: Any, expected: Any, tds: Tds, tmp_path: Path
) -> None:
    table = Table([("x", kind, 38, 3, 0)], [wire], [(cell,), (None,)])
    found = [row["x"] for row in written(tds, table, tmp_path / "o.parquet")]
    assert repr(found) == repr([expected, None])


def test_a_text_that_is_none_costs_its_own_row(tds: Tds, tmp_path: Path) -> None:
    table = Table(
        [("x", "int", 0, 0, 0), ("s", "nvarchar", 0, 0, 0)], ["int", "bytes"],
        [(1, utf16("a")), (2, b"\x00\xd8"), (3, b"odd"), (4, utf16("n\0l")), (5, utf16("ü"))],
    )  # fmt: skip
    assert [row["x"] for row in written(tds, table, tmp_path / "o.parquet")] == [1, 5]
    faults = read_table(tmp_path / "o.parquet").faults
    assert [fault.place for fault in faults] == [2, 3, 4]


@pytest.mark.parametrize("kind", ["varbinary", "xml", "sql_variant", "geometry", "timestamp"])
def test_other_types_are_refused(kind: str, tds: Tds, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"column 'x' of 'records' is of type {kind}.*make a view"):
        written(tds, Table([("x", kind, 0, 0, 0)], ["bytes"]), tmp_path / "o")


SELECT = (
    "SELECT [dbo].[records].[x] AS c0, "
    "CASE WHEN (datalength(CAST([dbo].[records].[s] AS NVARCHAR(max))) > 2097152) THEN NULL "
    "ELSE CAST(CAST([dbo].[records].[s] AS NVARCHAR(max)) AS VARBINARY(max)) END AS c1, "
    "convert(NVARCHAR(40), [dbo].[records].[t], 121) AS c2, "
    "CASE WHEN (datalength(CAST([dbo].[records].[s] AS NVARCHAR(max))) > 2097152) THEN 1 ELSE 0 "
    "END AS too_long \nFROM [dbo].[records] ORDER BY "
    "CASE WHEN ([dbo].[records].[x] IS NULL) THEN 1 ELSE 0 END, [dbo].[records].[x], "
    "CASE WHEN (CASE WHEN (datalength(CAST([dbo].[records].[s] AS NVARCHAR(max))) > 2097152) "
    "THEN NULL ELSE CAST([dbo].[records].[s] AS NVARCHAR(max)) COLLATE Latin1_General_100_BIN2 "
    "END IS NULL) THEN 1 ELSE 0 END, "
    "CASE WHEN (datalength(CAST([dbo].[records].[s] AS NVARCHAR(max))) > 2097152) THEN NULL ELSE "
    "CAST([dbo].[records].[s] AS NVARCHAR(max)) COLLATE Latin1_General_100_BIN2 END, "
    "CASE WHEN (datalength(CAST([dbo].[records].[s] AS NVARCHAR(max))) > 2097152) THEN NULL ELSE "
    "datalength(CAST([dbo].[records].[s] AS NVARCHAR(max))) END, "
    "CASE WHEN ([dbo].[records].[t] IS NULL) THEN 1 ELSE 0 END, [dbo].[records].[t]"
)


def test_what_is_sent_is_this_and_nothing_that_writes(tds: Tds, tmp_path: Path) -> None:
    fields = [("x", "int", 0, 0, 0), ("s", "varchar", 0, 0, 0), ("t", "datetime", 0, 0, 0)]
    written(tds, Table(fields, ["int", "bytes", "text"]), tmp_path / "o")
    assert SELECT in tds.statements
    session = next(text for text in tds.statements if "ISOLATION LEVEL SNAPSHOT" in text)
    assert session.endswith("SET LOCK_TIMEOUT 600000")
    # One transaction under it, from the first question to the last row.
    asked = [text for text in tds.statements if "sys.objects" in text or text == SELECT]
    first, last = tds.statements.index(asked[0]), tds.statements.index(SELECT)
    assert tds.statements[first - 1].strip() == "BEGIN TRAN"
    assert not [t for t in tds.statements[first:last] if "TRAN" in t]
    assert tds.statements.index(session) < first
    for text in tds.statements:
        assert text.strip().upper().startswith(("SELECT ", "SET ", "USE ", "BEGIN ", "ROLLBACK "))
    assert tds.logins[0]["read_only"]
    assert tds.logins[0]["app"] == "privet"


NASTY = ("it's", "a ]bracket[", 'a "quoted" one', "percent %(x)s %s %d", "semi; DROP --", "ünï ✓")


@pytest.mark.parametrize("name", NASTY)
def test_names_are_quoted(name: str, tds: Tds, tmp_path: Path) -> None:
    tds.tables[name] = Table([(name, "int", 0, 0, 0)], ["int"], [(5,)])
    database = database_of(tds.port, table=name)
    write_snapshot(database, (name,), tmp_path / "o.parquet", password=PASSWORD)
    assert pq.read_table(tmp_path / "o.parquet").to_pylist() == [{name: 5}]
    inside = name.replace("]", "]]")
    assert any(f"FROM [dbo].[{inside}] ORDER" in text for text in tds.statements)
    asked = next(text for text in tds.statements if "sys.objects" in text)
    doubled = name.replace("'", "''")
    assert f"o.name = N'{doubled}'" in asked or f"o.name = '{doubled}'" in asked


def test_what_is_not_there_is_named(tds: Tds, tmp_path: Path) -> None:
    with pytest.raises(DataMissingError, match="there is no table or view 'records'"):
        probe(database_of(tds.port), ("x",), password=PASSWORD)
    tds.tables["records"] = Table([("X", "int", 0, 0, 0)], ["int"])
    with pytest.raises(DataError, match="no column 'x'; it has 'X', and case matters"):
        probe(database_of(tds.port), ("x",), password=PASSWORD)


X = [("x", "int", 0, 0, 0), ("s", "varchar", 0, 0, 0)]


@pytest.mark.parametrize(
    ("table", "said"),
    [
        (Table(X, type="SN"), "is a synonym"),
        (Table(X, type="IF"), "is a function"),
        (Table(X, external=1), "is an external table"),
        (Table(X, predicates=1), "under row-level security"),
        (Table(X, may_see=0), "GRANT VIEW DEFINITION"),
        (Table([("x", "int", 0, 0, 1)]), "computes its column 'x'"),
        (Table(X, type="V", definition=None), "cannot be read"),
        (Table(X, type="V", definition="CREATE VIEW records (x) AS SELECT s FROM t"), "renames"),
        (Table(X, type="V", definition="CREATE VIEW records AS SELECT TOP 2 x FROM t"), "LIMIT"),
        (Table(X, type="V", definition="CREATE VIEW records AS SELECT x FROM other"), "cannot see"),
        (
            Table(X, type="V", definition="CREATE VIEW records AS SELECT x FROM t WHERE s = 7"),
            "a conversion that can fail",
        ),
        (Table(X, type="V", definition="CREATE VIEW records AS SELECT x FROM bad"), "'n'"),
    ],
)
def test_what_may_couple_rows_is_refused_unless_the_site_vouches(
    table: Table, said: str, tds: Tds, tmp_path: Path
) -> None:
    tds.tables["t"] = Table(X)
    tds.tables["bad"] = Table([*X, ("n", "int", 0, 0, 1)])
    tds.tables["records"] = table
    with pytest.raises(DataError, match=rf"{said}.*\(H6\)"):
        probe(database_of(tds.port), ("x",), password=PASSWORD)
    probe(database_of(tds.port), ("x",), password=PASSWORD, vouched=True)


def test_a_plain_view_is_followed_to_its_table(tds: Tds, tmp_path: Path) -> None:
    text = (
        "CREATE VIEW [dbo].[records] AS SELECT x, s AS s FROM [dbo].[t] "
        "WHERE s LIKE N'a%' AND x >= 2\nWITH CHECK OPTION;"
    )
    tds.tables["t"] = Table([*X, ("unused", "int", 0, 0, 0)])
    table = Table([("x", "int", 0, 0, 0)], ["int"], [(2,)], type="V", definition=text)
    assert written(tds, table, tmp_path / "o") == [{"x": 2}]


# the way there

CASES = [
    ("on", "own", "verify-full", True),
    ("login", "own", "verify-full", True),
    ("none", "own", "verify-full", False),
    ("none", "own", "require", False),
    ("on", "stranger", "verify-full", False),
    ("on", "other-name", "verify-full", False),
    ("on", "stranger", "require", True),
]


@pytest.mark.parametrize(("tls", "shown", "mode", "works"), CASES)
def test_a_password_goes_by_tls_to_the_server_that_was_meant(
    tls: str, shown: str, mode: str, works: bool, tmp_path: Path
) -> None:
    own = certificate(tmp_path / "own.pem", "127.0.0.1")
    trusted = own
    if shown == "stranger":
        own = certificate(tmp_path / "stranger.pem", "127.0.0.1")
    elif shown == "other-name":
        own = trusted = certificate(tmp_path / "other.pem", "db.example.org")
    server = Tds(tls, own)
    server.tables["records"] = Table(X)
    settings = f"?sslmode={mode}" + (f"&sslrootcert={trusted}" if mode == "verify-full" else "")
    try:
        database = database_of(server.port, settings)
        if works:
            probe(database, ("x",), password=PASSWORD)
            assert server.encrypted == [True]
        else:
            with pytest.raises(DataError, match=r"TLS failed \(sslmode, sslrootcert\)") as caught:
                probe(database, ("x",), password=PASSWORD)
            assert PASSWORD not in str(caught.value)
            assert server.logins == []  # no password left
    finally:
        server.close()
    assert "FREETDSCONF" not in os.environ


def test_a_file_of_certificates_has_to_be_there(tmp_path: Path) -> None:
    server = Server("u", "db", 1433, "ehr", "verify-full", str(tmp_path / "no.pem"))
    with pytest.raises(DataError, match=r"no\.pem: there is no such file of certificates"):
        configuration(server)


# errors


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@pytest.fixture
def policies(policy_of: Make, monkeypatch: pytest.MonkeyPatch) -> Make:
    monkeypatch.setenv("DB_PASSWORD", PASSWORD)

    def make(port: int, **changes: Any) -> Any:
        url = f"mssql+pymssql://reader@127.0.0.1:{port}/ehr"
        return policy_of(url, ["x"], password_variable="DB_PASSWORD", **changes)

    return make


def test_the_loader_reads_and_a_closed_port_passes(
    policies: Make, tds: Tds, tmp_path: Path
) -> None:
    tds.tables["records"] = Table([("x", "int", 0, 0, 0)], ["int"], [(5,)])
    path = take_snapshot(policies(tds.port), "records", tmp_path)
    assert pq.read_table(path).to_pylist() == [{"x": 5}]
    assert tds.logins[0]["password"] == PASSWORD
    with pytest.raises(SourceUnavailableError, match="cannot be reached") as caught:
        probe_database(policies(closed_port()), "records")
    assert PASSWORD not in str(caught.value)


@pytest.mark.parametrize(
    "says", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n" * 9, b"\x04\x01\xff\xff"]
)
def test_what_is_no_server_ends_in_time(
    says: bytes, policies: Make, odd_server: Callable[[bytes], int], tmp_path: Path
) -> None:
    start = time.monotonic()
    with pytest.raises(DataError, match="database 'ehr' at 127.0.0.1|took longer") as caught:
        take_snapshot(policies(odd_server(says), timeout=2.0), "records", tmp_path)
    assert time.monotonic() - start < 15
    assert PASSWORD not in str(caught.value)
    assert list((tmp_path / "snapshots").iterdir()) == []


@pytest.mark.parametrize(
    ("place", "number", "said", "passing"),
    [
        ("login", 18456, "login failed", False),
        ("login", 4060, "no such database", False),
        ("sys.objects", 3952, "ALTER DATABASE .* SET ALLOW_SNAPSHOT_ISOLATION ON", False),
        ("sys.columns", 1205, "deadlock", True),
        ("sys.objects", 40613, "error 40613 of SQL Server", True),
        ("sys.objects", 245, "error 245 of SQL Server", False),
    ],
)
def test_an_error_of_the_server_is_its_number_and_never_its_text(
    place: str, number: int, said: str, passing: bool, tds: Tds, policies: Make
) -> None:
    tds.tables["records"] = Table([("x", "int", 0, 0, 0)], ["int"])
    tds.failures[place] = ServerError(number, f"the value 'SECRETCELL' of {PASSWORD}")
    with pytest.raises(DataError, match=said) as caught:
        probe_database(policies(tds.port), "records")
    assert isinstance(caught.value, SourceUnavailableError) == passing
    assert "SECRET" not in str(caught.value)
    assert PASSWORD not in str(caught.value)


def test_an_error_at_the_rows_quotes_none_of_them(tds: Tds, tmp_path: Path) -> None:
    tds.failures["[dbo].[records]"] = ServerError(245, "converting the value 'SECRETCELL'")
    with pytest.raises(DataError, match=r"error 245 of SQL Server$"):
        written(tds, Table([("x", "int", 0, 0, 0)], ["int"]), tmp_path / "o")


def test_a_query_that_takes_too_long_is_ended(tds: Tds, tmp_path: Path) -> None:
    tds.tables["records"] = Table([("x", "int", 0, 0, 0)], ["int"], [(1,)])
    tds.sleep = 10
    start = time.monotonic()
    with pytest.raises(DataError, match="did not answer in time"):
        write_snapshot(
            database_of(tds.port, timeout=1.0), ("x",), tmp_path / "o", password=PASSWORD
        )
    assert time.monotonic() - start < 8


def test_the_transaction_is_rolled_back(tds: Tds) -> None:
    tds.tables["records"] = Table(X)
    with reading(database_of(tds.port), PASSWORD):
        before = len(tds.statements)
    assert "ROLLBACK TRAN" in "".join(tds.statements[before:])
    assert not [text for text in tds.statements if text.strip().startswith("COMMIT")]


def test_a_driver_that_is_missing_is_named_with_its_extra(
    policies: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader.importlib.util, "find_spec", lambda name: name != "pymssql" or None)
    with pytest.raises(InputError, match=r"pymssql is not installed.*\[sqlserver\]"):
        take_snapshot(policies(1), "records", tmp_path)


@pytest.mark.parametrize("statement", [sql_server.OBJECT, sql_server.COLUMNS, SELECT])
def test_the_statements_are_t_sql(statement: str) -> None:
    tree = sqlglot.parse_one(statement, dialect="tsql", error_level=sqlglot.ErrorLevel.RAISE)
    assert isinstance(tree, sqlglot.exp.Select)


@pytest.mark.parametrize(
    ("field", "kind"),
    [
        (Field("x", "decimal", 38, 3), "wide"), (Field("x", "decimal", 10, 3), "number"),
        (Field("x", "bit"), "number"), (Field("x", "ntext"), "text"), (Field("x", "time"), "time"),
        (Field("x", "uniqueidentifier"), "other"),
    ],
)  # fmt: skip
def test_kinds(field: Field, kind: str) -> None:
    assert SqlServer().kind(field) == kind
