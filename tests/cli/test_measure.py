"""``privet model evaluate --gate``: a finished model, measured at the sites."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from budget_kit import Desk, policy_value

from privet.common.models.start import FOLDERS, digest_of
from privet.common.plan import Plan

Make = Callable[..., Any]


@pytest.fixture
def trained(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, plan_value: Make, write_files: Make,
    write_toml: Make,
) -> Path:  # fmt: skip
    """A run of two rounds whose ledgers last, in the current folder."""
    monkeypatch.delenv(FOLDERS, raising=False)
    write_files(Path.cwd())
    plan = write_toml(
        Path("plan.toml"), plan_value(privacy={"epsilon": 8.0, "noise_multiplier": 9.0})
    )
    code, _, err = desk.run("simulate", plan, "--out", "first", "--ledgers", "sites", "--cap", "9")
    assert code == 0, err
    return Path("first")


def test_a_measurement_is_added_to_what_the_training_cost(desk: Desk, trained: Path) -> None:
    before = json.loads((trained / "result.json").read_text())
    words = ("--gate", "--epsilon", "2", "--ledgers", "sites", "--out", "second")
    code, out, err = desk.run("model", "evaluate", trained, *words, "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found["metrics_source"] == "gate" and found["rounds"] == 1
    assert before["epsilon"] < found["epsilon"] < before["epsilon"] + 2
    assert {site["name"] for site in found["sites"]} == {"North", "East", "South"}
    assert all(site["metrics"]["accuracy"] is not None for site in found["sites"])
    assert "measured by 3 sites" in Path("second/model/README.md").read_text()
    # The weights that were measured are those that were trained.
    weights = (trained / "model" / "model.safetensors", Path("second/model/model.safetensors"))
    assert Plan.parse(json.loads(Path("second/plan.json").read_text())).model.start == digest_of(
        weights[0]
    )
    assert desk.run("audit", "bundle", "second", "sites", "--out", "b")[0] == 0
    pinned = "second/roster-fingerprints.json"
    code, out, err = desk.run("audit", "verify", "b", "--roster", pinned, "--json")
    assert code == 0, out + err
    again = json.loads(out)
    for site in again["sites"]:
        assert site["epsilon"] == pytest.approx(found["epsilon"], rel=1e-9)
    report = desk.run("audit", "report", "b", "--roster", pinned, "--out", "report")
    assert report[0] == 0, report
    page = next(Path("report").glob("*.html")).read_text()
    assert "each site measures a trained model once" in page


def test_people_are_told_what_it_cost(desk: Desk, trained: Path) -> None:
    code, out, _ = desk.run("model", "evaluate", trained, "--gate", "--ledgers", "sites")
    assert code == 0
    assert "measured at the sites" in out and "ε" in out
    assert "Gradients were clipped" not in out


def test_a_site_without_budget_measures_nothing(desk: Desk, trained: Path) -> None:
    words = ("--gate", "--epsilon", "30", "--ledgers", "sites", "--out", "second")
    said = desk.refused(1, "model", "evaluate", trained, *words)
    assert "0 of 3 sites released a measurement" in said and "refused" in said


def test_a_plan_for_a_federation(desk: Desk, trained: Path) -> None:
    code, out, err = desk.run(
        "model", "evaluate", trained, "--gate", "--plan", "measure.toml", "--json"
    )
    assert code == 0, err
    told = json.loads(out)
    plan = Plan.load("measure.toml")
    assert plan.digest == told["plan"] and not plan.trains
    assert plan.privacy is not None and plan.privacy.epsilon == 1.0
    assert plan.split == Plan.load("plan.toml").split  # else it would measure what was trained on
    assert not Path("runs").exists()
    said = desk.refused(2, "model", "evaluate", trained, "--gate", "--plan", "measure.toml")
    assert "exists" in said


def test_an_operator_sees_what_it_will_cost(desk: Desk, trained: Path) -> None:
    assert desk.run("model", "evaluate", trained, "--gate", "--plan", "measure.toml")[0] == 0
    policy = policy_value()
    policy["data"]["admissions"] |= {"path": "north.csv", "nominal_size": 60}
    desk.write(Path("site.toml"), policy)
    code, out, err = desk.ask("measure.toml", "site.toml")
    assert code in (0, 3), err
    assert "Nothing is trained: one table with noise multiplier" in out and "the whole run" in out
    assert "calibrating the noise" not in err


@pytest.mark.parametrize("words", [("--compare",), ("--sweep", "1,2"), ("--no-dp",)])
def test_nothing_is_paid_for_what_makes_no_sense(
    desk: Desk, trained: Path, words: tuple[str, ...]
) -> None:
    assert desk.run("model", "evaluate", trained, "--gate", "--plan", "measure.toml")[0] == 0
    spent = desk.run("audit", "bundle", "sites", "first", "--out", "before")
    said = desk.refused(2, "simulate", "measure.toml", *words, "--ledgers", "sites")
    assert "only measures" in said or "trains nothing" in said
    again = desk.run("audit", "bundle", "sites", "first", "--out", "after")
    first, second = (said[1].splitlines()[0].partition(":")[2] for said in (spent, again))
    assert first == second  # as many entries


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--gate", "--group", "colour"), "goes without --from, --group"),
        (("--gate", "--from", "north.csv"), "goes without --from, --group"),
        (("--epsilon", "1"), "go with --gate"),
        (("--ledgers", "sites"), "go with --gate"),
        (("--out", "x"), "go with --gate"),
        (("--plan", "x.toml"), "go with --gate"),
        (("--gate", "--epsilon", "0"), "--epsilon"),
        (("--gate", "--epsilon", "nan"), "--epsilon"),
        (("--gate", "--plan", "y.toml", "--out", "x"), "--plan"),
        (("--gate", "--plan", "nowhere/y.toml"), "cannot be written"),
    ],
)
def test_wrong_use(desk: Desk, trained: Path, words: tuple[str, ...], said: str) -> None:
    assert said in desk.refused(2, "model", "evaluate", trained, *words)
    assert not Path("x").exists() and not Path("x.toml").exists() and not Path("y.toml").exists()


def test_a_run_without_privacy_is_not_measured_so(desk: Desk, trained: Path) -> None:
    assert desk.run("simulate", "plan.toml", "--no-dp", "--out", "plain")[0] == 0
    said = desk.refused(2, "model", "evaluate", "plain", "--gate")
    assert "has no [privacy] section" in said
