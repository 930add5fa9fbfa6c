"""Who is one person is decided once, for split, unit and feedback: both errors, split and merge."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from privet.client.data.records import site_data
from privet.client.data.tables import read_table
from privet.client.training.model_runtime import ModelRuntime
from privet.client.training.trainer import UsableRecords, usable_records
from privet.common.person_id import PersonId
from privet.common.plan import Plan
from privet.delivery.http_service import Feedback
from privet.privacy.policy import DataSet

Make = Callable[..., Any]
SAME = {
    "": [["P1", " P1", "P1 ", "\tP1", "P1\u2003"], ["Zo\u00eb", "Zoe\u0308"], ["0012", " 0012"]],
    "person_ignore_case": [["P1", "p1", " p1 "], ["ZO\u00cb", "zoe\u0308"], ["\u1e9e", "ss", "SS"]],
    "person_numeric": [["0012", "12", "12.0", " 12.00", "1.2e1"], ["x1", " x1"]],
}
APART = {
    "": [["P1", "p1", "P2"], ["0012", "12", "12.0"], ["9007199254740993", "9007199254740992"]],
    "person_ignore_case": [["P1", "P2"], ["0012", "12"]],
    "person_numeric": [
        ["9007199254740993", "9007199254740992"], ["12", "12.5", "-12"], ["x1", "X1"],
        ["1e500", "1e501"], ["123456789012345678901", "123456789012345678902"],
    ],
}  # fmt: skip


def fold(key: str) -> PersonId:
    return PersonId(**({key.removeprefix("person_"): True} if key else {}))


@pytest.mark.parametrize("key", list(SAME))
def test_spellings_of_one_id_are_one_person(key: str) -> None:
    for spellings in SAME[key]:
        assert len({fold(key).of(text) for text in spellings}) == 1, spellings


@pytest.mark.parametrize("key", list(APART))
def test_different_ids_stay_different_people(key: str) -> None:
    for ids in APART[key]:
        assert len({fold(key).of(text) for text in ids}) == len(ids), ids


@given(st.text(max_size=20), st.booleans(), st.booleans())
def test_folding_again_changes_nothing(text: str, case: bool, numeric: bool) -> None:
    person = PersonId(case, numeric)
    once = person.of(text)
    assert once is None or person.of(once) == once
    assert PersonId().of(once) == once  # as split and unit look at it


def test_a_cell_that_is_too_long_names_nobody_and_takes_no_time() -> None:
    """Unicode's forms of such marks take quadratic time: 12 minutes for a line of 1 MiB."""
    assert PersonId().of("\u0301\u0316" * 300_000) is None
    assert PersonId().of("a" * 1000) == "a" * 1000


@pytest.mark.parametrize(("cell", "expected"), [(12, "12"), (12.0, "12"), (np.int64(7), "7"),
    (True, "True"), (None, None), (float("nan"), None), (pd.NA, None), ("  ", None)])  # fmt: skip
def test_typed_ids_are_texts(cell: object, expected: str | None) -> None:
    assert PersonId().of(cell) == expected


def usable(plan: Plan, folder: Path, ids: list[str], **data: Any) -> UsableRecords:
    rows = "".join(f"1,1,red,1,{name}\n" for name in ids)
    (folder / "r.csv").write_text("x1,x2,colour,y,who\n" + rows)
    found = DataSet(population="p", nominal_size=10, person_column="who", **data)
    site = site_data(read_table(folder / "r.csv"), found, plan, "r.csv")
    parts = [usable_records(ModelRuntime(plan), part) for part in (site.train, site.held_out)]
    return max(parts, key=lambda part: len(part.units))


@pytest.mark.parametrize("key", list(SAME))
def test_one_person_is_one_unit_in_one_part_of_the_split(
    key: str, plan_value: Make, tmp_path: Path
) -> None:
    """Four spellings were one person to the split, and four units to the bound: 4 C for 1 C."""
    plan = Plan.parse(plan_value(privacy={"unit": "person", "max_records": 9}))
    for spellings in SAME[key]:
        found = usable(plan, tmp_path, spellings, **({key: True} if key else {}))
        assert len(found.units) == 1, spellings
        assert len(found.units.records) == len(spellings)  # all in one part


def test_the_old_rule_is_found(plan_value: Make, tmp_path: Path) -> None:
    """The control: units by the text as it is written make several people of one."""
    from privet.privacy.accounting.units import UnitIndex

    for spellings in SAME[""]:
        assert len(UnitIndex.by_person(np.array(spellings, dtype=object), 9)) == len(spellings)
    # And the split's old rule, by value as floats, makes one person of two.
    assert len({repr(float(text)) for text in APART[""][2]}) == 1


def test_feedback_is_kept_under_the_folded_id(tmp_path: Path) -> None:
    kept = Feedback(tmp_path / "f.csv", ("x", "person"), ("person",))
    kept.add([{"x": 1, "person": name} for name in (" Zoe\u0308 ", "Zo\u00eb", 12)])
    ids = read_table(tmp_path / "f.csv", multiline=True).frame["person"].tolist()
    assert ids == ["Zo\u00eb", "Zo\u00eb", "12"]
