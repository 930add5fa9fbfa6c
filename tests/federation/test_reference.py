"""Comparisons with scikit-learn's models on the columns of a plan."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression

from privet.common.plan import Plan
from privet.simulations import compare, reference
from privet.simulations.reference import ReferenceModels

Make = Callable[..., Any]


@pytest.fixture
def plan(plan_value: Make) -> Plan:
    return Plan.parse(plan_value())


def records(count: int, seed: int) -> pd.DataFrame:
    draws = np.random.default_rng(seed)
    x = draws.normal(0, 1, (count, 2))
    colour = draws.choice(["red", "blue"], count)
    # Neither a line nor a colour alone decides: trees see more than a linear model.
    y = (x[:, 0] * np.where(colour == "red", 1, -1) + 0.3 * x[:, 1] > 0).astype(int)
    frame = pd.DataFrame({"x1": x[:, 0], "x2": x[:, 1], "colour": colour, "y": y})
    return frame.astype(object)


def test_logistic_regression_is_scikit_learns_on_the_same_columns(plan: Plan) -> None:
    train, test = records(400, 0), records(300, 1)
    found = ReferenceModels(plan, test).logistic(train)
    assert found is not None
    assert found.has_converged

    def columns(frame: pd.DataFrame) -> np.ndarray:
        numbers = frame[["x1", "x2"]].to_numpy(dtype=float)
        return np.column_stack([numbers, frame["colour"] == "red", frame["colour"] == "blue"])

    model = LogisticRegression().fit(columns(train), train["y"].astype(int))
    accuracy = model.score(columns(test), test["y"].astype(int))
    assert found.metrics["accuracy"] == pytest.approx(accuracy, abs=0.01)


def test_trees_find_what_no_line_does(plan: Plan) -> None:
    models = ReferenceModels(plan, records(400, 1))
    trees, line = models.boosted(records(800, 0)), models.logistic(records(800, 0))
    assert trees is not None
    assert line is not None
    assert trees.metrics["accuracy"] > 0.85 > 0.7 > line.metrics["accuracy"]


def test_records_that_allow_no_model_have_none(plan: Plan) -> None:
    models = ReferenceModels(plan, records(100, 1))
    one_class = records(200, 0).assign(y=1)
    assert models.logistic(one_class) is None
    assert models.boosted(one_class) is None
    assert models.boosted(records(20, 0)) is None


def test_many_categories_and_many_classes_end_no_comparison(plan_value: Make) -> None:
    value = plan_value()
    value["task"]["categorical"] = {"colour": ["red", "blue", *(f"c{n}" for n in range(400))]}
    many = ReferenceModels(Plan.parse(value), records(200, 1)).boosted(records(400, 0))
    assert many is not None
    value["task"]["classes"] = [str(n) for n in range(20)]
    labels = [n % 20 for n in range(120)]
    few = ReferenceModels(Plan.parse(value), records(120, 1).assign(y=labels))
    assert few.boosted(records(120, 0).assign(y=labels)) is None


def test_a_row_that_did_not_converge_says_so(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "MAX_ITERATIONS", 1)
    found = ReferenceModels(plan, records(200, 1)).logistic(records(200, 0))
    rows = compare._fitted("pooled", found)
    assert [row.name for row in rows] == ["pooled (did not converge)"]
    assert not rows[0].private


def test_a_class_that_no_training_record_has_is_measured_too(plan_value: Make) -> None:
    value = plan_value()
    value["task"]["classes"] = ["0", "1", "2"]
    plan = Plan.parse(value)
    test = records(300, 1)
    test.loc[test.index[:30], "y"] = 2
    found = ReferenceModels(plan, test).logistic(records(300, 0))
    assert found is not None
    assert 0 < found.metrics["accuracy"] < 0.9
