"""A view is plain where each of its rows follows from one stored record (H6)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from postgres_kit import READER_PASSWORD, Postgres

from privet.client.data.sql import write_snapshot
from privet.client.data.tables import read_table
from privet.common.errors import DataError
from privet.privacy.policy import Policy

Make = Callable[..., Any]
pytestmark = pytest.mark.xdist_group("postgres")
BOTH = pytest.mark.parametrize("where", ["sqlite", "postgresql"])

PLAIN = [
    "SELECT x, s FROM t",
    "SELECT s AS s, x AS x FROM t WHERE x > 1 AND (s LIKE 'a%' OR s IS NULL)",
    "SELECT x, s FROM t WHERE s IN ('a', 'b') AND x BETWEEN 0 AND 9 AND NOT x = 7",
]
COUPLED = [
    "SELECT DISTINCT x, s FROM t",
    "SELECT x, s FROM t LIMIT 2",
    "SELECT x, s FROM t ORDER BY x LIMIT 2",
    "SELECT max(x) AS x, s FROM t GROUP BY s",
    "SELECT row_number() OVER (ORDER BY x) AS x, s FROM t",
    "SELECT x - (SELECT min(x) FROM t) AS x, s FROM t",
    "SELECT t.x, u.s FROM t JOIN t u ON u.x = t.x + 1",
    "SELECT t.x, u.s FROM t, t u",
    "SELECT x, s FROM t WHERE x > (SELECT avg(x) FROM t)",
    "SELECT x, s FROM t WHERE EXISTS (SELECT 1 FROM t u WHERE u.x > t.x)",
    "SELECT x, s FROM t UNION SELECT x, s FROM t",
    "SELECT x, s FROM (SELECT x, s FROM t LIMIT 2) q",
    "WITH q AS (SELECT x, s FROM t LIMIT 2) SELECT x, s FROM q",
    "SELECT CAST(s AS integer) AS x, s FROM t",
    "SELECT x, s FROM t WHERE CAST(s AS integer) > 3",
    "SELECT x, s FROM t WHERE length(s) > 3",
    "SELECT x, s FROM t WHERE -x < 5",
    "SELECT x, s FROM t WHERE 'a' LIKE s",
]
IN_TABLE = ["SELECT x, s FROM t WHERE x IN top", "SELECT x, s FROM t WHERE x NOT IN main.top"]
"""Only SQLite takes a table's name for a list."""


@pytest.fixture
def view(
    policy_of: Make, run_sql: Make, sqlite: Any, server: Postgres, tmp_path: Path
) -> Callable[..., tuple[Policy, Callable[..., list[Any]]]]:
    """Make the view ``records``; return what reads it."""

    def make(where: str, query: str, *, over: str = "", top: str = "") -> Callable[..., list[Any]]:
        execute = run_sql if where == "postgresql" else sqlite.execute
        url = server.url() if where == "postgresql" else f"sqlite:///{tmp_path / 'records.db'}"
        execute("CREATE TABLE t (x integer, s text)")
        execute("INSERT INTO t VALUES (1, 'a'), (2, 'ab'), (3, NULL)")
        if over:
            execute(f"CREATE VIEW below AS {over}")
        if top:
            execute(f"CREATE VIEW top AS {top}")
        execute(f"CREATE VIEW records AS {query}")
        data = policy_of(url, ["x", "s"]).data["records"]
        assert data.sql is not None

        def read(**how: Any) -> list[Any]:
            write_snapshot(
                data.sql, data.columns, tmp_path / "out.parquet", password=READER_PASSWORD, **how
            )
            rows: list[Any] = read_table(tmp_path / "out.parquet").frame.to_numpy().tolist()
            return rows

        return read

    return make


@BOTH
@pytest.mark.parametrize("query", PLAIN)
def test_a_plain_view_is_read(where: str, query: str, view: Make) -> None:
    assert all(row[0] in (1, 2, 3) for row in view(where, query)())


@BOTH
@pytest.mark.parametrize("query", COUPLED)
def test_a_view_that_may_couple_rows_is_read_only_where_the_site_vouches(
    where: str, query: str, view: Make
) -> None:
    read = view(where, query)
    with pytest.raises(DataError, match=r"the view 'records' .*\(H6\).*'independent'"):
        read()
    if "CAST" not in query:  # which fails by itself
        read(vouched=True)


@pytest.mark.parametrize("query", IN_TABLE)
def test_a_table_in_place_of_a_list_is_no_list(query: str, view: Make) -> None:
    with pytest.raises(DataError, match="chooses rows by another table"):
        view("sqlite", query, top="SELECT max(x) FROM t")()


@BOTH
def test_a_view_upon_a_view_is_followed(where: str, view: Make) -> None:
    read = view(where, "SELECT x, s FROM below WHERE x > 1", over="SELECT x, s FROM t LIMIT 2")
    with pytest.raises(DataError, match="the view 'below' has a clause LIMIT"):
        read()


def test_what_keeps_no_rows_of_its_own_is_not_plain(
    policy_of: Make, run_sql: Make, server: Postgres, tmp_path: Path
) -> None:
    run_sql("CREATE TABLE t (x integer)")
    run_sql("CREATE MATERIALIZED VIEW records AS SELECT count(*) AS x FROM t")
    run_sql("CREATE TABLE guarded (x integer)")
    run_sql("ALTER TABLE guarded ENABLE ROW LEVEL SECURITY")
    for table, said in (("records", "a materialised view"), ("guarded", "row security")):
        data = policy_of(server.url(), ["x"], table=table).data["records"]
        with pytest.raises(DataError, match=said):
            write_snapshot(data.sql, ("x",), tmp_path / "out", password=READER_PASSWORD)
