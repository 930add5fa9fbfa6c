"""Any key of a plan can be set on a command line, and from Python."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from privet.cli import app
from privet.common.errors import InputError, PrivetError
from privet.common.plan import Plan
from privet.simulations.plan_values import changes_of, values_of
from privet.simulations.planning import adjusted
from privet.simulations.run import simulate

Make = Callable[..., Any]


@pytest.fixture
def plan(plan_value: Make) -> Plan:
    return Plan.parse(plan_value())


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("training.steps=5", 5),
        ("training.learning_rate=1e-1", 0.1),
        ("training.optimizer=adam", "adam"),
        ("training.clip=null", None),
        ("model.options.pre_norm=true", True),
        ('task.classes=["0", "1"]', ["0", "1"]),
        ("title=a = b", "a = b"),
        ("title= Hospitals of the north ", "Hospitals of the north"),
    ],
)
def test_values_are_read(text: str, value: object) -> None:
    ((_, found),) = values_of([text]).items()
    assert found == value


@pytest.mark.parametrize("text", ["steps", "=5", "training.steps=", "training.steps= ", "a b=1"])
def test_words_that_are_no_value_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="write KEY=VALUE"):
        values_of([text])


def test_a_value_without_end_is_a_word() -> None:
    assert values_of(["title=" + "[" * 50_000]) == {"title": "[" * 50_000}


def test_a_key_comes_once() -> None:
    with pytest.raises(InputError, match="comes twice"):
        values_of(["seed=1", "seed=2"])


def test_all_else_of_a_section_stays(plan: Plan) -> None:
    changed = adjusted(plan, values={"training.steps": 7, "task.numeric.x1.low": -3})
    assert changed.training.steps == 7 and changed.training.sample_rate == plan.training.sample_rate
    assert changed.task.numeric["x1"].low == -3 and changed.task.numeric["x1"].high == 2  # type: ignore[union-attr]
    assert changed.model == plan.model


def test_epsilon_is_calibrated_again(plan: Plan) -> None:
    assert plan.privacy is not None and plan.privacy.noise_multiplier == 2.0
    changed = adjusted(plan, values={"privacy.epsilon": 3})
    assert changed.privacy is not None and changed.privacy.noise_multiplier is None
    # An option that is a word of its own comes after.
    assert adjusted(plan, values={"seed": 3}, seed=4).seed == 4


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"training.stepz": 2}, "did you mean 'steps'"),
        ({"self": 3}, "a plan has no key 'self'"),
        ({"__class__": 3}, "a plan has no key '__class__'"),
        ({"trainin.steps": 3}, "a plan has no key 'trainin'"),
        ({"seed.x": 2}, "'seed' has no parts"),
        ({"training.steps": "many"}, "training.steps"),
        ({"training.steps": 2, "training": None}, "cannot be set together"),
        ({"privacy.epsilon": 3, "privacy.noise_multiplier": 2.0}, "set one of them"),
    ],
)
def test_a_key_without_a_place_is_refused(plan: Plan, values: dict[str, Any], said: str) -> None:
    with pytest.raises(PrivetError, match=said):
        adjusted(plan, values=values)


def test_a_plan_without_privacy_has_no_epsilon(plan: Plan) -> None:
    with pytest.raises(InputError, match=r"no \[privacy\] section"):
        changes_of(plan.changed(privacy=None), {"privacy.epsilon": 3})


def test_command_and_function_set_the_same(
    plan_value: Make, write_toml: Make, write_files: Make, tmp_path: Path
) -> None:
    write_files(tmp_path)
    path = write_toml(tmp_path / "plan.toml", plan_value())
    words = ["--set", "training.rounds=1", "--set", "model.options={}", "--evidence", "off"]
    out = tmp_path / "a"
    done = CliRunner().invoke(app, ["simulate", str(path), *words, "--out", str(out)])
    assert done.exit_code == 0, done.output
    made = simulate(path, values={"training.rounds": 1}, evidence="off", out=tmp_path / "b")
    assert made.plan.training.rounds == 1
    kept = json.loads((out / "plan.json").read_text(encoding="utf-8"))
    assert Plan.parse(kept).training == made.plan.training


def test_a_sweep_takes_set_values(
    plan_value: Make, write_toml: Make, write_files: Make, tmp_path: Path
) -> None:
    write_files(tmp_path)
    path = write_toml(tmp_path / "plan.toml", plan_value())
    words = ["--set", "training.rounds=1", "--sweep", "seed=1,2", "--jobs", "1", "--json"]
    out = tmp_path / "sweep"
    done = CliRunner().invoke(app, ["simulate", str(path), *words, "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert '"rounds": 1' in (out / "seed-1" / "plan.json").read_text()
