from __future__ import annotations

import numpy as np
import pytest
from dp_kit import Weak, examples, scale_fits, shape_fits
from hypothesis import given
from hypothesis import strategies as st

from privet.common.tasks.metrics import from_histogram, from_scores, histogram
from privet.privacy import gate
from privet.privacy.events import Gaussian
from privet.privacy.noise import Stream
from privet.privacy.units import UnitIndex


def made_up(count: int, classes: int, seed: int = 0):
    chance = np.random.default_rng(seed)
    scores = chance.dirichlet(np.ones(classes), count)
    return scores, chance.integers(0, classes, count)


def table_of(scores, labels, units, bins=10):
    return gate.noised_histogram(scores, labels, units, bins=bins, noise_multiplier=0.0)[0]


def weighed_by_record(scores, labels, units, bins=10):
    """A planted fault: every record counts for one."""
    weights = np.zeros(len(labels))
    weights[units.records] = 1.0
    return histogram(scores, labels, weights, bins)


@pytest.mark.parametrize("bins", [2, 3, 5, 10, 11])
def test_a_bin_in_the_middle_is_shared(bins: int):
    """All of it counted for one class, so that a good model seemed a bad one."""
    chance = np.random.default_rng(0)
    said = chance.uniform(0.5 - 0.5 / bins, 0.5 + 0.5 / bins, 4000)
    labels = (said > 0.5).astype(int)
    scores = np.stack([1 - said, said], 1)
    got = from_histogram(table_of(scores, labels, UnitIndex.by_record(4000), bins))
    assert got["accuracy"] == pytest.approx(0.5 if bins % 2 else 1.0, abs=0.03)


def most_moved(make, persons, classes, most, seed=0) -> float:
    """Return the largest move of the table, in L2, when one person is removed."""
    scores, labels = made_up(len(persons), classes, seed)
    whole = make(scores, labels, UnitIndex.by_person(persons, most))
    moved = [0.0]
    for gone in set(persons.tolist()):
        stays = persons != gone
        units = UnitIndex.by_person(persons[stays], most)
        part = make(scores[stays], labels[stays], units)
        moved.append(float(np.linalg.norm(whole - part)))
    return max(moved)


@examples(60)
@given(
    st.lists(st.sampled_from("abcde"), min_size=1, max_size=30),
    st.sampled_from([2, 3, 7]),
    st.integers(1, 12),
    st.integers(0, 99),
)
def test_one_person_moves_the_table_by_one_at_most(people, classes, most, seed):
    moved = most_moved(table_of, np.array(people), classes, most, seed)
    assert 0 < moved <= 1 + 1e-9


def test_weighing_by_record_is_noticed():
    people = np.array(list("aaaaaaaabbc"))
    assert most_moved(table_of, people, 2, 16) <= 1 + 1e-9
    assert most_moved(weighed_by_record, people, 2, 16) > 2


def test_one_record_moves_one_cell_by_one():
    scores, labels = made_up(9, 3)
    table = table_of(scores, labels, UnitIndex.by_record(9))
    less = table_of(scores[:8], labels[:8], UnitIndex.by_record(8))
    assert sorted((table - less).ravel().tolist())[-2:] == [0.0, 1.0]


def test_records_beyond_the_most_count_for_nothing():
    scores, labels = made_up(12, 2)
    units = UnitIndex.by_person(np.array(["p"] * 12), 4)
    assert table_of(scores, labels, units).sum() == pytest.approx(1.0)
    first = table_of(scores[:4], labels[:4], UnitIndex.by_person(np.array(["p"] * 4), 4))
    assert np.allclose(table_of(scores, labels, units), first)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_scores_that_are_not_finite_count_for_nothing(bad):
    scores, labels = made_up(5, 2)
    scores[2] = bad
    keep = [0, 1, 3, 4]
    want = table_of(scores[keep], labels[keep], UnitIndex.by_record(4))
    assert np.allclose(table_of(scores, labels, UnitIndex.by_record(5)), want)


def test_no_records():
    scores, labels = made_up(0, 2)
    table, event = gate.noised_histogram(
        scores, labels, UnitIndex.by_record(0), bins=4, noise_multiplier=3.0
    )
    assert np.count_nonzero(table) == table.size == 8
    assert event == Gaussian(3.0, 1.0)


# --- noise --------------------------------------------------------------------------------


def noise(noise_multiplier: float, stream) -> np.ndarray:
    scores, labels = made_up(300, 120)
    units = UnitIndex.by_record(300)
    noised, event = gate.noised_histogram(
        scores, labels, units, bins=10, noise_multiplier=noise_multiplier, stream=stream
    )
    assert event == gate.event(noise_multiplier) == Gaussian(noise_multiplier, 1.0)
    return noised - table_of(scores, labels, units)


def test_the_noise_has_the_scale_of_the_event():
    values = noise(20.0, Stream.seeded("gate"))
    assert scale_fits(values, 20.0)
    assert shape_fits(values, 20.0)
    for factor in (0.1, 2 / 3, 3 / 2):
        assert not scale_fits(values, 20.0 * factor)
    assert not scale_fits(noise(20.0, Weak.seeded("gate")), 20.0)


def test_every_release_is_noised_anew():
    assert not (noise(20.0, None) == noise(20.0, None)).any()


# --- figures ------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [2, 3, 5])
@pytest.mark.parametrize("seed", range(3))
def test_figures_without_noise_are_those_of_the_scores(classes, seed):
    scores, labels = made_up(400, classes, seed)
    want = from_scores(scores, labels)
    got = from_histogram(table_of(scores, labels, UnitIndex.by_record(400), bins=20))
    for name in ("accuracy", "precision", "recall", "f1"):
        assert got[name] == pytest.approx(want[name], abs=1e-12)
    if classes == 2:
        assert got["auc"] == pytest.approx(want["auc"], abs=0.02)
    else:
        assert got["auc"] is None


def test_the_auc_is_exact_where_scores_are_few():
    chance = np.random.default_rng(1)
    labels = chance.integers(0, 2, 500)
    first = (np.floor(10 * chance.beta(2 + labels, 3 - labels)) + 0.5) / 10
    scores = np.stack([1 - first, first], 1)
    got = from_histogram(table_of(scores, labels, UnitIndex.by_record(500)))
    assert got["auc"] == pytest.approx(from_scores(scores, labels)["auc"], abs=1e-12)


def test_figures_weigh_persons_alike():
    """A person with many records counts as much as one with a single record."""
    scores = np.array([[0.9, 0.1]] * 9 + [[0.2, 0.8]])
    labels = np.array([1] * 9 + [1])
    persons = np.array(["many"] * 9 + ["one"])
    table = table_of(scores, labels, UnitIndex.by_person(persons, 20))
    assert from_histogram(table)["accuracy"] == pytest.approx(0.5)


def test_figures_survive_the_noise_of_nothing():
    figures = from_histogram(np.full((2, 10), -5.0))
    assert set(figures.values()) == {None}
