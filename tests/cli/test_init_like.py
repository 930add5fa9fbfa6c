"""A scenario's settings for one's own records: ``privet init DIR --like SCENARIO``."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_commands import Run, privet

from privet.common.plan import Plan
from privet.simulations import scenarios

__all__ = ["privet"]
Make = Callable[..., Any]
SETTINGS = ("model", "training", "strategy", "compression", "privacy", "metrics", "split")
EACH = [(name, None) for name in scenarios.names()] + [
    (name, model) for name in scenarios.names() for model in scenarios.get(name).models
]


@pytest.mark.parametrize(("name", "model"), EACH)
def test_its_settings_are_the_scenarios(
    privet: Run, name: str, model: str | None, tmp_path: Path
) -> None:
    words = ["--model", model] if model else []
    done = privet("init", tmp_path / "mine", "--like", name, *words)
    assert done.code == 0, done.err
    made, own = Plan.load(tmp_path / "mine" / "plan.toml"), scenarios.get(name).make_plan(model)
    for section in SETTINGS:
        assert getattr(made, section) == getattr(own, section), section
    assert made.task == own.task
    # But no scenario, whose records would be read in place of the user's.
    assert made.scenario is None
    assert all(site.path for site in made.sites)
    if own.privacy is not None and own.privacy.unit == "person":
        assert made.data.person_column == "person"


def test_a_users_table_trains_with_them(privet: Run, frame_of: Make, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    assert privet("init", folder, "--like", "fed-heart").code == 0
    said = privet("simulate", folder / "plan.toml", "--check")
    assert said.code != 0 and "site-1.csv" in said.err  # no traceback, and the file
    for number in (1, 2, 3):
        frame_of(150, number).to_csv(folder / f"site-{number}.csv", index=False)
    text = (folder / "plan.toml").read_text(encoding="utf-8")
    begin, end = text.index("\n[task]") + 1, text.index("\n[model]") + 1
    task = (
        '[task]\nkind = "tabular"\nlabel = "y"\nclasses = ["0", "1"]\n\n[task.numeric]\n'
        "x1 = { low = -2, high = 2 }\nx2 = { low = -2, high = 2 }\n\n"
    )
    (folder / "plan.toml").write_text(text[:begin] + task + text[end:], encoding="utf-8")
    words = ["--rounds", 2, "--evidence", "off", "--out", tmp_path / "run"]
    done = privet("simulate", folder / "plan.toml", *words)
    assert done.code == 0, done.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--like", "lendin"], "lending"),
        (["--like", "lending", "--model", "minilm"], "has no model 'minilm'"),
        (["--model", "linear"], "--model goes with --like"),
    ],
)
def test_what_there_is_not_is_refused(
    privet: Run, words: list[str], said: str, tmp_path: Path
) -> None:
    done = privet("init", tmp_path / "mine", *words)
    assert done.code == 2 and said in done.err
    assert not (tmp_path / "mine").exists()


def test_nothing_is_overwritten(privet: Run, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "plan.toml").write_text("name = 1")
    done = privet("init", tmp_path / "mine", "--like", "lending")
    assert done.code == 2 and "not an empty folder" in done.err
    assert tomllib.loads((tmp_path / "mine" / "plan.toml").read_text()) == {"name": 1}
