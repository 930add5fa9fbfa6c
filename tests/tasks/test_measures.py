"""Perplexity from likelihoods and from the gate's table; what a unit can move."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from families_kit import family_plan

from privet.common.tasks import likelihood
from privet.common.tasks.measure import CLASSES, LIKELIHOOD, measure_of_kind, read_table
from privet.privacy import gate
from privet.privacy.noise import Stream
from privet.privacy.units import UnitIndex
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
    table = likelihood.histogram(scores, np.zeros(500, np.int64), np.ones(500), bins)
    exact = float((scores[:, 0] / scores[:, 1]).mean())
    loss = read_table(table)["loss"]
    assert loss is not None and abs(loss - exact) <= likelihood.MOST / bins / 2
    assert table.sum() == 500 and table.shape == (1, bins)


def test_losses_beyond_the_end_count_in_the_last_bin() -> None:
    table = likelihood.histogram(np.array([[90.0, 1, 1]]), LABELS[:1], np.ones(1), 10)
    assert table[0, -1] == 1.0


@pytest.mark.parametrize("table", [likelihood.histogram, lambda *a: 2 * likelihood.histogram(*a)])
def test_one_unit_moves_the_table_by_one_at_most(table: object, request: object) -> None:
    """The negative control adds twice: the bound that the event assumes would be passed."""
    del request
    chance = np.random.default_rng(1)
    scores = np.stack([chance.uniform(1, 60, 40), np.full(40, 6.0), np.full(40, 20.0)], 1)
    people = np.repeat(np.arange(10), 4)
    units = UnitIndex.by_person(people.astype(str), 4)
    rest = people != 3
    fewer = UnitIndex.by_person(people[rest].astype(str), 4)

    def counted(scores: np.ndarray, units: UnitIndex) -> np.ndarray:
        return gate.noised_histogram(
            scores, np.zeros(len(scores), np.int64), units, table=table, bins=20,  # type: ignore[arg-type]
            noise_multiplier=0.0, stream=Stream.seeded(1),
        )[0]  # fmt: skip

    moved = float(np.linalg.norm(counted(scores, units) - counted(scores[rest], fewer)))
    honest = table is likelihood.histogram
    assert (moved <= 1.0 + 1e-9) is honest


def test_tables_and_tasks_know_their_measure() -> None:
    assert measure_of_kind("causal-text") is LIKELIHOOD
    assert measure_of_kind("text") is CLASSES and measure_of_kind("mine:make") is CLASSES
    assert read_table([[1.0, 2.0, 3.0]]).keys() == dict.fromkeys(likelihood.NAMES).keys()
    assert "accuracy" in read_table([[1.0, 0.0], [0.0, 1.0]])


@pytest.mark.parametrize("name", ["decoder", "encoder-decoder", "vit"])
def test_the_gate_measures_every_family(name: str, tmp_path: Path) -> None:
    plan = family_plan(name, tmp_path, metrics={"source": "gate", "noise_multiplier": 1.0})
    found = simulate(plan.changed(privacy={"epsilon": 20}), out=tmp_path / "run")
    headline = measure_of_kind(plan.task.kind).headline
    assert found.metrics[headline] is not None
    assert all(site.metrics[headline] is not None for site in found.sites)
    assert found.loss is not None and found.loss.epsilon <= 20
