"""The loader: a process that reads one table, writes nothing there, and tells nobody else."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pyarrow.parquet as pq
import pytest
import sqlalchemy as sa
from postgres_kit import OWNER, OWNER_PASSWORD, READER_PASSWORD, Postgres
from process_kit import LOOKS_IN

from privet.client.data import loader
from privet.client.data.loader import take_snapshot
from privet.client.data.sql import reading, write_snapshot
from privet.client.data.tables import read_table
from privet.common.errors import DataError, InputError, PolicyError
from privet.privacy.database import Database
from privet.privacy.policy import Policy

Make = Callable[..., Any]
pytestmark = pytest.mark.xdist_group("postgres")

SQLITE = "sqlite:///records.db"
BOTH = pytest.mark.parametrize("where", ["sqlite", "postgresql"])


def numbers(path: Path) -> list[int]:
    found: list[int] = pq.read_table(path)["x"].to_pylist()
    return found


def kept(home: Path) -> list[str]:
    return sorted(path.name for path in (home / "snapshots").iterdir())


@pytest.fixture
def records(run_sql: Make, sqlite: sqlite3.Connection, server: Postgres, policy_of: Make) -> Make:
    """Five records in both databases; returns the policy for one of them."""
    for execute in (run_sql, sqlite.execute):
        execute("CREATE TABLE records (x integer)")
        execute("INSERT INTO records VALUES (1), (2), (3), (4), (5)")
    urls = {"sqlite": SQLITE, "postgresql": server.url()}
    return lambda where, **changes: policy_of(urls[where], ["x"], **changes)


def database_of(policy: Policy) -> Database:
    """The policy's database; SQLite's file by its whole path."""
    database = policy.data["records"].sql
    assert database is not None
    if database.file is None:
        return database
    return database.model_copy(update={"url": f"sqlite:///{policy.folder / database.file}"})


# what it leaves


@BOTH
def test_a_snapshot_is_its_owners_file(where: str, records: Make, tmp_path: Path) -> None:
    path = take_snapshot(records(where), "records", tmp_path / "home")
    assert path == tmp_path / "home" / "snapshots" / "records.parquet"
    assert numbers(path) == [1, 2, 3, 4, 5]
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert kept(tmp_path / "home") == ["records.parquet"]


def test_a_later_snapshot_replaces_the_first_and_what_was_left(
    records: Make, sqlite: sqlite3.Connection, tmp_path: Path
) -> None:
    first = take_snapshot(records("sqlite"), "records", tmp_path)
    (tmp_path / "snapshots" / ".records.abcdefgh.part").write_bytes(b"of a killed process")
    sqlite.execute("DELETE FROM records WHERE x > 2")
    assert numbers(take_snapshot(records("sqlite"), "records", tmp_path)) == [1, 2]
    assert kept(tmp_path) == [first.name]


def test_a_row_that_does_not_fit_is_left_out_and_a_damaged_file_leaves_no_half_snapshot(
    records: Make, sqlite: sqlite3.Connection, tmp_path: Path
) -> None:
    rows = [(n,) for n in range(30_000)]
    sqlite.execute("BEGIN")
    sqlite.executemany("INSERT INTO records VALUES (?)", [*rows, ("secret",)])
    sqlite.execute("COMMIT")
    path = take_snapshot(records("sqlite"), "records", tmp_path)
    found = read_table(path)
    assert len(found.frame) == 30_005
    assert [fault.place for fault in found.faults] == [30_006]  # texts sort after numbers
    whole = path.read_bytes()
    # The disk loses a page: that is the table's fault, and no single row's.
    file = tmp_path / "records.db"
    damaged = bytearray(file.read_bytes())
    damaged[-4096 * 3 : -4096] = bytes(4096 * 2)
    sqlite.close()
    file.write_bytes(damaged)
    with pytest.raises(DataError, match="malformed"):
        take_snapshot(records("sqlite"), "records", tmp_path)
    assert kept(tmp_path) == ["records.parquet"]
    assert (tmp_path / "snapshots" / "records.parquet").read_bytes() == whole


# read-only


def test_postgresql_refuses_a_write_of_the_same_connection(
    server: Postgres, records: Make, run_sql: Make
) -> None:
    # The owner may write: only the transaction keeps it from that.
    policy = records("postgresql")
    database = database_of(policy).model_copy(update={"url": server.url(OWNER)})
    for statement in (
        "INSERT INTO records VALUES (6)", "DELETE FROM records", "CREATE TABLE more (x integer)",
        "DROP TABLE records", "UPDATE records SET x = 0", "CREATE SEQUENCE s",
    ):  # fmt: skip
        with (
            pytest.raises(sa.exc.DBAPIError, match="read-only transaction"),
            reading(database, OWNER_PASSWORD) as connection,
        ):
            connection.execute(sa.text(statement))
    assert run_sql("SELECT sum(x) FROM records").fetchone() == (15,)


def test_a_view_that_writes_is_refused(
    server: Postgres, records: Make, run_sql: Make, tmp_path: Path
) -> None:
    run_sql(
        "CREATE FUNCTION note() RETURNS integer LANGUAGE sql VOLATILE SECURITY DEFINER AS "
        "'INSERT INTO public.records VALUES (99) RETURNING x'"
    )
    run_sql("CREATE VIEW sly AS SELECT note() AS x")
    for vouched, said in ((True, "read-only transaction"), (False, r"the view 'sly' .*\(H6\)")):
        with pytest.raises(DataError, match=said):
            write_snapshot(
                database_of(records("postgresql", table="sly")), ("x",), tmp_path / "out",
                password=READER_PASSWORD, vouched=vouched,
            )  # fmt: skip
    assert run_sql("SELECT count(*) FROM records").fetchone() == (5,)


def test_sqlite_refuses_a_write_of_the_same_connection(
    records: Make, sqlite: sqlite3.Connection, tmp_path: Path
) -> None:
    before = (tmp_path / "records.db").read_bytes()
    for statement in ("INSERT INTO records VALUES (6)", "DROP TABLE records"):
        with (
            pytest.raises(sa.exc.DBAPIError, match="attempt to write a readonly database"),
            reading(database_of(records("sqlite"))) as connection,
        ):
            connection.exec_driver_sql("PRAGMA query_only = OFF")  # mode=ro alone holds
            connection.exec_driver_sql(statement)
    take_snapshot(records("sqlite"), "records", tmp_path)
    assert (tmp_path / "records.db").read_bytes() == before
    assert sorted(tmp_path.glob("records.db*")) == [tmp_path / "records.db"]


def test_a_user_who_may_only_select_is_enough(
    server: Postgres, records: Make, tmp_path: Path
) -> None:
    with (
        psycopg.connect(
            host="127.0.0.1",
            port=server.port,
            dbname="ehr",
            user="reader",
            password=READER_PASSWORD,
        ) as reader,
        pytest.raises(psycopg.errors.InsufficientPrivilege),
    ):
        reader.execute("INSERT INTO records VALUES (6)")
    assert numbers(take_snapshot(records("postgresql"), "records", tmp_path)) == [1, 2, 3, 4, 5]


@BOTH
def test_one_transaction_sees_one_state(
    where: str, records: Make, run_sql: Make, sqlite: sqlite3.Connection
) -> None:
    database, count = database_of(records(where)), sa.text("SELECT count(*) FROM records")
    sqlite.execute("PRAGMA journal_mode = WAL")
    with reading(database, READER_PASSWORD) as connection:
        assert connection.execute(count).scalar() == 5
        # Another one writes, and commits.
        execute = run_sql if where == "postgresql" else sqlite.execute
        execute("INSERT INTO records VALUES (6)")
        assert connection.execute(count).scalar() == 5
    with reading(database, READER_PASSWORD) as connection:
        assert connection.execute(count).scalar() == 6


def test_rows_that_are_added_while_it_reads_are_not_in_the_snapshot(
    records: Make, run_sql: Make, server: Postgres, tmp_path: Path
) -> None:
    run_sql("INSERT INTO records SELECT 1 FROM generate_series(1, 50000)")
    done = threading.Event()

    def write() -> None:
        with server.connect() as owner:
            while not done.wait(0.01):
                owner.execute("INSERT INTO records SELECT 2 FROM generate_series(1, 1000)")

    writer = threading.Thread(target=write)
    writer.start()
    try:
        database = database_of(records("postgresql"))
        write_snapshot(database, ("x",), tmp_path / "out", password=READER_PASSWORD)
    finally:
        done.set()
        writer.join()
    # Each write is there whole or not at all.
    assert (len(numbers(tmp_path / "out")) - 50_005) % 1000 == 0


# secrets


def blocked(server: Postgres, run_sql: Make) -> psycopg.Connection[Any]:
    """Lock the table, so that a loader waits; closing the connection lets it go on."""
    holder = server.connect()
    holder.execute("BEGIN")
    holder.execute("LOCK TABLE records IN ACCESS EXCLUSIVE MODE")
    return holder


class Taking:
    """``take_snapshot`` in a thread, and the process that it started."""

    def __init__(self, policy: Policy, home: Path) -> None:
        self.result: Path | Exception | None = None
        self._thread = threading.Thread(target=self._run, args=(policy, home), daemon=True)
        self._thread.start()

    def _run(self, policy: Policy, home: Path) -> None:
        try:
            self.result = take_snapshot(policy, "records", home)
        except Exception as error:
            self.result = error

    def waiting(self, run_sql: Make) -> int:
        """Return the loader's number once it waits for the table."""
        end = time.monotonic() + 60
        query = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
        while run_sql(query).fetchone() is None:
            assert self.result is None, self.result
            assert time.monotonic() < end
            time.sleep(0.05)
        children = Path(f"/proc/{os.getpid()}/task").glob("*/children")
        numbers = [int(n) for path in children for n in path.read_text().split()]
        return next(n for n in numbers if "client.data.loader" in arguments(n))

    def join(self) -> Path | Exception | None:
        self._thread.join(60)
        assert not self._thread.is_alive()
        return self.result


def arguments(number: int) -> str:
    return Path(f"/proc/{number}/cmdline").read_text()


@LOOKS_IN
def test_the_loader_has_no_passphrase_and_its_password_is_nowhere_to_see(
    server: Postgres, records: Make, run_sql: Make, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.setenv("PRIVET_PASSPHRASE", "open sesame")
    monkeypatch.setenv("DB_PASSWORD", READER_PASSWORD)
    policy = records("postgresql", password_variable="DB_PASSWORD")
    caplog.set_level(logging.DEBUG)
    with blocked(server, run_sql) as holder:
        monkeypatch.setenv("PGHOSTADDR", "192.0.2.1")  # would lead it elsewhere
        taking = Taking(policy, tmp_path)
        number = taking.waiting(run_sql)
        environment = Path(f"/proc/{number}/environ").read_text()
        seen = [environment, arguments(number)]
        opened = [str(path.readlink()) for path in Path(f"/proc/{number}/fd").iterdir()]
        holder.execute("COMMIT")
    path = taking.join()
    assert isinstance(path, Path), path
    assert "PATH=" in environment
    assert "PRIVET_PASSPHRASE" not in environment
    assert "PGHOSTADDR" not in environment
    assert not [name for name in opened if name.endswith((".pem", ".toml", ".password"))]
    seen += [caplog.text, server.log, path.read_bytes().decode("latin-1")]
    for text in seen:
        assert READER_PASSWORD not in text
        assert "open sesame" not in text


def test_no_error_shows_a_password(records: Make, tmp_path: Path) -> None:
    policy = records("postgresql")
    for password in ("wrong-a81f", "re ad'er=\\x", "récords"):
        with pytest.raises(DataError, match="authentication failed") as caught:
            write_snapshot(database_of(policy), ("x",), tmp_path / "out", password=password)
        assert password not in str(caught.value)
    # Where the server itself says the word, it is struck out.
    (tmp_path / "db.password").write_text("reader")
    with pytest.raises(DataError, match=r"for user \"\*\*\*\"") as caught:
        take_snapshot(policy, "records", tmp_path)
    assert caught.value.__cause__ is None


def test_a_killed_loader_leaves_nothing(
    server: Postgres, records: Make, run_sql: Make, tmp_path: Path
) -> None:
    before = take_snapshot(records("postgresql"), "records", tmp_path).read_bytes()
    run_sql("INSERT INTO records VALUES (6)")
    with blocked(server, run_sql):
        taking = Taking(records("postgresql"), tmp_path)
        number = taking.waiting(run_sql)
        assert len(kept(tmp_path)) == 2  # the old one, and the new one's beginning
        os.kill(number, signal.SIGKILL)
        result = taking.join()
    assert isinstance(result, DataError)
    assert "the loader ended with signal 9" in str(result)
    assert kept(tmp_path) == ["records.parquet"]
    assert (tmp_path / "snapshots" / "records.parquet").read_bytes() == before


def test_a_loader_ends_with_its_parent(
    server: Postgres, records: Make, run_sql: Make, tmp_path: Path
) -> None:
    records("postgresql")
    code = (
        "from privet.client.data.loader import take_snapshot\n"
        "from privet.privacy.policy import Policy\n"
        f"take_snapshot(Policy.load({str(tmp_path / 'site.toml')!r}), 'records', "
        f"__import__('pathlib').Path({str(tmp_path)!r}))"
    )
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'privet'"
    with blocked(server, run_sql):
        parent = subprocess.Popen([sys.executable, "-c", code])
        until(lambda: run_sql(waiting + " AND wait_event_type = 'Lock'").fetchone() == (1,))
        parent.kill()
        parent.wait()
        before = set(processes())
        assert before
        until(lambda: not set(processes()) & before)
    # A loader that had gone on would have written now.
    until(lambda: run_sql(waiting).fetchone() == (0,))
    assert not (tmp_path / "snapshots" / "records.parquet").exists()
    take_snapshot(records("postgresql"), "records", tmp_path)
    assert kept(tmp_path) == ["records.parquet"]


def processes() -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if "client.data.loader" in arguments(int(path.name)):
                found.append(int(path.name))
        except OSError:
            continue
    return found


def until(check: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)


# errors, each with its own words


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def test_a_host_that_is_not_there(policy_of: Make, tmp_path: Path) -> None:
    policy = policy_of(f"postgresql://reader@127.0.0.1:{closed_port()}/ehr", ["x"])
    with pytest.raises(
        DataError, match=r"data set 'records': database 'ehr' at 127.0.0.1: .*refus"
    ):
        take_snapshot(policy, "records", tmp_path)
    policy = policy_of("postgresql://reader@db.invalid/ehr?sslmode=disable", ["x"])
    with pytest.raises(DataError, match="database 'ehr' at db.invalid: .*resolve"):
        take_snapshot(policy, "records", tmp_path)


def test_a_database_that_does_not_answer_in_time(
    server: Postgres, records: Make, run_sql: Make, tmp_path: Path
) -> None:
    with blocked(server, run_sql), pytest.raises(DataError) as caught:
        take_snapshot(records("postgresql", timeout=1.0), "records", tmp_path)
    assert "took longer than 1 s (sql.timeout)" in str(caught.value)
    assert kept(tmp_path) == []
    # The server itself gives up a statement, too.
    with blocked(server, run_sql), pytest.raises(DataError, match="statement timeout"):
        write_snapshot(
            database_of(records("postgresql", timeout=1.0)), ("x",), tmp_path / "out",
            password=READER_PASSWORD,
        )  # fmt: skip


@BOTH
@pytest.mark.parametrize(
    ("changes", "columns", "said"),
    [
        ({"table": "record"}, ("x",), "there is no table or view 'record'"),
        ({}, ("x", "X"), "'records' has no column 'X'"),
    ],
)
def test_what_is_not_there_is_named(
    where: str, changes: Any, columns: Any, said: str, records: Make, tmp_path: Path
) -> None:
    database = database_of(records(where)).model_copy(update=changes)
    with pytest.raises(InputError) as caught:
        write_snapshot(database, columns, tmp_path / "out", password=READER_PASSWORD)
    assert said in str(caught.value)


def test_a_user_without_the_right_and_a_database_that_is_not_there(
    server: Postgres, records: Make, run_sql: Make, tmp_path: Path
) -> None:
    database = database_of(records("postgresql"))
    run_sql("REVOKE SELECT ON records FROM reader")
    with pytest.raises(DataError, match="permission denied for table records"):
        write_snapshot(database, ("x",), tmp_path / "out", password=READER_PASSWORD)
    other = database.model_copy(update={"url": server.url(database="other")})
    with pytest.raises(DataError, match='database "other" does not exist'):
        write_snapshot(other, ("x",), tmp_path / "out", password=READER_PASSWORD)


def test_dates_that_python_does_not_know_are_cells_like_any_other(
    records: Make, run_sql: Make, tmp_path: Path
) -> None:
    run_sql("CREATE TABLE days (x date, t timestamptz, n integer)")
    for row in (
        "('infinity', '-infinity', 1)",
        "('0044-03-15 BC', '12000-01-01', 2)",
        "('2024-02-29', '2024-02-29 12:00:00+05', 3)",
    ):
        run_sql(f"INSERT INTO days VALUES {row}")
    days = database_of(records("postgresql")).model_copy(update={"table": "days"})
    columns = ("n", "x", "t")
    write_snapshot(days, columns, tmp_path / "o.parquet", password=READER_PASSWORD)
    assert read_table(tmp_path / "o.parquet").frame.to_numpy().tolist() == [
        [1, "infinity", "-infinity"],
        [2, "0044-03-15 BC", "12000-01-01 00:00:00+00"],
        [3, "2024-02-29", "2024-02-29T07:00:00+00:00"],
    ]


def test_an_unprotected_server_is_refused_where_protection_is_asked_for(
    server: Postgres, records: Make, tmp_path: Path
) -> None:
    for mode in ("require", "verify-full"):
        database = database_of(records("postgresql"))
        database = database.model_copy(update={"url": f"{server.url()}?sslmode={mode}"})
        with pytest.raises(DataError, match="SSL|root certificate"):
            write_snapshot(database, ("x",), tmp_path / "out", password=READER_PASSWORD)


def test_a_file_of_sqlite_that_is_none(records: Make, tmp_path: Path) -> None:
    policy = records("sqlite")
    (tmp_path / "records.db").write_bytes(b"not a database" * 100)
    with pytest.raises(DataError, match="file is not a database"):
        take_snapshot(policy, "records", tmp_path)
    (tmp_path / "records.db").unlink()
    with pytest.raises(DataError, match="there is no such file"):
        take_snapshot(policy, "records", tmp_path)
    assert not (tmp_path / "records.db").exists()


@pytest.mark.parametrize(
    ("prepare", "said"),
    [
        (lambda path: path.chmod(0o640), "others can read it"),
        (lambda path: path.unlink(), "No such file"),
        (lambda path: path.write_text("\n"), "the first line is empty"),
    ],
)
def test_a_password_file_is_its_owners(
    prepare: Callable[[Path], Any], said: str, policy_of: Make, tmp_path: Path
) -> None:
    policy = policy_of("postgresql://reader@127.0.0.1/ehr", ["x"])
    prepare(tmp_path / "db.password")
    with pytest.raises(PolicyError, match=said):
        take_snapshot(policy, "records", tmp_path)


def test_a_variable_that_is_not_set(policy_of: Make, tmp_path: Path) -> None:
    policy = policy_of("postgresql://reader@127.0.0.1/ehr", ["x"], password_variable="NO_SUCH")
    with pytest.raises(PolicyError, match="the variable NO_SUCH is not set"):
        take_snapshot(policy, "records", tmp_path)


def test_a_driver_that_is_missing_is_named(
    policy_of: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    monkeypatch.setattr(loader.importlib.util, "find_spec", lambda name: name != "psycopg" or None)
    policy = policy_of("postgresql://reader@127.0.0.1/ehr", ["x"])
    with pytest.raises(InputError, match=r"psycopg is not installed.*\[sql\]"):
        take_snapshot(policy, "records", tmp_path)


def test_the_gates_part_is_light(root: Path) -> None:
    code = (
        "import sys, privet.client.data.loader; "
        "print(sorted({'torch', 'pandas', 'sqlalchemy', 'psycopg', 'scipy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.replace("'", '"')) == []
