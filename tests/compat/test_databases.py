"""What :mod:`privet.common.compat.databases` relies on: what the drivers themselves say."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest

from privet.common.compat.databases import (
    oracle_codes,
    oracle_refuses,
    postgres_refuses,
    sql_server_numbers,
)


@pytest.fixture
def closed() -> int:
    """A port where nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def refusing() -> Iterator[int]:
    """A port that answers PostgreSQL's first message as a server that knows no such user."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            found, _ = listener.accept()
            with found:
                found.recv(1000)
                fields = b'SFATAL\0VFATAL\0C28P01\0Mpassword authentication failed for user "x"\0\0'
                found.sendall(b"E" + (len(fields) + 4).to_bytes(4, "big") + fields)

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        yield int(listener.getsockname()[1])
        thread.join(5)


def test_postgresqls_library_says_why_and_gives_no_code(closed: int, refusing: int) -> None:
    psycopg = pytest.importorskip("psycopg")
    how = {
        "host": "127.0.0.1",
        "user": "x",
        "dbname": "x",
        "sslmode": "disable",
        "connect_timeout": 5,
    }
    with pytest.raises(psycopg.OperationalError) as nobody:
        psycopg.connect(port=closed, **how)
    assert nobody.value.sqlstate is None and not postgres_refuses(str(nobody.value))
    with pytest.raises(psycopg.OperationalError) as refused:
        psycopg.connect(port=refusing, **how)
    assert refused.value.sqlstate is None and postgres_refuses(str(refused.value))


def test_oracles_driver_has_a_code_of_its_own(closed: int) -> None:
    oracledb = pytest.importorskip("oracledb")
    with pytest.raises(oracledb.Error) as nobody:
        oracledb.connect(user="x", password="x", dsn=f"127.0.0.1:{closed}/x", tcp_connect_timeout=5)
    codes = oracle_codes(nobody.value, str(nobody.value))
    assert codes[0] == nobody.value.args[0].full_code and codes[0].startswith("DPY-")
    assert not oracle_refuses(str(nobody.value))
    assert oracle_codes(None, "ORA-01017: no; Help: ORA-1") == ["ORA-01017"]


def test_freetds_says_beside_pymssqls_number_what_failed(closed: int) -> None:
    pymssql = pytest.importorskip("pymssql")
    with pytest.raises(pymssql.Error) as nobody:
        pymssql.connect(
            server="127.0.0.1", port=str(closed), user="x", password="x", login_timeout=5
        )
    assert "DB-Lib error message" in str(nobody.value)
    # On a busy machine the connection is found dead (20047) before it is found closed.
    assert sql_server_numbers(nobody.value)[0] in (20009, 20002, 20047)
    plain = pymssql.Error(18456, b"Login failed. DB-Lib error message 20018, severity 14:\n")
    assert sql_server_numbers(plain) == [18456, 20018]
