"""Evidence on a medium or in a folder that nobody may write to: it is read, nothing is left."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import pytest
from ledger_kit import bare, charged, opened_only, spend
from read_only_kit import names, read_only

from privet.common.errors import LedgerError
from privet.privacy.audit.bundle import write_bundle
from privet.privacy.evidence.keys import FileSigner
from privet.privacy.evidence.ledger import Ledger
from privet.privacy.evidence.ledger_base import FILE
from privet.privacy.evidence.roster import CoordinatorKeys, Member, Roster
from privet.privacy.evidence.signed_note import COSIGN, SIGN, Key, key_name
from privet.privacy.evidence.statement import Entry
from privet.privacy.evidence.store import Store


def test_a_closed_ledger_is_read(folder: Path, ledger: Ledger) -> None:
    spend(ledger, 1)
    ledger.log.store.close()
    before = names(folder)
    with read_only(folder):
        again = opened_only(folder)
        assert charged(again) == 1
        assert names(folder) == before
        with pytest.raises(LedgerError, match="may be read only"):
            again.pause("Ada")
        again.log.store.close()
    assert names(folder) == before


def test_a_ledger_whose_client_is_at_work_is_read(folder: Path, ledger: Ledger) -> None:
    """What is in the write-ahead file alone counts, and so does what comes later."""
    spend(ledger, 1)
    before = names(folder)
    assert f"{FILE}-wal" in before
    with read_only(folder):
        reader = opened_only(folder)
        assert charged(reader) == 1
        reader.log.store.close()
        assert names(folder) == before
    spend(ledger, 2)
    assert charged(opened_only(folder)) == 2


@pytest.mark.parametrize("with_index", [False, True])
def test_what_a_crash_left_beside_the_file_counts(
    folder: Path, ledger: Ledger, with_index: bool
) -> None:
    spend(ledger, 1)
    copied = folder.with_name("copy")
    copied.mkdir()
    for end in ("", "-wal", "-shm") if with_index else ("", "-wal"):
        shutil.copy(folder / f"{FILE}{end}", copied)
    shutil.copy(folder / "ledger.pem", copied)
    before = names(copied)
    with read_only(copied):
        reader = opened_only(copied)
        assert charged(reader) == 1
        reader.log.store.close()
    assert names(copied) == before


def test_a_copy_is_removed(
    folder: Path, ledger: Ledger, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    spend(ledger, 1)
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    copied = folder.with_name("copy")
    copied.mkdir()
    for end in ("", "-wal"):
        shutil.copy(folder / f"{FILE}{end}", copied)
    with read_only(copied):
        store = Store(copied / FILE)
        assert store.count() == len(ledger.log)
        assert len(names(tmp_path / "temporary")) == 1
        store.close()
    assert names(tmp_path / "temporary") == []


def test_a_file_alone_that_may_not_be_written(folder: Path, ledger: Ledger) -> None:
    """In a folder that may: SQLite would leave its files there."""
    ledger.log.store.close()
    before = names(folder)
    with read_only(folder):
        folder.chmod(0o755)
        store = Store(folder / FILE)
        assert store.count() == len(ledger.log)
        store.close()
    assert names(folder) == before


def test_a_write_while_it_is_read_is_noticed(folder: Path, ledger: Ledger) -> None:
    """Somebody else may write where this process may not."""
    ledger.log.store.close()
    with read_only(folder):
        reader = Store(folder / FILE)
        leaves = reader.leaves()
        next(leaves)
        for place in (folder, folder / FILE):
            place.chmod(0o755)
        ledger.pause("Ada")
        ledger.log.store.close()
        with pytest.raises(LedgerError, match="written to while it was being read"):
            list(leaves)


def test_what_is_no_log_is_not_taken_for_an_empty_one(tmp_path: Path) -> None:
    bare(tmp_path / "north").log.store.close()
    (tmp_path / "north" / FILE).write_bytes(b"")
    with read_only(tmp_path / "north"), pytest.raises(LedgerError, match="not a log"):
        Store(tmp_path / "north" / FILE)


def test_evidence_is_bundled_from_there(tmp_path: Path, folder: Path, ledger: Ledger) -> None:
    spend(ledger, 1)
    genesis = Entry.read(ledger.log.store.leaf(0)).predicate
    keys = {
        kind: Key(key_name(kind, "chief", public), public, COSIGN if kind == "witness" else SIGN)
        for kind in ("journal", "orders", "witness")
        for public in (FileSigner.generate().public,)
    }
    member = Member("North", ledger.log.first_key, Key.parse(genesis["witness"]))
    roster = Roster(CoordinatorKeys("chief", **keys), (member,), 1)
    ledger.keep("roster", "newest", roster.to_dict())
    ledger.log.store.close()
    before = names(folder)
    with read_only(folder):
        made = write_bundle([folder], tmp_path / "north.bundle")
    assert (made.sites, made.entries) == (1, len(ledger.log))
    assert names(folder) == before
