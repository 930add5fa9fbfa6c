from __future__ import annotations

import json
import math

import numpy as np
import pytest
from dp_kit import examples
from hypothesis import given
from hypothesis import strategies as st

from privet.privacy.accounting.units import PrivacyLoss, Relation, Unit, UnitIndex

LOSS = PrivacyLoss(1.23456, 1e-5, Unit.PERSON, Relation.REPLACE_ONE)
TERMS = ("1e-05", "person", "replace one")


# --- an ε is never alone (H27) ------------------------------------------------------------


@pytest.mark.parametrize(
    "shown",
    [f"{LOSS}", str(LOSS), format(LOSS), f"{LOSS:>80}", "{:s}".format(LOSS), "%s" % LOSS],  # noqa: UP031, UP032
)
def test_every_way_to_print_shows_all_four(shown):
    assert "1.235" in shown
    assert all(term in shown for term in TERMS)


def test_repr_shows_all_four():
    assert all(word in repr(LOSS) for word in ("1.23456", "1e-05", "person", "replace_one"))


def test_there_is_no_number_to_print_alone():
    with pytest.raises(TypeError):
        float(LOSS)
    with pytest.raises(TypeError):
        int(LOSS)
    with pytest.raises(TypeError):
        round(LOSS)
    for spec in (".2f", "f", "g", "e"):
        with pytest.raises(ValueError, match="format code"):
            format(LOSS, spec)
    with pytest.raises(TypeError):
        "%.2f" % LOSS  # noqa: UP031
    with pytest.raises(TypeError):
        json.dumps(LOSS)
    with pytest.raises(TypeError):
        LOSS < LOSS  # noqa: B015


def test_none_of_the_four_can_be_left_out():
    with pytest.raises(TypeError):
        PrivacyLoss(1.0)
    with pytest.raises(TypeError):
        PrivacyLoss(1.0, 1e-5, Unit.RECORD)
    assert set(LOSS.to_dict()) == {"epsilon", "delta", "unit", "relation"}


def test_an_infinite_epsilon():
    loss = PrivacyLoss(math.inf, 1e-5, Unit.RECORD, Relation.ADD_OR_REMOVE_ONE)
    assert str(loss) == "ε ∞ (δ 1e-05, per record, add or remove one)"
    assert json.loads(json.dumps(loss.to_dict()))["epsilon"] is None


@examples(100)
@given(st.floats(0, 1e6))
def test_figures_are_rounded_up(value):
    loss = PrivacyLoss(value, 1e-5, Unit.RECORD, Relation.ADD_OR_REMOVE_ONE)
    assert value - 1e-8 * max(value, 1) <= float(loss.figure) <= value + 1.001e-3


@pytest.mark.parametrize(
    ("epsilon", "delta"), [(-1, 1e-5), (math.nan, 1e-5), (1, 0), (1, 1), (1, math.nan)]
)
def test_impossible_figures(epsilon, delta):
    with pytest.raises(ValueError, match="must"):
        PrivacyLoss(epsilon, delta, Unit.RECORD, Relation.ADD_OR_REMOVE_ONE)


# --- which records belong to whom (H20) ---------------------------------------------------

names = st.lists(st.sampled_from("abcdefg"), max_size=40)


def persons(people: list[str]) -> np.ndarray:
    return np.array(people, dtype=object)


@examples(200)
@given(names, st.integers(1, 5))
def test_all_records_of_a_person_are_one_unit(people, most):
    index = UnitIndex.by_person(persons(people), most)
    assert len(index) == len(set(people))
    for unit, name in enumerate(sorted(set(people))):
        mine = [i for i, person in enumerate(people) if person == name]
        got = index.records[index.starts[unit] : index.starts[unit + 1]].tolist()
        assert got == mine[:most]


@examples(100)
@given(names, st.integers(1, 5), st.sampled_from("abcdefg"))
def test_a_person_never_changes_what_another_contributes(people, most, gone):
    def kept(who):
        index = UnitIndex.by_person(persons([name for name, _ in who]), most)
        return {
            tuple(who[i][1] for i in index.records[a:b])
            for a, b in zip(index.starts[:-1], index.starts[1:], strict=True)
        }

    everyone = [(name, number) for number, name in enumerate(people)]
    without = [entry for entry in everyone if entry[0] != gone]
    assert kept(without) <= kept(everyone)
    assert len(kept(everyone)) - len(kept(without)) == (gone in people)


@examples(200)
@given(names, st.integers(1, 4), st.data())
def test_gather(people, most, data):
    index = UnitIndex.by_person(persons(people), most)
    chosen = np.array(
        sorted(data.draw(st.sets(st.integers(0, len(index) - 1)))) if len(index) else [],
        dtype=np.int64,
    )
    records, owner = index.gather(chosen)
    assert len(records) == len(owner) == len(set(records.tolist()))
    assert (np.diff(owner) >= 0).all()
    for place, unit in enumerate(chosen):
        mine = index.records[index.starts[unit] : index.starts[unit + 1]]
        assert (records[owner == place] == mine).all()


def test_duplicates_far_apart_are_gathered():
    index = UnitIndex.by_person(persons(["p", "q", "p", "q", "p"]), 16)
    records, owner = index.gather(np.array([0]))
    assert records.tolist() == [0, 2, 4]
    assert owner.tolist() == [0, 0, 0]


def test_by_record():
    index = UnitIndex.by_record(4)
    assert len(index) == 4
    records, owner = index.gather(np.array([1, 3]))
    assert records.tolist() == [1, 3]
    assert owner.tolist() == [0, 1]
    assert len(UnitIndex.by_record(0)) == 0


def test_nobody():
    for index in (UnitIndex.by_record(0), UnitIndex.by_person(persons([]), 3)):
        records, owner = index.gather(np.empty(0, np.int64))
        assert len(records) == len(owner) == 0
