"""A site keeps a coordinator's journal, and nothing that another made up; it comes back whole."""

from __future__ import annotations

import os
import shutil
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ledger_kit import PLAN

from privet.client.recovery import journal_copies
from privet.client.recovery.journal_copies import JournalCopies
from privet.common.canonical import digest
from privet.common.errors import EvidenceError, LedgerError, RunError
from privet.privacy.evidence.copies.journal_copy import JournalEntry, JournalKey, entries_of
from privet.privacy.evidence.keys import FileSigner
from privet.privacy.evidence.log import Log
from privet.privacy.evidence.roster import CoordinatorKeys, Member, Roster
from privet.privacy.evidence.signed_note import COSIGN, SIGN, Checkpoint, Key, key_name
from privet.privacy.evidence.statement import JOURNAL
from privet.privacy.evidence.store import Store
from privet.server.evidence.journal import Journal, Runs
from privet.server.evidence.journal_copies import JournalSharer

RUN = "study-1"


def key(kind: str, owner: str, signer: FileSigner, type_: int = SIGN) -> Key:
    return Key(key_name(kind, owner, signer.public), signer.public, type_)


class Hub:
    """A coordinator's journal, and the roster of its run."""

    def __init__(self, folder: Path, signer: FileSigner | None = None) -> None:
        self.signer = signer or FileSigner.generate()
        self.orders = FileSigner.generate()
        witness = key("witness", "hub", FileSigner.generate(), COSIGN)
        self.journal = Journal(folder, "hub", self.signer, self.orders, witness, setting="site")
        ledger = key("ledger", "North", FileSigner.generate())
        member = Member("North", ledger, key("witness", "North", FileSigner.generate(), COSIGN))
        chief = CoordinatorKeys("hub", self.journal.log.first_key, self.journal.order_key, witness)
        self.roster = Roster(chief, (member,), 1)
        self.key = self.journal.sealed_key(RUN, PLAN.digest, self.roster)

    def sharer(self) -> JournalSharer:
        return JournalSharer(self.journal, self.key, self.roster)

    def grow(self, name: str = RUN) -> None:
        model = digest(name.encode())
        self.journal.open_run(name, PLAN.digest, model, ["North"])


class Site:
    """What one site answers; it remembers the head that it was shown."""

    def __init__(self, folder: Path, hub: Hub) -> None:
        self.copies, self.hub, self.seen = JournalCopies(folder), hub, ""

    def show(self, questions: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        asked = questions["North"]["journal"]
        cosigned = Checkpoint.parse(self.seen).size if self.seen else 0
        answer = {"journal": self.copies.answer(asked, PLAN, self.hub.roster, cosigned)}
        if self.seen:
            answer["seen"] = {self.hub.journal.log.origin: {"note": self.seen}}
        return {"North": answer}

    def witness(self, sharer: JournalSharer) -> None:
        for _ in range(3):
            sharer.asking(self.show)({"North": {}})
        self.seen = self.hub.journal.log.head().text


def leaves(journal: Journal) -> list[bytes]:
    return list(journal.log.store.leaves())


@pytest.fixture
def hub(tmp_path: Path) -> Hub:
    return Hub(tmp_path / "hub")


@pytest.fixture
def site(tmp_path: Path, hub: Hub) -> Site:
    return Site(tmp_path / "site", hub)


def older(hub: Hub, folder: Path, size: int) -> None:
    """Go on with the hub's journal as it was when it had so many entries."""
    log = Log(folder / "journal.db", hub.signer, JOURNAL, "hub", Runs, create=True)
    log.adopt(leaves(hub.journal)[:size])
    log.store.close()
    witness = hub.roster.coordinator.witness
    hub.journal = Journal(folder, "hub", hub.signer, hub.orders, witness, setting="site")


def test_a_journal_comes_back_entry_for_entry(hub: Hub, site: Site, tmp_path: Path) -> None:
    for name in (RUN, "second", "third"):
        hub.grow(name)
    site.witness(hub.sharer())
    whole = leaves(hub.journal)
    assert (site.copies.folder / f"{RUN}.db").stat().st_mode & 0o777 == 0o600
    older(hub, tmp_path / "older", 2)
    assert hub.sharer().restore(["North"], site.show, lambda site: {}) == 2
    assert leaves(hub.journal) == whole
    # What is whole asks for nothing more, and a site that keeps all is brought nothing.
    assert hub.sharer().restore(["North"], site.show, lambda site: {}) == 0


def test_a_fork_is_seen_before_anything_is_written(hub: Hub, site: Site, tmp_path: Path) -> None:
    hub.grow()
    hub.grow("second")
    site.witness(hub.sharer())
    older(hub, tmp_path / "older", 2)
    hub.grow("another")
    before = leaves(hub.journal)
    with pytest.raises(Exception, match="was written on since"):
        hub.sharer().restore(["North"], site.show, lambda site: {})
    assert leaves(hub.journal) == before


def test_a_site_keeps_nothing_that_the_journal_did_not_sign(hub: Hub, site: Site) -> None:
    hub.grow()
    question = {"run": RUN, "key": hub.key.to_json()}
    entries = [entry.to_json() for entry in entries_of(hub.journal.log.store, 0)]
    forged = Log(
        site.copies.folder.parent / "forged.db", FileSigner.generate(), JOURNAL, "hub", Runs,
        create=True,
    )  # fmt: skip
    forged.append("genesis", "key", digest(b""), coordinator="hub", key=str(forged.key))
    assert site.copies.answer({"run": RUN}, PLAN, hub.roster) == {"held": -1}
    for wrong in (
        [JournalEntry(next(iter(forged.store.leaves()))).to_json()],  # another key's
        entries[1:],  # out of place
        [[entries[0][0], [["secret", "x", "y"]]]],  # no paper of a journal
        [1],
    ):
        asked = {**question, "from": 0, "entries": wrong}
        assert site.copies.answer(asked, PLAN, hub.roster) == {}
    assert site.copies.answer({**question, "from": 0, "entries": entries}, PLAN, hub.roster) == {
        "held": 2
    }


@pytest.mark.parametrize("field", ["run", "plan", "roster", "journal", "sealed", "by"])
def test_a_sealed_key_that_was_altered_begins_no_copy(hub: Hub, site: Site, field: str) -> None:
    other = b"other" if field == "sealed" else "other"
    made: JournalKey = replace(hub.key, **{field: other})
    assert site.copies.answer({"run": RUN, "key": made.to_json()}, PLAN, hub.roster) == {}
    assert not (site.copies.folder / f"{RUN}.db").exists()


def test_a_run_has_one_journal_and_other_coordinators_learn_of_none(
    hub: Hub, site: Site, tmp_path: Path
) -> None:
    site.witness(hub.sharer())
    second = Hub(tmp_path / "second")
    site.copies.require_same(RUN, hub.roster)
    with pytest.raises(EvidenceError, match="privet server resume"):
        site.copies.require_same(RUN, second.roster)
    assert site.copies.answer({"run": RUN}, PLAN, second.roster) == {}
    orders = hub.journal.order_key.fingerprint
    assert [one["held"] for one in site.copies.all({orders})] == [1]
    assert site.copies.all({second.journal.order_key.fingerprint}) == []
    # Only who has the order key opens the journal's.
    found = JournalKey.from_json(site.copies.all({orders})[0]["key"])
    assert found.open(hub.orders.seed) == hub.signer.seed
    with pytest.raises(LedgerError, match="another order key"):
        found.open(second.orders.seed)


@pytest.mark.parametrize("run", ["../../etc", "a/b", "", ".hidden", "a" * 129])
def test_the_name_of_a_run_is_no_path(hub: Hub, site: Site, run: str) -> None:
    made = hub.journal.sealed_key(run, PLAN.digest, hub.roster)
    assert site.copies.answer({"run": run, "key": made.to_json()}, PLAN, hub.roster) == {}
    assert not site.copies.folder.exists()


def test_what_a_copy_may_take_of_the_disk_is_bounded(
    hub: Hub, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_copies, "MAX_COPY_BYTES", 1000)
    site.witness(hub.sharer())
    assert site.copies.answer({"run": RUN}, PLAN, hub.roster) == {"held": 0}


def test_a_copy_that_does_not_lead_to_the_head_is_not_taken(hub: Hub, tmp_path: Path) -> None:
    hub.grow()
    whole, head = leaves(hub.journal), hub.journal.log.head()
    older(hub, tmp_path / "older", 1)
    wrong = Checkpoint(head.origin, head.size, bytes(32))
    with pytest.raises(LedgerError, match="does not lead"):
        hub.journal.log.adopt(whole[1:], wrong)
    assert leaves(hub.journal) == whole[:1]
    hub.journal.log.adopt(whole[1:], head)
    assert leaves(hub.journal) == whole


def test_what_nobody_cosigned_gives_way_to_what_the_journal_says(
    hub: Hub, site: Site, tmp_path: Path
) -> None:
    """Entries are brought before their head is cosigned; a coordinator restored then writes others."""
    hub.grow()
    site.witness(hub.sharer())
    hub.grow("brought, not cosigned")
    sharer = hub.sharer()
    for _ in range(3):
        sharer.asking(site.show)({"North": {}})
    older(hub, tmp_path / "older", 2)
    sharer = hub.sharer()
    assert sharer.restore(["North"], site.show, lambda site: {}) == 0
    hub.grow("another")
    hub.grow("and one more")
    site.witness(sharer)
    whole = leaves(hub.journal)
    older(hub, tmp_path / "oldest", 1)
    assert hub.sharer().restore(["North"], site.show, lambda site: {}) == 3
    assert leaves(hub.journal) == whole


def test_a_site_cannot_make_a_restored_coordinator_read_without_end(
    hub: Hub, site: Site, tmp_path: Path
) -> None:
    hub.grow()
    site.witness(hub.sharer())
    older(hub, tmp_path / "older", 1)
    calls = []

    def floods(questions: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        answer = site.show(questions)
        if "want" in questions["North"]["journal"]:
            calls.append(1)
            answer["North"]["journal"]["entries"] = [JournalEntry(b"x").to_json()] * 40
        return answer

    with pytest.raises(RunError, match="They are lost"):
        hub.sharer().restore(["North"], floods, lambda site: {})
    assert len(calls) <= 2


def test_a_copy_stays_open_and_is_on_disk_when_it_is_answered(
    hub: Hub, site: Site, tmp_path: Path
) -> None:
    """What a kill leaves at that moment has all that was answered as kept."""
    for name in (RUN, "second"):
        hub.grow(name)
        site.witness(hub.sharer())
        killed = tmp_path / name
        shutil.copytree(site.copies.folder, killed)
        assert (killed / f"{RUN}.db-wal").stat().st_size
        with closing(Store(killed / f"{RUN}.db")) as left:
            assert list(left.leaves()) == leaves(hub.journal)
    ours = [path for path in journal_copies._OPEN if path.parent == site.copies.folder]
    assert ours == [site.copies.folder / f"{RUN}.db"]


@pytest.mark.parametrize("how", ["cleared away", "by hand"])
def test_a_copy_that_is_removed_while_it_is_open_is_begun_anew(
    hub: Hub, site: Site, how: str
) -> None:
    hub.grow()
    site.witness(hub.sharer())
    if how == "by hand":
        shutil.rmtree(site.copies.folder)
    else:
        # By another object of the same process, as housekeeping does.
        JournalCopies(site.copies.folder).forget_older(-1.0)
    assert site.copies.all({hub.journal.order_key.fingerprint}) == []
    hub.grow("second")
    site.witness(hub.sharer())
    assert [one["held"] for one in site.copies.all({hub.journal.order_key.fingerprint})] == [3]


def test_a_copy_that_grows_in_the_file_beside_it_is_not_old(hub: Hub, site: Site) -> None:
    site.witness(hub.sharer())
    path = site.copies.folder / f"{RUN}.db"
    os.utime(path, (0, 0))
    site.copies.forget_older(3600)
    assert path.exists()
    os.utime(path.with_name(f"{path.name}-wal"), (0, 0))
    site.copies.forget_older(3600)
    assert not path.exists()
