"""A model that is worth no more than the same answer each time is called that, and no other is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from privet.common.plan import Plan
from privet.common.tasks.weakness import weakness_of_scores, weakness_of_tables
from privet.privacy.accounting.units import UnitIndex
from privet.privacy.mechanism.metrics_mechanism import noised_histogram
from privet.simulations.run import simulate

Make = Callable[..., Any]
CLASSES = ["ham", "spam"]


def scores_of(labels: np.ndarray, strength: float, seed: int = 0) -> np.ndarray:
    """Return scores [N, 2] that know that much about the labels; 0 knows nothing."""
    noise = np.random.default_rng(seed).normal(size=len(labels))
    one = 1 / (1 + np.exp(-(strength * (2 * labels - 1) + noise - 2.5 + 2.5 * (strength > 1))))
    return np.stack([1 - one, one], 1)


def rare(count: int, share: float = 0.13) -> np.ndarray:
    return (np.arange(count) < share * count).astype(np.int64)


def test_a_model_that_finds_no_spam() -> None:
    labels = rare(1000)
    scores = np.tile([0.9, 0.1], (1000, 1))
    said = weakness_of_scores(scores, labels, CLASSES, 0.5)
    assert said.startswith("the model answers 'ham' for all test records.")
    assert "--no-dp" in said


def test_one_that_ranks_wants_another_threshold() -> None:
    said = weakness_of_scores(np.tile([0.9, 0.1], (1000, 1)), rare(1000), CLASSES, 0.93)
    assert "(AUC 0.93): choose another threshold than ½" in said and "--no-dp" not in said


def test_one_that_guesses() -> None:
    labels = rare(1000, 0.4)
    scores = scores_of(np.random.default_rng(1).permutation(labels), 3.0)
    said = weakness_of_scores(scores, labels, CLASSES, 0.5)
    assert "is not clearly better than always answering 'ham', 0.600 (of 1,000 test re" in said


@pytest.mark.parametrize("count", [5, 100, 1000])
def test_a_model_that_knows_is_not_named(count: int) -> None:
    labels = rare(count, 0.4)
    assert weakness_of_scores(scores_of(labels, 4.0), labels, CLASSES, 0.99) == ""


def test_a_model_of_many_classes() -> None:
    labels = np.arange(700) % 7
    names = [f"class {k}" for k in range(7)]
    right = np.eye(7)[labels]
    assert weakness_of_scores(right, labels, names, 1.0) == ""
    same = np.tile(np.eye(7)[3], (700, 1))
    said = weakness_of_scores(same, labels, names, 0.8)
    assert "answers 'class 3' for all" in said and "threshold" not in said


def test_chance_alone_is_mostly_named() -> None:
    """Of models that know nothing, those that are as good by chance as 1 % of the records pass."""
    labels, passed = rare(400, 0.5), 0
    for seed in range(300):
        random = np.random.default_rng(seed).uniform(size=400)
        scores = np.stack([random, 1 - random], 1)
        passed += weakness_of_scores(scores, labels, CLASSES, 0.5) == ""
    assert passed <= 160  # 42 % of 300 are 126


def test_little_to_test_on_says_little() -> None:
    # Three of four rare ones found, and one false alarm: better, by two records of 100.
    labels = np.array([0] * 96 + [1] * 4)
    guess = labels.copy()
    guess[[0, -1]] = 1, 0
    assert weakness_of_scores(np.eye(2)[guess], labels, CLASSES, 0.9) == ""
    # Of one class alone nothing can be told, nor of labels that are no classes.
    assert weakness_of_scores(np.eye(2)[np.zeros(9, int)], np.zeros(9, int), CLASSES, None) == ""
    assert weakness_of_scores(np.eye(2)[np.zeros(3, int)], np.array([0, 1, 2]), CLASSES, 0.5) == ""
    assert weakness_of_scores(np.eye(2)[np.zeros(3, int)], np.array([0, 1, -1]), CLASSES, 0.5) == ""


# through the gate


def tables_of(plan: Plan, strength: float, count: int, sites: int = 3) -> dict[str, Any]:
    labels = rare(count, 0.3)
    return {
        f"site {k}": noised_histogram(
            scores_of(labels, strength, k), labels, UnitIndex.by_record(count),
            shape=(2, plan.metrics.bins), noise_multiplier=plan.metrics.noise_multiplier,
        )[0]
        for k in range(sites)
    }  # fmt: skip


@pytest.fixture
def gated(plan_value: Make) -> Plan:
    return Plan.parse(plan_value(metrics={"source": "gate", "noise_multiplier": 8.0}))


def test_the_gate_names_a_constant_answer_and_no_other(gated: Plan) -> None:
    weak = [weakness_of_tables(tables_of(gated, 0.0, 10_000), gated) for _ in range(20)]
    assert sum("noised counts" in said for said in weak) >= 16
    strong = [weakness_of_tables(tables_of(gated, 4.0, 10_000), gated) for _ in range(20)]
    assert not any(strong)


@pytest.mark.parametrize("share", [0.04, 0.1, 0.5])
@pytest.mark.parametrize("count", [20, 300, 2000, 2300, 4000])
def test_noise_does_not_count_against_a_perfect_model(
    gated: Plan, share: float, count: int
) -> None:
    labels, named = rare(count, share), 0
    for _ in range(6):
        tables = {
            f"site {k}": noised_histogram(
                np.eye(2)[labels], labels, UnitIndex.by_record(count),
                shape=(2, gated.metrics.bins), noise_multiplier=gated.metrics.noise_multiplier,
            )[0]
            for k in range(3)
        }  # fmt: skip
        named += weakness_of_tables(tables, gated) != ""
    assert named <= 1


def test_of_a_few_records_noise_says_nothing(gated: Plan) -> None:
    for _ in range(20):
        assert weakness_of_tables(tables_of(gated, 0.0, 10), gated) == ""
    assert weakness_of_tables({}, gated) == ""


# as a user meets it


def test_the_end_of_a_run_says_it(plan_value: Make, frame_of: Make, tmp_path: Path) -> None:
    for number, name in enumerate(("North", "South")):
        frame: pd.DataFrame = frame_of(120, number)
        frame.to_csv(tmp_path / f"{name}.csv", index=False)
    sites = [
        {"name": name, "nominal_size": 80, "path": str(tmp_path / f"{name}.csv")}
        for name in ("North", "South")
    ]
    value = plan_value(sites=sites)
    idle = Plan.parse(value).changed(privacy=None, training={"rounds": 1, "learning_rate": 1e-9})
    said = simulate(idle, out=tmp_path / "idle").remarks
    assert any("for all test records" in one or "not clearly better" in one for one in said)
    assert not any("--no-dp" in one for one in said)  # it was one of those
    taught = idle.changed(training={"rounds": 30, "learning_rate": 0.5, "steps": 5})
    result = simulate(taught, out=tmp_path / "taught")
    assert result.metrics["accuracy"] > result.metrics["majority"] + 0.1
    assert not any("not clearly" in one or "for all" in one for one in result.remarks)
