"""A site's ledger comes back from copies: whole and under a new key, or not at all."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import copy_kit
import pytest
from copy_kit import CHIEF, fetch, file_of, orders_key, signed
from ledger_kit import PATIENTS, PLAN, SITE, asked, charged, key, kinds, plan_of, spend

from privet.client.recovery.recover import Recovery, recover_site
from privet.common.errors import (
    InputError,
    LedgerError,
    PrivateKeyError,
    PrivetError,
    WrongLedgerError,
)
from privet.common.files.lock import CLIENT, alone
from privet.common.order import Order
from privet.privacy.audit import bundle
from privet.privacy.evidence.copies.copy_file import CopyFile
from privet.privacy.evidence.copies.copy_store import CopyStore
from privet.privacy.evidence.copies.ledger_copy import PieceContent, seal
from privet.privacy.evidence.keys import FileSigner
from privet.privacy.evidence.ledger import Ledger, Request
from privet.privacy.evidence.merkle import Tree
from privet.privacy.evidence.order_keys import KeyHandover
from privet.privacy.evidence.signed_note import Checkpoint, Key
from privet.privacy.evidence.statement import Entry


class Desk:
    """A site that spent two releases, its copy at a coordinator, and its safe."""

    def __init__(self, tmp: Path, **more: Any) -> None:
        self.tmp, self.home = tmp, tmp / "North" / "ledger"
        self.store = CopyStore(tmp / "hub" / "copies")
        self.ledger = copy_kit.opened(self.home, **more)
        fetch(self.ledger, self.home, self.store)
        for number in (1, 2):
            self.spend(number)
        fetch(self.ledger, self.home, self.store)
        self.safe = tmp / "safe"
        shutil.move(self.home / "offline", self.safe)
        self.first = self.ledger.log.first_key.fingerprint

    def spend(self, number: int) -> None:
        keyid = orders_key().fingerprint.partition(":")[2]
        spend(self.ledger, number, keyid=keyid)

    def lose(self) -> None:
        """Lose the disk."""
        self.ledger.log.store.close()
        shutil.rmtree(self.tmp / "North")

    def file(self, name: str = "north.copy", *heads: Checkpoint, **more: Any) -> Path:
        return file_of(self.store, self.ledger, self.tmp / name, *heads, **more)

    def recover(self, *paths: Path, **more: Any) -> Recovery:
        files = [CopyFile.read(path) for path in paths]
        more = {"first_key": self.first, **more}
        recovery = more.pop("recovery", self.safe / "recovery.pem")
        return recover_site(files, self.tmp / "North", recovery, None, **more)

    def opened(self) -> Ledger:
        return Ledger(self.home, key(self.home), SITE)

    @property
    def is_untouched(self) -> bool:
        """Whether nothing was written but the lock of a folder that was made for it."""
        found = [p for p in (self.tmp / "North").rglob("*") if p.is_file()]
        return [path.name for path in found] in ([], ["client.pid"])


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


# --- what comes back ---------------------------------------------------------------------------


def test_a_lost_ledger_comes_back_whole_under_a_new_key(desk: Desk) -> None:
    before = list(desk.ledger.log.store.leaves())
    spent, head = desk.ledger.spent(PATIENTS), desk.ledger.log.head()
    witness = key(desk.home, "witness").public
    path = desk.file()
    desk.lose()
    done = desk.recover(path)
    back = desk.opened()
    assert list(back.log.store.leaves(0))[: len(before)] == before
    assert (back.spent(PATIENTS), done.entries) == (spent, len(before))
    assert kinds(back)[-1] == "key-rotated"
    last = Entry.read(back.log.store.leaf(len(before)))
    assert last.predicate["why"] == "recovery"
    assert done.key == back.log.key.fingerprint != desk.first
    # Those who watched the log are shown that it grew, and the witness is who it was.
    assert back.log.require_extends(head.text).size == len(before)
    assert key(desk.home, "witness").public == witness
    # The plan came with its first reservation: the ledger can say what may still be spent.
    assert back.log.store.paper("plan", PLAN.digest)
    spend(back, 3, keyid=orders_key().fingerprint.partition(":")[2])
    assert charged(back) == 3
    assert not list((desk.tmp / "North").glob(".recovering*"))
    assert all(p.stat().st_mode & 0o77 == 0 for p in desk.home.glob("*.pem"))


def test_a_damaged_ledger_is_put_aside_and_what_is_whole_stays(desk: Desk) -> None:
    path = desk.file()
    desk.ledger.log.store.close()
    file = desk.home / "ledger.db"
    file.write_bytes(b"\0" * 8192)
    (desk.home / "witness.json").write_text("{}")
    before = (desk.home / "witness.pem").read_bytes()
    done = desk.recover(path)
    assert done.aside is not None
    assert {p.name for p in done.aside.iterdir()} == {"ledger.db", "ledger.pem"}
    # What was put aside is no second ledger of the site.
    assert bundle._logs(desk.home) == [file]
    assert (desk.home / "witness.pem").read_bytes() == before
    assert (desk.home / "witness.json").exists()
    assert charged(desk.opened()) == 2


def test_an_older_ledger_is_replaced_and_a_whole_one_is_not(desk: Desk) -> None:
    desk.ledger.log.store.close()
    kept = desk.tmp / "older"
    shutil.copytree(desk.home, kept)
    desk.spend(3)
    fetch(desk.ledger, desk.home, desk.store)
    path = desk.file()
    desk.ledger.log.store.close()
    with pytest.raises(WrongLedgerError, match="is whole and has"):
        desk.recover(path)
    shutil.rmtree(desk.home)
    shutil.copytree(kept, desk.home)
    desk.recover(path)
    assert charged(desk.opened()) == 3


@pytest.mark.parametrize("spends", [False, True], ids=["a decision", "an order"])
def test_an_older_ledger_that_was_written_to_has_to_be_moved_away(desk: Desk, spends: bool) -> None:
    """It says how many orders it paid for, which the newer one does not have."""
    desk.ledger.log.store.close()
    kept = desk.tmp / "older"
    shutil.copytree(desk.home, kept)
    for number in (3, 4):
        desk.spend(number)
    fetch(desk.ledger, desk.home, desk.store)
    path = desk.file()
    desk.ledger.log.store.close()
    shutil.rmtree(desk.home)
    shutil.copytree(kept, desk.home)
    old = desk.opened()
    if spends:
        spend(old, 9, keyid=orders_key().fingerprint.partition(":")[2])
    else:
        old.pause("Ada")
    old.log.store.close()
    with pytest.raises(
        WrongLedgerError, match=f"written to since.* not counted then: {int(spends)}$"
    ):
        desk.recover(path)
    desk.home.rename(desk.tmp / "aside")
    desk.recover(path)
    assert charged(desk.opened()) == 4


def test_the_longest_of_several_copies_counts(desk: Desk) -> None:
    older = desk.file("older.copy")
    desk.spend(3)
    fetch(desk.ledger, desk.home, desk.store)
    newer = desk.file("newer.copy")
    desk.lose()
    done = desk.recover(older, newer)
    assert done.source == str(newer)
    assert charged(desk.opened()) == 3


def test_rotations_in_the_copy_are_followed(desk: Desk) -> None:
    desk.ledger.rotate(FileSigner.generate())
    desk.spend(3)
    fetch(desk.ledger, desk.home, desk.store)
    path = desk.file()
    desk.lose()
    desk.recover(path)
    again = CopyStore(desk.tmp / "again")
    back = desk.opened()
    assert charged(back) == 3
    # And once more: what was recovered can be recovered.
    fetch(back, desk.home, again)
    second = file_of(again, back, desk.tmp / "second.copy")
    back.log.store.close()
    shutil.rmtree(desk.tmp / "North")
    desk.recover(second)
    assert charged(desk.opened()) == 3


def test_a_site_that_had_withdrawn_stays_so(desk: Desk) -> None:
    desk.ledger.withdraw("Ada")
    fetch(desk.ledger, desk.home, desk.store)
    path = desk.file()
    desk.lose()
    done = desk.recover(path)
    assert done.key == ""
    found = Ledger.read(desk.home)
    assert found.state.withdrawn
    assert charged(found) == 2


def test_the_fingerprint_lies_beside_the_recovery_key(desk: Desk) -> None:
    path = desk.file()
    desk.lose()
    with pytest.raises(InputError, match="name the fingerprint of the ledger's first key"):
        desk.recover(path, first_key="")
    (desk.safe / "fingerprints.json").write_text(json.dumps({"ledger": desk.first}))
    desk.recover(path, first_key="")
    assert charged(desk.opened()) == 2


# --- what does not -----------------------------------------------------------------------------


def altered(path: Path, **changes: Any) -> Path:
    """Write a file anew with other fields, as its holder can: its digest is right."""
    found, other = CopyFile.read(path), path.with_name(f"altered-{path.name}")
    replace(found, **changes).write(other)
    return other


def refuses(desk: Desk, error: type[PrivetError], match: str, *paths: Path, **more: Any) -> None:
    with pytest.raises(error, match=match) as caught:
        desk.recover(*paths, **more)
    assert type(caught.value) is error
    assert desk.is_untouched


@pytest.mark.parametrize("place", ["first", "last"])
def test_an_altered_piece_is_named(desk: Desk, place: str) -> None:
    path = desk.file()
    desk.lose()
    pieces = list(CopyFile.read(path).pieces)
    number = 0 if place == "first" else -1
    sealed = bytearray(pieces[number].sealed)
    sealed[len(sealed) // 2] ^= 1
    pieces[number] = replace(pieces[number], sealed=bytes(sealed))
    for known in (True, False):
        changes: dict[str, Any] = {"pieces": tuple(pieces)}
        if not known:
            changes["witness"] = None
        bad = altered(path, **changes)
        error = PrivateKeyError if place == "first" and not known else LedgerError
        refuses(desk, error, "altered", bad)
        bad.unlink()
    desk.recover(path)  # the control


def test_an_older_copy_is_refused_and_says_how_much_is_missing(desk: Desk) -> None:
    old = len(desk.ledger.log)
    desk.spend(3)
    path = desk.file()  # its head is newer than its pieces
    fetch(desk.ledger, desk.home, desk.store)
    whole = desk.file("whole.copy")
    desk.lose()
    said = f"has {old}: 2 entries are missing"
    refuses(desk, LedgerError, said, path)
    # A head that only another holder saw counts as much.
    older = altered(path, heads=())
    heads = altered(whole, pieces=CopyFile.read(path).pieces)
    refuses(desk, LedgerError, said, older, heads)
    desk.recover(older, whole)
    assert charged(desk.opened()) == 3


def test_a_newer_head_by_an_unknown_key_is_not_passed_over(desk: Desk) -> None:
    """The rotation before it may be in the part that is missing."""
    size = len(desk.ledger.log)
    desk.ledger.rotate(FileSigner.generate())
    path = desk.file()
    desk.lose()
    refuses(desk, LedgerError, f"{size + 1} entries that others saw, by a key that no copy", path)


def test_another_recovery_key_opens_nothing(desk: Desk) -> None:
    path = desk.file()
    desk.lose()
    FileSigner.generate().save(desk.tmp / "other.pem", None)
    refuses(desk, PrivateKeyError, "is not encrypted to the recovery key", path,
            recovery=desk.tmp / "other.pem")  # fmt: skip


def test_the_copy_of_another_site_is_refused(desk: Desk, tmp_path: Path) -> None:
    other = Desk(tmp_path / "other")
    path, foreign = desk.file(), other.file("south.copy")
    desk.lose()
    refuses(desk, PrivateKeyError, "is not encrypted to the recovery key", foreign)
    refuses(desk, WrongLedgerError, "several ledgers", path, foreign)
    refuses(
        desk, WrongLedgerError, "is of a ledger that began with key", path, first_key=other.first
    )


def test_a_file_that_was_cut_off_is_refused(desk: Desk) -> None:
    path = desk.file()
    desk.lose()
    lines = path.read_bytes().splitlines(keepends=True)
    for cut in (lines[:-1], lines[:-2] + lines[-1:], [*lines[:-1], lines[-1][:-9]], lines[:1], []):
        path.write_bytes(b"".join(cut))
        refuses(desk, InputError, "cut off|not a whole copy", path)


def test_two_histories_are_not_joined(desk: Desk, tmp_path: Path) -> None:
    desk.ledger.log.store.close()
    fork = tmp_path / "fork"
    shutil.copytree(desk.home, fork)
    desk.spend(3)
    fetch(desk.ledger, desk.home, desk.store)
    path = desk.file()
    other = Ledger(fork, key(fork), SITE)
    other.pause("Eve")
    other.resume("Eve")
    kept = CopyStore(tmp_path / "kept")
    fetch(other, fork, kept)
    second = file_of(kept, other, tmp_path / "second.copy")
    desk.lose()
    refuses(desk, LedgerError, "contradict each other", path, second)
    heads = altered(path, heads=(other.log.head(),))
    refuses(desk, LedgerError, "the log had two histories", heads)


def test_a_ledger_that_the_holder_made_up_is_refused(desk: Desk, tmp_path: Path) -> None:
    """Everybody can seal to a public key, and make keys of a ledger."""
    path = desk.file()
    recovery = key(desk.safe, "recovery").public
    fake = tmp_path / "fake"
    (fake / "offline").mkdir(parents=True)
    shutil.copy(desk.safe / "recovery.pem", fake / "offline")
    made = copy_kit.opened(fake)
    assert Key.parse(Entry.read(made.log.store.leaf(0)).predicate["recovery"]).public == recovery
    kept = CopyStore(tmp_path / "kept")
    fetch(made, fake, kept)
    forged = file_of(kept, made, tmp_path / "forged.copy")
    desk.lose()
    refuses(desk, WrongLedgerError, "is of a ledger that began with key", forged)
    desk.recover(path)


@pytest.mark.parametrize("what", ["entry", "head", "signature"])
def test_what_the_sites_own_witness_key_made_up_is_found_by_the_ledgers(
    desk: Desk, what: str
) -> None:
    """The witness key is in the first piece; it signs pieces, and can write no entry."""
    path = desk.file()
    found, home = CopyFile.read(path), desk.home
    witness, recovery = key(home, "witness"), key(desk.safe, "recovery")
    content = found.pieces[-1].open(recovery.seed)  # type: ignore[attr-defined]
    leaves = list(content.leaves)
    head = content.head
    if what == "entry":
        leaves[-1] = leaves[-2]
    elif what == "signature":
        entry = Entry.read(leaves[-1])
        leaves[-1] = entry.leaf((FileSigner.generate(),))
    all_leaves = [*list(desk.ledger.log.store.leaves())[: found.pieces[-1].start], *leaves]
    tree = Tree(all_leaves)
    if what != "entry":
        log_key = Key(found.log, desk.ledger.log.key.public)
        head = Checkpoint(found.log, len(tree), tree.root()).signed(log_key, witness).text
    start = found.pieces[-1].start
    roots = tree.root(start), tree.root()
    new = PieceContent(tuple(leaves), content.papers, head, content.witness_seed)
    bad = seal(new, found.log, start, roots, Key("r", recovery.public), witness)
    other = altered(path, pieces=(*found.pieces[:-1], bad))
    desk.lose()
    refuses(desk, LedgerError, "out of place|not signed|do not lead", other)


def test_a_running_client_is_not_disturbed(desk: Desk) -> None:
    path = desk.file()
    with alone(desk.tmp / "North", CLIENT), pytest.raises(InputError, match="is running here"):
        desk.recover(path)


# --- what is newer than the copies -------------------------------------------------------------


def test_an_order_that_is_newer_than_the_copies_counts_as_spent(desk: Desk) -> None:
    answered, due = (signed(round_=number) for number in (2, 3))
    due_again = signed(round_=3, attempt=2)
    path = desk.file(orders=(answered, due, due_again))
    desk.lose()
    done = desk.recover(path)
    back = desk.opened()
    assert [one.slot for one in done.counted if one.entry] == [due.slot, due_again.slot]
    assert len(done.counted) == 2
    assert charged(back) == 4
    assert kinds(back)[-5:] == ["key-rotated", "reserved", "aborted", "reserved", "aborted"]
    last = Entry.read(back.log.store.leaf(len(back.log) - 1)).predicate
    assert (last["reason"], last["data_opened"]) == ("recovered", True)
    # It cannot be asked again for nothing.
    with pytest.raises(PrivetError):
        back.reserve(Request(due, asked(3).event, "visits", "sha256:" + "c" * 64))


def test_an_order_of_a_run_that_was_not_begun_counts_too(desk: Desk) -> None:
    path = desk.file(orders=(signed(run="next"),))
    desk.lose()
    done = desk.recover(path)
    assert [one.entry is not None for one in done.counted] == [True]
    assert charged(desk.opened()) == 3


def test_a_pause_does_not_hide_an_order(desk: Desk) -> None:
    desk.ledger.pause("Ada")
    fetch(desk.ledger, desk.home, desk.store)
    path = desk.file(orders=(signed(round_=3),))
    desk.lose()
    desk.recover(path)
    back = desk.opened()
    assert charged(back) == 3
    assert back.state.paused


def test_of_a_run_that_went_on_without_the_site_few_orders_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A coordinator signs orders for a site that is gone, too; the site would close its plan."""
    plan = plan_of(max_attempts=2)
    monkeypatch.setattr("ledger_kit.PLAN", plan)
    monkeypatch.setattr("copy_kit.PLAN", plan)
    desk = Desk(tmp_path, epsilon=None)
    path = desk.file(orders=tuple(signed(round_=number) for number in range(3, 30)))
    desk.lose()
    done = desk.recover(path)
    counted = [one for one in done.counted if one.entry is not None]
    assert len(counted) == 2
    assert all("closed here" in one.why for one in done.counted if one.entry is None)
    assert charged(desk.opened()) == 4


@pytest.mark.parametrize("why", ["stranger", "unapproved", "cap"])
def test_what_the_site_would_have_refused_is_not_counted(desk: Desk, why: str) -> None:
    if why == "stranger":
        stranger = FileSigner.generate()
        orders: tuple[Order, ...] = (signed(stranger, round_=3),)
        path = desk.file(signer=stranger, orders=orders)
    elif why == "unapproved":
        desk.ledger.refuse_plan(PLAN.digest, ["Ada"])
        fetch(desk.ledger, desk.home, desk.store)
        path = desk.file(orders=(signed(round_=3),))
    else:
        path = desk.file(orders=tuple(signed(round_=number) for number in (3, 4, 5)))
    desk.lose()
    done = desk.recover(path, no_other_orders=True)
    counted = [one.entry is not None for one in done.counted]
    assert counted == ([True, True, False] if why == "cap" else [False])
    assert charged(desk.opened()) == (4 if why == "cap" else 2)


def test_coordinators_that_gave_no_copy_must_be_spoken_for(desk: Desk) -> None:
    desk.ledger.set_policy(copy_kit.policy(CHIEF, FileSigner.generate()))
    fetch(desk.ledger, desk.home, desk.store)
    path = desk.file()
    desk.lose()
    refuses(desk, InputError, "gave no copy: sha256:", path)
    desk.recover(path, no_other_orders=True)
    assert charged(desk.opened()) == 2


def test_orders_of_a_key_that_follows_the_known_one_count_too(desk: Desk) -> None:
    """The part that was lost held the handover, and what was answered before and after it."""
    new = FileSigner.generate()
    shown = KeyHandover.make("hub", CHIEF, new)
    orders = signed(round_=1, run="before"), signed(new, round_=1, run="after")
    path = desk.file(signer=new, orders=orders, order_keys=(shown,))
    assert CopyFile.read(path).order_keys == (shown,)
    desk.lose()
    done = desk.recover(path)  # the old key's coordinator is spoken for by this file
    assert [one.entry is not None for one in done.counted] == [True, True]
    ledger = desk.opened()
    assert charged(ledger) == 4
    assert ledger.state.order_keys.newest(shown.old.fingerprint) == shown.new.fingerprint


def test_a_handover_that_the_known_key_did_not_sign_opens_nothing(desk: Desk) -> None:
    thief = FileSigner.generate()
    shown = KeyHandover.make("hub", thief, FileSigner.generate())
    path = desk.file(orders=(signed(round_=3),), order_keys=(shown,))
    desk.lose()
    desk.recover(path)
    assert not desk.opened().state.order_keys.handovers()


def test_an_altered_order_is_found(desk: Desk) -> None:
    path = desk.file(orders=(signed(round_=3),))
    desk.lose()
    (order,) = CopyFile.read(path).orders
    bad = altered(path, orders=(replace(order, round=4),))
    with pytest.raises(InputError, match="is not signed by its coordinator"):
        CopyFile.read(bad)


def test_a_recovery_that_was_cut_off_is_done_again(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ledger itself comes last: until then its folder says that one is missing."""
    path = desk.file()
    desk.ledger.log.store.close()
    (desk.home / "ledger.db").write_bytes(b"\0" * 8192)
    move = Path.replace

    def cut(self: Path, target: Path) -> Path:
        if self.parent.name == ".recovering" and self.name == "ledger.db":
            raise KeyboardInterrupt
        return move(self, target)

    monkeypatch.setattr(Path, "replace", cut)
    with pytest.raises(KeyboardInterrupt):
        desk.recover(path)
    monkeypatch.undo()
    assert not (desk.home / "ledger.db").exists()
    assert (desk.home / "ledger.pem").exists()
    with pytest.raises(WrongLedgerError):
        Ledger.read(desk.home)
    desk.recover(path)
    assert charged(desk.opened()) == 2


def test_a_full_disk_leaves_the_folder_as_it_was(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = desk.file()
    desk.lose()

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(FileSigner, "save", full)
    with pytest.raises(OSError, match="No space"):
        desk.recover(path)
    assert desk.is_untouched
    monkeypatch.undo()
    desk.recover(path)
    assert charged(desk.opened()) == 2
