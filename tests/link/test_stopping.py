"""A client that is stopped while it trains: what was paid for is sent first.

The trainer is held by SIGSTOP once the charge is in the ledger, so no test races it.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from subprocess import Popen
from typing import Any

import pytest
from observe_kit import Commands

from privet.common.plan import Plan
from privet.privacy.evidence.statement import Entry
from privet.privacy.evidence.store import Store

SITE = "North"
STOPPING = "stopping after the answer that is being made"
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("office")]


@pytest.fixture
def town(
    request: pytest.FixtureRequest, tmp_path: Path, root: Path, plan_value: Callable[..., Any],
    frame_of: Callable[..., Any],
) -> Iterator[Commands]:  # fmt: skip
    names = [SITE, *getattr(request, "param", [])]
    plan = Plan.parse(
        plan_value(
            metrics={"source": "off"},
            training={"rounds": 2, "steps": 500},
            strategy={"min_sites": len(names), "timeout": 600},
            privacy={"noise_multiplier": 60.0},
            sites=[{"name": name, "nominal_size": 40} for name in names],
        )
    )
    frames = {name: frame_of(40, number) for number, name in enumerate(names)}
    made = Commands(tmp_path / "town", root, plan, frames)
    yield made
    made.close()


def kinds(town: Commands) -> list[str]:
    with closing(Store(town.folder / SITE / "ledger" / "ledger.db")) as store:
        found = [Entry.read(leaf).kind for leaf in store.leaves()]
    return [kind for kind in found if kind in ("reserved", "released", "aborted")]


def until(check: Callable[[], bool], town: Commands, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < end, {who: town.said(who)[-2000:] for who in ("hub", SITE)}
        time.sleep(0.02)


def trainer_of(client: Popen[bytes]) -> int:
    """Return the process that trains for a client."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == client.pid and "privet.client.training.worker" in (
                folder / "cmdline"
            ).read_text().split("\0"):
                return int(folder.name)
        except OSError:
            continue
    raise AssertionError("no trainer")


def begin(town: Commands) -> tuple[Any, Popen[bytes], int]:
    """Start a run; return it, the client, and its trainer, held after the first charge."""
    run = town.submit()
    town.run("hub", metrics=False)
    client = town.run(SITE, metrics=False)
    for name in town.sites[1:]:
        town.start(name)
    until(lambda: kinds(town) == ["reserved"], town)
    trainer = trainer_of(client)
    os.kill(trainer, signal.SIGSTOP)
    assert kinds(town) == ["reserved"], "the training was over before it was held"
    return run, client, trainer


@pytest.mark.parametrize("town", [["East", "South"]], indirect=True)
def test_a_client_that_is_stopped_sends_what_was_paid_for(town: Commands) -> None:
    run, client, trainer = begin(town)
    client.send_signal(signal.SIGTERM)
    until(lambda: STOPPING in town.said(SITE), town)
    assert STOPPING in (town.folder / SITE / "operator.log").read_text()
    assert client.poll() is None
    os.kill(trainer, signal.SIGCONT)
    assert client.wait(120) == 0, town.said(SITE)
    # Its round has the release, which all three must give; and nothing else was begun.
    until(lambda: run.status.get("round") == 1, town)
    assert kinds(town) == ["reserved", "released"]
    assert town.said(SITE).count(STOPPING) == 1 and "Traceback" not in town.said(SITE)
    town.run(SITE, metrics=False)
    town.wait(run, lambda status: status["state"] == "done")
    assert kinds(town) == ["reserved", "released"] * 2


def test_a_second_signal_ends_the_link_and_the_release_is_kept(town: Commands) -> None:
    run, client, trainer = begin(town)
    client.send_signal(signal.SIGTERM)
    until(lambda: STOPPING in town.said(SITE), town)
    client.send_signal(signal.SIGTERM)
    # The coordinator hears that the site has gone while the trainer still stands.
    until(lambda: "a site is gone" in town.said("hub"), town)
    os.kill(trainer, signal.SIGCONT)
    assert client.wait(120) == 0, town.said(SITE)
    assert kinds(town) == ["reserved", "released"] and run.status.get("round", 0) == 0
    town.run(SITE, metrics=False)
    town.wait(run, lambda status: status["state"] == "done")
    assert kinds(town) == ["reserved", "released"] * 2


def test_a_client_that_owes_nothing_stops_at_once(town: Commands) -> None:
    town.run("hub", metrics=False)
    client = town.run(SITE, metrics=False)
    until(lambda: "connected" in town.said(SITE), town)
    client.send_signal(signal.SIGINT)
    assert client.wait(60) == 0
    assert STOPPING not in town.said(SITE)
