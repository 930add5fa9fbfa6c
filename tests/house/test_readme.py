"""The README: its commands are there, its first code runs as written, its figures are measured ones."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture
def readme(root: Path) -> str:
    text = (root / "README.md").read_text(encoding="utf-8")
    if not text.strip():
        pytest.skip("the README is still empty")
    return text


def test_the_readmes_make_commands_are_targets(root: Path, readme: str) -> None:
    commands = set(re.findall(r"^\s*(?:\$ )?make ([a-z][a-z-]*)", readme, re.MULTILINE))
    targets = set(re.findall(r"^([a-z][a-z-]*):", (root / "Makefile").read_text(), re.MULTILINE))
    assert {"demo", "test"} <= commands
    assert commands <= targets


def test_the_readmes_privet_commands_exist(readme: str) -> None:
    from privet.cli import app

    known = {
        command.name or command.callback.__name__
        for command in app.registered_commands
        if command.callback
    } | {group.name for group in app.registered_groups}
    named = set(re.findall(r"^\s*(?:\$ )?privet ([a-z]+)", readme, re.MULTILINE))
    assert named <= known


def test_its_first_code_runs_as_written(readme: str, tmp_path: Path) -> None:
    opening, _, _ = readme.partition("\n## ")
    (code,) = re.findall(r"^```python\n(.*?)^```", opening, re.MULTILINE | re.DOTALL)
    assert len([line for line in code.splitlines() if line.strip()]) <= 10
    assert "`privet init mine`" in opening

    def run(text: str) -> list[str]:
        done = subprocess.run(
            [sys.executable, "-c", text], cwd=tmp_path, capture_output=True, text=True, timeout=900,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    run("import sys; from privet.cli import main; sys.argv[1:] = ['init', 'mine']; main()")
    figures, verdict = run(code)
    assert re.fullmatch(r"0\.\d+ ε 3\.000 \(δ 0\.0001, per record, add or remove one\)", figures)
    assert re.fullmatch(r"True \{('Hospital \d': 2\.99\d+(, )?){3}\}", verdict)


def test_the_figures_of_its_first_table_are_among_the_benchmarks(root: Path, readme: str) -> None:
    measured = (root / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    opening, _, _ = readme.partition("\n## ")
    rows = re.findall(r"^\| (?!Privet)\w[^|]*\|([^|]*\|[^|]*)\|$", opening, re.MULTILINE)
    assert len(rows) == 8
    figures = {figure for row in rows for figure in re.findall(r"\d[\d.,]*\d", row)}
    assert len(figures) >= 15
    assert [figure for figure in sorted(figures) if figure not in measured] == []
