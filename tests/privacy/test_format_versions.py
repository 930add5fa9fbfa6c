"""What an earlier version wrote is brought up at the first write; a later one's is left alone."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from ledger_kit import charged, copy, opened, opened_only, raw, spend

from privet.client.link.coordinators import memberships
from privet.common.errors import InputError, LedgerError
from privet.common.files.format_version import bring_up, number_of
from privet.privacy.evidence import store
from privet.privacy.evidence.ledger import Ledger
from privet.server.membership.registry import MemberRegistry

FEDERATION = {"name": "study", "address": "hub:1", "enrolment": "hub:2"}


def marks(folder: Path) -> tuple[int, int]:
    with closing(sqlite3.connect(folder / "ledger.db")) as file:
        return tuple(
            file.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("user_version", "application_id")
        )  # type: ignore[return-value]


def of_format_1(folder: Path) -> None:
    """Make a ledger of what the first format had, table by table, as its version did."""
    with closing(sqlite3.connect(folder / "ledger.db")) as new:
        rows = {name: new.execute(f"SELECT * FROM {name}").fetchall()
                for name in ("entries", "facts", "papers")}  # fmt: skip
    (folder / "ledger.db").unlink()
    with closing(sqlite3.connect(folder / "ledger.db")) as old:
        old.executescript("""
            PRAGMA journal_mode = WAL;
            CREATE TABLE entries (sequence INTEGER PRIMARY KEY, leaf BLOB NOT NULL);
            CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
            CREATE TABLE papers (
                kind TEXT NOT NULL, name TEXT NOT NULL, text TEXT NOT NULL,
                PRIMARY KEY (kind, name)
            ) WITHOUT ROWID;
            CREATE TRIGGER entries_stay BEFORE UPDATE ON entries
                BEGIN SELECT RAISE(ABORT, 'entries are never changed'); END;
            CREATE TRIGGER entries_remain BEFORE DELETE ON entries
                BEGIN SELECT RAISE(ABORT, 'entries are never removed'); END;
            PRAGMA user_version = 1;
        """)
        for name, found in rows.items():
            marks_ = ",".join("?" * len(found[0])) if found else ""
            old.executemany(f"INSERT INTO {name} VALUES ({marks_})", found)
        old.commit()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A ledger with one charge, as the first format had it."""
    made = tmp_path / "ledger"
    ledger = opened(made)
    spend(ledger, 1)
    ledger.log.store.close()
    of_format_1(made)
    return made


def test_an_earlier_ledger_is_read_as_it_is_and_brought_up_by_a_write(folder: Path) -> None:
    ledger = opened_only(folder)
    assert charged(ledger) == 1
    ledger.log.store.close()
    assert marks(folder) == (1, 0)
    ledger = opened_only(folder)
    spend(ledger, 2)
    ledger.log.store.close()
    assert marks(folder) == (store._VERSION, store._APPLICATION)
    assert charged(opened_only(folder)) == 2


def test_a_write_that_fails_leaves_the_earlier_format(folder: Path) -> None:
    ledger = opened_only(folder)
    with pytest.raises(RuntimeError), ledger.log.writing():
        raise RuntimeError
    ledger.log.store.close()
    assert marks(folder) == (1, 0)


@pytest.mark.parametrize("ahead", [False, True])
def test_a_later_ledger_is_refused_in_words_and_left_alone(folder: Path, ahead: bool) -> None:
    """Also where the number stands in the write-ahead file alone."""
    if ahead:
        running = sqlite3.connect(folder / "ledger.db")
        running.execute("PRAGMA wal_autocheckpoint = 0")
        running.execute("PRAGMA user_version = 9")
    else:
        raw(folder, "PRAGMA user_version = 9")
    before = (folder / "ledger.db").read_bytes()
    for open_it in (opened_only, opened, Ledger.read):
        with pytest.raises(
            LedgerError, match=r"is of format 9.*reads formats up to 2.*upgrade\.md"
        ):
            open_it(folder)
    assert (folder / "ledger.db").read_bytes() == before
    if ahead:
        running.close()


def test_a_file_that_becomes_later_while_it_is_open_is_not_written(folder: Path) -> None:
    """Another process was updated, and this one was not stopped."""
    ledger = opened_only(folder)
    raw(folder, "PRAGMA user_version = 9")
    with pytest.raises(LedgerError, match="is of format 9"):
        spend(ledger, 2)
    assert charged(copied(ledger, folder)) == 1


def copied(ledger: Ledger, folder: Path) -> Ledger:
    ledger.log.store.close()
    target = folder.with_name("copied")
    copy(folder, target)
    raw(target, "PRAGMA user_version = 2")
    return opened_only(target)


def test_a_folder_of_the_first_format_is_brought_up_by_the_coordinator(tmp_path: Path) -> None:
    made = MemberRegistry.found(tmp_path / "hub", "study", "hub:1", "hub:2")
    path = made.folder / "federation.json"
    now = json.loads(path.read_text())
    path.write_text(json.dumps({"format": "privet/federation/v1", **FEDERATION}))
    before = path.read_bytes()
    old = MemberRegistry.load(made.folder)
    assert (old.name, old.address, old.enrolment) == tuple(FEDERATION.values())
    assert old.order_key() == made.order_key() and path.read_bytes() == before
    old.bring_up_to_date()
    assert json.loads(path.read_text()) == now
    assert now["format"] == "privet/federation/v2" and now["software"].startswith("privet ")


@pytest.mark.parametrize(
    ("format_", "said"),
    [
        ("privet/federation/v3", r"is of format 3.*\(privet 9\.0\).*Nothing was changed"),
        ("privet/roster/v1", "not a federation of format"),
        ("privet/federation/v0", "not a federation of format"),
        ("privet/federation/v-1", "not a federation of format"),
    ],
)
def test_a_folder_of_another_format_is_refused(tmp_path: Path, format_: str, said: str) -> None:
    folder = MemberRegistry.found(tmp_path / "hub", "study", "hub:1", "hub:2").folder
    text = json.dumps({"format": format_, "software": "privet 9.0", **FEDERATION})
    (folder / "federation.json").write_text(text)
    with pytest.raises(InputError, match=said):
        MemberRegistry.load(folder)
    assert (folder / "federation.json").read_text() == text


def test_a_join_file_of_a_later_format_is_refused(tmp_path: Path) -> None:
    (tmp_path / "link").mkdir()
    (tmp_path / "link" / "join.json").write_text(json.dumps({"format": "privet/join/v2"}))
    with pytest.raises(InputError, match="is of format 2"):
        memberships(tmp_path)


def test_steps_run_in_order_and_end() -> None:
    def step(name: str) -> Any:
        return lambda kept: kept.append(name)

    done: list[str] = []
    assert bring_up(done, 1, {1: step("to 2"), 2: step("to 3")}) == 3
    assert bring_up(done, 3, {1: step("to 2"), 2: step("to 3")}) == 3
    assert done == ["to 2", "to 3"]
    assert [number_of(f"privet/x/v{n}", "x") for n in ("12", "", "²", "1a")] == [
        12,
        None,
        None,
        None,
    ]
