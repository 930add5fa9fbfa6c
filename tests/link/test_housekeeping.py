"""What a site clears away by itself: idle trainers, snapshots of databases, old releases."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from privet.client.data.loader import take_snapshot
from privet.client.housekeeping import clear_outbox, keep_house
from privet.client.link.offers import Offers
from privet.client.outbox import Outbox
from privet.client.training.worker.idle import IdleWatch
from privet.client.training.worker.remote import RemoteTrainer
from privet.common.errors import PolicyError
from privet.common.flat import digest_arrays
from privet.common.link import offer
from privet.common.models import initial_model
from privet.common.order import Order
from privet.common.plan import Plan
from privet.common.release import Release
from privet.privacy.policy import Policy

Make = Callable[..., Any]
DAY = 86_400.0
COLUMNS = ["x1", "x2", "colour", "y"]


def until(found: Callable[[], bool], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not found():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.fixture
def home(tmp_path: Path, frame_of: Make) -> Path:
    """A site's folder, with a database."""
    folder = tmp_path / "north"
    (folder / "ledger").mkdir(parents=True)
    with contextlib.closing(sqlite3.connect(folder / "records.db")) as database:
        frame_of(40, 1).to_sql("records", database, index=False)
    return folder


@pytest.fixture
def policy(home: Path, plan_value: Make) -> Make:
    def make(**keep: float) -> Policy:
        plan = Plan.parse(plan_value())
        found = Policy.for_simulation(plan, "North", "sha256:" + 64 * "0")
        sql = {"url": "sqlite:///records.db", "table": "records"}
        data = {
            name: {**one.model_dump(), "path": None, "columns": COLUMNS, "sql": sql}
            for name, one in found.data.items()
        }
        return Policy.parse({**found.model_dump(), "data": data, "keep": keep}).at(home)

    return make


@pytest.fixture
def trainer(home: Path, policy: Make, plan_value: Make) -> Iterator[Make]:
    made: list[RemoteTrainer] = []

    def make(**keep: float) -> RemoteTrainer:
        plan = Plan.parse(plan_value())
        made.append(
            RemoteTrainer(plan, policy(**keep), "North", home, (home / "ledger",), seed="seed")
        )
        return made[-1]

    yield make
    for one in made:
        one.close()


def train(trainer: RemoteTrainer) -> str:
    model = initial_model(trainer.plan)
    order = Order("run", "North", 1, 1, "train", trainer.plan.digest, digest_arrays(model),
                  tuple(model))  # fmt: skip
    trainer.require_source()
    return digest_arrays(trainer.release(order, model).arrays)


def test_an_idle_trainer_ends_and_its_snapshot_goes(trainer: Make, home: Path) -> None:
    one = trainer(trainer_minutes=3 / 60)
    snapshot = home / "snapshots" / "North.parquet"
    first = train(one)
    process = one._process
    assert process is not None and snapshot.exists()
    # While it is at work it is not ended, however long that takes.
    with one._turn:
        time.sleep(4)
        assert process.poll() is None and snapshot.exists()
    until(lambda: process.poll() is not None)
    until(lambda: not snapshot.exists())
    assert one._process is None
    # The next order finds everything again.
    assert train(one) == first
    assert one._process is not None and one._process.pid != process.pid


def test_a_trainer_that_is_not_idle_for_long_enough_stays(trainer: Make, home: Path) -> None:
    one = trainer()
    one.start()
    process = one._process
    time.sleep(1)
    assert process is not None and process.poll() is None
    one.close()
    assert process.poll() is not None


def test_what_is_asked_keeps_a_watch_from_ending() -> None:
    ended: list[float] = []
    answers = iter([False, True])

    def end() -> bool:
        ended.append(time.monotonic())
        return next(answers)

    begun = time.monotonic()
    watch = IdleWatch(0.4, end)
    for _ in range(5):
        time.sleep(0.2)
        watch.touch()
    touched = time.monotonic()
    assert not ended and touched - begun > 0.9
    until(lambda: len(ended) == 2)
    assert ended[0] - touched >= 0.39
    stopped = IdleWatch(0.1, lambda: bool(ended.append(0.0)))
    stopped.stop()
    time.sleep(0.4)
    assert len(ended) == 2


def releases(home: Path, ages: dict[str, float]) -> Outbox:
    """Store a release of each run, as many days ago as is said."""
    outbox = Outbox(home / "outbox")
    for run, days in ages.items():
        outbox.put(f"{run}/train/1/1", Release("sha256:0", {}, {}))
        path = outbox._path(f"{run}/train/1/1")
        os.utime(path, (time.time() - days * DAY,) * 2)
    return outbox


def test_releases_of_runs_long_over_go(home: Path, policy: Make) -> None:
    outbox = releases(home, {"old": 31, "newer": 29, "goes-on": 400})
    Offers(home).keep_run(offer.encode("goes-on", {}, {}))
    assert clear_outbox(home, policy()) == 1
    assert [outbox.get(f"{run}/train/1/1") is not None for run in ("old", "newer", "goes-on")] == [
        False, True, True,
    ]  # fmt: skip
    assert clear_outbox(home, policy(releases_days=28)) == 1
    assert outbox.get("newer/train/1/1") is None and outbox.get("goes-on/train/1/1") is not None


def test_a_client_clears_away_when_it_starts(home: Path, policy: Make) -> None:
    site = policy()
    snapshot = take_snapshot(site, "North", home)
    (home / "snapshots" / ".North.abcdefgh.part").write_bytes(b"of a killed client")
    outbox = releases(home, {"old": 31})
    keep_house(home, lambda: site)
    assert not snapshot.exists() and list((home / "snapshots").iterdir()) == []
    until(lambda: outbox.get("old/train/1/1") is None)


def test_how_long_things_are_kept_is_the_sites_own_affair(policy: Make) -> None:
    short, usual = policy(trainer_minutes=1, releases_days=1), policy()
    assert short.public() == usual.public() and short.digest == usual.digest
    assert (usual.keep.trainer_minutes, usual.keep.releases_days) == (10, 30)
    for wrong in ({"trainer_minutes": 0}, {"releases_days": -1}, {"snapshots": 1}):
        with pytest.raises(PolicyError, match="keep"):
            policy(**wrong)


@pytest.mark.parametrize(("room", "kept"), [(0, 2), (4, 4), (100, 7)])
def test_a_runs_newest_releases_stay_and_more_where_there_is_room(
    home: Path, room: int, kept: int
) -> None:
    outbox = Outbox(home / "outbox")
    for number in range(1, 8):
        outbox.put(f"run/train/{number}/1", Release("sha256:0", {}, {}))
    size = next((home / "outbox").iterdir()).stat().st_size
    outbox.forget_before("run", 2, room * size)
    found = [n for n in range(1, 8) if outbox.get(f"run/train/{n}/1") is not None]
    assert found == list(range(8 - kept, 8))


@pytest.mark.parametrize(("room", "kept"), [(0, 2), (4, 4), (100, 12)])
def test_what_was_put_since_the_folder_was_read_counts(home: Path, room: int, kept: int) -> None:
    """Of a long run the folder is not read again each round."""
    outbox, folder = Outbox(home / "outbox"), home / "outbox"
    outbox.put("run-2/train/1/1", Release("sha256:0", {}, {}))
    size = next(folder.iterdir()).stat().st_size
    for number in range(1, 13):
        outbox.put(f"run/train/{number}/1", Release("sha256:0", {}, {}))
        outbox.forget_before("run", 2, room * size)
    outbox.remove("run/train/12/1")
    outbox.put("run/train/12/1", Release("sha256:0", {}, {}))
    outbox.forget_before("run", 2, room * size)
    found = [n for n in range(1, 13) if outbox.get(f"run/train/{n}/1") is not None]
    assert found == list(range(13 - kept, 13))
    assert outbox.get("run-2/train/1/1") is not None
