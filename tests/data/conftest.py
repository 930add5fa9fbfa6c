"""One PostgreSQL server for these tests, and policies that name its tables."""

from __future__ import annotations

import socket
import sqlite3
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from postgres_kit import READER, READER_PASSWORD, Postgres

from privet.privacy.policy import Policy


@pytest.fixture(scope="session")
def server() -> Iterator[Postgres]:
    started = Postgres()
    yield started
    started.close()


@pytest.fixture
def run_sql(server: Postgres) -> Iterator[Callable[..., Any]]:
    """Run statements as the owner in an empty schema ``public`` that the reader may read."""
    with server.connect() as owner:
        owner.execute("DROP SCHEMA public CASCADE")
        owner.execute("CREATE SCHEMA public")
        owner.execute(f"GRANT USAGE ON SCHEMA public TO {READER}")
        owner.execute(
            f"ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT SELECT ON TABLES TO {READER}"
        )
        yield owner.execute


@pytest.fixture
def sqlite(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    """``records.db`` beside the policy."""
    connection = sqlite3.connect(tmp_path / "records.db", isolation_level=None)
    yield connection
    connection.close()


@pytest.fixture
def policy_of(tmp_path: Path, write_toml: Any) -> Callable[..., Policy]:
    """Return a policy whose data set ``records`` is of a table; changes go into its ``sql``."""

    def make(url: str, columns: list[str], *, person: str | None = None, **sql: Any) -> Policy:
        named = {"url": url, "table": "records", **sql}
        if url.startswith("postgresql") and "password_variable" not in sql:
            named.setdefault("password_file", "db.password")
            path = tmp_path / "db.password"
            if not path.exists():
                path.touch(mode=0o600)
                path.write_text(f"{READER_PASSWORD}\n")
        data = {
            "population": "patients",
            "nominal_size": 60,
            "columns": columns,
            **({"person_column": person} if person else {}),
            "sql": named,
        }
        value = {
            "site": "North",
            "populations": {"patients": {"unit": "record", "epsilon": 20.0, "delta": 1e-4}},
            "data": {"records": data},
        }
        return Policy.load(write_toml(tmp_path / "site.toml", value))

    return make


@pytest.fixture
def odd_server() -> Iterator[Callable[[bytes], int]]:
    """Start what is no database: it says some bytes to all who come and hangs up; b"": it waits."""
    listeners: list[socket.socket] = []
    held: list[socket.socket] = []

    def serve(listener: socket.socket, says: bytes) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            held.append(connection)
            if says:
                connection.sendall(says)
                connection.shutdown(socket.SHUT_WR)

    def start(says: bytes) -> int:
        listener = socket.create_server(("127.0.0.1", 0))
        listeners.append(listener)
        threading.Thread(target=serve, args=(listener, says), daemon=True).start()
        return int(listener.getsockname()[1])

    yield start
    for one in (*listeners, *held):
        one.close()
