"""The tutorials' commands do what they say, as written."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from privet.cli import main as privet
from privet.common.plan import Plan

PAGES = sorted(
    path.name
    for path in (Path(__file__).parents[2] / "docs" / "tutorials").glob("*.md")
    if path.name != "index.md"
)
NO_DATA = (
    "dense-classifier.md", "hub-models.md", "images.md", "own-table.md", "torch-transformers.md"
)  # fmt: skip
"""Pages whose records come with packages, or are made on the page."""
SHORT = ("deliver.md", "own-table.md", "own-texts.md")
"""Pages that every change is tried on, with one round in the place of several."""
ROUNDS = re.compile(r"^rounds = \d+$|(?<=--rounds )\d+", re.MULTILINE)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("page", "rounds"),
    [*((page, 1) for page in SHORT)]
    + [pytest.param(page, None, marks=pytest.mark.long) for page in PAGES],
)
@pytest.mark.filterwarnings("default")
def test_a_page_runs_as_written(
    page: str, rounds: int | None, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Commands of Privet run in this process, which has read its libraries."""
    if page not in NO_DATA and not os.environ.get("PRIVET_DATA"):
        pytest.skip("needs the data folder (PRIVET_DATA)")
    text = (root / "docs" / "tutorials" / page).read_text(encoding="utf-8")
    if rounds is not None:
        text = ROUNDS.sub(lambda m: m[0].rstrip("0123456789") + str(rounds), text)
    blocks = re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    for name, content in re.findall(
        r"`(\w+\.(?:toml|py))`:\n\n```\w+\n(.*?)^```", text, re.MULTILINE | re.DOTALL
    ):
        (tmp_path / name).write_text(content, encoding="utf-8")
    commands = [line for block in blocks for line in block.splitlines() if line.strip()]
    assert commands
    for command in commands:
        words = shlex.split(command)
        if words[0] == "PYTHONPATH=.":
            monkeypatch.syspath_prepend(tmp_path)
            del words[0]
        if words[0] == "privet":
            monkeypatch.chdir(tmp_path)
            monkeypatch.setattr(sys, "argv", words)
            code: object = 0
            try:
                privet()
            except SystemExit as end:
                code = end.code
            said = capsys.readouterr()
            assert not code, f"{command}\n{said.out}\n{said.err}"
            continue
        assert words[0] == "python"
        done = subprocess.run(
            [sys.executable, *words[1:]],
            cwd=tmp_path, capture_output=True, text=True, check=False,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"


def test_every_part_of_a_plan_on_a_page_is_one(root: Path) -> None:
    """Each is read as a plan, with what it lacks added."""
    found = 0
    for page in PAGES:
        text = (root / "docs" / "tutorials" / page).read_text(encoding="utf-8")
        for block in re.findall(r"^```toml\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
            value = tomllib.loads(block)
            if "task" not in value:
                continue
            found += 1
            value = {
                "name": "x",
                "privacy": "none",
                "sites": [{"name": "here", "nominal_size": 9}],
                **value,
            }
            Plan.parse(value, where=page)
    assert found > 4


def test_every_page_is_in_the_index(root: Path) -> None:
    folder = root / "docs" / "tutorials"
    index = (folder / "index.md").read_text(encoding="utf-8")
    assert [page for page in PAGES if f"]({page})" not in index] == []
