"""``privet model evaluate``, ``explain`` and ``export`` on a finished run, as commands."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from budget_kit import Desk

Make = Callable[..., Any]


@pytest.fixture
def run(desk: Desk, plan_value: Make, write_files: Make, write_toml: Make) -> Callable[..., Path]:
    """Make a run in the current folder; changes are those of the plan."""

    def make(**changes: Any) -> Path:
        write_files(Path.cwd())
        plan = write_toml(Path("plan.toml"), plan_value(**changes))
        code, out, err = desk.run("simulate", plan, "--out", "first")
        assert code == 0, err
        Path("said.txt").write_text(out)
        return Path("first")

    return make


def test_figures_by_group_with_gaps_on_screen_and_as_json(desk: Desk, run: Make) -> None:
    words = ("model", "evaluate", run(), "--group", "colour", "--group", "x1:0")
    code, out, err = desk.run(*words, "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found["source"] == "test split" and set(found["sites"]) == {"North", "East", "South"}
    assert list(found["groups"]["x1"]["figures"]) == ["below 0", "from 0"]
    assert found["groups"]["colour"]["gaps"]["calibration_error"] >= 0
    shown = desk.run(*words)[1]
    assert "By colour" in shown and "gap" in shown and "precision" in shown and "calib." in shown
    assert f"{found['metrics']['accuracy']:.3f}" in shown and "Calibration:" in shown


def test_a_file_that_does_not_say_what_is_right_is_refused(desk: Desk, run: Make) -> None:
    folder = run()
    pd.DataFrame({"x1": [0.5], "x2": [0.1], "colour": ["red"]}).to_csv("cases.csv", index=False)
    code, out, err = desk.run("model", "evaluate", folder, "--from", "cases.csv", "--json")
    assert code == 2 and out == "" and "'y' is missing: it says what is right" in err
    # It can be explained all the same.
    assert desk.run("model", "explain", folder, "--from", "cases.csv", "--out", "why.html")[0] == 0
    page = Path("why.html").read_text()
    assert "These are private records" in page and "public" not in page


def test_what_counts_over_all_is_for_public_records(desk: Desk, run: Make) -> None:
    words = ("model", "explain", run(), "--records", "2", "--overall", "20", "--out", "why.html")
    code, out, err = desk.run(*words, "--json")
    assert code == 0, err
    found = json.loads(out)
    assert len(found["records"]) == 2
    assert {part["name"] for part in found["overall"]} == {"x1", "x2", "colour"}
    assert "which the plan calls public" in Path("why.html").read_text()


def test_a_private_test_split_stays_off_pages_and_cards(desk: Desk, run: Make) -> None:
    folder = run(metrics={"source": "gate"})
    said = desk.refused(2, "model", "explain", folder, "--overall", "5", "--out", "why.html")
    assert "--overall is for public records" in said
    assert desk.run("model", "explain", folder, "--out", "why.html")[0] == 0
    assert "These are private records" in Path("why.html").read_text()
    code, _, err = desk.run("model", "export", folder, "--prune", "0.5", "--out", "lighter")
    assert code == 0 and "The variants were not measured" in err
    card = Path("lighter/README.md").read_text()
    variants = card.partition("Smaller variants")[2].partition("## Limits")[0]
    assert "| pruned |" in variants and "accuracy" not in variants and "bytes" in variants
    # The control: with public records of somebody's own there are figures.
    words = ("--prune", "0.5", "--from", "north.csv", "--out", "measured")
    code, out, _ = desk.run("model", "export", folder, *words)
    assert code == 0 and "pruned: accuracy" in out
    assert "accuracy" in Path("measured/README.md").read_text().partition("Smaller variants")[2]


def test_a_coordinators_run_is_made_lighter_without_records(desk: Desk, run: Make) -> None:
    """It has the plan and the model, and no records."""
    folder = run()
    for number in ("north", "east", "south"):
        Path(f"{number}.csv").unlink()
    code, out, err = desk.run("model", "export", folder, "--prune", "0.5", "--out", "a", "--json")
    assert code == 0, err
    assert set(json.loads(out)["lighter"]["pruned"]) == {"bytes", "packed"}


def test_the_bytes_of_an_update_are_shown(desk: Desk, run: Make) -> None:
    folder = run(compression={"kind": "int8"})
    size = json.loads((folder / "result.json").read_text())["update_bytes"]
    assert 0 < size["sent"] < size["numbers"]
    shown = " ".join(Path("said.txt").read_text().split())
    assert f"Each update is {size['sent']:,} bytes instead of {size['numbers']:,} (int8)" in shown
