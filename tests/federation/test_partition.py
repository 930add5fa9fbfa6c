"""Which part a record falls into depends on its own unit and on nobody else's presence."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from privet.client.data import split
from privet.common.plan import Plan, Split
from privet.simulations.partition import split_by_unit, split_in_proportion
from privet.simulations.records import SiteRecords

Parts = Callable[[pd.DataFrame], pd.Series]
SHARES = Split(test=0.25, validation=0.1)


def by_unit(frame: pd.DataFrame) -> pd.Series:
    return split_by_unit(frame, SHARES, 7)


def in_proportion(frame: pd.DataFrame) -> pd.Series:
    return split_in_proportion(frame, SHARES, 7, strata=("site",))


@pytest.fixture
def frame(frame_of: Callable[..., pd.DataFrame]) -> pd.DataFrame:
    return frame_of(200, 0, persons=60).assign(site=["North", "South"] * 100)


def others_moved(parts: Parts, frame: pd.DataFrame, gone: pd.Series) -> int:
    """How many of the rows that stay change their part when the rows ``gone`` are not there."""
    return int((parts(frame)[~gone] != parts(frame[~gone])).sum())


def test_a_record_that_is_not_there_moves_no_other(frame: pd.DataFrame) -> None:
    rows = np.arange(len(frame))
    assert all(others_moved(by_unit, frame, pd.Series(rows == k)) == 0 for k in range(0, 200, 11))


def test_a_person_who_is_not_there_moves_no_other(frame: pd.DataFrame) -> None:
    named = frame.rename(columns={"patient": "person"})
    for name in named["person"].unique()[:10]:
        assert others_moved(by_unit, named, named["person"] == name) == 0
    assert (named.assign(part=by_unit(named)).groupby("person")["part"].nunique() == 1).all()


def test_the_split_of_open_records_does_move_others(frame: pd.DataFrame) -> None:
    """The control: a permutation within a stratum, the scenarios' split, fails the test above."""
    rows = np.arange(len(frame))
    assert others_moved(in_proportion, frame, pd.Series(rows == 0)) > 20


@pytest.mark.parametrize("odd", ["", "none of your business", "2.5"])
def test_an_odd_cell_that_changes_how_its_column_is_read_moves_no_other(
    write_files: Callable[..., Path], plan_value: Callable[..., Any], tmp_path: Path, odd: str
) -> None:
    """A typed reading makes whole numbers beside an empty cell decimals, beside a word texts."""
    data = write_files(tmp_path, age=40, paid=True, dose="0.30000000000000004")
    lines = (data / "north.csv").read_text().splitlines()
    plan = Plan.parse(plan_value())
    content = ["x1", "x2", "colour", "y", "patient", "site", "age", "paid", "dose"]

    def parts() -> dict[tuple[Any, ...], str]:
        found = SiteRecords(plan, None, data).parts()
        return {
            row: name for name, table in found.items()
            for row in table[content].itertuples(index=False, name=None)
        }  # fmt: skip

    def write(*extra: str) -> None:
        (data / "north.csv").write_text("\n".join([*lines, *extra]) + "\n")

    with_it = parts()
    for added in (f"9.9,9.9,red,1,p,{odd},True,0.1", f"9.9,9.9,red,1,p,41,{odd},{odd}"):
        write(added)
        after = parts()
        assert len(after) == len(with_it) + 1
        assert with_it == {row: part for row, part in after.items() if row[0] != "9.9"}


def test_a_split_by_the_cells_as_they_were_read_is_noticed(
    frame: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: without numbers in one form, a file and a database would be split apart."""
    whole, decimal = frame.assign(age="40"), frame.assign(age=40.0)
    assert (by_unit(whole) == by_unit(decimal)).all()
    monkeypatch.setattr(split, "_content", str)
    assert not (by_unit(whole) == by_unit(decimal)).all()


def test_shares_are_met_on_average_and_follow_the_seed(frame: pd.DataFrame) -> None:
    many = pd.DataFrame({"x": np.arange(20_000), "site": "A"})
    found = by_unit(many).value_counts(normalize=True)
    assert found["test"] == pytest.approx(0.25, abs=0.015)
    assert found["validation"] == pytest.approx(0.1, abs=0.015)
    other = split_by_unit(many, SHARES, 8)
    assert ((other == "test") & (by_unit(many) == "test")).mean() == pytest.approx(1 / 16, abs=0.01)
