"""Coordinator and sites as processes of their own: they train, are killed, and go on."""

from __future__ import annotations

import contextlib
import json
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from office_kit import Town

from privet.client.operator.decisions import OperatorDecisions
from privet.common.errors import InputError
from privet.common.models.start import digest_of
from privet.common.plan import Plan
from privet.common.tasks.measure import pooled
from privet.delivery.trained import load
from privet.privacy.accounting.noise_calibration import measuring
from privet.privacy.audit.bundle import write_bundle
from privet.privacy.audit.verify import verify
from privet.privacy.evidence.statement import Entry
from privet.privacy.evidence.store import Store
from privet.server.queue import Run, cancel, releases, submit
from privet.server.snapshot import map_model

Make = Callable[..., Any]
SITES = ("North", "East", "South")
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("office")]


@pytest.fixture
def town(
    tmp_path: Path, root: Path, plan_value: Make, frame_of: Make
) -> Iterator[Callable[..., Town]]:
    made: list[Town] = []

    def make(seed: str = "", folder: str = "town", **changes: Any) -> Town:
        changes = {"metrics": {"source": "gate"}, "training": {"rounds": 4}} | changes
        plan = Plan.parse(plan_value(**changes))
        frames = {name: frame_of(40, number) for number, name in enumerate(SITES)}
        made.append(Town(tmp_path / folder, root, plan, frames, seed))
        return made[-1]

    yield make
    for one in made:
        one.close()


def model_of(town: Town, run: str = "first") -> dict[str, np.ndarray]:
    return map_model(town.federation.folder / "runs" / run / "model" / "model.safetensors")[0]


def verdict_of(town: Town, run: str = "first", **options: Any) -> Any:
    """What a verifier says of the coordinator's papers and all ledgers."""
    folder = town.federation.folder
    sources = [folder / "runs" / run]
    sources += [town.folder / name / "ledger" for name in SITES]
    out = town.folder / f"{run}.bundle"
    out.unlink(missing_ok=True)
    write_bundle(sources, out)
    return verify(out, folder / "runs" / run / "roster-fingerprints.json", **options)


def test_three_sites_train_over_the_link(town: Make) -> None:
    here = town()
    # Another data set of a site's patients, such as feedback, is there and not what the plan fits.
    policy = here.folder / "South" / "site.toml"
    more = '[data.feedback]\npopulation = "patients"\nnominal_size = 7\npath = "none.csv"\n'
    policy.write_text(policy.read_text().replace("[data.records]", f"{more}[data.records]"))
    run = here.run_all()
    status = here.wait(run, lambda s: s["state"] == "done")
    assert status["round"] == 4
    # What the sites paid to have measured is kept, round by round, and shown.
    assert len(list((run.folder / "figures").iterdir())) == 4
    assert set(status["site_metrics"]) == set(SITES) and set(status["metrics"]) >= {"accuracy"}
    assert set(status["spent"]) == set(SITES)
    verdict = verdict_of(here)
    assert verdict.ok, verdict.faults
    assert all(site.charges == 8 for site in verdict.sites)
    # On the way ε is told on a coarser grid; at the end it is the number of record.
    told = {name: spent["epsilon"] for name, spent in status["spent"].items()}
    assert told == {site.site: pytest.approx(site.epsilon, rel=1e-9) for site in verdict.sites}


def test_a_coordinator_that_is_killed_goes_on_at_the_same_round(town: Make) -> None:
    calm, here = town("seed", "calm"), town("seed")
    quiet, run = calm.submit(), here.submit()
    calm.start_all()
    calm.wait(quiet, lambda s: s["state"] == "done")
    calm.close()
    here.start_all()
    for number in (1, 2, 3):
        here.wait(run, lambda s, n=number: s.get("round", 0) >= n or s["state"] == "done")
        here.kill("hub")
        here.start("hub")
    here.wait(run, lambda s: s["state"] == "done")
    verdict = verdict_of(here)
    assert verdict.ok, verdict.faults
    # A repeated order was answered from the outbox: nothing was paid twice.
    assert [site.charges for site in verdict.sites] == [8, 8, 8]
    ours, theirs = model_of(here), model_of(calm)
    assert all(np.array_equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.long
def test_a_site_that_is_killed_and_comes_back_takes_part_again(town: Make) -> None:
    here = town(strategy={"min_sites": 3}, training={"rounds": 6})
    run = here.run_all()
    here.wait(run, lambda s: s.get("round", 0) >= 2)
    here.kill("East")
    here.start("East")
    here.wait(run, lambda s: s["state"] == "done")
    verdict = verdict_of(here)
    assert verdict.ok, verdict.faults


def test_a_site_trains_on_a_table_of_its_database(town: Make, frame_of: Make) -> None:
    here = town()
    home = here.folder / "East"
    (home / "records.csv").unlink()
    with contextlib.closing(sqlite3.connect(home / "records.db")) as database:
        frame_of(40, 1).to_sql("records", database, index=False)
    policy = home / "site.toml"
    table = """columns = ["x1", "x2", "colour", "y"]
[data.records.sql]
url = "sqlite:///records.db"
table = "records"
"""
    policy.write_text(policy.read_text().replace('path = "records.csv"\n', table))
    run = here.run_all()
    status = here.wait(run, lambda s: s["state"] == "done")
    assert set(status["spent"]) == set(SITES)
    assert verdict_of(here).ok
    snapshots = home / "snapshots"
    assert [path.name for path in snapshots.iterdir()] == ["records.parquet"]
    assert (snapshots / "records.parquet").stat().st_mode & 0o777 == 0o600


def test_a_site_that_fails_pays_twice_and_goes_on_when_it_is_opened_again(
    town: Make, frame_of: Make
) -> None:
    here = town(training={"rounds": 24, "steps": 1}, strategy={"min_sites": 2})
    home = here.folder / "East"
    # Its columns are as the plan wants them, and its records cannot be read: found once they are.
    records, policy = home / "records.parquet", home / "site.toml"
    frame_of(40, 1).to_parquet(records)
    whole = records.read_bytes()
    records.write_bytes(whole[:4] + bytes(255 - one for one in whole[4:300]) + whole[300:])
    policy.write_text(policy.read_text().replace("records.csv", records.name))
    run = here.run_all()
    here.wait(run, lambda s: s.get("sites", {}).get("East") == "refused-plan")
    log = (home / "operator.log").read_text()
    assert "2 attempts failed in a row" in log
    aborted = [one for one in entries_of(home) if one.kind == "aborted"]
    assert len(aborted) == 2
    records.write_bytes(whole)
    OperatorDecisions.open(home / "site.toml", None).approve(here.plan.digest, "Ann")
    status = here.wait(run, lambda s: s["state"] == "done")
    assert status["released"]["North"] == status["rounds"] == 24
    assert 0 < status["released"]["East"] < 24
    (told,) = [text for text in releases(status) if text.startswith("East")]
    assert told.endswith("ask the operator of East: operator.log in the site's folder")
    assert verdict_of(here).ok


@pytest.mark.long
def test_a_database_that_does_not_let_in_costs_nothing(town: Make, frame_of: Make) -> None:
    here = town()
    home = here.folder / "East"
    policy = home / "site.toml"
    table = """columns = ["x1", "x2", "colour", "y"]
[data.records.sql]
url = "sqlite:///records.db"
table = "records"
"""
    policy.write_text(policy.read_text().replace('path = "records.csv"\n', table))
    run = here.run_all()
    here.wait(run, lambda s: s.get("sites", {}).get("East") == "refused-policy")
    assert not [one for one in entries_of(home) if one.kind == "reserved"]


def entries_of(home: Path) -> list[Entry]:
    """All entries of a site's ledger."""
    return [Entry.read(leaf) for leaf in Store(home / "ledger" / "ledger.db").leaves()]


@pytest.mark.long
def test_a_site_that_has_not_approved_is_waited_for(town: Make) -> None:
    here = town()
    policy = here.folder / "East" / "site.toml"
    policy.write_text(policy.read_text().replace(f'plans = ["{here.plan.digest}"]', ""))
    run = here.run_all()
    said = here.wait(run, lambda s: s.get("sites", {}).get("East") == "waits-for-approval")
    assert said["state"] == "waiting"
    # What the operator decides in another process holds at once.
    OperatorDecisions.open(policy, None).approve(here.plan.digest, "Ada")
    here.wait(run, lambda s: s["state"] == "done")


@pytest.mark.long
def test_what_was_trained_is_measured_in_a_run_of_its_own(town: Make) -> None:
    here = town(metrics={"source": "off"}, training={"rounds": 2})
    first = here.run_all()
    status = here.wait(first, lambda s: s["state"] == "done")
    assert not status.get("metrics")  # nobody measured anything
    before = {name: spent["epsilon"] for name, spent in status["spent"].items()}
    weights = first.folder / "model" / "model.safetensors"
    plan = measuring(here.plan, digest_of(weights), 2.0)
    second = submit(here.federation, plan, "second")
    here.wait(second, lambda s: s.get("sites", {}).get("North") == "waits-for-approval")
    for name in SITES:
        OperatorDecisions.open(here.folder / name / "site.toml", None).approve(plan.digest, "Ada")
    status = here.wait(second, lambda s: s["state"] == "done")
    assert status["round"] == 1 and set(status["site_metrics"]) == set(SITES)
    assert status["metrics"]["accuracy"] is not None
    for name, spent in status["spent"].items():
        assert before[name] < spent["epsilon"] < before[name] + 2.0
    kept = json.loads((second.folder / "figures" / "round-1.json").read_text())
    assert np.shape(kept["tables"]["North"]) == (2, 10)
    assert pooled(kept["tables"]) == (status["metrics"], status["site_metrics"])
    verdict = verdict_of(here, "second")
    assert verdict.ok, verdict.faults
    # The card of the model shows what its sites measured.
    assert load(second.folder).result["metrics"] == status["metrics"]
    model, measured = model_of(here), model_of(here, "second")
    assert all(np.array_equal(model[name], measured[name]) for name in model)


@pytest.mark.long
def test_a_coordinator_that_is_told_to_stop_ends_between_two_rounds(town: Make) -> None:
    here = town(training={"rounds": 60})
    run = here.run_all()
    here.wait(run, lambda s: s.get("round", 0) >= 1)
    assert here.kill("hub", signal.SIGTERM) == 0
    assert run.status["state"] == "running"
    assert here.kill("East", signal.SIGTERM) == 0


def test_a_plan_that_cannot_run_here_is_not_queued(town: Make, frame_of: Make) -> None:
    here = town()
    with pytest.raises(InputError, match="test split at the coordinator"):
        submit(here.federation, here.plan.changed(metrics={"source": "public"}), "x")
    here.federation.revoke("East")
    with pytest.raises(InputError, match="'East' is not enrolled"):
        here.submit()
    assert not (here.federation.folder / "runs").exists()
    assert isinstance(frame_of(1, 1), pd.DataFrame)


def test_a_file_that_lacks_a_column_costs_nothing(town: Make) -> None:
    here = town()
    records = here.folder / "East" / "records.csv"
    whole = records.read_text()
    records.write_text(whole.replace("x2", "x_2", 1))
    run = here.run_all()
    here.wait(run, lambda s: s.get("sites", {}).get("East") == "refused-policy")
    assert not any(here.folder.glob("*/outbox/*"))
    # Mended while everything runs, the run begins.
    records.write_text(whole)
    here.wait(run, lambda s: s["state"] == "done")
    assert verdict_of(here).ok


@pytest.mark.long
def test_what_can_start_is_not_held_up(town: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    here = town(training={"rounds": 2})
    other = here.plan.changed(name="other", title="not approved")
    blocked = submit(here.federation, other, "blocked")
    run = here.run_all()
    here.wait(run, lambda s: s["state"] == "done")
    assert blocked.status["state"] == "waiting"
    cancel(here.federation, "blocked")
    assert blocked.status["state"] == "failed"


@pytest.mark.long
def test_a_revoked_site_ends_a_run_that_needs_it(town: Make) -> None:
    here = town(training={"rounds": 60}, strategy={"min_sites": 3})
    run = here.run_all()
    here.wait(run, lambda s: s.get("round", 0) >= 1)
    # A list of who is there that cannot be written must not keep a site in.
    (here.federation.folder / "present.json").unlink(missing_ok=True)
    (here.federation.folder / "present.json").mkdir()
    time.sleep(2.5)
    here.federation.revoke("East")
    end = time.monotonic() + 300
    while run.status["state"] == "running" and time.monotonic() < end:
        time.sleep(0.1)
    assert run.status["state"] == "failed" and "'East' was revoked" in run.status["fault"]


@pytest.mark.long
def test_a_run_that_can_spare_a_revoked_site_goes_on_also_after_a_restart(town: Make) -> None:
    here = town(training={"rounds": 6}, strategy={"min_sites": 2})
    run = here.run_all()
    here.wait(run, lambda s: s.get("round", 0) >= 2)
    here.federation.revoke("East")
    here.kill("hub")
    here.kill("South")  # away, and not revoked: with it there is a quorum
    here.start("hub")
    here.start("South")
    here.wait(run, lambda s: s["state"] == "done")
    assert run.status["sites"].get("East") != "released"
    # What a revoked site paid for last, nobody cosigned: the verdict names that, and nothing else.
    assert {(fault.site, fault.rule) for fault in verdict_of(here).faults} <= {("East", "witness")}
    assert verdict_of(here, require_witnessed=False).ok


@pytest.mark.long
def test_a_waiting_run_ends_when_a_site_of_it_is_revoked(town: Make) -> None:
    here = town()
    run = here.submit()
    here.start("hub")
    here.wait(run, lambda s: s["state"] == "waiting")
    here.federation.revoke("East")
    with pytest.raises(AssertionError, match="'East' was revoked, and 3 sites"):
        here.wait(run, lambda s: False, seconds=60)


@pytest.mark.long
def test_a_run_whose_sites_are_gone_is_cancelled_and_audited(town: Make) -> None:
    here = town(training={"rounds": 60}, strategy={"min_sites": 3})
    run = here.run_all()
    here.wait(run, lambda s: s.get("round", 0) >= 1)
    here.kill("East")
    here.kill("South")
    time.sleep(1)
    cancel(here.federation, "first")
    end = time.monotonic() + 300
    while "a run failed" not in (here.folder / "hub.log").read_text() and time.monotonic() < end:
        time.sleep(0.1)
    # Whoever wants others to stand behind each charge is told which ones nobody does.
    assert {fault.rule for fault in verdict_of(here).faults} == {"witness"}
    verdict = verdict_of(here, require_witnessed=False)
    assert verdict.ok, verdict.faults
    assert any("which failed, is not witnessed" in note for note in verdict.notes)
    assert {one.run for one in verdict.unfinished} == {"first"}


@pytest.mark.long
def test_a_run_that_is_damaged_holds_nobody_up(town: Make) -> None:
    here = town(training={"rounds": 2})
    names = ("key", "snapshot", "plan")
    for name in names:
        damaged = submit(here.federation, here.plan.changed(name=name), name)
    home = here.federation.folder / "runs"
    (home / "key/coordinator").mkdir()
    (home / "key/coordinator/journal.pem").touch()
    (home / "snapshot/model").mkdir()
    (home / "snapshot/model/snapshot.safetensors").write_bytes(b"\2\0\0\0\0\0\0\0[]")
    (home / "plan/plan.json").write_text("[" * 100_000)
    run = here.run_all()
    here.wait(run, lambda s: s["state"] == "done")
    assert damaged.status["state"] == "failed"
    # What can be mended is not given up.
    aside = Run(home / "key").status
    assert aside["state"] == "queued" and "put aside until" in aside["fault"]


@pytest.mark.long
def test_a_run_is_cancelled_between_two_rounds(town: Make) -> None:
    here = town(training={"rounds": 60})
    run = here.run_all()
    here.wait(run, lambda s: s.get("round", 0) >= 1)
    cancel(here.federation, "first")
    end = time.monotonic() + 300
    while "a run failed" not in (here.folder / "hub.log").read_text() and time.monotonic() < end:
        time.sleep(0.1)
    assert verdict_of(here).ok  # its journal has an end
