"""Perplexity from likelihoods and from the gate's table; what a unit can move."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from families_kit import family_plan
from sklearn.metrics import roc_auc_score

from privet.common.errors import InputError
from privet.common.plan import Plan
from privet.common.tasks import likelihood, metrics
from privet.common.tasks.measure import CLASSES, LIKELIHOOD, measure_of_kind, pooled, read_table
from privet.privacy.accounting.events import GATE_WEIGHT
from privet.privacy.accounting.units import UnitIndex
from privet.privacy.mechanism import metrics_mechanism
from privet.simulations.run import simulate

LABELS = np.zeros(3, np.int64)


def test_perplexity_weighs_each_token_alike() -> None:
    scores = np.array([[2.0, 1, 4], [6.0, 3, 8], [0.0, 0, 0]])
    found = likelihood.from_scores(scores, LABELS)
    assert found["loss"] == pytest.approx(8 / 4)
    assert found["perplexity"] == pytest.approx(math.exp(2))
    assert found["bits_per_character"] == pytest.approx(8 / math.log(2) / 12)


def test_nothing_to_predict_has_no_figure() -> None:
    nothing = dict.fromkeys(likelihood.NAMES)
    assert likelihood.from_scores(np.zeros((2, 3)), LABELS[:2]) == nothing
    assert likelihood.from_scores(np.zeros((0, 3)), LABELS[:0]) == nothing
    assert likelihood.from_histogram(np.zeros((1, 8))) == nothing


@pytest.mark.parametrize("bins", [10, 60, 100])
def test_a_table_knows_the_loss_to_half_a_bin(bins: int) -> None:
    chance = np.random.default_rng(0)
    tokens = chance.integers(1, 30, 500)
    scores = np.stack([tokens * chance.uniform(1, 9, 500), tokens, tokens * 4], 1)
    cells = likelihood.cells(scores, np.zeros(500, np.int64), (1, bins))
    table = np.bincount(cells, minlength=bins)[None]
    exact = float((scores[:, 0] / scores[:, 1]).mean())
    loss = read_table(table)["loss"]
    assert loss is not None and abs(loss - exact) <= likelihood.MAX_NATS / bins / 2
    assert table.sum() == 500 and table.shape == (1, bins)


def test_losses_beyond_the_end_count_in_the_last_bin() -> None:
    scores = np.array([[90.0, 1, 1], [1e30, 1, 1], [3e38, 1e-3, 1], [0.0, 1, 1], [-1.0, 1, 1]])
    found = likelihood.cells(scores.astype(np.float32), np.zeros(5, np.int64), (1, 10))
    assert found.tolist() == [9, 9, 9, 0, 0]


def test_a_record_without_tokens_has_no_cell() -> None:
    scores = np.array([[1.0, 0, 1], [1.0, -2, 1], [1.2, 1, 1]])
    assert likelihood.cells(scores, LABELS, (1, 10)).tolist() == [-1, -1, 1]
    assert likelihood.cells(scores[:, :2], LABELS, (1, 10)).tolist() == [-1, -1, -1]


@pytest.mark.parametrize("classes", [2, 3, 8])
@pytest.mark.parametrize("digits", [1, 8], ids=["many are equal", "none are equal"])
def test_the_area_is_that_of_the_curve(classes: int, digits: int) -> None:
    random = np.random.default_rng(classes)
    for count in (2, 5, 60):
        scores = random.dirichlet(np.ones(classes), count).round(digits)
        labels = random.integers(0, classes, count)
        labels[:2] = 0, 1
        found = metrics.from_scores(scores, labels)["auc"]
        if classes == 2:
            wanted = roc_auc_score(labels, scores[:, 1])
        else:  # of the classes that are there
            wanted = np.mean([roc_auc_score(labels == k, scores[:, k]) for k in np.unique(labels)])
        assert found == pytest.approx(wanted, abs=1e-12)
    one_class = metrics.from_scores(scores, np.zeros(count, np.int64))
    assert one_class["auc"] is None and one_class["accuracy"] is not None


def test_the_cells_of_classes() -> None:
    scores = np.array([[0.3, 0.7], [1.0, 0.0], [0.0, 1.0], [0.5, 0.5]])
    cells = metrics.cells(scores, np.array([0, 1, 1, -1]), (2, 10))
    assert cells.tolist() == [7, 10, 19, -1]
    three = np.array([[0.1, 0.2, 0.7], [0.6, 0.2, 0.2]])
    assert metrics.cells(three, np.array([1, 2]), (3, 3)).tolist() == [5, 6]
    for odd in (scores, scores[:, :1], scores[:, 0]):
        assert set(metrics.cells(odd, np.zeros(4, int), (3, 3)).tolist()) == {-1}
    for labels in (np.zeros((4, 2), int), np.array([0.0, 1.0, 1.0, 0.0])):
        assert set(metrics.cells(scores, labels, (2, 10)).tolist()) == {-1}


@pytest.mark.parametrize("each", [GATE_WEIGHT // 4, GATE_WEIGHT // 2])
def test_one_unit_moves_the_table_by_its_weight_at_most(each: int) -> None:
    """The negative control adds twice: the bound that the event assumes would be passed."""
    chance = np.random.default_rng(1)
    scores = np.stack([chance.uniform(1, 60, 40), np.full(40, 6.0), np.full(40, 20.0)], 1)
    people = np.repeat(np.arange(10), 4)
    rest = people != 3

    def counted(kept: np.ndarray) -> np.ndarray:
        cells = metrics_mechanism.record_cells(
            LIKELIHOOD, scores[kept], np.zeros(sum(kept), int), (1, 20)
        )
        if each != GATE_WEIGHT // 4:
            return np.bincount(cells, minlength=20) * each
        units = UnitIndex.by_person(people[kept].astype(str), 4)
        return metrics_mechanism.counted(cells, units, (1, 20))[0]

    moved = int(np.abs(counted(people >= 0) - counted(rest)).sum())
    assert (moved <= GATE_WEIGHT) is (each == GATE_WEIGHT // 4)


def test_tables_and_tasks_know_their_measure() -> None:
    assert measure_of_kind("causal-text") is LIKELIHOOD
    assert measure_of_kind("text") is CLASSES and measure_of_kind("mine:make") is CLASSES
    assert read_table([[1.0, 2.0, 3.0]]).keys() == dict.fromkeys(likelihood.NAMES).keys()
    assert "accuracy" in read_table([[1.0, 0.0], [0.0, 1.0]])


def test_a_table_of_shares_is_read_by_the_kind_of_its_task() -> None:
    """Its shape is that of likelihoods."""
    table = np.array([[1.0, 0.0, 3.0]])
    assert read_table(table, "token-classification")["token_accuracy"] == pytest.approx(0.75)
    found, sites = pooled({"a": table, "b": table}, "question-answering")
    assert found == {"f1": 0.75, "exact_match": 0.75} == sites["b"]
    assert read_table(table, "causal-text").keys() == set(likelihood.NAMES)
    assert read_table(table, "mine:make").keys() == set(likelihood.NAMES)


@pytest.mark.parametrize("name", ["decoder", "encoder-decoder", "vit"])
def test_the_gate_measures_every_family(name: str, tmp_path: Path) -> None:
    plan = family_plan(name, tmp_path, metrics={"source": "gate", "noise_multiplier": 1.0})
    found = simulate(plan.changed(privacy={"epsilon": 20}), out=tmp_path / "run")
    headline = measure_of_kind(plan.task.kind).headline
    assert found.metrics[headline] is not None
    assert all(site.metrics[headline] is not None for site in found.sites)
    assert found.loss is not None and found.loss.epsilon <= 20


def test_a_classification_without_classes_has_no_table(plan_value: Callable[..., Any]) -> None:
    plan = Plan.parse(plan_value(task={"kind": "mine:task", "classes": []}))
    with pytest.raises(InputError, match="a row for each class"):
        CLASSES.shape(plan)
