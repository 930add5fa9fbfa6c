"""The end of a run says in plain words which site released in how many rounds, and why not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from privet.cli import app
from privet.client.outbox import Outbox
from privet.common.config import dump_toml
from privet.common.errors import QuorumError
from privet.common.plan import Plan
from privet.common.release import Release
from privet.simulations import plots
from privet.simulations.evaluate import PublicTest
from privet.simulations.result import Result
from privet.simulations.run import Setting, run_plan

Make = Callable[..., Any]


@pytest.fixture
def files(write_files: Make, tmp_path: Path) -> Path:
    """Files of this test alone."""
    made: Path = write_files(tmp_path / "data")
    return made


@pytest.fixture
def plan_file(files: Path, plan_value: Make) -> Make:
    """Write the tiny plan beside its files; returns its path."""

    def write(**changes: Any) -> Path:
        path = files / "plan.toml"
        path.write_text(dump_toml(Plan.parse(plan_value(**changes)).to_dict()))
        return path

    return write


@pytest.fixture
def without_column(files: Path) -> None:
    """East's file has another name for a column that the plan reads."""
    path = files / "east.csv"
    path.write_text(path.read_text().replace("x2", "x_2", 1))


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """East's outbox takes nothing: each attempt fails after its data was opened."""
    real = Outbox.put

    def put(self: Outbox, slot: str, release: Release) -> None:
        if release.facts["site"] == "East":
            raise OSError(28, "No space left on device")
        real(self, slot, release)

    monkeypatch.setattr(Outbox, "put", put)


def simulate(*words: str) -> Any:
    return CliRunner().invoke(app, ["simulate", *words])


@pytest.mark.usefixtures("without_column")
def test_a_column_that_is_missing_costs_nothing_and_is_named(
    plan_file: Make, tmp_path: Path
) -> None:
    path = plan_file(training={"rounds": 3}, strategy={"min_sites": 2})
    done = simulate(str(path), "--out", str(tmp_path / "out"))
    assert done.exit_code == 1
    assert "North released in 3 of 3 rounds." in done.output
    assert "East released in 0 of 3 rounds." in done.output
    assert "there is no column 'x2'" in done.output
    value = json.loads((tmp_path / "out" / "result.json").read_text())
    sites = {site["name"]: site for site in value["sites"]}
    assert {name: (s["released"], s["rounds"]) for name, s in sites.items()} == {
        "North": (3, 3), "East": (0, 3), "South": (3, 3),
    }  # fmt: skip
    assert sites["East"]["epsilon"] == 0.0
    assert sites["East"]["log"].endswith("sites/East/operator.log")


@pytest.mark.usefixtures("full_disk")
def test_a_site_that_fails_pays_twice_and_its_reason_is_told(
    plan_file: Make, tmp_path: Path
) -> None:
    path = plan_file(training={"rounds": 6}, strategy={"min_sites": 2})
    done = simulate(str(path), "--json", "--out", str(tmp_path / "out"))
    assert done.exit_code == 1
    value = json.loads(done.stdout)
    east, south = value["sites"][1], value["sites"][2]
    assert (east["name"], east["released"], east["status"]) == ("East", 0, "refused-plan")
    assert 0 < east["epsilon"] < 0.6 * south["epsilon"]
    assert "East released in 0 of 6 rounds." in done.stderr
    assert "No space left on device" in done.stderr
    assert "No space left on device" not in done.stdout


def test_a_run_in_which_all_released_says_so(plan_file: Make, tmp_path: Path) -> None:
    done = simulate(str(plan_file()), "--out", str(tmp_path / "out"))
    assert done.exit_code == 0
    assert "Every site released in all 2 rounds." in done.output


@pytest.mark.usefixtures("full_disk")
def test_a_closed_plan_stays_closed_in_the_next_run_until_it_is_opened(
    files: Path, plan_value: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"training": {"rounds": 3}, "strategy": {"min_sites": 2}}
    plan = Plan.parse(plan_value(**changes))

    def run(folder: str, **setting: Any) -> Result:
        made = Setting(base=files, ledgers=tmp_path / "ledgers", cap=100.0, **setting)
        return run_plan(plan, made, tmp_path / folder)

    def released(result: Result) -> list[int]:
        return [site.released for site in result.sites]

    assert released(run("first")) == [3, 0, 3]
    monkeypatch.undo()  # the disk has room again
    closed = run("second")
    assert released(closed) == [3, 0, 3]
    assert "--open-again" in closed.sites[1].reason
    assert released(run("third", open_again=True)) == [3, 3, 3]


@pytest.mark.parametrize("what", ["figures", "plots", "card"])
def test_what_fails_after_the_releases_ends_no_run(
    files: Path, plan_value: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    def fails(*words: Any, **more: Any) -> Any:
        raise ValueError("no luck")

    if what == "figures":
        monkeypatch.setattr(PublicTest, "measure", fails)
    elif what == "plots":
        monkeypatch.setattr(plots, "_rounds", fails)
    else:
        monkeypatch.setattr("privet.simulations.run_folder.write_card", fails)
    plan = Plan.parse(plan_value(metrics={"source": "public"}))
    result = run_plan(plan, Setting(base=files), tmp_path / "out")
    assert any("no luck" in remark for remark in result.remarks)
    value = json.loads((tmp_path / "out" / "result.json").read_text())
    assert value["remarks"] == list(result.remarks)
    assert (tmp_path / "out" / "model" / "model.safetensors").stat().st_size > 0
    assert all(site.released == 2 for site in result.sites)
    assert bool(result.metrics) == (what != "figures")


def test_a_plan_that_no_site_can_run_ends_with_the_operators_words(
    files: Path, plan_value: Make, tmp_path: Path
) -> None:
    numeric = {"x1": {"low": -2, "high": 2}, "x9": {"low": -2, "high": 2}}
    plan = Plan.parse(plan_value(task={"numeric": numeric}))
    with pytest.raises(QuorumError, match="there is no column 'x9'"):
        run_plan(plan, Setting(base=files), tmp_path / "out")
