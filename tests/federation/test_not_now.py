"""A passing state is absence: ``not-now``, free, and answered later. A failure never becomes one."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from federation_kit import Federation
from ledger_kit import close_budget

from privet.client import outbox as outbox_module
from privet.client.outbox import Outbox
from privet.client.passing import LedgerRoom, room_of_release
from privet.client.site import Answer, Site
from privet.client.training.worker.remote import RemoteTrainer
from privet.common.errors import QuorumError, RunError
from privet.common.flat import Arrays
from privet.common.models import initial_model
from privet.common.order import Order, Status
from privet.common.release import Release
from privet.privacy.evidence.keys import FileSigner
from privet.privacy.evidence.ledger import Ledger
from privet.privacy.evidence.ledger_state import Reservation
from privet.privacy.evidence.statement import Entry
from privet.privacy.policy import Policy

Make = Callable[..., Any]
RARE = 3.0625
"""Stands in one record only; the start-up tests' made-up records do not hold it."""
HUNGRY = f"""
import os, resource, signal, torch
from torch import nn


class Hungry(nn.Module):
    def __init__(self, how):
        super().__init__()
        self.how = how
        self.head = nn.Linear(2, 2)

    def forward(self, numeric, missing, categorical):
        if bool((numeric[:, 0] == {RARE}).any()):
            if self.how == "killed":  # as the kernel does to who takes all memory
                os.kill(os.getpid(), signal.SIGKILL)
            resource.setrlimit(resource.RLIMIT_AS, (1 << 32, resource.RLIM_INFINITY))
            torch.zeros(1 << 32)  # 16 GB
        return self.head(numeric)


def make(task, how):
    return Hungry(how)
"""


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Callable[..., Site]]:
    """Make a site of a federation anew, with a trainer in a process of its own."""
    trainers: list[RemoteTrainer] = []

    def make(fed: Federation, name: str, kind: type[Site] = Site, **source: Any) -> Site:
        home = fed.home(name)
        fed.frames[name].to_csv(home / "records.csv", index=False)
        admission = fed.parties.admission(name, fed.roster)
        data = admission.policy.data_set(admission.data_set)[1].model_dump()
        place = {"path": "records.csv"} if not source else {"path": None, **source}
        value = {**admission.policy.model_dump(), "data": {admission.data_set: {**data, **place}}}
        policy = Policy.parse(value).at(home)
        trainers.append(RemoteTrainer(fed.plan, policy, admission.data_set, home, ()))
        return kind(
            name, fed.plan, home, admission, fed.parties.witness(name), fed.roster, trainers[-1]
        )

    yield make
    for one in trainers:
        one.close()


def test_a_paused_site_says_not_now_and_answers_the_same_order_later(
    federation: Make, order_for: Make, start: Make
) -> None:
    fed = federation()
    model = start(fed.plan)
    order, site = order_for(fed, "North", model), fed.sites[0]
    fed.ledger("North").pause("Ada")
    for _ in range(3):
        assert site.answer(order, model) == Answer(Status.NOT_NOW)
    assert fed.answers("North") == []
    assert fed.log("North").count("not-now") == 1  # once, not each time that it is asked
    assert "the site has paused" in fed.log("North")
    fed.ledger("North").resume("Ada")
    assert site.answer(order, model).status is Status.RELEASED
    assert fed.charged("North") == 1


def test_a_release_that_was_paid_for_is_handed_out_while_the_site_pauses(
    federation: Make, order_for: Make, start: Make
) -> None:
    fed = federation()
    model = start(fed.plan)
    order = order_for(fed, "North", model)
    first = fed.sites[0].answer(order, model)
    fed.ledger("North").pause("Ada")
    again = fed.sites[0].answer(order, model)
    assert again.status is Status.RELEASED and first.release is not None
    assert again.release is not None and again.release.facts == first.release.facts


def test_a_stranger_is_not_told_that_the_site_has_paused(
    federation: Make, order_for: Make, start: Make
) -> None:
    fed, other = federation(), federation(folder="other")
    model = start(fed.plan)
    fed.ledger("North").pause("Ada")
    foreign = order_for(other, "North", model)
    assert fed.sites[0].answer(foreign, model).status is Status.REFUSED_SIGNATURE


def test_an_order_that_was_reserved_once_is_never_answered_as_if_it_were_not(
    federation: Make, order_for: Make, start: Make
) -> None:
    """Its entry is in the ledger: the journal may not say ``not-now``."""

    class Fails(Site):
        def _store(self, *given: Any) -> Release:
            raise RuntimeError("no")

    fed = federation(training={"max_attempts": 100})
    site = fed.restart("North", kind=Fails)
    model = start(fed.plan)
    order = order_for(fed, "North", model)
    assert site.answer(order, model).status is Status.FAILED
    fed.ledger("North").pause("Ada")
    assert site.answer(order, model).status is Status.FAILED
    # A new attempt has no entry yet.
    assert site.answer(order_for(fed, "North", model, attempt=2), model).status is Status.NOT_NOW
    assert fed.charged("North") == 1


def test_a_site_that_withdrew_or_closed_its_budget_does_not_say_not_now(
    federation: Make, order_for: Make, start: Make
) -> None:
    fed = federation()
    model = start(fed.plan)
    close_budget(fed.ledger("North"), next(iter(fed.ledger("North").state.populations)))
    fed.ledger("East").withdraw("Ada")
    said = {
        site.name: site.answer(order_for(fed, site.name, model), model).status for site in fed.sites
    }
    assert said == {
        "North": Status.REFUSED_PAUSED, "East": Status.FAILED, "South": Status.RELEASED,
    }  # fmt: skip
    assert fed.kinds("North") == ["refused"]


def test_a_key_that_another_process_replaced_is_taken_up(
    federation: Make, order_for: Make, start: Make
) -> None:
    fed = federation()
    model = start(fed.plan)
    site, new = fed.sites[0], FileSigner.generate()
    found = [site.ledger.log.signer]
    site.ledger.log._key_now = lambda: found[0]
    other = fed.ledger("North")
    other.rotate(new)
    order = order_for(fed, "North", model)
    # The entry is there, and the file has not taken the old one's place yet.
    assert site.answer(order, model).status is Status.NOT_NOW
    found[0] = new
    assert site.answer(order, model).status is Status.RELEASED
    assert site.shown(_ask())["status"] == Status.PRESENT
    # The control: a client that cannot find the new key waits, and reserves nothing.
    stale = fed.sites[1]
    fed.ledger("East").rotate(FileSigner.generate())
    assert stale.answer(order_for(fed, "East", model), model).status is Status.NOT_NOW
    read = Ledger.read(fed.home("East"), "East")
    assert [entry.kind for entry in map(Entry.read, read.log.store.leaves())][-1] == "key-rotated"


def _ask() -> Any:
    from privet.client.site import LogQuery

    return LogQuery()


# a disk that is full


@pytest.fixture
def small_disk() -> Iterator[Callable[[Path], Path]]:
    """Put a folder on a file system of 3 MB; return a file that fills it."""
    mounted: list[Path] = []

    def mount(folder: Path) -> Path:
        folder.mkdir(exist_ok=True)
        kept = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)], check=False
        )
        if done.returncode:
            pytest.skip("a file system can be mounted by root alone")
        mounted.append(folder)
        for path, content in kept.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        return folder / "filling"

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(path: Path) -> None:
    """Take all that is left of a file system."""
    with path.open("wb", buffering=0) as stream:
        for size in (1 << 16, 1):
            try:
                while stream.write(bytes(size)) == size:
                    pass
            except OSError:
                continue


@pytest.mark.parametrize("what", ["outbox", "ledger"])
def test_a_full_disk_is_found_before_anything_is_paid_for(
    federation: Make, order_for: Make, start: Make, small_disk: Make, what: str
) -> None:
    fed = federation()
    model = start(fed.plan)
    home = fed.home("North")
    filling = small_disk(home / "outbox" if what == "outbox" else home)
    site = fed.restart("North")
    order = order_for(fed, "North", model)
    fill(filling)
    fed.opened.clear()
    assert site.answer(order, model) == Answer(Status.NOT_NOW)
    assert fed.answers("North") == [] and fed.opened == []
    filling.unlink()
    assert site.answer(order, model).status is Status.RELEASED
    assert fed.kinds("North") == ["reserved", "released"]
    assert [path.suffix for path in (home / "outbox").iterdir()] == [".safetensors"]


def test_the_room_that_was_taken_is_there_when_the_disk_is_full_by_then(
    federation: Make, order_for: Make, start: Make, small_disk: Make
) -> None:
    """Between the reservation and the release somebody else fills the disk."""

    class Filled(Site):
        def _store(self, *given: Any) -> Release:
            fill(filling)
            return super()._store(*given)

    fed = federation()
    model = start(fed.plan)
    filling = small_disk(fed.home("North") / "outbox")
    site = fed.restart("North", kind=Filled)
    order = order_for(fed, "North", model)
    assert site.answer(order, model).status is Status.RELEASED
    kept = site.outbox.get(order.slot)
    assert kept is not None and kept.order == order.digest


@pytest.mark.parametrize("fails", [False, True], ids=["released", "failed"])
@pytest.mark.parametrize("takes_room", [True, False], ids=["room", "none"])
def test_a_ledger_has_room_for_its_entry_when_the_disk_is_full_by_then(
    federation: Make, order_for: Make, start: Make, small_disk: Make,
    monkeypatch: pytest.MonkeyPatch, fails: bool, takes_room: bool,
) -> None:  # fmt: skip
    """Also for the one that names what failed. The control takes no room: it pays for nothing."""

    class Filled(Site):
        def _store(self, *given: Any) -> Release:
            if fails:
                raise RunError("something else")
            return super()._store(*given)

        def _write(self, entry: Callable[[], object]) -> None:
            fill(filling)  # what the outbox took and did not need is gone by now, too
            super()._write(entry)

    if not takes_room:
        monkeypatch.setattr(LedgerRoom, "write", lambda self, entry: entry())
    fed = federation()
    model = start(fed.plan)
    filling = small_disk(fed.home("North"))
    site = fed.restart("North", kind=Filled)
    # While somebody reads, as an operator's command does, the file beside the ledger has to grow.
    with closing(sqlite3.connect(site.ledger.log.store.path)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM sqlite_master").fetchone()
        answer = site.answer(order_for(fed, "North", model), model)
    ended = "aborted" if fails else "released"
    assert fed.kinds("North") == (["reserved", ended] if takes_room else ["reserved"])
    released = takes_room and not fails
    assert answer.status is (Status.RELEASED if released else Status.FAILED)


def test_room_for_a_release_is_more_than_a_release_takes(
    federation: Make, order_for: Make, start: Make
) -> None:
    for compression in (None, {"kind": "top-k", "share": 1.0}, {"kind": "int8"}):
        fed = federation(folder=str(compression)[-6:], compression=compression)
        model = start(fed.plan)
        order = order_for(fed, "North", model)
        assert fed.sites[0].answer(order, model).status is Status.RELEASED
        (kept,) = (fed.home("North") / "outbox").iterdir()
        assert kept.stat().st_size <= room_of_release(fed.plan, order, model)


def test_a_limit_of_the_process_is_a_full_disk(tmp_path: Path) -> None:
    code = (
        "import resource, signal, sys, pathlib\n"
        "from privet.client.outbox import Outbox\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))\n"
        "box = Outbox(pathlib.Path(sys.argv[1]))\n"
        "box.make_room('r/train/1/1', 1 << 20)\n"
        "try:\n    box.make_room('r/train/1/1', 1 << 21)\n"
        "except OSError as error:\n    print(error.strerror)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "box")], capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    assert done.stdout.strip() == "File too large"
    assert list((tmp_path / "box").iterdir()) == []


def test_room_is_taken_where_the_system_cannot_allocate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "posix_fallocate")
    assert outbox_module.os is os
    box = Outbox(tmp_path / "box")
    box.make_room("r/train/1/1", 3_000_000)
    (room,) = (tmp_path / "box").iterdir()
    assert room.stat().st_size == 3_000_000
    box.give_up_room("r/train/1/1")
    assert list((tmp_path / "box").iterdir()) == []


def test_a_simulation_ends_with_words(federation: Make) -> None:
    fed = federation(strategy={"min_sites": 3})
    fed.ledger("East").pause("Ada")
    with pytest.raises(QuorumError) as caught:
        fed.run()
    assert "(1 not-now, 2 released). A site that says not-now has paused" in str(caught.value)


def test_a_round_with_a_quorum_goes_on_without_who_says_not_now(federation: Make) -> None:
    fed = federation()
    fed.ledger("East").pause("Ada")
    outcome = fed.run()
    assert [step.statuses["East"] for step in outcome.progress] == [Status.NOT_NOW] * 2
    for entry in fed.journal_entries("round"):
        said = {order["site"]: order["answer"] for order in entry.predicate["orders"]}
        assert said == {"North": "released", "East": "not-now", "South": "released"}
    assert fed.answers("East") == []
    verdict = fed.verdict()
    assert verdict.ok, verdict.faults


# a trainer that is not there, and one that a record has ended


def test_a_trainer_that_cannot_be_started_is_waited_for(
    federation: Make, order_for: Make, start: Make, made: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    fed = federation()
    model = start(fed.plan)
    site = made(fed, "North")
    order = order_for(fed, "North", model)
    with monkeypatch.context() as patched:
        patched.setattr(sys, "executable", "/nowhere/python")
        assert site.answer(order, model) == Answer(Status.NOT_NOW)
    assert fed.answers("North") == []
    assert "the trainer cannot be started" in fed.log("North")
    assert site.answer(order, model).status is Status.RELEASED


class Refunds(Site):
    """The planted fault: what ended the trainer is called passing, and the charge given back."""

    def _train_and_commit(self, order: Order, model: Arrays, reservation: Reservation) -> Answer:
        before = self.ledger.pending(reservation.slot)
        answer = super()._train_and_commit(order, model, reservation)
        assert before
        return answer if answer.release is not None else Answer(Status.NOT_NOW)

    def _abort(self, reservation: Reservation) -> None:
        self.ledger.abort(reservation, data_opened=False)


def neighbours(frame: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The same records without and with the one that ends a trainer."""
    calm = frame.assign(x1=frame["x1"].where(frame["x1"] != RARE, 0.0))
    rare = calm.iloc[:1].assign(x1=RARE)
    return calm, pd.concat([calm, rare], ignore_index=True)


def require_only_failed(fed: Federation, said: list[Status]) -> None:
    """Check that a record shows by ``failed`` alone, and that each failure was paid for."""
    assert said == [Status.FAILED] * len(said)
    assert fed.charged("North") == len(said)
    aborted = [one.predicate for one in fed.entries("North") if one.kind == "aborted"]
    assert [one["data_opened"] for one in aborted] == [True] * len(said)


@pytest.mark.parametrize(
    ("kind", "how"),
    [
        pytest.param(Site, "memory", marks=pytest.mark.long),
        (Site, "killed"),
        (Refunds, "killed"),
    ],
)
def test_a_record_that_ends_the_trainer_shows_by_failed_alone_and_no_charge_comes_back(
    federation: Make, order_for: Make, made: Make, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, how: str, kind: type[Site],
) -> None:  # fmt: skip
    """The negative control of the whole page: two neighbouring files, the same orders."""
    (tmp_path / "hungry.py").write_text(HUNGRY)
    monkeypatch.syspath_prepend(tmp_path)
    said: dict[str, list[Status]] = {}
    feds: dict[str, Federation] = {}
    for name in ("without", "with"):
        fed = feds[name] = federation(
            folder=name, model={"kind": "hungry:make", "options": {"how": how}},
            training={"sample_rate": 1.0, "steps": 1, "rounds": 2, "max_attempts": 100},
        )  # fmt: skip
        fed.frames["North"] = neighbours(fed.frames["North"])[name == "with"]
        site = made(fed, "North", kind)
        model = initial_model(fed.plan)
        said[name] = []
        for attempt in (1, 2):
            order = order_for(fed, "North", model, attempt=attempt)
            said[name].append(site.answer(order, model).status)
            if said[name][-1] is Status.RELEASED:
                break
    assert said["without"] == [Status.RELEASED]
    if how == "memory":
        # A record whose loss cannot be computed is left out: nothing differs at all.
        assert said["with"] == [Status.RELEASED] and "left out" in feds["with"].log("North")
        assert feds["with"].charged("North") == feds["without"].charged("North") == 1
    elif kind is Refunds:
        with pytest.raises(AssertionError):
            require_only_failed(feds["with"], said["with"])
    else:
        require_only_failed(feds["with"], said["with"])
