"""The same records by CSV, Parquet, SQLite and PostgreSQL are the same records."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from postgres_kit import READER_PASSWORD, Postgres

from privet.client.data.records import open_records
from privet.client.data.sql import write_snapshot
from privet.client.data.tables import read_table
from privet.common.cells import text_of
from privet.common.errors import DataError, InputError
from privet.common.plan import Plan
from privet.common.tasks import build_task
from privet.privacy.policy import Policy

Make = Callable[..., Any]
pytestmark = pytest.mark.xdist_group("postgres")

SQLITE = "sqlite:///records.db"


def written(policy: Policy, out: Path) -> Path:
    """Write the snapshot in this process; test_sql_loader.py has the loader's own."""
    data = policy.data["records"]
    assert data.sql is not None
    assert data.columns is not None
    out.mkdir(exist_ok=True)
    with contextlib.chdir(policy.folder):
        write_snapshot(data.sql, data.columns, out / "it.parquet", password=READER_PASSWORD)
    return out / "it.parquet"


_DECLARED = {
    "patient": "text", "x1": "double precision", "x2": "numeric(8, 3)", "colour": "varchar(20)",
    "age": "integer", "smoker": "boolean", "seen": "date", "y": "smallint",
}  # fmt: skip


@pytest.fixture
def frame(frame_of: Make) -> pd.DataFrame:
    """Records in the order of their columns, with some cells of each missing but of the label."""
    table: pd.DataFrame = frame_of(80, 7, persons=30)
    generator = np.random.default_rng(1)
    table["age"] = pd.array(generator.integers(20, 90, 80), dtype="Int64")
    table["smoker"] = pd.array(generator.random(80) < 0.3, dtype="boolean")
    days = pd.Timestamp("2024-01-01") + pd.to_timedelta(generator.integers(0, 700, 80), "D")
    table["seen"] = days.strftime("%Y-%m-%d").astype(object)
    for number, name in enumerate(_DECLARED):
        if name not in ("patient", "y"):
            table.loc[number::11, name] = None
    return table[list(_DECLARED)].sort_values(list(_DECLARED)).reset_index(drop=True)


def rows_of(frame: pd.DataFrame) -> list[tuple[Any, ...]]:
    return [
        tuple(None if pd.isna(cell) else getattr(cell, "item", lambda c=cell: c)() for cell in row)
        for row in frame.itertuples(index=False)
    ]


@pytest.fixture
def everywhere(
    frame: pd.DataFrame, tmp_path: Path, policy_of: Make, run_sql: Make, sqlite: Any,
    server: Postgres,
) -> dict[str, Policy]:  # fmt: skip
    """A policy for each place that the records are in; in the databases they are shuffled."""
    frame.to_csv(tmp_path / "records.csv", index=False)
    arrow = pa.Table.from_pandas(frame, preserve_index=False)
    pq.write_table(arrow.replace_schema_metadata(None), tmp_path / "records.parquet")
    declared = ", ".join(f"{name} {kind}" for name, kind in _DECLARED.items())
    rows = rows_of(frame.sample(frac=1, random_state=3))
    for execute, sign in ((run_sql, "%s"), (sqlite.execute, "?")):
        execute(f"CREATE TABLE records ({declared})")
        for row in rows:
            execute(f"INSERT INTO records VALUES ({', '.join([sign] * len(row))})", row)
    columns = list(_DECLARED)
    policies = {
        "sqlite": policy_of(SQLITE, columns, person="patient"),
        "postgresql": policy_of(server.url(), columns, person="patient"),
    }
    for name in ("csv", "parquet"):
        value = policies["sqlite"].model_dump(mode="json")
        value["data"]["records"] |= {"sql": None, "path": str(tmp_path / f"records.{name}")}
        policies[name] = Policy.parse(value)
    return policies


@pytest.mark.parametrize("unit", ["record", "person"])
def test_every_place_gives_the_same_records(
    everywhere: dict[str, Policy], plan_value: Make, tmp_path: Path, unit: str
) -> None:
    task = {
        "numeric": {name: {"low": -2, "high": 2} for name in ("x1", "x2", "age")},
        "categorical": {"colour": ["red", "blue"], "smoker": ["True", "False"], "seen": ["2024"]},
    }
    plan = Plan.parse(plan_value(task=task))
    if unit == "record":
        everywhere = {
            name: Policy.parse(without_person(policy.model_dump(mode="json")))
            for name, policy in everywhere.items()
        }
    for policy in everywhere.values():
        policy._folder = tmp_path
    read = {
        name: open_records(policy, "records", plan, tmp_path / name)
        for name, policy in everywhere.items()
    }
    expected = read.pop("csv")
    assert 0 < len(expected.held_out) < len(expected.train) < 80
    assert ("person" in expected.train) == (unit == "person")
    for name, data in read.items():
        for own, other in ((data.train, expected.train), (data.held_out, expected.held_out)):
            written = [name for name in own if name not in ("x1", "x2")]  # a file has 1.0 for 1
            assert texts(own[written]) == texts(other[written]), name
            encoded = [build_task(plan).encode(part) for part in (own, other)]
            assert all(torch.equal(encoded[0][key], encoded[1][key]) for key in encoded[0])


def texts(frame: pd.DataFrame) -> dict[str, list[str]]:
    """What each cell says, whatever type it is kept in."""
    return {name: [text_of(cell) for cell in frame[name]] for name in frame}


def without_person(value: dict[str, Any]) -> dict[str, Any]:
    del value["data"]["records"]["person_column"]
    return value


def test_a_snapshot_reads_equal_in_every_bit(everywhere: dict[str, Policy], tmp_path: Path) -> None:
    paths = [written(everywhere["postgresql"], tmp_path / name) for name in ("a", "b")]
    assert paths[0].read_bytes() == paths[1].read_bytes()
    by_sqlite = read_table(written(everywhere["sqlite"], tmp_path / "c"))
    assert texts(read_table(paths[0]).frame) == texts(by_sqlite.frame)


NASTY = (
    'a "quoted" one', "it's", "semi; DROP TABLE records; --", "percent %(x)s %s", "ünïcödé ✓",
    "colon :name", "back\\slash", "Upper and lower", "select", "dot.ted", "{brace}", "[bracket]",
)  # fmt: skip


@pytest.mark.parametrize("where", ["sqlite", "postgresql"])
@pytest.mark.parametrize("table", NASTY)
def test_names_are_quoted(
    where: str, table: str, policy_of: Make, run_sql: Make, sqlite: Any, server: Postgres,
    tmp_path: Path,
) -> None:  # fmt: skip
    execute = run_sql if where == "postgresql" else sqlite.execute
    url = server.url() if where == "postgresql" else SQLITE
    columns = list(NASTY)
    execute("CREATE TABLE records (x integer)")
    execute(f"CREATE TABLE {quoted(table)} ({', '.join(f'{quoted(n)} integer' for n in columns)})")
    values = ", ".join(map(str, range(len(columns))))
    execute(f"INSERT INTO {quoted(table)} VALUES ({values})")
    policy = policy_of(url, columns, table=table)
    read = read_table(written(policy, tmp_path)).frame
    assert list(read.columns) == columns
    assert read.iloc[0].tolist() == list(range(len(columns)))
    assert execute("SELECT count(*) FROM records").fetchone() == (0,)


def quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def test_a_schema_is_named_apart(
    policy_of: Make, run_sql: Make, server: Postgres, tmp_path: Path
) -> None:
    schema = 'odd; "schema" %s'
    run_sql(f"DROP SCHEMA IF EXISTS {quoted(schema)} CASCADE")
    run_sql(f"CREATE SCHEMA {quoted(schema)}")
    run_sql(f"CREATE TABLE {quoted(schema)}.records AS SELECT 5 AS x")
    run_sql("CREATE TABLE records AS SELECT 6 AS x")
    run_sql(f"GRANT USAGE ON SCHEMA {quoted(schema)} TO reader")
    run_sql(f"GRANT SELECT ON {quoted(schema)}.records TO reader")
    policy = policy_of(server.url(), ["x"], table_schema=schema)
    assert read_table(written(policy, tmp_path)).frame["x"].tolist() == [5]
    run_sql(f"DROP SCHEMA {quoted(schema)} CASCADE")


KINDS: list[tuple[str, str, object]] = [
    ("smallint", "'-3'", -3),
    ("bigint", "'9007199254740993'", 9007199254740993),
    ("numeric(6, 2)", "'1234.50'", 1234.5),
    ("numeric", "'NaN'", float("nan")),
    ("real", "'0.1'", 0.1),
    ("double precision", "'Infinity'", float("inf")),
    ("boolean", "'t'", True),
    ("text", "'NA'", "NA"),
    ("char(5)", "'ab'", "ab"),
    ("varchar(9)", "'  x '", "  x "),
    ("uuid", "'6f1e0f5c-0000-4000-8000-00000000002a'", "6f1e0f5c-0000-4000-8000-00000000002a"),
    ("date", "'2024-02-29'", "2024-02-29"),
    ("time", "'07:08:09.5'", "07:08:09.500000"),
    ("timestamp", "'2024-02-29 12:00:00'", "2024-02-29T12:00:00"),
    ("timestamptz", "'2024-02-29 12:00:00+05'", "2024-02-29T07:00:00+00:00"),
    ("stage", "'late'", "late"),
    ("grade", "'7'", 7),
]


@pytest.mark.parametrize(("kind", "literal", "expected"), KINDS, ids=[kind for kind, *_ in KINDS])
def test_a_column_is_read_as_it_is_declared(
    kind: str, literal: str, expected: object, policy_of: Make, run_sql: Make, server: Postgres,
    tmp_path: Path,
) -> None:  # fmt: skip
    run_sql("CREATE TYPE stage AS ENUM ('late', 'early')")
    run_sql("CREATE DOMAIN grade AS integer CHECK (value < 10)")
    run_sql(f"CREATE TABLE records (x {kind})")
    run_sql(f"INSERT INTO records VALUES ({literal}::{kind}), (NULL)")
    policy = policy_of(server.url(), ["x"])
    path = written(policy, tmp_path)
    cells = pq.read_table(path)["x"].to_pylist()
    assert repr(cells) == repr([expected, None])
    run_sql("TRUNCATE records")
    declared = pq.read_schema(path)
    assert pq.read_schema(written(policy, tmp_path)) == declared


@pytest.mark.parametrize("kind", ["bytea", "integer[]", "jsonb", "interval", "money", "point"])
def test_other_kinds_are_refused_with_advice(
    kind: str, policy_of: Make, run_sql: Make, server: Postgres, tmp_path: Path
) -> None:
    run_sql(f"CREATE TABLE records (x {kind})")
    with pytest.raises(DataError, match="column 'x' of 'records' is of type .*make a view"):
        written(policy_of(server.url(), ["x"]), tmp_path)


@pytest.mark.parametrize(
    ("declared", "cells", "expected"),
    [
        ("integer", [1, None], [1, None]),
        ("real", [1, 2.5], [1.0, 2.5]),
        ("numeric", [1, 2.5], ["1", "2.5"]),
        ("numeric", [1, "soon"], ["1", "soon"]),
        ("boolean", [0, 1, None], [False, True, None]),
        ("text", ["a", "", None], ["", "a", None]),
        ("datetime", ["2024-01-01 10:00:00", "soon"], ["2024-01-01T10:00:00", "soon"]),
        ("date", ["2024-01-01", None], ["2024-01-01", None]),
        ("", [2, None], ["2", None]),
        ("", [0.5, 1.0], ["0.5", "1"]),
        ("", ["b", 1], ["1", "b"]),
        ("", [None], [None]),
        ("integer", [1, "soon"], [1]),
        ("integer", [1, 2.5], [1]),
        ("boolean", [0, 2], [False]),
        ("text", ["a", b"b"], ["a"]),
        ("real", [1.5, "soon"], [1.5]),
        ("uuid", ["ab-cd"], ["ab-cd"]),
    ],
)
def test_a_column_of_sqlite_may_declare_nothing(
    declared: str, cells: list[Any], expected: list[Any], sqlite: Any, policy_of: Make,
    tmp_path: Path,
) -> None:  # fmt: skip
    sqlite.execute(f"CREATE TABLE t (x {declared})")
    sqlite.execute("CREATE VIEW records AS SELECT x, x AS again FROM t")
    sqlite.executemany("INSERT INTO t VALUES (?)", [(cell,) for cell in cells])
    path = written(policy_of(SQLITE, ["x", "again"]), tmp_path)
    assert repr(pq.read_table(path)["x"].to_pylist()) == repr(expected)
    assert pq.read_table(path)["again"].to_pylist() == pq.read_table(path)["x"].to_pylist()


@pytest.mark.parametrize(
    ("declared", "cell"),
    [
        ("integer", "secret"),
        ("boolean", 2),
        ("text", b"secret"),
        ("", b"s"),
        ("text", "CAST(x'ff41' AS TEXT)"),
        ("text", "secret" * 300_000),
        ("text", "secret\0"),
    ],
)
def test_a_row_with_a_cell_that_does_not_fit_is_left_out_and_named(
    declared: str, cell: object, sqlite: Any, policy_of: Make, tmp_path: Path
) -> None:
    sqlite.execute(f"CREATE TABLE records (x {declared}, y integer)")
    if isinstance(cell, str) and cell.startswith("CAST"):
        sqlite.execute(f"INSERT INTO records VALUES ({cell}, 1)")
    else:
        sqlite.execute("INSERT INTO records VALUES (?, 1)", (cell,))
    sqlite.execute("INSERT INTO records VALUES (NULL, 2)")
    found = read_table(written(policy_of(SQLITE, ["x", "y"]), tmp_path))
    assert found.frame["y"].tolist() == [2]
    assert [fault.place for fault in found.faults] == [1]
    assert re.search("column 'x' has a|a text has more than", found.faults[0].why)
    assert "secret" not in found.faults[0].why


def test_rows_come_in_the_order_of_the_columns(
    policy_of: Make, run_sql: Make, server: Postgres, tmp_path: Path
) -> None:
    known = run_sql("SELECT collname FROM pg_collation WHERE collname = 'en-x-icu'").fetchone()
    collate = f'COLLATE "{known[0]}"' if known else ""  # not every server is built with ICU
    run_sql(f"CREATE TABLE records (name text {collate}, n integer)")
    for row in (("b", 2), ("B", 1), (None, 0), ("a", 9), ("b", 1), ("ä", 0)):
        run_sql("INSERT INTO records VALUES (%s, %s)", row)
    table = read_table(written(policy_of(server.url(), ["name", "n"]), tmp_path)).frame
    assert table["n"].tolist() == [1, 9, 1, 2, 0, 0]
    table = read_table(written(policy_of(server.url(), ["n", "name"]), tmp_path)).frame
    assert table["n"].tolist() == [0, 0, 1, 1, 2, 9]
    run_sql("CREATE TYPE stage AS ENUM ('late', 'early')")
    run_sql("CREATE TABLE stages AS SELECT unnest(ARRAY['late', 'early']::stage[]) AS stage")
    policy = policy_of(server.url(), ["stage"], table="stages")
    assert read_table(written(policy, tmp_path)).frame["stage"].tolist() == ["early", "late"]


def test_a_plan_gets_only_the_columns_that_the_policy_names(
    files: Path, plan_value: Make, policy_of: Make, tmp_path: Path
) -> None:
    value = policy_of(SQLITE, ["x1", "x2", "y"]).model_dump(mode="json")
    value["data"]["records"] |= {"sql": None, "path": str(files / "north.csv")}
    value["allow"] |= {"tasks": ["*"], "models": ["*"]}
    narrow, plan = Policy.parse(value), Plan.parse(plan_value())
    assert "uses column 'colour', which is not among the columns" in str(narrow.fault(plan))
    with pytest.raises(DataError, match="there is no column 'colour'"):
        open_records(narrow, "records", plan, tmp_path)
    own = plan.changed(task={"kind": "mine:task"})
    read = open_records(narrow, "records", own, tmp_path)
    assert list(read.train) == ["x1", "x2", "y"]
    value["data"]["records"]["columns"].append("colour")
    wide = Policy.parse(value)
    assert wide.fault(plan) is None
    assert set(open_records(wide, "records", plan, tmp_path).train) == {"x1", "x2", "y", "colour"}


def test_a_data_set_without_a_place_is_refused(
    plan_value: Make, policy_of: Make, tmp_path: Path
) -> None:
    value = policy_of(SQLITE, ["x1"]).model_dump(mode="json")
    value["data"]["records"]["sql"] = None
    with pytest.raises(InputError, match="has no 'path' or 'sql'"):
        open_records(Policy.parse(value), "records", Plan.parse(plan_value()), tmp_path)
