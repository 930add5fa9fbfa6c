"""The guarantee starts at the file: one more record leaves every other record's tensors as they are.

Two levels of neighbours (docs/reference/honesty.md): (a) any tuple of cell values, written by a
correct writer; (b) for CSV and TSV with ``multiline = false``, any line of bytes. ``PRIVET_TABLES``
sets how many tables are drawn for each connector; CI draws a share of the 10,000 of docs/benchmarks.md.
"""

from __future__ import annotations

import csv
import gzip
import io
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from privet.client.data.records import SiteData, site_data
from privet.client.data.sql import write_snapshot
from privet.client.data.tables import Table, read_table, read_text
from privet.client.training.model_runtime import ModelRuntime
from privet.client.training.trainer import UsableRecords, usable_records
from privet.common.plan import Plan
from privet.privacy.database import Database
from privet.privacy.policy import DataSet

TABLES = int(os.environ.get("PRIVET_TABLES", "12"))
Make = Callable[..., Any]

TASKS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "tabular": (
        {
            "kind": "tabular", "label": "y", "classes": ["1", "2", "01"],
            "numeric": {"n": {"low": 0, "high": 10}, "w": {"low": 1, "high": 9, "log": True}},
            "categorical": {"code": ["1", "01", "TRUE", "0.50", "1e3", "+1", "007"]},
        },
        {"kind": "linear"},
    ),
    "image": (
        {
            "kind": "image", "label": "y", "classes": ["1", "2", "01"], "numeric": {},
            "categorical": {}, "image": {"height": 1, "width": 2, "prefix": "p"},
        },
        {"kind": "vit", "options": {"patch": 1, "width": 8, "layers": 1, "heads": 1}},
    ),
    "text": (
        {
            "kind": "text", "label": "y", "classes": ["1", "2", "01"], "text": "code",
            "numeric": {}, "categorical": {}, "max_tokens": 8,
        },
        {"kind": "text-encoder", "options": {"width": 8, "layers": 1, "heads": 1}},
    ),
    "causal-text": (
        {"kind": "causal-text", "text": "code", "max_tokens": 8, "numeric": {}, "categorical": {},
         "classes": []},
        {"kind": "decoder", "options": {"width": 8, "layers": 1, "heads": 1}},
    ),
    "masked-text": (
        {"kind": "masked-text", "text": "code", "max_tokens": 8, "numeric": {}, "categorical": {},
         "classes": []},
        {"kind": "text-encoder", "options": {"width": 8, "layers": 1, "heads": 1}},
    ),
    "text-to-text": (
        {"kind": "text-to-text", "text": "code", "target": "y", "max_tokens": 8, "numeric": {},
         "categorical": {}, "classes": []},
        {"kind": "encoder-decoder", "options": {"width": 8, "layers": 1, "heads": 1}},
    ),
}  # fmt: skip
COLUMNS = ("code", "n", "w", "p0", "p1", "y", "who")


@pytest.fixture(scope="module")
def benches() -> dict[tuple[str, str], ModelRuntime]:
    return {}


def bench_for(benches: Any, plan_value: Make, kind: str, unit: str) -> ModelRuntime:
    if (kind, unit) not in benches:
        task, model = TASKS[kind]
        # What the kit's plan declares of features is not merged in.
        value = plan_value(model=model, privacy={"unit": unit})
        value["task"] = task
        if unit == "person":
            value["privacy"]["max_records"] = 2
        benches[kind, unit] = ModelRuntime(Plan.parse(value))
    found: ModelRuntime = benches[kind, unit]
    return found


# What people and programs put into cells: codes, spellings of numbers, gaps, and the odd.
SPELLINGS = st.sampled_from(
    ["1", "2", "01", "1.0", "1.", " 1", "1 ", "TRUE", "true", "False", "0.50", "1e3", "+1", "007", "",
     "NA", "?", "nan", "inf", "-inf", "1e999", "1_000", "١", "X", "A1", "999999999999999999", "P1",
     "p1", "P1 ", "é", "e\u0301", "\ufeff1", "\u200b", "9007199254740993", "0x1", "1,5", '"', 'a"b',
     "a,b", "\t", "=1+1", "none", "NULL", "2020-01-01"]
)  # fmt: skip
WORDS = st.text(st.characters(codec="utf-8", exclude_characters="\r\n\0"), max_size=6)
CELLS = st.one_of(SPELLINGS, WORDS)
ROWS = st.tuples(*[CELLS] * len(COLUMNS))
ODD_BYTES = st.one_of(
    st.binary(max_size=40).filter(lambda data: b"\n" not in data),
    st.sampled_from([
        b'"', b'"a', b'a"', b'""",', b"\xff\xfe", b"\x00", b"\r", b"a\rb,,,,,,", b"\xef\xbb\xbf1,2",
        b"," * 6, b"," * 7, b",", b"1,2,3", b"1,1,1,1,1,1,1,1", b"\xed\xa0\x80,,,,,,", b"x" * (1 << 21),
        b'"1","2","3","4","5","1","w"', b'1,"2\r3",4,5,6,1,w', b"'1','2'", b"\\", b'1,2,3,4,5,1,"w',
    ]),
)  # fmt: skip


def use(
    table: Table, bench: ModelRuntime, unit: str
) -> tuple[SiteData, UsableRecords, UsableRecords]:
    data = DataSet(
        population="p", nominal_size=10, person_column="who" if unit == "person" else None
    )
    site = site_data(table, data, bench.plan, "f.csv")
    return site, usable_records(bench, site.train), usable_records(bench, site.held_out)


def rows_of(frame: pd.DataFrame, used: UsableRecords) -> dict[Any, dict[str, torch.Tensor]]:
    """The tensors of each usable record, by where it stands in the source."""
    kept = [place for row, place in enumerate(frame.index) if row not in used.faults]
    return {
        place: {name: tensor[row] for name, tensor in used.examples.items()}
        for row, place in enumerate(kept)
    }


def people(frame: pd.DataFrame, used: UsableRecords) -> set[frozenset[Any]]:
    kept = [place for row, place in enumerate(frame.index) if row not in used.faults]
    units = zip(used.units.starts, used.units.starts[1:], strict=False)
    return {frozenset(kept[r] for r in used.units.records[a:b]) for a, b in units}


def moved(before: Table, after: Table, bench: ModelRuntime, unit: str, added: Any) -> int:
    """Return how many of the others' records, splits or units one more record changes.

    Args:
        added: where the new record stands, if it can be read.
    """
    one, two = use(before, bench, unit), use(after, bench, unit)
    count = 0
    for part in ("train", "held_out"):
        frames = [getattr(site, part) for site, *_ in (one, two)]
        used = [found[1 if part == "train" else 2] for found in (one, two)]
        rows = [rows_of(frame, found) for frame, found in zip(frames, used, strict=True)]
        others = {place: row for place, row in rows[1].items() if place != added}
        count += len(rows[0].keys() ^ others.keys())
        for place in rows[0].keys() & others.keys():
            one_row, other = rows[0][place], others[place]
            count += not all(torch.equal(one_row[name], other[name]) for name in one_row)
        # The new record's own person may change; everybody else's unit stays.
        groups = [people(frame, found) for frame, found in zip(frames, used, strict=True)]
        count += len(groups[0] - groups[1]) > 1
    return count


def as_csv(rows: list[tuple[str, ...]], separator: str = ",") -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, delimiter=separator, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(rows)
    return text.getvalue().encode()


def from_text(rows: list[tuple[str, ...]], folder: Path) -> Table:
    del folder
    return read_text(io.BytesIO(as_csv(rows)))


def from_tsv(rows: list[tuple[str, ...]], folder: Path) -> Table:
    path = folder / "f.tsv.gz"
    path.write_bytes(gzip.compress(as_csv(rows, "\t"), 1))
    return read_table(path)


def from_multiline(rows: list[tuple[str, ...]], folder: Path) -> Table:
    del folder
    return read_text(io.BytesIO(as_csv(rows)), multiline=True)


def from_parquet(rows: list[tuple[str, ...]], folder: Path) -> Table:
    path = folder / "f.parquet"
    cells = list(zip(*rows, strict=True)) if rows else [()] * len(COLUMNS)
    arrays = [pa.array(list(column), pa.string()) for column in cells]
    pq.write_table(pa.table(arrays, names=list(COLUMNS)), path)
    return read_table(path)


def from_sqlite(rows: list[tuple[str, ...]], folder: Path) -> Table:
    """Columns that declare nothing: each cell has a type of its own."""
    path, out = folder / "f.db", folder / "s.parquet"
    path.unlink(missing_ok=True)
    with sqlite3.connect(path) as database:
        database.execute(f"CREATE TABLE t (place integer, {', '.join(COLUMNS)})")
        for place, row in enumerate(rows):
            cells = [_stored(cell) for cell in row]
            database.execute(f"INSERT INTO t VALUES ({', '.join('?' * 8)})", (place, *cells))
    database.close()
    write_snapshot(Database(url=f"sqlite:///{path}", table="t"), ("place", *COLUMNS), out)
    found = read_table(out)
    frame = found.frame.set_index(found.frame["place"].astype(int) + 1).drop(columns="place")
    return Table(frame, found.faults, found.counted)


def _stored(cell: str) -> Any:
    """A number where SQLite would keep one, bytes here and there."""
    if cell == "X":
        return b"\xff"
    try:
        return float(cell) if "." in cell else int(cell) if abs(int(cell)) < 2**63 else cell
    except ValueError:
        return cell


CONNECTORS: dict[str, Callable[[list[tuple[str, ...]], Path], Table]] = {
    "csv": from_text, "tsv.gz": from_tsv, "multiline": from_multiline, "parquet": from_parquet,
    "sqlite": from_sqlite,
}  # fmt: skip
SETTINGS = settings(
    max_examples=TABLES, deadline=None, database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip


@pytest.mark.parametrize("connector", list(CONNECTORS))
@pytest.mark.parametrize("unit", ["record", "person"])
def test_one_more_record_of_any_cells_moves_no_other(
    connector: str, unit: str, benches: Any, plan_value: Make, tmp_path: Path
) -> None:
    """Level (a), for every task of Privet's own."""
    read = CONNECTORS[connector]

    @SETTINGS
    @given(st.lists(ROWS, max_size=6), ROWS, st.sampled_from(sorted(TASKS)))
    def check(rows: list[tuple[str, ...]], extra: tuple[str, ...], kind: str) -> None:
        bench = bench_for(benches, plan_value, kind, unit)
        before, after = read(rows, tmp_path), read([*rows, extra], tmp_path)
        added = (len(rows) + 2) if before.counted == "line" else len(rows) + 1
        assert moved(before, after, bench, unit, added) == 0

    check()


@pytest.mark.parametrize("unit", ["record", "person"])
@pytest.mark.parametrize("ending", [b"\n", b"\r\n"])
def test_one_more_line_of_any_bytes_moves_no_other(
    ending: bytes, unit: str, benches: Any, plan_value: Make
) -> None:
    """Level (b), wherever the line stands among the records."""

    @SETTINGS
    @given(
        st.lists(ROWS, min_size=1, max_size=6), ODD_BYTES, st.integers(0, 5),
        st.sampled_from(sorted(TASKS)),
    )  # fmt: skip
    def check(rows: list[tuple[str, ...]], line: bytes, at: int, kind: str) -> None:
        bench = bench_for(benches, plan_value, kind, unit)
        lines = as_csv(rows).split(b"\n")[:-1]
        at = min(at, len(rows))
        # Below the others, or among them: then their lines' numbers move, and nothing else.
        before = read_text(io.BytesIO(ending.join(lines) + ending))
        data = [*lines[: at + 1], line, *lines[at + 1 :]]
        after = read_text(io.BytesIO(ending.join(data) + ending))
        after.frame.index = pd.Index(
            [-1 if k == at + 2 else k - (k > at + 2) for k in after.frame.index]
        )
        assert moved(before, after, bench, unit, -1) == 0

    check()


def by_pandas(rows: list[tuple[str, ...]], folder: Path) -> Table:
    """As files were read before: the type of a column follows from all its cells."""
    del folder
    frame = pd.read_csv(io.BytesIO(as_csv(rows)), keep_default_na=False, na_values=[""])
    frame.index = pd.Index(range(2, len(frame) + 2))
    return Table(frame.map(_text))


def _text(cell: Any) -> str | None:
    if isinstance(cell, float) and np.isnan(cell):
        return None
    whole = isinstance(cell, float) and cell.is_integer()
    return str(int(cell)) if whole else str(cell).strip()


@pytest.mark.parametrize(
    ("cells", "extra", "declared"),
    [
        (["1.0", "2.0", "3.0"], "X", ["1.0", "2.0", "3.0"]),
        (["01", "02", "03"], "A1", ["01", "02", "03"]),
        (["123456789012345678", "123456789012345679"], "", ["123456789012345678"]),
        (["TRUE", "FALSE"], "unknown", ["TRUE", "FALSE"]),
    ],
)
def test_the_old_way_of_reading_is_found(
    cells: list[str], extra: str, declared: list[str], plan_value: Make, tmp_path: Path
) -> None:
    """The control, by the cases that were found from outside; the right reading passes them."""
    value = plan_value()
    value["task"] = {
        "kind": "tabular", "label": "y", "classes": ["1", "2"], "numeric": {},
        "categorical": {"code": declared},
    }  # fmt: skip
    bench = ModelRuntime(Plan.parse(value))
    rows = [(cell, "1", "1", "1", "1", "1", "a") for cell in cells * 5]
    more = [*rows, (extra, "1", "1", "1", "1", "1", "a")]
    added = len(rows) + 2
    assert moved(from_text(rows, tmp_path), from_text(more, tmp_path), bench, "record", added) == 0
    assert moved(by_pandas(rows, tmp_path), by_pandas(more, tmp_path), bench, "record", added) > 0
    batch = usable_records(bench, from_text(rows, tmp_path).frame).examples
    expected = [1 + declared.index(cell) if cell in declared else 0 for cell in cells * 5]
    assert batch["categorical"][:, 0].tolist() == expected


@pytest.mark.parametrize("spelling", ["01", "TRUE", "0.50", "1e3", "+1", "007", "1.0", "P1"])
@pytest.mark.parametrize("company", [[], ["1"], ["X"], ["", "2.5"]])
def test_a_spelling_is_what_the_file_says_in_any_company(
    spelling: str, company: list[str], plan_value: Make, tmp_path: Path
) -> None:
    value = plan_value()
    value["task"] = {
        "kind": "tabular", "label": "y", "classes": ["1", spelling], "numeric": {},
        "categorical": {"code": ["other", spelling]},
    }  # fmt: skip
    bench = ModelRuntime(Plan.parse(value))
    rows = [(cell, "", "", "", "", "1", "") for cell in company]
    rows.append((spelling, "", "", "", "", spelling, ""))
    for read in (from_text, from_tsv, from_multiline, from_parquet):
        batch = usable_records(bench, read(rows, tmp_path).frame).examples
        assert batch["categorical"][-1].tolist() == [2]
        assert batch["label"][-1].item() == 1


def test_typed_columns_keep_their_type_whatever_is_missing(
    plan_value: Make, tmp_path: Path
) -> None:
    """Never by way of pandas, where one null makes whole numbers floats."""
    big = 2**53 + 1
    kinds = [
        (pa.array([big, None]), [str(big), None]),
        (pa.array([1, None], pa.uint8()), ["1", None]),
        (pa.array([True, None]), ["True", None]),
        (pa.array([1.5, float("nan")]), ["1.5", None]),
        (pa.array([10**17, None], pa.timestamp("us")), ["5138-11-16T09:46:40", None]),
        (pa.array([2**62, 0], pa.timestamp("ms")), [None, "1970-01-01T00:00:00"]),
        (pa.array([b"\xff", b"ok"]).view(pa.binary()), None),
        (pa.array(["a", None]).dictionary_encode(), ["a", None]),
        (pa.array([np.float16(1.5), None], pa.float16()), ["1.5", None]),
    ]
    from privet.common.cells import text_of
    from privet.common.errors import DataError

    for array, expected in kinds:
        pq.write_table(pa.table({"x": array}), tmp_path / "f.parquet")
        if expected is None:
            with pytest.raises(DataError, match="is of type binary, which is not read"):
                read_table(tmp_path / "f.parquet")
            continue
        found = read_table(tmp_path / "f.parquet")
        got = [None] * 2
        for place, cell in found.frame["x"].items():
            got[int(str(place)) - 1] = None if cell is None else text_of(cell)
        assert got == expected
