"""What the running commands tell: figures for Prometheus, lines of JSON, and nothing of records."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from observe_kit import Commands
from prometheus_client.parser import text_string_to_metric_families

from privet.common.plan import Plan

Make = Callable[..., Any]
SITES = ("North", "East")
MARK = "Kowalczyk"
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("office")]


def names_of(text: str) -> set[str]:
    """The names of all samples, and of families that have none yet."""
    found: set[str] = set()
    for family in text_string_to_metric_families(text):
        found |= {sample.name for sample in family.samples}
        found.add(family.name + ("_total" if family.type == "counter" else ""))
    return found


def value_of(text: str, name: str, **labels: str) -> float:
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == name and labels.items() <= sample.labels.items():
                return float(sample.value)
    raise AssertionError(f"{name} {labels} is not in\n{text}")


def asked_for(expression: str) -> set[str]:
    return set(re.findall(r"\b(?:privet|process)_[a-z0-9_]+", expression))


def family(name: str) -> str:
    return re.sub(r"_(bucket|count|sum|created)$", "", name)


@pytest.fixture(scope="module")
def town(
    tmp_path_factory: pytest.TempPathFactory, root: Path, plan_value: Make, frame_of: Make
) -> Iterator[Commands]:
    """A coordinator and two sites that have trained; a third of East's labels is no class."""
    plan = Plan.parse(
        plan_value(
            metrics={"source": "gate"},
            training={"rounds": 3},
            strategy={"min_sites": 1, "timeout": 60},
            sites=[{"name": name, "nominal_size": 40} for name in SITES],
        )
    )
    frames = {name: frame_of(40, number) for number, name in enumerate(SITES)}
    frames["East"]["colour"] = frames["East"]["colour"].where(frames["East"].index % 3 > 0, MARK)
    frames["East"]["y"] = frames["East"]["y"].astype(str).where(frames["East"].index % 3 > 0, MARK)
    made = Commands(tmp_path_factory.mktemp("town"), root, plan, frames)
    try:
        made.run("hub", "--log", "json")
        for name in SITES:
            made.run(name, "--log", "json")
        made.wait(made.submit(), lambda status: status["state"] == "done", 240)
        yield made
    finally:
        made.close()


def test_the_coordinator_shows_what_the_link_did(town: Commands) -> None:
    status, text = town.scrape("hub")
    assert status == 200
    assert value_of(text, "privet_info", role="server") == 1
    assert value_of(text, "privet_server_sites", state="enrolled") == 2
    assert value_of(text, "privet_server_site_connected", site="North") == 1
    assert value_of(text, "privet_server_runs", state="done") == 1
    assert value_of(text, "privet_server_round_seconds_count") == 3
    assert value_of(text, "privet_server_orders_total", purpose="train") == 6
    answered = {"purpose": "train", "status": "released"}
    assert value_of(text, "privet_server_answers_total", **answered) == 6
    assert value_of(text, "privet_server_refused_calls_total", reason="not-a-member") == 0
    assert value_of(text, "privet_server_parcels_open") == 0
    assert value_of(text, "privet_server_bytes_total", site="East", direction="sent") > 1000
    assert value_of(text, "privet_server_epsilon_spent", site="North", unit="record") > 0


def test_a_site_shows_its_orders_and_its_budget(town: Commands) -> None:
    status, text = town.scrape("North")
    assert status == 200
    assert value_of(text, "privet_client_connected") == 1
    assert value_of(text, "privet_client_orders_total", purpose="train", status="released") == 3
    terms = {"population": "patients", "unit": "record", "delta": "0.0001"}
    spent = value_of(text, "privet_client_epsilon_spent", **terms)
    cap = value_of(text, "privet_client_epsilon_cap", **terms)
    assert 0 < spent < cap == 400
    assert value_of(text, "privet_client_epsilon_left", **terms) == pytest.approx(cap - spent)
    assert value_of(text, "privet_client_ledger_entries") >= 12
    # The coordinator knows the same ε, from the site's last release.
    known = value_of(town.scrape("hub")[1], "privet_server_epsilon_spent", site="North")
    assert known == pytest.approx(spent)
    # A third of East's records cannot be used: no figure of it tells.
    own = town.scrape("East")[1]
    assert value_of(own, "privet_client_orders_total", purpose="train", status="released") == 3


def test_seconds_are_whole(town: Commands) -> None:
    """A finer figure would tell how many records a round drew."""
    for name in SITES:
        text = town.scrape(name)[1]
        assert value_of(text, "privet_client_busy_seconds_total") % 1 == 0
        own = {one for one in names_of(text) if one.startswith("privet_") and "seconds" in one}
        assert own == {
            "privet_client_busy_seconds_total",
            "privet_client_certificate_expiry_timestamp_seconds",
            "privet_client_last_release_timestamp_seconds",
        }
        assert value_of(text, "privet_client_last_release_timestamp_seconds") % 1 == 0


def test_health_and_nothing_else_is_served(town: Commands) -> None:
    assert town.scrape("hub", "/-/healthy")[0] == 200
    assert town.scrape("North", "/-/ready")[0] == 200
    for path in ("/", "/-/", "/metrics/x", "/../site.toml"):
        assert town.scrape("North", path)[0] == 404


def test_dashboard_and_alerts_ask_for_what_there_is(town: Commands, root: Path) -> None:
    there = names_of(town.scrape("hub")[1]) | names_of(town.scrape("North")[1])
    board = json.loads((root / "deploy/grafana/privet.json").read_text())
    shown = {one for panel in board["panels"] for target in panel.get("targets", [])
             for one in asked_for(target["expr"])}  # fmt: skip
    rules = yaml.safe_load((root / "deploy/privet.rules.yml").read_text())
    alerts = {one for rule in rules["groups"][0]["rules"] for one in asked_for(rule["expr"])}
    assert len(shown) > 20 and len(alerts) > 5
    assert shown - there == set()
    assert alerts - there == set()
    # What is exported and never shown is forgotten.
    ours = {family(one) for one in there if one.startswith("privet_")}
    assert ours - {family(one) for one in shown} == set()
    assert asked_for("rate(privet_server_nothing_total[5m])") - there


def test_every_figure_is_in_the_documentation(town: Commands, root: Path) -> None:
    page = (root / "docs/how-to/observe.md").read_text()
    named = set(re.findall(r"`(privet_[a-z_]+)", page))
    there = {one for who in ("hub", "North") for one in names_of(town.scrape(who)[1])}
    assert {family(one) for one in there if one.startswith("privet_")} == named


def test_the_example_scrapes_what_the_example_starts(root: Path) -> None:
    example = (root / "deploy/prometheus.yml").read_text()
    targets = {job["job_name"]: job["static_configs"][0]["targets"]
               for job in yaml.safe_load(example)["scrape_configs"]}  # fmt: skip
    assert targets == {"privet-server": ["127.0.0.1:9464"], "privet-client": ["127.0.0.1:9465"]}


def test_every_line_is_json_and_nothing_of_a_record_is_in_it(town: Commands) -> None:
    """Records of East are left out: the operator's file says which and why, nobody else."""
    told = (town.folder / "East" / "operator.log").read_text()
    assert MARK in told
    columns = ("colour", "x1", "x2", MARK)
    for who in ("hub", *SITES):
        lines = [json.loads(line) for line in town.said(who).splitlines()]
        assert lines and all({"time", "level", "logger", "event"} <= set(line) for line in lines)
        assert all(line["logger"].startswith("privet.") for line in lines)
        assert not [word for word in columns if word in town.said(who)]
        assert not [word for word in columns if word in town.scrape(who)[1]]
    # Nor is it in any file that is not a record or the operator's log, which is East's alone.
    holding = [
        path
        for path in town.folder.rglob("*")
        if path.is_file() and MARK.encode() in path.read_bytes()
    ]
    assert {path.name for path in holding} <= {"records.csv", "operator.log", "trainer.log"}
    assert {path.parent.name for path in holding} == {"East"}
    for path in town.folder.rglob("*.log"):
        if path.name in ("operator.log", "trainer.log"):
            assert path.stat().st_mode & 0o777 == 0o600
    events = [json.loads(line)["event"] for line in town.said("hub").splitlines()]
    assert {"listening", "a site attends", "a round is done", "a run is done"} <= set(events)


def test_a_stop_is_clean(town: Commands) -> None:
    """Last: ends the coordinator; a site that is not connected is alive, and not ready."""
    town.running["hub"].send_signal(signal.SIGTERM)
    assert town.running["hub"].wait(30) == 0
    while town.scrape("North", "/-/ready")[0] == 200:
        pass
    assert town.scrape("North", "/-/healthy")[0] == 200
    assert value_of(town.scrape("North")[1], "privet_client_connected") == 0
    town.running["North"].send_signal(signal.SIGTERM)
    assert town.running["North"].wait(30) == 0
