"""Rosters: what is read is what was written, and nothing that two could read differently."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import verify_kit

from privet.common.errors import InputError
from privet.privacy.audit.verify import verify
from privet.privacy.evidence.keys import FileSigner
from privet.privacy.evidence.roster import CoordinatorKeys, Member, Roster
from privet.privacy.evidence.signed_note import COSIGN, SIGN, Key, key_name

Change = Callable[[dict[str, Any]], Any]


def key(kind: str, name: str, type_: int = SIGN) -> Key:
    public = FileSigner.generate().public
    return Key(key_name(kind, name, public), public, type_)


def roster() -> Roster:
    chief = CoordinatorKeys(
        "hub", key("journal", "hub"), key("orders", "hub"), key("witness", "hub", COSIGN)
    )
    names = ("North", "East", "South")
    sites = (Member(n, key("ledger", n), key("witness", n, COSIGN)) for n in names)
    return Roster(chief, tuple(sites), 2)


def test_what_is_saved_is_read_back(tmp_path: Path) -> None:
    made = roster()
    made.save(tmp_path)
    assert Roster.load(tmp_path / "roster.json") == made


def give(**fields: Any) -> Change:
    return lambda value: value.update(fields)


def same_name(value: dict[str, Any]) -> None:
    value["sites"][1]["name"] = value["sites"][0]["name"]


def same_name_in_another_case(value: dict[str, Any]) -> None:
    value["sites"][1]["name"] = value["sites"][0]["name"].lower() + " "


def named_as_the_coordinator(value: dict[str, Any]) -> None:
    value["sites"][1]["name"] = value["coordinator"]["name"]


def same_ledger(value: dict[str, Any]) -> None:
    value["sites"][1]["ledger"] = value["sites"][0]["ledger"]


def signing_witness(value: dict[str, Any]) -> None:
    value["sites"][1]["witness"] = value["sites"][1]["ledger"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (give(format="privet/roster/v2"), "not a roster of format"),
        (give(quorum=-1), "quorum must be an integer from 0 to 3"),
        (give(quorum=4), "quorum must be an integer from 0 to 3"),
        (give(quorum=True), "quorum must be"), (give(quorum="2"), "quorum must be"),
        (give(sites=[]), "at least one site"), (give(sites=7), "malformed"),
        (give(coordinator=None), "malformed"),
        (same_name, "a name twice"), (named_as_the_coordinator, "a name twice"),
        (same_name_in_another_case, "a name twice"),
        (same_ledger, "a key twice"), (signing_witness, "malformed"),
    ],
)  # fmt: skip
def test_a_roster_that_two_could_read_differently_is_refused(change: Change, said: str) -> None:
    value = roster().to_dict()
    assert Roster.parse(value)
    change(value)
    with pytest.raises(InputError, match=said):
        Roster.parse(value)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": "privet/roster/v1"}', "\xff"])
def test_a_file_that_is_no_roster(tmp_path: Path, text: str) -> None:
    path = tmp_path / "roster.json"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(InputError):
        Roster.load(path)


def test_the_guides_roster_is_one(root: Path, tmp_path: Path) -> None:
    """The template of the guide needs nothing but its digits filled in."""
    text = (root / "docs" / "how-to" / "audit.md").read_text(encoding="utf-8")
    [template] = re.findall(r"```json\n(.*?)```", text, re.DOTALL)
    mine = roster().to_dict(fingerprints=True)
    value = json.loads(template)
    assert value["format"] == mine["format"] and value.keys() == mine.keys()
    assert value["coordinator"].keys() == mine["coordinator"].keys()
    assert value["sites"][0].keys() == mine["sites"][0].keys()
    fed = verify_kit.Federation(quorum=2)
    filled = fed.fingerprints()
    value["coordinator"], value["sites"] = filled["coordinator"], filled["sites"]
    bundle = verify_kit.write(tmp_path / "bundle", fed.bundle())
    assert verify(bundle, verify_kit.write_roster(tmp_path / "roster.json", value)).ok


def test_what_cannot_be_read_is_said_in_plain_words(tmp_path: Path) -> None:
    path = tmp_path / "roster.json"
    path.write_bytes(b"\xff")
    with pytest.raises(InputError, match="the roster cannot be read: it is not a text file"):
        Roster.load(path)
    with pytest.raises(InputError, match="the roster cannot be read: it is a folder"):
        Roster.load(tmp_path)
