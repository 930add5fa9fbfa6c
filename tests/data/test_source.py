"""A file is looked at before anything is paid for: its name and its columns, no record."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from privet.client.data.source import columns_of, require_source
from privet.client.data.tables import read_table
from privet.common.errors import DataError, DataMissingError
from privet.common.plan import Plan
from privet.privacy.policy import Policy

FRAME = pd.DataFrame({"x1": [1.0], "x2": [2.0], "colour": ["red"], "y": [1]})


def policy_for(plan: Plan, folder: Path, **data: Any) -> tuple[Policy, str]:
    made = Policy.for_simulation(plan, "North", "sha256:" + 64 * "0").at(folder)
    name = next(iter(made.data))
    value = made.model_dump()
    value["data"] = {name: {**made.data[name].model_dump(), **data}}
    return Policy.parse(value).at(folder), name


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.csv.gz", "a.parquet"])
def test_the_columns_of_a_file(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name.endswith("parquet"):
        FRAME.to_parquet(path)
    else:
        FRAME.to_csv(path, sep="\t" if "tsv" in name else ",", index=False)
    assert columns_of(path) == list(FRAME.columns)


def test_what_is_missing_is_said(tmp_path: Path, plan_value: Any) -> None:
    plan = Plan.parse(plan_value())
    policy, data = policy_for(plan, tmp_path, path="a.csv")
    with pytest.raises(DataMissingError, match="no such file"):
        require_source(policy, data, plan)
    FRAME.drop(columns="x2").to_csv(tmp_path / "a.csv", index=False)
    with pytest.raises(DataError, match="no column 'x2', which the plan reads"):
        require_source(policy, data, plan)
    FRAME.to_csv(tmp_path / "a.csv", index=False)
    require_source(policy, data, plan)
    policy, data = policy_for(plan, tmp_path, path="a.csv", columns=("x1", "colour", "y"))
    with pytest.raises(DataError, match="the policy does not give the column 'x2'"):
        require_source(policy, data, plan)


def test_what_pandas_kept_as_an_index_is_a_column(tmp_path: Path) -> None:
    """As the first look says, so the records are read."""
    FRAME.set_index("colour").to_parquet(tmp_path / "a.parquet")
    assert sorted(columns_of(tmp_path / "a.parquet")) == sorted(FRAME.columns)
    read = read_table(tmp_path / "a.parquet", ["colour", "y"]).frame
    assert read.to_dict("list") == {"colour": ["red"], "y": [1]}


@pytest.mark.parametrize("name", ["a.csv", "a.parquet"])
def test_a_column_that_is_there_twice(tmp_path: Path, plan_value: Any, name: str) -> None:
    """One that the plan reads is refused; others, such as two without a name, are nobody's."""
    plan = Plan.parse(plan_value())
    policy, data = policy_for(plan, tmp_path, path=name)
    for more, refused in (["", ""], False), (["x1"], True):
        names = [*FRAME.columns, *more]
        if name.endswith("parquet"):
            pq.write_table(pa.table([[1]] * len(names), names=names), tmp_path / name)
        else:
            (tmp_path / name).write_text(",".join(names) + "\n" + ",".join("1" * len(names)))
        if not refused:
            require_source(policy, data, plan)
            continue
        with pytest.raises(DataError, match="the column 'x1' is there twice"):
            require_source(policy, data, plan)


def test_little_is_read_of_a_file_whose_first_line_has_no_end(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('"x' + "\n1,2" * 1_000_000)
    with pytest.raises(DataError, match=r"line 1, which names the columns, .* a quote"):
        columns_of(tmp_path / "a.csv")
    (tmp_path / "a.csv").write_text("x," * 1_000_000 + "y\n1")
    with pytest.raises(DataError, match=r"line 1, which names .* longer than 1 MiB"):
        columns_of(tmp_path / "a.csv")


def test_cells_that_are_separated_in_another_way_are_told(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("x1;x2;colour;y\n1;2;red;1\n")
    with pytest.raises(DataError, match=r"names one column.*separated by ',' .*, not by ';'"):
        columns_of(tmp_path / "a.csv")


def test_a_path_that_cannot_be_looked_at(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot be read as a table \(OSError\)"):
        columns_of(tmp_path / ("x" * 300 + ".csv"))


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", gzip.compress(b"secret", mtime=0)[:-6]])
def test_no_content_is_quoted(tmp_path: Path, content: bytes) -> None:
    for name in ("a.csv.gz", "a.parquet"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=r"cannot be read as a table \(\w+\)$"):
            columns_of(tmp_path / name)
