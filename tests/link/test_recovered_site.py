"""A site loses its disk, gets its ledger back from what others kept, and goes on."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from office_kit import Town

from privet.client.link.coordinators import LINK
from privet.client.link.join import Join, enrol
from privet.client.operator.decisions import public_keys
from privet.client.recovery.copy_export import copy_kept
from privet.client.recovery.recover import recover_site
from privet.common.plan import Plan
from privet.privacy.audit.bundle import write_bundle
from privet.privacy.audit.verify import verify
from privet.privacy.evidence.copies.copy_file import CopyFile
from privet.privacy.evidence.ledger import Ledger
from privet.server.membership.enrolment import EnrolmentServer
from privet.server.queue import Run
from privet.server.recovery.copy_export import copy_of

Make = Callable[..., Any]
SITES = ("North", "East", "South")
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("office")]


@pytest.fixture
def town(tmp_path: Path, root: Path, plan_value: Make, frame_of: Make) -> Iterator[Town]:
    plan = Plan.parse(plan_value(metrics={"source": "gate"}, training={"rounds": 1}))
    frames: dict[str, pd.DataFrame] = {name: frame_of(40, n) for n, name in enumerate(SITES)}
    made = Town(tmp_path / "town", root, plan, frames)
    yield made
    made.close()


def spent(town: Town, site: str) -> float:
    ledger = Ledger.read(town.folder / site / "ledger")
    found = ledger.spent("patients").epsilon
    ledger.log.store.close()
    return found


def run_to_its_end(town: Town, name: str, *, start: bool = True) -> Run:
    run = town.submit(name)
    if start:
        town.start_all()
    town.wait(run, lambda status: status["state"] == "done")
    for who in ("hub", *SITES):
        town.kill(who, 15)
    return run


def let_in_again(town: Town, site: str) -> None:
    """What `privet server enroll --again` and `privet client init` do."""
    home = town.folder / site
    with EnrolmentServer(town.federation, "127.0.0.1:0") as door:
        invitation = town.federation.invite(site, again=True)
        while not door.is_open:
            time.sleep(0.02)
        join = home / "join.json"
        join.write_text(json.dumps({**invitation, "enrolment": door.address}))
        ledger, witness = public_keys(home)
        enrol(Join.load(join), home / LINK, str(ledger), str(witness))


def verdict_of(town: Town, run: Run) -> Any:
    sources = [run.folder, *(town.folder / name / "ledger" for name in SITES)]
    out = town.folder / f"{run.id}.bundle"
    write_bundle(sources, out)
    return verify(out, run.folder / "roster-fingerprints.json", processes=1)


@pytest.mark.long
def test_a_site_that_lost_its_disk_comes_back_with_its_ledger(town: Town) -> None:
    south, safe = town.folder / "South", town.folder / "safe"
    older = town.folder / "older"
    shutil.copytree(south / "ledger", older)
    run_to_its_end(town, "first")
    entries = list(Ledger.read(south / "ledger").log.store.leaves())
    cost = spent(town, "South")
    assert cost > 0

    # A restored backup stops that site, and not the run.
    newer = town.folder / "newer"
    (south / "ledger").rename(newer)
    shutil.copytree(older, south / "ledger")
    shutil.copy(newer / "witness.json", south / "ledger")
    second = run_to_its_end(town, "second")
    statuses = second.status["sites"]
    assert statuses["South"] == "refused-rollback"
    assert {statuses[name] for name in ("North", "East")} == {"released"}

    # The disk is lost, but for what lies in the safe and in the backup of the configuration.
    policy, records = (south / name for name in ("site.toml", "records.csv"))
    (south / "offline").rename(safe)
    kept = policy.read_text(), records.read_bytes()
    shutil.rmtree(south)
    copies = []
    for holder, found in (("hub", copy_of(town.federation, "South")),
                          ("East", copy_kept(town.folder / "East" / "site.toml", "South")),
                          ("North", copy_kept(town.folder / "North" / "site.toml", "South"))):  # fmt: skip
        path = town.folder / f"south.{holder}.copy"
        found.write(path)
        copies.append(CopyFile.read(path))
        # Nobody but South can read what it says.
        data = path.read_bytes() + (town.folder / "hub").joinpath("copies").as_posix().encode()
        assert not any(word in data for word in (b"records", b"patients", b"reserved"))
    key = safe / "recovery.pem"
    # Another site's copy is as good as the coordinator's.
    alone = recover_site(copies[1:2], town.folder / "elsewhere", key, None, no_other_orders=True)
    assert alone.entries == len(entries)

    done = recover_site(copies, south, key, None)
    assert (done.entries, done.witness, done.policy_written) == (len(entries), True, True)
    assert not [one for one in done.counted if one.entry]
    assert spent(town, "South") == cost
    text = policy.read_text()
    assert 'site = "South"' in text and "nominal_size" not in text.partition("[")[2]
    policy.write_text(kept[0])
    records.write_bytes(kept[1])
    let_in_again(town, "South")
    third = run_to_its_end(town, "third")
    assert set(third.status["sites"].values()) == {"released"}
    verdict = verdict_of(town, third)
    assert verdict.ok, verdict.faults
    assert spent(town, "South") > cost
    found = Ledger.read(south / "ledger")
    assert list(found.log.store.leaves())[: len(entries)] == entries
