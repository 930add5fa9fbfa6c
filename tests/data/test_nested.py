"""Lists, bytes and structs in the columns of a Parquet file that a plan reads so."""

from __future__ import annotations

from array import array
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from privet.client.data import nested
from privet.client.data.split import split_by_unit
from privet.client.data.tables import read_table
from privet.common.cells import MAX_CELL_CHARACTERS
from privet.common.errors import DataError
from privet.common.plan import Split

NAN = float("nan")


def read(path: Path, cells: pa.Array) -> tuple[list[Any], dict[int, str]]:
    """Return the cells of a nested column, and the reasons why rows are left out."""
    pq.write_table(pa.table({"x": cells}), path)
    found = read_table(path, nested=("x",))
    return found.frame["x"].tolist(), {fault.place: fault.why for fault in found.faults}


@pytest.mark.parametrize(
    ("cells", "wanted"),
    [
        (pa.array([["a", "b"], [], None, ["é", None]]), [["a", "b"], [], None, ["é", None]]),
        (pa.array([["a"]], pa.large_list(pa.large_string())), [["a"]]),
        (pa.array([[1, 2], []], pa.list_(pa.int16())), [array("q", [1, 2]), array("q")]),
        (pa.array([[0.5], None], pa.list_(pa.float32())), [array("d", [0.5]), None]),
        (pa.array([[0.5, 1.5]], pa.list_(pa.float64(), 2)), [array("d", [0.5, 1.5])]),
        (pa.array([b"\xff\0", b"", None]), [b"\xff\0", b"", None]),
        (pa.array([b"a"], pa.large_binary()), [b"a"]),
        (
            pa.array([{"bytes": b"a", "path": "/x"}, {"bytes": None, "path": "/x"}, None]),
            [b"a", None, None],
        ),
        (pa.array(["a b", None]), ["a b", None]),
        (pa.array([1, None]), [1, None]),
    ],
)
def test_a_cell_has_the_type_that_its_column_declares(
    tmp_path: Path, cells: pa.Array, wanted: list[Any]
) -> None:
    assert read(tmp_path / "f.parquet", cells) == (wanted, {})


def test_a_null_among_numbers_is_no_number(tmp_path: Path) -> None:
    (cell,), _ = read(tmp_path / "f.parquet", pa.array([[1, None]]))
    assert cell[0] == 1.0 and cell[1] != cell[1]


@pytest.mark.parametrize(
    ("cells", "said"),
    [
        ([["a"], ["b", "c\0"], ["d"]], "'x' lists what is no text"),
        ([["a"], ["b" * (MAX_CELL_CHARACTERS + 1)], ["d"]], "'x' is too long"),
        ([["a"], ["b" * 9999] * 1000, ["d"]], "'x' is too long"),
        ([b"a", b"b" * 20, b"d"], "'x' is too long"),
        ([[1.0], [0.5] * 20, [2.0]], "'x' is too long"),
        (pa.array([[1], [2**64 - 1], [2]], pa.list_(pa.uint64())), "'x' cannot be read as list"),
    ],
)
def test_an_odd_cell_costs_its_own_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cells: Any, said: str
) -> None:
    monkeypatch.setattr(nested, "MAX_BYTES", 10)
    monkeypatch.setattr(nested, "MAX_ITEMS", 1000 if isinstance(cells[0][0], str) else 10)
    array_ = cells if isinstance(cells, pa.Array) else pa.array(cells)
    found, faults = read(tmp_path / "f.parquet", array_)
    assert len(found) == 2 and list(faults) == [2] and said in faults[2]


def test_a_list_with_invalid_text_costs_its_own_row(tmp_path: Path) -> None:
    texts = pa.array([b"ok", b"\xff", b"also"]).view(pa.string())
    found, faults = read(tmp_path / "f.parquet", pa.ListArray.from_arrays([0, 1, 2, 3], texts))
    assert found == [["ok"], ["also"]] and list(faults) == [2]


@pytest.mark.parametrize(
    "cells",
    [
        pa.array([[["a"]]]),
        pa.array([[True]]),
        pa.array([[b"a"]]),
        pa.array([{"path": "/x"}]),
        pa.array([{"bytes": "text"}]),
        pa.array([{"bytes": [1]}]),
    ],
)
def test_a_column_of_another_type_is_refused(tmp_path: Path, cells: pa.Array) -> None:
    with pytest.raises(DataError, match="the column 'x' is of type .* which is not read"):
        read(tmp_path / "f.parquet", cells)


def test_a_column_that_no_plan_reads_so_is_refused(tmp_path: Path) -> None:
    pq.write_table(
        pa.table({"x": pa.array([["a"]]), "y": pa.array([b"a"])}), tmp_path / "f.parquet"
    )
    for name in ("x", "y"):
        with pytest.raises(DataError, match=f"'{name}' is of type .* which is not read"):
            read_table(tmp_path / "f.parquet", [name])
    with pytest.raises(DataError, match="'y' is of type binary"):
        read_table(tmp_path / "f.parquet", nested=("x",))


def test_equal_recordings_are_in_the_same_part(tmp_path: Path) -> None:
    frames = []
    for number, cells in enumerate((pa.array([b"a", b"b", b"a"]), pa.array([[1.0], [2.0], [1.0]]))):
        path = tmp_path / f"{number}.parquet"
        pq.write_table(pa.table({"x": cells}), path)
        frames.append(read_table(path, nested=("x",)).frame)
    for frame in frames:
        seen = set()
        for seed in range(20):
            parts = split_by_unit(frame, Split(test=0.5), seed).tolist()
            assert parts[0] == parts[2]
            seen.add(parts[0] == parts[1])
        assert seen == {True, False}
