"""The two commands of the README are there."""

from __future__ import annotations

import re
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
