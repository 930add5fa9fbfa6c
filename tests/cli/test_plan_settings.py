"""``privet plan settings`` and ``privet plan noise``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from test_commands import Run, privet

from privet.common.plan import Plan
from privet.privacy.accounting import noise_table
from privet.privacy.accounting.noise_table import planned_noise

__all__ = ["privet"]
PLAN = """
[task]
kind = "tabular"
label = "y"
classes = ["0", "1"]
numeric = { x1 = { low = -2, high = 2 } }

[privacy]
epsilon = 3
delta = 1e-5

[[sites]]
name = "A"
nominal_size = 500
"""


@pytest.fixture
def draft(tmp_path: Path) -> Path:
    path = tmp_path / "draft.toml"
    path.write_text(PLAN)
    return path


def test_each_value_is_printed_with_its_reason(privet: Run, draft: Path) -> None:
    plan = Plan.load(draft)
    value = json.loads(privet("plan", "settings", draft, "--json").out)
    assert {one["key"]: one["reason"] for one in value["settings"]} == plan.chosen
    rate = next(one for one in value["settings"] if one["key"] == "training.learning_rate")
    assert rate["value"] == plan.training.learning_rate
    table = privet("plan", "settings", draft).out
    assert all(key in table for key in plan.chosen)


def test_the_whole_plan_is_written_once(privet: Run, draft: Path, tmp_path: Path) -> None:
    out = tmp_path / "whole.toml"
    done = privet("plan", "settings", draft, "--epsilon", 8, "--out", out)
    assert done.code == 0, done.err
    whole = Plan.load(out)
    assert not whole.chosen
    assert whole.digest == Plan.load(draft).redrafted(privacy={"epsilon": 8.0}).digest
    text = out.read_text()
    again = privet("plan", "settings", draft, "--out", out)
    assert (again.code, out.read_text()) == (2, text)
    assert "name a new file" in again.err
    assert "says all of its settings" in privet("plan", "settings", out).out


def test_a_plan_without_rules_says_so(privet: Run) -> None:
    assert "says all of its settings" in privet("plan", "settings", "lending").out


def test_noise_by_steps_and_rate(privet: Run, draft: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(noise_table, "STEPS", (10, 40))
    monkeypatch.setattr(noise_table, "RATES", (0.2, 1.0))
    plan = Plan.load(draft)
    rows = {(row.steps, row.sample_rate): row for row in planned_noise(plan)}
    # All unsampled steps of a run are one Gaussian, however many.
    assert rows[10, 1.0].total == pytest.approx(rows[40, 1.0].total, rel=1e-3)
    assert rows[40, 1.0].noise_multiplier == pytest.approx(
        2 * rows[10, 1.0].noise_multiplier, rel=1e-3
    )
    # Fewer records a step have more noise in all, and the less so the more steps there are.
    assert rows[10, 0.2].total > rows[40, 0.2].total > rows[40, 1.0].total
    value = json.loads(privet("plan", "noise", draft, "--json").out)
    found = {(row["steps"], row["sample_rate"]): row for row in value["rows"]}
    assert found[40, 1.0]["noise_multiplier"] == rows[40, 1.0].noise_multiplier


def test_a_plan_without_noise_has_none_to_plan(privet: Run, tmp_path: Path) -> None:
    path = tmp_path / "plain.toml"
    path.write_text('privacy = "none"\n' + PLAN.replace("[privacy]\nepsilon = 3\ndelta = 1e-5", ""))
    done = privet("plan", "noise", path)
    assert done.code == 2
    assert "needs a [privacy] section" in done.err
