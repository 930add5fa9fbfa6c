"""``privet plan schema``, as it is typed."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest
from budget_kit import Desk
from jsonschema import Draft202012Validator


def test_the_policy_that_is_written_for_a_site_fits(desk: Desk) -> None:
    assert desk.run("client", "init", "north", "--site", "North",
                   "--plain-keys", "--only-ledger")[0] == 0  # fmt: skip
    value = tomllib.loads(Path("north/site.toml").read_text())
    policy_schema = Draft202012Validator(json.loads(desk.run("plan", "schema", "--policy")[1]))
    assert [fault.message for fault in policy_schema.iter_errors(value)] == []
    assert not policy_schema.is_valid({**value, "populations": {}})
    assert not policy_schema.is_valid({**value, "alow": {}})


@pytest.mark.parametrize("words", [[], ["--policy"]])
def test_the_command_prints_it_or_writes_it(desk: Desk, words: list[str]) -> None:
    code, out, _ = desk.run("plan", "schema", *words)
    assert code == 0
    value = json.loads(out)
    assert value["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    path = Path("schema.json")
    code, out, said = desk.run("plan", "schema", *words, "--out", str(path))
    assert (code, out) == (0, "") and "written" in said
    assert json.loads(path.read_text()) == value
