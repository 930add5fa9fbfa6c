"""The metrics gate: what one unit can move, what the noise is, and what figures come of it."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from dp_kit import examples, scale_fits, shape_fits
from hypothesis import given
from hypothesis import strategies as st

from privet.common.errors import PrivacyError, SelfTestError
from privet.common.tasks.measure import CLASSES, Measure
from privet.common.tasks.metrics import from_histogram, from_scores
from privet.privacy.accounting.events import GATE_WEIGHT, DiscreteGaussian
from privet.privacy.accounting.units import UnitIndex
from privet.privacy.mechanism import metrics_mechanism
from privet.privacy.mechanism.noise import Stream


def made_up(count: int, classes: int, seed: int = 0):
    chance = np.random.default_rng(seed)
    scores = chance.dirichlet(np.ones(classes), count)
    return scores, chance.integers(0, classes, count)


def shape_of(scores, bins=10):
    classes = scores.shape[1]
    return (2, bins) if classes == 2 else (classes, classes)


def table_of(scores, labels, units, bins=10, measure: Measure = CLASSES):
    """The table without noise, in weights of a unit."""
    shape = shape_of(scores, bins)
    cells = metrics_mechanism.record_cells(measure, scores, labels, shape)
    return metrics_mechanism.counted(cells, units, shape) / GATE_WEIGHT


def weighed_by_record(scores, labels, units, bins=10):
    """A planted fault: every record counts for one."""
    del units
    shape = shape_of(scores, bins)
    cells = metrics_mechanism.record_cells(CLASSES, scores, labels, shape)
    return np.bincount(cells, minlength=math.prod(shape)).astype(float)


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
    assert table_of(scores, labels, units).sum() == 1.0
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
    for units in (UnitIndex.by_record(0), UnitIndex.by_person(np.array([], object), 4)):
        table, event = metrics_mechanism.noised_histogram(
            scores, labels, units, shape=(2, 4), noise_multiplier=3.0
        )
        assert np.count_nonzero(table) == table.size == 8
        assert event == DiscreteGaussian(3 * 2**20, 2**20)


def test_scores_of_no_width_are_none():
    """What comes of no records at all: nobody knows how wide their scores would be."""
    table, _ = metrics_mechanism.noised_histogram(
        np.zeros((0, 1)), np.zeros(0, int), UnitIndex.by_record(0), shape=(3, 3),
        noise_multiplier=1.0,
    )  # fmt: skip
    assert table.shape == (3, 3)


@pytest.mark.parametrize("label", [-1, 2, 10**6, -(10**6)])
def test_a_label_that_is_no_class_counts_for_nothing(label):
    scores, labels = made_up(5, 2)
    labels[2] = label
    keep = [0, 1, 3, 4]
    want = table_of(scores[keep], labels[keep], UnitIndex.by_record(4))
    assert (table_of(scores, labels, UnitIndex.by_record(5)) == want).all()


def test_shares_are_rounded_down():
    scores, labels = made_up(7, 2)
    one = UnitIndex.by_person(np.array(["p"] * 7), 9)
    weight = table_of(scores, labels, one).sum() * GATE_WEIGHT
    assert weight == 7 * (GATE_WEIGHT // 7) < GATE_WEIGHT
    crowd = UnitIndex(np.array([0, 2**20 + 1]), np.zeros(2**20 + 1, int))
    assert metrics_mechanism.counted(np.array([0]), crowd, (1, 1)).tolist() == [[0]]


# --- a measure of one's own ---------------------------------------------------------------


def own(cells) -> Measure:
    return replace(CLASSES, cells=cells)


def squared_error(scores, labels, shape):
    """The planted measure: a cell number that grows without bound."""
    del shape
    return (1e6 * (scores[:, 1] - labels) ** 2).astype(np.int64)


def old_table(scores, labels, units, bins=10):
    """The same measure in the old gate, which took whatever table a measure made."""
    weights = np.zeros(len(labels))
    weights[units.records] = np.repeat(1 / np.diff(units.starts), np.diff(units.starts))
    table = np.zeros(shape_of(scores, bins))
    table[0, 0] = (weights * 1e6 * (scores[:, 1] - labels) ** 2).sum()
    return table


def mean_of_batch(scores, labels, shape):
    """The planted measure: a cell by what the others have."""
    return ((scores[:, 1] > scores[:, 1].mean()) * 7 + labels).astype(np.int64)


def mean_of_base(scores, labels, shape):
    """The same, by way of the array that a view would be of."""
    whole = scores if scores.base is None else scores.base
    return ((scores[:, 1] > whole.reshape(-1, 2)[:, 1].mean()) * 7 + labels).astype(np.int64)


def odd_kinds(scores, labels, shape):
    return [
        lambda: np.array([3.0]), lambda: np.array([True]), lambda: [1, 1], lambda: "cell",
        lambda: None, lambda: 1 / 0, lambda: np.array([[1]]), lambda: [2**80], lambda: [-7],
        lambda: [shape[0] * shape[1]], lambda: np.array([4]), lambda: np.zeros(1, object),
    ][int(scores[0, 1] * 1e6) % 12]()  # fmt: skip


@pytest.mark.parametrize("cells", [squared_error, mean_of_batch, mean_of_base, odd_kinds])
@pytest.mark.parametrize("seed", range(3))
def test_no_measure_lets_a_person_move_the_table_by_more(cells, seed):
    people = np.array(list("aaaaabbcdddddddeee"))

    def make(scores, labels, units):
        return table_of(scores, labels, units, measure=own(cells))

    assert most_moved(make, people, 2, 16, seed) <= 1.0
    assert most_moved(make, people, 3, 3, seed) <= 1.0


def test_the_old_table_and_coupled_cells_are_noticed():
    people = np.array(list("aaaaabbcdddddddeee"))
    assert most_moved(old_table, people, 2, 16) > 1e4

    def coupled(scores, labels, units):
        cells = mean_of_batch(scores, labels, (2, 10))
        return metrics_mechanism.counted(cells, units, (2, 10)) / GATE_WEIGHT

    assert max(most_moved(coupled, people, 2, 16, seed) for seed in range(3)) > 1.1


def test_what_a_measure_says_of_one_record_moves_no_other():
    scores, labels = made_up(24, 2)
    units = UnitIndex.by_record(24)
    kept = np.arange(24) != 5
    whole = metrics_mechanism.record_cells(own(odd_kinds), scores, labels, (2, 10))
    part = metrics_mechanism.record_cells(own(odd_kinds), scores[kept], labels[kept], (2, 10))
    assert (whole[kept] == part).all()
    assert set(whole.tolist()) == {-1, 4}
    assert (
        metrics_mechanism.counted(whole, units, (2, 10)).sum() == (whole == 4).sum() * GATE_WEIGHT
    )


def test_an_own_measure_that_says_the_same_gives_the_same():
    scores, labels = made_up(50, 3)
    scores[4, 1], labels[7] = np.nan, -1
    same = own(lambda *given: CLASSES.cells(*given))
    units = UnitIndex.by_record(50)
    assert (table_of(scores, labels, units, measure=same) == table_of(scores, labels, units)).all()


def test_scores_and_labels_may_have_any_shape():
    """A regression: [N] scores, labels that are no class numbers."""
    scores, labels = np.array([0.1, 0.7, np.nan, 3.0]), np.array([0.2, 0.1, 0.5, 0.0])
    away = own(lambda s, y, shape: (np.abs(s - y) * 4).astype(int))
    cells = metrics_mechanism.record_cells(away, scores, labels, (1, 8))
    assert cells.tolist() == [0, 2, -1, -1]


@pytest.mark.parametrize(
    "shape", [(0, 3), (3, -1), (2.0, 3), (True, 3), (3,), 3, None, (1001, 1000)]
)
def test_a_table_is_a_table(shape):
    with pytest.raises(PrivacyError, match="metrics table"):
        metrics_mechanism.noised_histogram(
            *made_up(3, 2), UnitIndex.by_record(3), shape=shape, noise_multiplier=1.0
        )


class Remembers:
    """The planted measure: the n-th record that it is asked about falls into cell n."""

    asked = -1

    def __call__(self, scores, labels, shape):
        self.asked += 1
        return np.array([self.asked % 20])


def test_a_measure_is_tried_on_made_up_records():
    scores, labels = made_up(8, 2)
    for measure in (CLASSES, own(squared_error), own(mean_of_batch)):
        metrics_mechanism.check_measure(measure, (2, 10**5), scores, labels)
    with pytest.raises(SelfTestError, match="order in which records are asked"):
        metrics_mechanism.check_measure(own(Remembers()), (2, 10), scores, labels)
    with pytest.raises(SelfTestError, match="ZeroDivisionError"):
        metrics_mechanism.check_measure(own(lambda *_: 1 / 0), (2, 10), scores, labels)
    for odd in (scores[:, :1], scores[:, 0], np.zeros((8, 5))):
        with pytest.raises(SelfTestError, match="do not fit a table"):
            metrics_mechanism.check_measure(CLASSES, (2, 10), odd, labels)
    with pytest.raises(SelfTestError, match="do not fit a table"):
        metrics_mechanism.check_measure(CLASSES, (2, 10), scores, labels + 0.5)
    with pytest.raises(SelfTestError, match="at most 1,000,000 cells"):
        metrics_mechanism.check_measure(CLASSES, (2, 10**6), scores, labels)


# --- noise --------------------------------------------------------------------------------


def noise(noise_multiplier: float, stream) -> np.ndarray:
    scores, labels = made_up(300, 120)
    units = UnitIndex.by_record(300)
    noised, event = metrics_mechanism.noised_histogram(
        scores, labels, units, shape=(120, 120), noise_multiplier=noise_multiplier, stream=stream
    )
    assert event == metrics_mechanism.event(noise_multiplier)
    assert event == DiscreteGaussian(round(noise_multiplier * 2**20), 2**20)
    return noised - table_of(scores, labels, units)


def test_the_noise_has_the_scale_of_the_event(monkeypatch):
    values = noise(20.0, Stream.seeded("gate"))
    assert scale_fits(values, 20.0)
    assert shape_fits(values, 20.0)
    for factor in (0.1, 2 / 3, 3 / 2):
        assert not scale_fits(values, 20.0 * factor)
    draw = metrics_mechanism.discrete_gaussian
    monkeypatch.setattr(
        metrics_mechanism,
        "discrete_gaussian",
        lambda sigma, *rest: draw(round(0.94 * sigma), *rest),
    )
    assert not scale_fits(noise(20.0, Stream.seeded("gate")), 20.0)


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
    assert from_histogram(table)["accuracy"] == pytest.approx(0.5, abs=1e-5)


def test_figures_survive_the_noise_of_nothing():
    figures = from_histogram(np.full((2, 10), -5.0))
    assert set(figures.values()) == {None}
