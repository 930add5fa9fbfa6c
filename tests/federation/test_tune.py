"""Settings that are tried and chosen by a validation split: ``--tune``."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from privet.common.errors import InputError
from privet.common.plan import Plan
from privet.privacy.accounting.noise_calibration import calibrated
from privet.simulations import run as run_module
from privet.simulations.planning import Setting
from privet.simulations.tune import candidates_of, cost_of, sentence_of, tune

Make = Callable[..., Any]


@pytest.fixture
def plan(plan_value: Make) -> Plan:
    value = plan_value(
        privacy={"epsilon": 5.0, "noise_multiplier": None},
        split={"test": 0.3, "validation": 0.2},
        attested={"H12": "settings were not chosen on these records"},
    )
    return Plan.parse(value)


def test_candidates_follow_from_the_plan_alone_and_the_first_is_itself(plan: Plan) -> None:
    points = candidates_of(plan, 12)
    assert points[0].plan == plan
    assert len({point.plan.digest for point in points}) == 12
    assert [p.values for p in points] == [p.values for p in candidates_of(plan, 12)]
    rates = [point.plan.training.learning_rate for point in points]
    assert min(rates) < plan.training.learning_rate < max(rates)
    # None asks for more privacy budget than the plan, or for other data.
    for point in points:
        assert point.plan.task == plan.task
        assert point.plan.sites == plan.sites
        assert point.plan.privacy is not None
        assert point.plan.privacy.epsilon == 5.0
        assert point.plan.training.rounds == plan.training.rounds


def test_what_rules_chose_is_drawn_around(plan: Plan) -> None:
    draft = Plan.draft(
        {
            "name": "draft",
            "task": plan.task.model_dump(mode="json", exclude_unset=True),
            "privacy": {"epsilon": 3.0, "delta": 1e-5},
            "sites": [{"name": "A", "nominal_size": 400}],
        }
    )
    for point in candidates_of(draft, 8)[1:]:
        assert point.values["privacy.clip"] > 0
        assert "training.rounds" in point.plan.chosen


def test_the_best_by_the_validation_split_is_written_and_the_cost_is_that_of_all(
    plan: Plan, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    before = run_module.public_test

    def spied(maker: Any, part: str = "test") -> Any:
        seen.append(part)
        return before(maker, part)

    monkeypatch.setattr(run_module, "public_test", spied)
    setting = Setting(evidence="off", base=files)
    found = tune(plan, setting, tmp_path / "tuned", 4)
    assert seen == ["validation"] * 4  # the test split has no part in the choice
    values = [row["accuracy"] for row in found.rows]
    assert values == sorted(values, reverse=True)
    assert found.values == found.rows[0]["values"]
    assert found.cost is not None
    # Four runs of ε 5 cost more than one, and no more than their sum.
    assert 5.0 < found.cost.epsilon <= 4 * 5.0
    written = Plan.load(tmp_path / "tuned" / "tuned.toml")
    assert not written.chosen
    assert "H12" not in written.attested  # nobody may attest it now without saying how
    assert written.training == found.plan.training
    text = (tmp_path / "tuned" / "tuned.toml").read_text()
    assert str(found.cost) in text
    again = json.loads((tmp_path / "tuned" / "tune.json").read_text())
    assert again["values"] == found.values
    # Its paths start from its own folder.
    import privet

    result = privet.simulate(tmp_path / "tuned" / "tuned.toml", evidence="off", out=tmp_path / "r")
    assert result.metrics["accuracy"] > 0.5


def test_an_interrupted_one_is_resumed(plan: Plan, files: Path, tmp_path: Path) -> None:
    setting = Setting(evidence="off", base=files)
    first = tune(plan, setting, tmp_path / "t", 3)
    ended = {path: path.stat().st_mtime_ns for path in (tmp_path / "t").glob("*/result.json")}
    assert len(ended) == 3
    with pytest.raises(InputError, match="--resume"):
        tune(plan, setting, tmp_path / "t", 3)
    again = tune(plan, setting, tmp_path / "t", 3, resume=True)
    assert again.rows == first.rows
    assert ended == {path: path.stat().st_mtime_ns for path in ended}


def test_the_cost_is_the_composition_of_all(plan: Plan) -> None:
    points = candidates_of(plan, 3)
    one, all_of_them = cost_of(points[:1]), cost_of(points)
    assert one is not None
    assert all_of_them is not None
    assert one.epsilon == pytest.approx(5.0, abs=0.1)
    assert all_of_them.epsilon > 1.5 * one.epsilon
    plain = [point.__class__({}, calibrated(plan).changed(privacy=None), "p")
             for point in points]  # fmt: skip
    assert cost_of(plain) is None


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"split": {"test": 0.3, "validation": 0.0}}, "no validation split"),
        ({"metrics": {"source": "off"}}, "must be 'public'"),
    ],
)
def test_without_a_public_validation_split_there_is_nothing_to_choose_by(
    plan: Plan, files: Path, tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(InputError, match=said):
        tune(plan.changed(**changes), Setting(base=files), tmp_path / "t", 3)
    assert not (tmp_path / "t").exists()


def test_more_than_there_are_is_an_error(plan: Plan) -> None:
    few = plan.changed(strategy={"kind": "fedadam"}, training={"rounds": 3}, privacy=None)
    with pytest.raises(InputError, match="different settings"):
        candidates_of(few, 500)


def test_validation_records_are_said_to_have_no_guarantee(
    plan: Plan, files: Path, tmp_path: Path
) -> None:
    plan = plan.changed(attested={"H13": "the test split is a public benchmark"})
    assert "H12" in plan.attested
    found = tune(plan, Setting(evidence="off", base=files), tmp_path / "t", 2)
    assert "no guarantee" in sentence_of(found)
    value = json.loads((tmp_path / "t" / "as-it-is" / "result.json").read_text())
    assert value["measured"] == "validation"
    states = {row["id"]: row["state"] for row in value["honesty"]}
    assert states["H13"] != "attested"  # what was attested is another split
    assert Plan.load(tmp_path / "t" / "tuned.toml").attested == {"H13": plan.attested["H13"]}
    # One that was interrupted has released, too.
    (tmp_path / "t" / "interrupted" / "try-001-1").mkdir(parents=True)
    points = candidates_of(plan, 2)
    more, usual = cost_of(points, tmp_path / "t"), cost_of(points)
    assert more is not None
    assert usual is not None
    assert more.epsilon > usual.epsilon
    with pytest.raises(InputError, match="noise-seed"):
        tune(plan, Setting(noise_seed=1, base=files), tmp_path / "u", 2)


@pytest.mark.parametrize("runs", [0, 1, 1001])
def test_how_many(plan: Plan, runs: int) -> None:
    with pytest.raises(InputError, match="--tune takes from 2"):
        candidates_of(plan, runs)
