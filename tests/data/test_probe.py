"""A database is asked for its columns before anything is paid for, and for no row."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from typing import Any

import pytest
from postgres_kit import Postgres

from privet.client.data import sql
from privet.client.data.loader import probe_database
from privet.client.data.source import require_source
from privet.common.errors import DataError, PolicyError
from privet.common.plan import Plan

Make = Callable[..., Any]
pytestmark = pytest.mark.xdist_group("postgres")
SQLITE = "sqlite:///records.db"


def test_a_table_that_can_be_read_passes(sqlite: sqlite3.Connection, policy_of: Make) -> None:
    sqlite.execute("CREATE TABLE records (x integer, y text)")
    probe_database(policy_of(SQLITE, ["x", "y"]), "records")


@pytest.mark.parametrize(
    ("make", "columns", "why"),
    [
        ("CREATE TABLE others (x integer)", ["x"], "no table or view 'records'"),
        ("CREATE TABLE records (y integer)", ["x"], "no column 'x'"),
    ],
)
def test_what_is_missing_is_said(
    sqlite: sqlite3.Connection, policy_of: Make, make: str, columns: list[str], why: str
) -> None:
    sqlite.execute(make)
    with pytest.raises(DataError, match=why):
        probe_database(policy_of(SQLITE, columns), "records")


def test_a_database_that_is_not_there(policy_of: Make) -> None:
    with pytest.raises(DataError, match="there is no such file"):
        probe_database(policy_of(SQLITE, ["x"]), "records")


def test_no_row_is_read_or_counted(
    sqlite: sqlite3.Connection, policy_of: Make, tmp_path: Any
) -> None:
    """Nothing but the catalogue is asked, of an undeclared column too; a snapshot does read."""
    sqlite.execute("CREATE TABLE records (x)")
    database = policy_of(SQLITE, ["x"]).data["records"].sql
    database = database.model_copy(update={"url": f"sqlite:///{tmp_path / 'records.db'}"})

    def asked(work: Callable[[], None]) -> list[str]:
        said: list[str] = []
        real = sqlite3.connect

        def traced(*words: Any, **more: Any) -> sqlite3.Connection:
            made: sqlite3.Connection = real(*words, **more)
            made.set_trace_callback(said.append)
            return made

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sqlite3, "connect", traced)
            work()
        return [one for one in said if "records" in one and "PRAGMA" not in one]

    found = asked(lambda: sql.probe(database, ("x",)))
    assert all("sqlite_master" in one for one in found)
    # The control: taking a snapshot looks at the values of a column that declares no type.
    snapshot = asked(lambda: sql.write_snapshot(database, ("x",), tmp_path / "out"))
    assert any("sqlite_master" not in one for one in snapshot)
    for row in range(3):
        sqlite.execute("INSERT INTO records VALUES (?)", (row,))
    assert asked(lambda: sql.probe(database, ("x",))) == found


def test_postgresql_says_no_by_the_password_and_by_the_type(
    server: Postgres, run_sql: Make, policy_of: Make, tmp_path: Any
) -> None:
    run_sql("CREATE TABLE records (x integer, b bytea)")
    probe_database(policy_of(server.url(), ["x"]), "records")
    with pytest.raises(DataError, match="is not read"):
        probe_database(policy_of(server.url(), ["b"]), "records")
    policy = policy_of(server.url(), ["x"])
    (tmp_path / "db.password").write_text("another\n")
    with pytest.raises(DataError, match="password"):
        probe_database(policy, "records")


def test_a_password_that_others_may_read_is_found_without_connecting(
    policy_of: Make, plan_value: Make, tmp_path: Any
) -> None:
    policy = policy_of("postgresql+psycopg://reader@127.0.0.1:1/none", ["x1"])
    plan = Plan.parse(plan_value())
    require_source(policy, "records", plan)
    (tmp_path / "db.password").chmod(0o644)
    with pytest.raises(PolicyError, match="chmod 600"):
        require_source(policy, "records", plan)
