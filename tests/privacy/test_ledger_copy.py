"""Sealed copies of a ledger: what is in them, who can read them, and how they are kept."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from pathlib import Path

import pytest
from copy_kit import fetch, opened, witness_of
from ledger_kit import PATIENTS, VISITS, key, spend

from privet.client.recovery import copying
from privet.client.recovery.copying import LedgerCopier
from privet.common.errors import LedgerError, NoteError
from privet.privacy.evidence.copies.copy_store import EMPTY, CopyStore
from privet.privacy.evidence.copies.ledger_copy import PADDING, CopyPiece, chains
from privet.privacy.evidence.keys import FileSigner


def test_a_copy_holds_every_entry_and_only_the_recovery_key_reads_it(tmp_path: Path) -> None:
    home, store = tmp_path / "North", CopyStore(tmp_path / "copies")
    ledger = opened(home)
    fetch(ledger, home, store)
    spend(ledger, 1)
    spend(ledger, 2)
    assert fetch(ledger, home, store) == 1
    assert fetch(ledger, home, store) == 0
    pieces = store.all(ledger.log.origin)
    seed = key(home / "offline", "recovery").seed  # type: ignore[attr-defined]
    leaves = [leaf for piece in pieces for leaf in piece.open(seed).leaves]
    assert leaves == list(ledger.log.store.leaves())
    # The plan travels with its first reservation, the witness key with the first piece.
    papers = [paper[0] for piece in pieces for paper in piece.open(seed).papers]
    assert papers == ["plan"]
    assert pieces[0].open(seed).witness_seed and not pieces[1].open(seed).witness_seed
    for other in (key(home), key(home, "witness"), FileSigner.generate()):
        with pytest.raises(LedgerError, match="was altered, or is encrypted to another key"):
            pieces[0].open(other.seed)  # type: ignore[attr-defined]


def test_nothing_that_a_ledger_names_stands_in_the_copy(tmp_path: Path) -> None:
    home, store = tmp_path / "North", CopyStore(tmp_path / "copies")
    ledger = opened(home)
    spend(ledger, 1)
    fetch(ledger, home, store)
    kept = b"".join(path.read_bytes() for path in store.folder.iterdir())
    pieces = store.all(ledger.log.origin)
    sealed = b"".join(piece.sealed for piece in pieces)
    seed = key(home / "offline", "recovery").seed  # type: ignore[attr-defined]
    leaves = [leaf for piece in pieces for leaf in piece.open(seed).leaves]
    plain = b"".join(base64.b64decode(json.loads(leaf)["payload"]) for leaf in leaves)
    for word in (VISITS, PATIENTS, "plan-approved", "reserved", "sha256:cccc"):
        assert word.encode() in plain  # the control
        assert word.encode() not in kept + sealed
    for leaf in leaves:
        assert not any(leaf[at : at + 24] in kept + sealed for at in range(0, len(leaf), 24))


def test_a_copy_is_as_long_as_a_multiple_of_the_padding(tmp_path: Path) -> None:
    """How long an entry is says something of what it names."""
    lengths = set()
    for name in ("a", "a-much-longer-name-of-a-population-than-that"):
        home, store = tmp_path / name, CopyStore(tmp_path / f"copies-{name}")
        ledger = opened(home)
        fetch(ledger, home, store)
        ledger.pause(name)
        fetch(ledger, home, store)
        piece = store.all(ledger.log.origin)[-1]
        lengths.add(len(piece.sealed))
        assert (len(piece.sealed) - 48) % PADDING == 0
    assert len(lengths) == 1


def test_long_ledgers_come_in_several_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copying, "MAX_PIECE_LEAVES", 3000)
    home, store = tmp_path / "North", CopyStore(tmp_path / "copies")
    ledger = opened(home)
    spend(ledger, 1)
    assert fetch(ledger, home, store) > 2
    (chain,) = chains(store.all(ledger.log.origin))
    seed = key(home / "offline", "recovery").seed  # type: ignore[attr-defined]
    assert sum(len(p.open(seed).leaves) for p in chain) == len(ledger.log)
    assert [bool(p.open(seed).head) for p in chain] == [False] * (len(chain) - 1) + [True]


@pytest.mark.parametrize("off", ["policy", "simulation"])
def test_no_copy_leaves_where_it_is_not_wanted(tmp_path: Path, off: str) -> None:
    home = tmp_path / "North"
    more = {"setting": "simulation"} if off == "simulation" else {}
    ledger = opened(home, **more)
    copier = LedgerCopier(ledger, witness_of(home), lambda: off != "policy")
    assert copier.answer(EMPTY, ledger.log.head().text) is None


def test_a_holder_takes_only_what_the_site_signed_and_what_continues(tmp_path: Path) -> None:
    home, store = tmp_path / "North", CopyStore(tmp_path / "copies")
    ledger = opened(home)
    fetch(ledger, home, store)
    spend(ledger, 1)
    copier = LedgerCopier(ledger, witness_of(home), lambda: True)
    answer = copier.answer(store.held(ledger.log.origin), ledger.log.head().text)
    assert answer is not None
    piece, witness = CopyPiece.from_json(answer["piece"]), witness_of(home).key.public
    assert not store.add(piece, FileSigner.generate().public)
    assert not store.add(replace(piece, sealed=piece.sealed[:-1] + b"\0"), witness)
    assert not store.add(replace(piece, end=piece.end + 1), witness)
    assert store.add(piece, witness)
    assert not store.add(piece, witness)
    assert CopyStore(store.folder).held(ledger.log.origin) == (len(ledger.log), piece.root)


def test_a_piece_ends_where_its_head_does(tmp_path: Path) -> None:
    """The ledger grows while it is shown: its trainer works in another thread."""
    home, store = tmp_path / "North", CopyStore(tmp_path / "copies")
    ledger = opened(home)
    head = ledger.log.head()
    spend(ledger, 1)
    answer = LedgerCopier(ledger, witness_of(home), lambda: True).answer(EMPTY, head.text)
    assert answer is not None
    piece = CopyPiece.from_json(answer["piece"])
    assert (piece.end, piece.root, answer["size"]) == (head.size, head.root.hex(), head.size)
    assert piece.open(key(home / "offline", "recovery").seed).head == head.text  # type: ignore[attr-defined]
    fetch(ledger, home, store)
    assert (
        LedgerCopier(ledger, witness_of(home), lambda: True).answer(
            store.held(ledger.log.origin), head.text
        )
        is None
    )


def test_a_copy_of_another_history_begins_anew(tmp_path: Path) -> None:
    home, store = tmp_path / "North", CopyStore(tmp_path / "copies")
    ledger = opened(home)
    fetch(ledger, home, store)
    copier = LedgerCopier(ledger, witness_of(home), lambda: True)
    size = len(ledger.log)
    answer = copier.answer((size - 1, "00" * 32), ledger.log.head().text)
    assert answer is not None and answer["piece"]["from"] == 0
    # What is longer than the ledger is for the heads to settle.
    assert copier.answer((size + 1, "00" * 32), ledger.log.head().text) is None


def test_a_line_that_was_cut_off_is_fetched_again(tmp_path: Path) -> None:
    home, store = tmp_path / "North", CopyStore(tmp_path / "copies")
    ledger = opened(home)
    fetch(ledger, home, store)
    spend(ledger, 1)
    fetch(ledger, home, store)
    path = store.path(ledger.log.origin)
    path.write_bytes(path.read_bytes()[:-100])
    again = CopyStore(store.folder)
    assert len(again.all(ledger.log.origin)) == 1
    assert fetch(ledger, home, again) == 1
    assert [p.end for p in again.all(ledger.log.origin)][-1] == len(ledger.log)
    assert path.stat().st_mode & 0o77 == 0
    assert store.folder.stat().st_mode & 0o77 == 0


def test_copies_are_bounded(tmp_path: Path) -> None:
    home = tmp_path / "North"
    ledger = opened(home)
    copier = LedgerCopier(ledger, witness_of(home), lambda: True)
    answer = copier.answer(EMPTY, ledger.log.head().text)
    assert answer is not None
    piece, witness = CopyPiece.from_json(answer["piece"]), witness_of(home).key.public
    for bound in ("max_copy_bytes", "max_store_bytes"):
        small = CopyStore(tmp_path / bound, **{bound: 1000})
        assert not small.add(piece, witness)
    assert CopyStore(tmp_path / "enough").add(piece, witness)


def test_what_a_holder_lacks_is_passed_on_in_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, store = tmp_path / "North", CopyStore(tmp_path / "copies")
    other = CopyStore(tmp_path / "other")
    ledger = opened(home)
    for number in range(1, 4):
        spend(ledger, number)
        fetch(ledger, home, store)
    log, witness = ledger.log.origin, witness_of(home).key.public
    monkeypatch.setattr("privet.privacy.evidence.copies.copy_store.MAX_RELAY_BYTES", 1)
    turns = 0
    while pieces := store.pieces(log, other.held(log)):
        assert len(pieces) == 1
        assert all(other.add(piece, witness) for piece in pieces)
        turns += 1
    assert turns == 3
    assert other.held(log) == store.held(log)
    assert CopyStore(tmp_path / "none").pieces(log, EMPTY) == []


@pytest.mark.parametrize(
    "change",
    [{"from": "0"}, {"from": 9, "to": 9}, {"root": "zz"}, {"sealed": "%"}, {"log": 5}, {"sig": 1}],
)
def test_a_malformed_piece_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    home, store = tmp_path / "North", CopyStore(tmp_path / "copies")
    ledger = opened(home)
    fetch(ledger, home, store)
    value = store.all(ledger.log.origin)[0].to_json()
    assert CopyPiece.from_json(value).to_json() == value
    with pytest.raises(NoteError, match="malformed"):
        CopyPiece.from_json({**value, **change})
