"""Restored backups, damaged files, and transactions that fail."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from ledger_kit import (
    EVENT,
    PATIENTS,
    PLAN,
    RELEASE,
    SETUP,
    SITE,
    asked,
    budget,
    charged,
    close_budget,
    copy,
    kinds,
    opened,
    opened_only,
    order,
    raw,
    remove,
    spend,
)

from privet.common.canonical import digest
from privet.common.errors import (
    BudgetExceededError,
    LedgerError,
    NoteError,
    RolledBackError,
)
from privet.privacy.accounting.events import NonPrivate
from privet.privacy.evidence.keys import FileSigner
from privet.privacy.evidence.ledger import Ledger
from privet.privacy.evidence.ledger_state import Reservation
from privet.privacy.evidence.signed_note import Checkpoint
from privet.privacy.evidence.statement import Entry

# restored backups


def restored(folder: Path, ledger: Ledger) -> tuple[Ledger, str]:
    """Back up, spend, restore; return the ledger as it is then, and the head it had."""
    ledger.log.store.close()
    backup = copy(folder, folder.with_name("backup"))
    spend(ledger, 1)
    spend(ledger, 2)
    head = ledger.log.head().text
    ledger.log.store.close()
    copy(backup, folder)
    return opened(folder), head


def test_a_restored_backup_does_not_extend_its_head(folder: Path, ledger: Ledger) -> None:
    back, head = restored(folder, ledger)
    assert charged(back) == 0
    with pytest.raises(RolledBackError, match="a restored backup"):
        back.log.require_extends(head)
    # The control: without the head nothing is noticed, and the budget is spent again.
    spend(back, 1)
    assert charged(back) == 1


def test_a_backup_that_grew_on_is_a_fork(folder: Path, ledger: Ledger) -> None:
    """As long as what it lost, or longer, with other entries."""
    back, head = restored(folder, ledger)
    for number in (3, 4):
        spend(back, number)
    assert len(back.log) == Checkpoint.parse(head).size
    with pytest.raises(RolledBackError):
        back.log.require_extends(head)
    back.pause("Ada")
    with pytest.raises(RolledBackError):
        back.log.require_extends(head)


@pytest.mark.parametrize("how", ["removed", "replaced"])
def test_a_file_that_is_swapped_while_it_is_open_is_noticed(
    folder: Path, ledger: Ledger, how: str
) -> None:
    """Else promises would be written to a file that nobody finds again."""
    ledger.log.store.close()
    backup = copy(folder, folder.with_name("backup"))
    running = opened(folder)
    taken = running.reserve(asked(1))
    remove(folder)
    if how == "replaced":
        (folder / "ledger.db").write_bytes((backup / "ledger.db").read_bytes())
    with pytest.raises(LedgerError):
        running.reserve(asked(2))
    with pytest.raises(LedgerError):
        running.commit(taken, EVENT, RELEASE)
    if how == "removed":
        assert not (folder / "ledger.db").exists()
    else:
        assert charged(opened_only(folder)) == 0


def test_a_new_ledger_under_the_old_key_is_rolled_back(folder: Path, ledger: Ledger) -> None:
    """A ledger that was deleted and begun anew has the same name, and forgot everything."""
    spend(ledger, 1)
    head = ledger.log.head().text
    ledger.log.store.close()
    remove(folder)
    time.sleep(1.1)  # a genesis of another second is another genesis
    again = opened(folder)
    assert again.log.origin == Checkpoint.parse(head).origin
    with pytest.raises(RolledBackError):
        again.log.require_extends(head)


def test_a_backup_from_before_a_rotation_is_noticed(folder: Path, ledger: Ledger) -> None:
    ledger.log.store.close()
    backup = copy(folder, folder.with_name("backup"))
    ledger.rotate(FileSigner.generate())
    head = ledger.log.head().text
    ledger.log.store.close()
    copy(backup, folder)
    with pytest.raises((RolledBackError, NoteError)):
        opened(folder).log.require_extends(head)


def test_a_ledger_extends_the_heads_it_had(ledger: Ledger) -> None:
    heads = [ledger.log.head()]
    for number in (1, 2):
        spend(ledger, number)
        heads.append(ledger.log.head())
    ledger.rotate(FileSigner.generate())
    heads.append(ledger.log.head())
    for head in [*heads, *heads]:
        assert ledger.log.require_extends(head.text) == head
    assert ledger.log.cosigned() == heads[-1]


def test_a_head_that_came_with_an_order_is_kept_with_the_next_entry(
    folder: Path, ledger: Ledger
) -> None:
    spend(ledger, 1)
    head = ledger.log.head()
    ledger.log.require_extends(head.text, later=True)
    assert ledger.log.cosigned() is None
    with ledger.log.writing():
        pass  # what adds no entry does not wait for the disk
    assert ledger.log.cosigned() is None
    ledger.reserve(asked(2))
    ledger.log.store.close()
    assert opened(folder).log.cosigned() == head


def test_a_head_that_no_entry_follows_is_kept_all_the_same(folder: Path, ledger: Ledger) -> None:
    spend(ledger, 1)
    head = ledger.log.head()
    ledger.log.require_extends(head.text, later=True)
    ledger.log.keep_shown()
    assert opened(folder).log.cosigned() == head


def test_a_head_whose_entry_was_lost_is_kept_when_it_is_shown_again(ledger: Ledger) -> None:
    spend(ledger, 1)
    head = ledger.log.head()
    ledger.log.require_extends(head.text, later=True)
    with pytest.raises(RuntimeError, match="rolled back"), ledger.log.writing():
        ledger.pause("Ada")
        raise RuntimeError("rolled back")
    ledger.log.require_extends(head.text)
    assert ledger.log.cosigned() == head


def test_a_head_that_is_not_this_logs(tmp_path: Path, ledger: Ledger) -> None:
    stranger = opened(tmp_path / "other")
    spend(stranger, 1)
    forged = Checkpoint(ledger.log.origin, 999, bytes(32)).signed(
        ledger.log.key, stranger.log.signer
    )
    for text in (stranger.log.head().text, forged.text, "", "nonsense\n"):
        with pytest.raises(NoteError):
            ledger.log.require_extends(text)
    assert ledger.log.cosigned() is None


# a damaged file


def test_every_entry_is_under_the_signed_head(folder: Path, ledger: Ledger) -> None:
    """Whichever entry is changed, by whatever it would still be a leaf, nothing opens."""
    spend(ledger, 1)
    leaves = list(ledger.log.store.leaves())
    ledger.log.store.close()
    for number, leaf in enumerate(leaves):
        envelope = json.loads(leaf)
        envelope["signatures"][0]["sig"] = "A" * 86 + "=="
        changed = json.dumps(envelope, separators=(",", ":"), sort_keys=True)
        hexed = changed.encode().hex()
        raw(folder, f"UPDATE entries SET leaf = X'{hexed}' WHERE sequence = {number}")
        with pytest.raises(LedgerError, match="do not lead to the signed head"):
            opened_only(folder)
        raw(folder, f"UPDATE entries SET leaf = X'{leaf.hex()}' WHERE sequence = {number}")
    assert charged(opened_only(folder)) == 1


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE entries SET leaf = X'00' WHERE sequence = 5",
        "UPDATE entries SET leaf = X'7b7d' WHERE sequence = 5",
        "UPDATE entries SET leaf = 'text' WHERE sequence = 5",
        "UPDATE entries SET leaf = (SELECT leaf FROM entries WHERE sequence = 6) WHERE sequence = 5",
        "UPDATE entries SET sequence = 60 WHERE sequence = 5",
        "DELETE FROM entries WHERE sequence = 0",
        "DELETE FROM entries WHERE sequence = 5",
        "DELETE FROM entries WHERE sequence = 6",
        "DELETE FROM entries",
        "DELETE FROM facts",
        "UPDATE facts SET value = 'nonsense' WHERE name = 'head'",
        "UPDATE facts SET value = '' WHERE name = 'head'",
        "DROP TABLE entries",
        "PRAGMA user_version = 7",
    ],
)
def test_a_damaged_file_stops_everything(folder: Path, ledger: Ledger, statement: str) -> None:
    spend(ledger, 1)
    ledger.log.store.close()
    raw(folder, statement)
    with pytest.raises(LedgerError):
        opened_only(folder)


def test_a_removed_last_entry_is_noticed(folder: Path, ledger: Ledger) -> None:
    spend(ledger, 1)
    ledger.log.store.close()
    raw(folder, f"DELETE FROM entries WHERE sequence = {SETUP + 1}")
    with pytest.raises(LedgerError, match="do not lead to the signed head"):
        opened_only(folder)


def test_a_head_of_another_key_is_noticed(folder: Path, ledger: Ledger) -> None:
    spend(ledger, 1)
    head = Checkpoint(ledger.log.origin, len(ledger.log), ledger.log.head().root)
    forged = head.signed(ledger.log.key, FileSigner.generate()).text
    ledger.log.store.close()
    raw(folder, f"UPDATE facts SET value = '{forged}' WHERE name = 'head'")
    with pytest.raises(LedgerError, match="not signed by the key in force"):
        opened_only(folder)


def test_an_entry_written_by_somebody_without_the_key_is_not_taken_in(
    folder: Path, ledger: Ledger
) -> None:
    """Also while the ledger is open: a forged refund must not come under the next head."""
    ledger.reserve(asked(1))
    stranger = FileSigner.generate()
    value = {
        "sequence": len(ledger.log), "time": "2026-01-01T00:00:00Z", "log": ledger.log.origin,
        "reservation": SETUP, "data_opened": False, "reason": "failed",
    }  # fmt: skip
    forged = Entry("urn:privet:ledger:v1:", "aborted", value, "ledger", digest(b"")).leaf(
        [stranger]
    )
    with sqlite3.connect(folder / "ledger.db") as connection:
        connection.execute("INSERT INTO entries VALUES (?, ?)", (len(ledger.log), forged))
    connection.close()
    for wish in (ledger.history, ledger.pending, lambda: ledger.reserve(asked(2))):
        with pytest.raises(LedgerError, match="do not lead to the signed head"):
            wish()
    with pytest.raises(LedgerError, match="do not lead to the signed head"):
        opened_only(folder)


@pytest.mark.parametrize("content", [b"damaged\n" * 1000, b"", b"SQLite format 3\0" + bytes(4096)])
def test_a_file_that_is_no_log(folder: Path, ledger: Ledger, content: bytes) -> None:
    ledger.log.store.close()
    remove(folder)
    (folder / "ledger.db").write_bytes(content)
    with pytest.raises(LedgerError):
        opened_only(folder)


def test_entries_cannot_be_changed_by_mistake(ledger: Ledger) -> None:
    for statement in ("UPDATE entries SET leaf = X'00'", "DELETE FROM entries"):
        with (
            sqlite3.connect(ledger.log.store.path) as connection,
            pytest.raises(sqlite3.IntegrityError, match="never"),
        ):
            connection.execute(statement)
        connection.close()


def test_an_entry_of_a_later_vocabulary_stops_an_older_program(folder: Path) -> None:
    ledger = opened(folder)
    with pytest.raises(LedgerError, match="update Privet"), ledger.log.writing():
        ledger.log.append("budget-raised", "ledger", digest(b""), population=PATIENTS)
    assert kinds(ledger) == []


# a failed transaction

WISHES: dict[str, Callable[[Ledger, Reservation], object]] = {
    "reserve": lambda ledger, given: ledger.reserve(asked(2)),
    "commit": lambda ledger, given: ledger.commit(given, EVENT, RELEASE),
    "does-not-fit": lambda ledger, given: ledger.commit(given, NonPrivate("clear"), RELEASE),
    "abort": lambda ledger, given: ledger.abort(given, data_opened=False),
    "refuse": lambda ledger, given: ledger.refuse(order(3), "refused-plan"),
    "register": lambda ledger, given: ledger.register("staff", budget()),
    "add_data_set": lambda ledger, given: ledger.add_data_set("more", PATIENTS),
    "set_policy": lambda ledger, given: ledger.set_policy({"site": SITE, "more": 1}),
    "approve": lambda ledger, given: ledger.approve(PLAN.digest, ["Bo"], "manual"),
    "refuse_plan": lambda ledger, given: ledger.refuse_plan(PLAN.digest, ["Bo"]),
    "pause": lambda ledger, given: ledger.pause("Ada"),
    "withdraw": lambda ledger, given: ledger.withdraw("Ada"),
    "close_budget": lambda ledger, given: close_budget(ledger, PATIENTS),
    "rotate": lambda ledger, given: ledger.rotate(FileSigner.generate()),
}


@pytest.mark.parametrize("wish", WISHES)
@pytest.mark.parametrize("place", ["add", "put"])
def test_memory_after_a_failed_transaction_is_what_is_on_disk(
    folder: Path, ledger: Ledger, monkeypatch: pytest.MonkeyPatch, wish: str, place: str
) -> None:
    spend(ledger, 1, run="first")
    given = ledger.reserve(asked(1))

    def full(*words: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    with monkeypatch.context() as patched:
        patched.setattr(ledger.log.store, place, full)
        with pytest.raises(LedgerError, match="disk is full"):
            WISHES[wish](ledger, given)
    fresh = opened_only(folder)
    assert vars(ledger.state) == vars(fresh.state)
    assert ledger.log.head() == fresh.log.head()
    assert (ledger.log.origin, ledger.log.key) == (fresh.log.origin, fresh.log.key)
    assert ledger.spent() == fresh.spent()
    # And it goes on as if nothing had been asked.
    ledger.commit(given, EVENT, RELEASE)
    spend(ledger, 2)
    assert charged(opened_only(folder)) == 3


def test_memory_after_a_refusal_is_what_is_on_disk(folder: Path, ledger: Ledger) -> None:
    for number in range(1, 5):
        spend(ledger, number)
    with pytest.raises(BudgetExceededError):
        ledger.reserve(asked(5))
    assert vars(ledger.state) == vars(opened_only(folder).state)
    assert ledger.spent() == opened_only(folder).spent()
