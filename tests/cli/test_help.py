"""What ``--help`` shows: all that was written, also in brackets, and an example everywhere."""

from __future__ import annotations

import re
from pathlib import Path
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


HEADING = re.compile(r"^## privet (.+)\n((?:(?!^## ).*\n)*)", re.MULTILINE)
IN_TABLE = re.compile(r"^\| *command \|.*\n\|[-| ]*\n((?:\|.*\n)+)", re.MULTILINE)


def documented(page: str) -> set[tuple[str, ...]]:
    """Return the commands that a page of all commands has: its headings, the first cells of its
    tables of commands, and what is typed in its blocks.
    """
    found = set()
    for heading, text in HEADING.findall(page):
        group = tuple(heading.split())
        if group not in ALL or not getattr(ALL[group], "commands", None):
            found.add(group)
            continue
        cells = [row.split("|")[1] for rows in IN_TABLE.findall(text) for row in rows.splitlines()]
        names = {name for cell in cells for name in re.findall(r"`([a-z][a-z-]*)", cell)}
        names |= set(re.findall(rf"^privet {heading} ([a-z][a-z-]*)", text, re.MULTILINE))
        found |= {(*group, name) for name in names}
    return found


def test_the_page_of_all_commands_has_each_and_no_other(root: Path) -> None:
    page = (root / "docs" / "reference" / "cli.md").read_text()
    real = {words for words, command in ALL.items() if not getattr(command, "commands", None)}
    assert documented(page) == real
    # The controls: one that is missing, and one that does not exist.
    without = page.replace("| `sign-policy` |", "| `sing-policy` |")
    assert documented(without) ^ real == {("client", "sign-policy"), ("client", "sing-policy")}
