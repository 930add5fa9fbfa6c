"""A backup is of one moment, also while others write."""

from __future__ import annotations

import shutil
import sqlite3
import tarfile
import threading
from contextlib import closing
from pathlib import Path

import pytest
from ledger_kit import asked, charged, opened, opened_only, spend

from privet.client.backup import back_up_site
from privet.client.operator.decisions import make_site
from privet.common.errors import InputError, RunError
from privet.common.files.backup import back_up


def everything(name: Path) -> bool:
    return True


def unpacked(out: Path, into: Path) -> Path:
    with tarfile.open(out) as tar:
        tar.extractall(into, filter="data")
    return into


@pytest.fixture
def site(tmp_path: Path) -> Path:
    ledger = opened(tmp_path / "site" / "ledger")
    ledger.log.store.close()
    return tmp_path / "site"


def test_the_newest_entries_are_in_it(site: Path, tmp_path: Path) -> None:
    ledger = opened_only(site / "ledger")
    for number in (1, 2):
        spend(ledger, number)
    # The control: a copy of the file alone, as `cp` makes it, lacks them.
    bare = tmp_path / "bare"
    bare.mkdir()
    for path in (site / "ledger").glob("*[bm]"):
        shutil.copy(path, bare)
    assert (site / "ledger" / "ledger.db-wal").stat().st_size > 0
    lost = opened_only(bare)
    assert charged(lost) < 2
    lost.log.store.close()
    done = back_up(site, tmp_path / "site.tar", everything)
    found = unpacked(done.path, tmp_path / "back") / "site" / "ledger"
    assert {path.name for path in found.iterdir()} >= {"ledger.db"}
    assert not list(found.glob("ledger.db-*"))
    restored = opened_only(found)
    assert charged(restored) == 2 and restored.log.head() == ledger.log.head()


def test_files_belong_to_the_entries_beside_them(site: Path, tmp_path: Path) -> None:
    """Each round writes a release, then its entry: no copy has an entry without its release."""
    stop, ledger = threading.Event(), opened_only(site / "ledger")
    ledger.log.store.close()
    (site / "outbox").mkdir()

    def work() -> None:
        own = opened_only(site / "ledger")
        for number in range(1, 400):
            if stop.is_set():
                break
            reservation = own.reserve(asked(1, number))
            (site / "outbox" / f"{number}.tmp").write_text(str(number))
            (site / "outbox" / f"{number}.tmp").rename(site / "outbox" / f"{number}.release")
            own.abort(reservation, data_opened=False)
        own.log.store.close()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        for number in range(4):
            done = back_up(site, tmp_path / f"{number}.tar", everything)
            found = unpacked(done.path, tmp_path / str(number)) / "site"
            copied = opened_only(found / "ledger")
            ended = sum(entry for entry in _ended(found / "ledger"))
            releases = len(list((found / "outbox").glob("*.release")))
            assert ended <= releases <= ended + 1
            copied.log.store.close()
    finally:
        stop.set()
        thread.join()


def _ended(folder: Path) -> list[int]:
    from privet.privacy.evidence.statement import Entry

    with closing(sqlite3.connect(folder / "ledger.db")) as file:
        leaves = [bytes(row[0]) for row in file.execute("SELECT leaf FROM entries")]
    return [int(Entry.read(leaf).kind == "aborted") for leaf in leaves]


def test_it_is_its_owners_and_whole(site: Path, tmp_path: Path) -> None:
    (site / ".half").write_text("x")
    (site / "client.pid").write_text("1")
    (site / "link").symlink_to(tmp_path)
    out = tmp_path / "new" / "site.tar"
    done = back_up(site, out, lambda name: name.name != "witness.json")
    assert out.stat().st_mode & 0o777 == 0o600
    with tarfile.open(out) as tar:
        files = [member.name for member in tar if member.isfile()]
    assert len(files) == done.files
    assert not any(word in name for name in files for word in (".half", ".pid", "link"))
    assert list(out.parent.iterdir()) == [out]
    with pytest.raises(InputError, match="never overwritten"):
        back_up(site, out, everything)


def test_a_ledger_that_is_held_is_said(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("privet.common.files.backup._PATIENCE_S", 0.1)
    with closing(sqlite3.connect(site / "ledger" / "ledger.db", isolation_level=None)) as held:
        held.execute("BEGIN IMMEDIATE")
        with pytest.raises(RunError, match="cannot be copied now"):
            back_up(site, tmp_path / "site.tar", everything)
    assert not list(tmp_path.glob("*.tar")) and not list(tmp_path.glob(".privet-backup-*"))


def test_a_backup_is_not_part_of_the_next_one(site: Path) -> None:
    for out in (site / "site.tar", site / "backups" / "site.tar"):
        with pytest.raises(InputError, match="the next backup would hold it"):
            back_up(site, out, everything)
    assert not list(site.rglob("*.tar"))
    back_up(site, site / "site.tar", lambda name: name.parts[0] == "ledger")


def test_a_coordinator_that_is_called_as_a_folder_that_is_left_out(tmp_path: Path) -> None:
    home = tmp_path / "North"
    make_site(home, "North", None)
    (home / "site.toml").write_text(
        'site = "North"\n[populations.p]\nunit = "record"\nepsilon = 1\ndelta = 1e-5\n'
        '[data.r]\npopulation = "p"\nnominal_size = 10\npath = "r.csv"\n'
        '[allow]\ntasks = ["*"]\nmodels = ["*"]\n'
    )
    for name in ("link/trainer/link.key", "coordinators/trainer/run.json",
                 "coordinators/trainer/trainer/x", "coordinators/trainer/trainer.log"):  # fmt: skip
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text("x")
    with tarfile.open(back_up_site(home / "site.toml", tmp_path / "n.tar").path) as tar:
        names = [name for name in tar.getnames() if "/trainer/" in name]
    assert names == ["North/coordinators/trainer/run.json", "North/link/trainer/link.key"]
