"""What ``--help`` shows: all that was written, also in brackets, and an example everywhere."""

from __future__ import annotations

import re
from typing import Any

import pytest
import typer
from budget_kit import Desk

from privet.cli import app

MARKUP = re.compile(r"\[/?(?:bold|dim|italic)\]")
BRACKETS = re.compile(r"\\?(\[[^\[\]\s]+\])")


def commands(command: Any, words: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    """Return all commands and groups below ``command``, by the words that call them."""
    found = {words: command}
    for name, below in getattr(command, "commands", {}).items():
        found |= commands(below, (*words, name))
    return found


ALL = commands(typer.main.get_command(app))


def texts(command: Any) -> list[str]:
    """Return what the source says about a command and its parameters."""
    written = [command.help, command.epilog, *(getattr(p, "help", "") for p in command.params)]
    return [text for text in written if text]


@pytest.mark.parametrize("words", ALL, ids=" ".join)
def test_nothing_in_brackets_is_lost(desk: Desk, words: tuple[str, ...]) -> None:
    code, out, _ = desk.run(*words, "--help")
    assert code == 0
    shown = re.sub(r"[\s│]+", " ", out)
    for text in texts(ALL[words]):
        for part in BRACKETS.findall(MARKUP.sub("", text)):
            assert part in shown


def test_brackets_are_looked_for() -> None:
    """The negative control: there are some, and markup is none."""
    found = {
        part
        for command in ALL.values()
        for text in texts(command)
        for part in BRACKETS.findall(MARKUP.sub("", text))
    }
    assert {"[keys]", "[interval]"} <= found


@pytest.mark.parametrize("words", [w for w in ALL if w != ("audit",)], ids=" ".join)
def test_each_command_and_group_has_an_example(desk: Desk, words: tuple[str, ...]) -> None:
    _, out, _ = desk.run(*words, "--help")
    assert re.search(rf"Examples?\s+privet {' '.join(words)}", out)


def test_no_example_has_a_secret_on_its_line() -> None:
    for command in ALL.values():
        for text in texts(command):
            assert "PRIVET_PASSPHRASE=" not in text
            assert "PRIVET_PIN=" not in text
