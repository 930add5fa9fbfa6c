"""A coordinator gathers the sites' sealed ledgers and spreads them; sites keep what is signed."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import copy_kit
import pytest
from ledger_kit import key, spend

from privet.client.recovery import copying
from privet.client.recovery.copying import LedgerCopier, SiteCopies
from privet.privacy.evidence.copies.copy_store import CopyStore
from privet.privacy.evidence.copies.ledger_copy import CopyPiece
from privet.privacy.evidence.keys import FileSigner
from privet.privacy.evidence.ledger import Ledger
from privet.privacy.evidence.roster import CoordinatorKeys, Member, Roster
from privet.privacy.evidence.signed_note import COSIGN, SIGN, Key, key_name
from privet.privacy.evidence.witness import Witness
from privet.server.evidence.copying import CopyKeeper

SITES = ("North", "East", "South", "West")


class Neighbours:
    """Four sites with ledgers and stores, and a coordinator's keeper."""

    def __init__(self, tmp: Path, without: str = "") -> None:
        self.tmp = tmp
        self.ledgers: dict[str, Ledger] = {}
        members = []
        for name in SITES:
            ledger = self.ledgers[name] = copy_kit.opened(tmp / name, site=name)
            witness = key(tmp / name, "witness").public
            own = Key(key_name("witness", name, witness), witness, COSIGN)
            members.append(Member(name, ledger.log.first_key, own))
        publics = [FileSigner.generate().public for _ in range(3)]
        chief = [Key(key_name(kind, "hub", public), public, type_) for kind, public, type_ in zip(
            ("journal", "orders", "witness"), publics, (SIGN, SIGN, COSIGN), strict=True)]  # fmt: skip
        self.roster = Roster(CoordinatorKeys("hub", *chief), tuple(members), 2)
        self.hub = CopyStore(tmp / "hub")
        self.stores = {name: CopyStore(tmp / name / "copies") for name in SITES}
        self.sites = {name: self._site(name, allowed=name != without) for name in SITES}
        self.keeper = CopyKeeper(self.hub, self.roster)
        self.asked: list[dict[str, dict[str, Any]]] = []

    def _site(self, name: str, *, allowed: bool) -> SiteCopies:
        ledger = self.ledgers[name]
        witness = Witness(self.tmp / name / "witness.json", key(self.tmp / name, "witness"), name)
        copier = LedgerCopier(ledger, witness, lambda: allowed)
        log = logging.getLogger("test")
        return SiteCopies(copier, self.stores[name], self.roster, ledger.log.origin, log)

    def show(self, questions: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        """What sites answer about copies, through the messages' own values."""
        self.asked.append(questions)
        answers = {}
        for name, asked in questions.items():
            head = self.ledgers[name].log.head().text
            held = int(asked["copy"][0]), str(asked["copy"][1])
            answers[name] = self.sites[name].answer(held, asked["keep"], head)
        return answers

    def ask(self, *names: str) -> None:
        self.keeper.asking(self.show)({name: {} for name in names or SITES})

    def held(self, store: CopyStore) -> dict[str, int]:
        """By site, how many of its entries a store has."""
        return {name: store.held(ledger.log.origin)[0] for name, ledger in self.ledgers.items()}


def test_the_coordinator_has_everything_and_two_neighbours_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copying, "MAX_PIECE_LEAVES", 3000)
    here = Neighbours(tmp_path)
    spend(here.ledgers["North"], 1)
    sizes = {name: len(ledger.log) for name, ledger in here.ledgers.items()}
    here.ask()
    assert 0 < here.held(here.hub)["North"] < sizes["North"]
    here.keeper.catch_up(lambda names: here.ask(*names))
    assert here.held(here.hub) == sizes
    for _ in range(3):
        here.ask()
    for number, name in enumerate(SITES):
        kept = {SITES[number - 1], SITES[number - 2]}
        wanted = {other: sizes[other] if other in kept else 0 for other in SITES}
        assert here.held(here.stores[name]) == wanted
    # Nothing new costs nothing; something new is everywhere after two more questions.
    here.ask()
    assert all(not pieces for q in here.asked[-1].values() for pieces in q["keep"].values())
    here.ledgers["North"].pause("Ada")
    here.ask()
    here.ask()
    assert here.held(here.hub)["North"] == sizes["North"] + 1
    assert here.held(here.stores["East"])["North"] == sizes["North"] + 1


def test_a_site_that_does_not_want_it_is_not_copied(tmp_path: Path) -> None:
    here = Neighbours(tmp_path, without="South")
    for _ in range(3):
        here.ask()
    held = here.held(here.hub)
    assert held["South"] == 0
    assert all(held[name] for name in ("North", "East", "West"))
    # It keeps those of others all the same.
    assert here.held(here.stores["South"])["East"] == held["East"]


def test_a_site_keeps_nothing_that_the_coordinator_made_up(tmp_path: Path) -> None:
    here = Neighbours(tmp_path)
    here.ask()
    north, east = here.ledgers["North"].log.origin, here.sites["East"]
    (piece,) = here.hub.all(north)
    others = here.hub.all(here.ledgers["South"].log.origin)
    lies = {
        "altered": {north: [replace(piece, sealed=piece.sealed[::-1]).to_json()]},
        "of another": {north: [others[0].to_json()]},
        "own": {here.ledgers["East"].log.origin: [others[0].to_json()]},
        "stranger": {"privet.ledger/Nobody/0": [piece.to_json()]},
        "rubbish": {north: [{"log": north}]},
    }
    for brought in lies.values():
        east.answer(None, brought, "")
        assert set(here.held(here.stores["East"]).values()) == {0}
    # The control.
    answer = east.answer(None, {north: [piece.to_json()]}, "")
    assert answer["kept"][north] == [piece.end, piece.root]


@pytest.mark.parametrize("answer", [
    {"copy": 5}, {"copy": {}}, {"copy": {"piece": {}, "size": 1}}, {"kept": 5}, {"kept": []},
    {"kept": {"x": 1}}, {"copy": {"piece": None, "size": "x"}},
])  # fmt: skip
def test_rubbish_about_copies_ends_nothing(tmp_path: Path, answer: dict[str, Any]) -> None:
    here = Neighbours(tmp_path)
    own = here.ledgers["North"].log.origin
    if isinstance(answer.get("kept"), dict):
        answer = {"kept": {own: 5, here.ledgers["West"].log.origin: [None]}}
    here.keeper.asking(lambda questions: dict.fromkeys(questions, answer))(
        {name: {} for name in SITES}
    )
    here.ask()
    assert here.held(here.hub)["North"] == len(here.ledgers["North"].log)


def test_a_site_cannot_give_the_copy_of_another(tmp_path: Path) -> None:
    here = Neighbours(tmp_path)

    def swapped(questions: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        answers = here.show(questions)
        return {"North": answers["East"], "East": answers["North"]}

    here.keeper.asking(swapped)({"North": {}, "East": {}})
    assert set(here.held(here.hub).values()) == {0}
    assert not list(here.hub.folder.glob("*"))
    here.ask()
    assert CopyPiece.from_json(here.hub.all(here.ledgers["East"].log.origin)[0].to_json())
