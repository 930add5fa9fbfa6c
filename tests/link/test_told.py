"""Everyone is told: who did not release and with which status, at the coordinator and at the site.

The commands run as they are typed, each a process of its own.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from observe_kit import Commands
from office_kit import Town
from test_observe import value_of

from privet.common.plan import Plan

SITES = ("North", "East")
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("office")]


@pytest.fixture(scope="module")
def town(
    tmp_path_factory: pytest.TempPathFactory, root: Path, plan_value: Any, frame_of: Any
) -> Iterator[Commands]:
    plan = Plan.parse(
        plan_value(
            metrics={"source": "gate"},
            training={"rounds": 5, "max_attempts": 2},
            strategy={"min_sites": 1, "timeout": 60},
            sites=[{"name": name, "nominal_size": 40} for name in SITES],
        )
    )
    frames = {name: frame_of(40, number) for number, name in enumerate(SITES)}
    made = Commands(tmp_path_factory.mktemp("town"), root, plan, frames)
    policy = made.folder / "East" / "site.toml"
    policy.write_text(policy.read_text().replace(f'plans = ["{made.plan.digest}"]', ""))
    # Found after each release was paid for.
    spoil(made, "East", frames["East"])
    yield made
    made.close()


def spoil(town: Any, site: str, frame: Any) -> None:
    """Give a site records whose columns are right, and that cannot be read: found once they are."""
    records, policy = town.folder / site / "records.parquet", town.folder / site / "site.toml"
    frame.to_parquet(records)
    whole = records.read_bytes()
    records.write_bytes(whole[:4] + bytes(255 - one for one in whole[4:300]) + whole[300:])
    policy.write_text(policy.read_text().replace("records.csv", records.name))


def privet(*words: object) -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, "-c", "from privet.cli import main; main()", *map(str, words)],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


def lines(town: Commands, who: str, event: str) -> list[dict[str, Any]]:
    said = [json.loads(line) for line in town.said(who).splitlines()]
    return [one for one in said if one["event"] == event]


def until(check: Callable[[], bool], town: Commands, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < end, {who: town.said(who)[-2000:] for who in ("hub", *SITES)}
        time.sleep(0.1)


@pytest.mark.long
def test_who_waits_and_who_fails_is_named_at_both_ends(town: Commands) -> None:
    hub, east = town.folder / "hub", town.folder / "East" / "site.toml"
    run, digest = town.submit(), town.plan.digest
    for who in ("hub", *SITES):
        town.run(who, "--log", "json")

    # Nobody decided yet: that is no refusal, at the coordinator, at the site, and in the figures.
    town.wait(run, lambda s: s.get("sites", {}).get("East") == "waits-for-approval")
    until(lambda: bool(lines(town, "East", "an offered plan waits for approval")), town)
    (line,) = lines(town, "East", "an offered plan waits for approval")
    assert (line["status"], line["plan"]) == ("waits-for-approval", digest)
    assert "East: waits for approval" in privet("server", "status", hub)[1]
    code, out, err = privet("client", "status", "--policy", east, "--json")
    assert code == 0, err
    assert [one["plan"] for one in json.loads(out)["waiting"]] == [digest]
    assert f"waits for approval: {digest}" in privet("client", "status", "--policy", east)[1]
    waits = {"run": "first", "site": "East", "status": "waits-for-approval"}
    assert value_of(town.scrape("hub")[1], "privet_server_run_waits_for", **waits) == 1
    assert value_of(town.scrape("East")[1], "privet_client_offer_waits") == 1

    # The offer that came over the link is priced by its digest, and approved by it.
    code, out, _ = privet("client", "plans", "--policy", east, "--json")
    (plan,) = json.loads(out)["plans"]
    assert (plan["plan"], plan["coordinator"]) == (digest, "hub")
    code, out, _ = privet("budget", digest, east, "--json")
    assert (code, json.loads(out)["left_after"]) == (3, plan["left_after"])
    code, out, err = privet("client", "approve", digest, "--as", "Ada", "--policy", east)
    assert code == 0 and "Approved by Ada" in out, err

    # East fails after its data was opened; North goes on alone.
    status = town.wait(run, lambda s: s["state"] == "done")
    assert status["released"] == {"North": 5, "East": 0}
    last = status["failures"]["East"]
    assert set(status["failures"]) == {"East"} and last["times"] >= 2
    failed = lines(town, "hub", "a site did not release")
    assert {one["site"] for one in failed} == {"East"} and len(failed) == last["times"]
    assert {one["status"] for one in failed} == {"failed", "refused-plan"}
    assert failed[0]["round"] == 1 and failed[0]["run"] == "first"
    code, out, _ = privet("server", "status", hub, "--json")
    (shown,) = json.loads(out)["runs"]
    assert shown["failures"]["East"] == last
    (told,) = [text for text in shown["told"] if text.startswith("East")]
    assert f"answered '{last['status']}' in round {last['round']}" in told
    assert value_of(
        town.scrape("hub")[1], "privet_server_failed_answers_total", site="East", status="failed"
    ) == 2  # fmt: skip

    # At the site: a neutral line for each, and the last one in its status.
    own = lines(town, "East", "an order got no release")
    assert [(one["round"], one["attempt"], one["status"]) for one in own] == [
        (one["round"], one["attempt"], one["status"]) for one in failed
    ]
    neutral = {"time", "level", "logger", "event", "run", "purpose", "round", "attempt", "status"}
    assert all(set(one) == neutral for one in own)
    assert "records.parquet" not in town.said("East")
    assert "records.parquet" in (town.folder / "East" / "operator.log").read_text()  # the control
    code, out, _ = privet("client", "status", "--policy", east, "--json")
    kept = json.loads(out)["last_order"]
    assert {name: kept[name] for name in ("run", "round", "attempt", "status")} == {
        name: own[-1][name] for name in ("run", "round", "attempt", "status")
    }
    assert f"'{kept['status']}', run first" in privet("client", "status", "--policy", east)[1]
    assert lines(town, "North", "an order got no release") == []
    assert value_of(town.scrape("East")[1], "privet_client_plan_closed", plan=digest) == 1


def test_a_run_that_fails_names_the_sites(
    tmp_path: Path, root: Path, plan_value: Any, frame_of: Any
) -> None:
    sites = [{"name": name, "nominal_size": 40} for name in SITES]
    plan = Plan.parse(
        plan_value(
            metrics={"source": "gate"}, strategy={"min_sites": 2, "attempts": 1}, sites=sites
        )
    )
    frames = {name: frame_of(40, number) for number, name in enumerate(SITES)}
    here = Town(tmp_path / "town", root, plan, frames)
    spoil(here, "East", frames["East"])
    try:
        run, end = here.run_all(), time.monotonic() + 200
        while run.status["state"] != "failed" and time.monotonic() < end:
            time.sleep(0.1)
    finally:
        here.close()
    fault = run.status["fault"]
    assert "the quorum is 2 (1 failed, 1 released)" in fault
    assert "East answered 'failed' in round 1, attempt 1" in fault and "North" not in fault
    assert fault.endswith("operator.log in the folder of each site")
    assert "East answered 'failed'" in privet("server", "status", here.folder / "hub")[1]
