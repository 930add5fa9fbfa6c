"""A coordinator whose folder was put back from an older copy goes on with what its sites keep."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import office_kit
import pytest
from office_kit import Town
from test_office import SITES, entries_of, model_of, town, verdict_of

from privet.common.errors import InputError
from privet.privacy.evidence.statement import Entry
from privet.privacy.evidence.store import Store
from privet.server import queue
from privet.server.evidence.journal_copies import JournalSharer
from privet.server.membership.registry import MemberRegistry
from privet.server.queue import Run
from privet.server.recovery.lost_runs import bring_back

Make = Callable[..., Any]
pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.xdist_group("office")]
__all__ = ["town"]
PAID = [8, 8, 8]
"""Four rounds, each trained and measured, at each site."""


class Past:
    """A run that was done, and copies of the coordinator's folder from before."""

    def __init__(self, here: Town) -> None:
        self.here, self.copies = here, {-1: copy(here, "before")}
        self.run = here.run_all()
        for number in (1, 2):
            here.wait(self.run, lambda s, n=number: s.get("round", 0) >= n, 60)
            here.kill("hub")
            # A process that is killed may have noted a round that its snapshot has not.
            stored = self.run.snapshots.latest()
            self.copies.setdefault(stored.round if stored else 0, copy(here, f"older-{number}"))
            here.start("hub")
        self.done()
        self.copies[4] = copy(here, "newest")
        self.model, self.journal = model_of(here), journal_of(self.run)
        assert charges(here) == PAID

    def done(self) -> dict[str, Any]:
        status = self.here.wait(self.run, lambda s: s["state"] == "done", 60)
        self.here.kill("hub")
        return status

    def failed(self) -> str:
        """What the run says, once it has failed; the coordinator is ended."""
        with pytest.raises(AssertionError):
            self.here.wait(self.run, lambda s: s["state"] == "failed" and False, 60)
        self.here.kill("hub")
        return str(self.run.status["fault"])

    def put_back(self, number: int) -> None:
        """Lose the coordinator's folder; what is there now is the copy."""
        shutil.rmtree(self.here.folder / "hub")
        shutil.copytree(self.copies[number], self.here.folder / "hub")

    def require_same(self) -> None:
        """The model is the same bit for bit, nobody paid, and it is the same journal."""
        assert charges(self.here) == PAID
        model = model_of(self.here)
        assert model.keys() == self.model.keys()
        assert all(np.array_equal(model[name], self.model[name]) for name in model)
        assert journal_of(self.run) == self.journal
        assert len(list((self.run.folder / "figures").iterdir())) == 4
        verdict = verdict_of(self.here)
        assert verdict.ok, verdict.faults


def copy(here: Town, name: str) -> Path:
    """Copy the coordinator's folder, as a backup does while it is stopped."""
    return Path(shutil.copytree(here.folder / "hub", here.folder / name))


def charges(here: Town) -> list[int]:
    return [sum(one.kind == "reserved" for one in entries_of(here.folder / name)) for name in SITES]


def journal_of(run: Run) -> list[bytes]:
    store = Store(run.folder / "coordinator" / "journal.db")
    found = list(store.leaves())
    store.close()
    return found


def test_a_restored_coordinator_ends_with_the_same_model_at_no_cost(town: Make) -> None:
    past = Past(town("seed"))
    here, run = past.here, past.run
    between = sorted(number for number in past.copies if 0 <= number < 4)
    assert between
    for number in between:
        past.put_back(number)
        here.start("hub")
        remarks = past.done()["remarks"]
        past.require_same()
        assert f"restored from a copy that {ended(number)}" in remarks[-1]
        assert "fetched again from the sites' outboxes, at no cost" in remarks[-1]

    # Copied once all was done: nobody is asked anything.
    past.put_back(4)
    here.start("hub")
    past.done()
    past.require_same()

    # Copied before the run was submitted: it comes back when its operator says so.
    past.put_back(-1)
    here.start("hub")
    wait_for(lambda: queue.lost(here.federation))
    assert not run.folder.exists() and charges(here) == PAID
    with pytest.raises(InputError, match="privet server resume"):
        here.submit()
    bring_back(MemberRegistry.load(here.folder / "hub"), "first")
    remarks = past.done()["remarks"]
    past.require_same()
    assert "not in the copy" in remarks[0] and "rounds 1–4 were fetched again" in remarks[1]

    # Begun anew under its old name, it would be a second journal of one run: sites refuse that.
    past.put_back(-1)
    here.submit()
    here.start("hub")
    here.wait(run, lambda s: set(s.get("sites", {}).values()) == {"refused-conflict"}, 60)
    here.kill("hub")
    assert charges(here) == PAID


def ended(number: int) -> str:
    return f"ended at round {number}" if number else "held no round of this run"


def wait_for(check: Callable[[], Any], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_what_cannot_be_had_back_is_named_and_nobody_pays_or_forks(town: Make) -> None:
    past = Past(town("seed"))
    here, run = past.here, past.run
    number = min(number for number in past.copies if number >= 0)

    # The control: a coordinator that just writes on is stopped by its sites, and not cosigned.
    past.put_back(number)
    here.start("hub", run_forgetful)
    assert "rolled back" in past.failed()
    assert charges(here) == PAID
    assert not any(b'"round":4' in leaf for leaf in payloads(run))

    # So is one whose folder was put back, and written on by such a coordinator.
    run.note(state="queued", fault="")
    here.start("hub")
    assert "restored from an older copy" in past.failed()

    # Without the sites' outboxes the journal comes back, and the models do not.
    past.put_back(number)
    kept = {name: here.folder / name / "outbox" for name in SITES}
    for name, outbox in kept.items():
        outbox.rename(here.folder / f"{name}.outbox")
    here.start("hub")
    fault = past.failed()
    assert f"copy that {ended(number)}. Lost: the model of round {number + 1}" in fault
    assert charges(here) == PAID
    assert journal_of(run) == past.journal
    for name, outbox in kept.items():
        shutil.rmtree(outbox, ignore_errors=True)
        (here.folder / f"{name}.outbox").rename(outbox)

    # They were found again: the same run goes on.
    queue.resume(here.federation, "first")
    here.start("hub")
    past.done()
    past.require_same()

    # One site's copy of the journal is enough; what another made up is not taken.
    past.put_back(number)
    spoil(here.folder / "North" / "journals" / "first.db", past.journal)
    (here.folder / "East" / "journals" / "first.db").unlink()
    here.start("hub")
    past.done()
    past.require_same()

    # Nobody keeps it: nothing is written, nothing ordered.
    past.put_back(number)
    before = journal_of(run)
    for name in SITES:
        shutil.rmtree(here.folder / name / "journals")
    here.start("hub")
    assert "no site that is there keeps entries" in past.failed()
    assert journal_of(run) == before and charges(here) == PAID


def run_forgetful(folder: Path, address: str, log: Path, models: str) -> None:
    """A coordinator that does not ask what its sites cosigned."""
    JournalSharer.restore = lambda *given: 0  # type: ignore[method-assign]
    office_kit.run_office(folder, address, log, models)


def payloads(run: Run) -> list[bytes]:
    return [str(Entry.read(leaf).predicate).encode() for leaf in journal_of(run)]


def spoil(path: Path, leaves: list[bytes]) -> None:
    """Keep the copy, but for its last entry, which another key signed."""
    import sqlite3

    from privet.privacy.evidence.keys import FileSigner

    forged = Entry.read(leaves[-1]).leaf([FileSigner.generate()])
    database = sqlite3.connect(path)
    database.execute("DROP TRIGGER entries_stay")
    database.execute("UPDATE entries SET leaf = ? WHERE sequence = ?", (forged, len(leaves) - 1))
    database.commit()
    database.close()
