"""``client check`` and ``simulate --check``: what is wrong with records, before it costs anything."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from budget_kit import Desk

from privet.client.operator.decisions import make_site
from privet.common.plan import Plan

Make = Callable[..., Any]
PERSON = {"unit": "person", "max_records": 2}


@dataclass(frozen=True)
class Ended:
    exit_code: int
    stdout: str
    output: str


@pytest.fixture
def run_cli(desk: Desk) -> Callable[..., Ended]:
    """Run the command in this process, as its entry point does."""

    def run(*words: str) -> Ended:
        code, out, err = desk.run(*words)
        return Ended(code, out, out + err)

    return run


@pytest.fixture
def site(tmp_path: Path, plan_value: Make, frame_of: Make, write_toml: Make) -> Make:
    """A site's folder and a plan file; returns what runs the check on a changed table."""

    def make(
        change: Callable[[pd.DataFrame], pd.DataFrame] = lambda frame: frame,
        *,
        lines: tuple[bytes, ...] = (),
        policy: dict[str, Any] | None = None,
        **plan: Any,
    ) -> list[str]:
        folder = tmp_path / "north"
        make_site(folder, "North", None)
        frame = change(frame_of(60, 1, persons=40))
        frame.to_csv(folder / "r.csv", index=False)
        with (folder / "r.csv").open("ab") as stream:
            stream.writelines(line + b"\n" for line in lines)
        privacy = plan.get("privacy", {})
        value = {
            "site": "North",
            "populations": {
                "p": {
                    "unit": privacy.get("unit", "record"), "epsilon": 90.0, "delta": 1e-2,
                    "max_records": privacy.get("max_records", 1),
                }
            },
            "data": {
                "d": {
                    "population": "p", "nominal_size": 60, "path": "r.csv",
                    **({"person_column": "patient"} if privacy else {}), **(policy or {}),
                }
            },
            "allow": {"tasks": ["*"], "models": ["*"]},
        }  # fmt: skip
        write_toml(folder / "site.toml", _toml(value))
        found = Plan.parse(plan_value(**plan))
        write_toml(tmp_path / "plan.toml", _toml(found.to_dict()))
        return ["client", "check", str(tmp_path / "plan.toml"), "--policy", str(folder)]

    return make


def _toml(value: Any) -> Any:
    """Without what TOML cannot say."""
    if isinstance(value, dict):
        return {key: _toml(part) for key, part in value.items() if part is not None}
    return [_toml(part) for part in value] if isinstance(value, list) else value


def kinds(run_cli: Make, command: list[str], code: int = 0) -> dict[str, Any]:
    outcome = run_cli(*command, "--json")
    assert outcome.exit_code == code, outcome.output
    value: dict[str, Any] = json.loads(outcome.stdout)
    return value | {"kinds": {finding["kind"]: finding for finding in value["findings"]}}


def test_good_records_have_nothing_to_mend(site: Make, run_cli: Make) -> None:
    command = site()
    found = kinds(run_cli, command)
    assert (found["ok"], found["records"], found["usable"], found["findings"]) == (True, 60, 60, [])
    assert found["columns"]["x1"]["missing"] == 0
    assert "Nothing to correct" in run_cli(*command).output


def test_every_record_that_is_left_out_is_named_by_its_line(site: Make, run_cli: Make) -> None:
    def spoil(frame: pd.DataFrame) -> pd.DataFrame:
        frame = frame.astype(object)
        frame.loc[0, "x1"] = "x"
        frame.loc[1, "y"] = "maybe"
        frame.loc[2, "y"] = None
        return frame

    command = site(spoil, lines=(b"1,2,3", b"\xff,1,red,1,p", b'"open', b""))
    found = kinds(run_cli, command)
    assert (found["ok"], found["records"], found["usable"]) == (True, 63, 57)
    left_out = {one["place"]: one["why"] for one in found["left_out"]}
    assert left_out.keys() == {2, 3, 4, 62, 63, 64}
    assert "'x' in the numeric column 'x1' is not a number" in left_out[2]
    assert "the label 'maybe' in 'y'" in left_out[3]
    assert "no label in 'y'" in left_out[4]
    assert "3 cells, where the columns are" in left_out[62]
    assert "not UTF-8" in left_out[63]
    assert "a quote" in left_out[64]
    assert found["kinds"]["quotes"]["places"] == [64]
    said = run_cli(*command).output
    assert "line 3: the label 'maybe'" in said
    assert "multiline = true" in said


def test_ranges_and_values_that_do_not_fit_are_said(site: Make, run_cli: Make) -> None:
    def shift(frame: pd.DataFrame) -> pd.DataFrame:
        return frame.assign(x1=frame["x1"] + 1000, colour="Rot", y=1)

    found = kinds(run_cli, site(shift))
    assert found["ok"]
    assert found["kinds"].keys() == {"range", "categories", "labels"}
    assert "'x1': 100% of the numbers lie outside" in found["kinds"]["range"]["message"]
    assert "such as 'Rot' (60)" in found["kinds"]["categories"]["message"]
    assert "the label '0'" in found["kinds"]["labels"]["message"]


def test_people_are_counted(site: Make, run_cli: Make) -> None:
    def people(frame: pd.DataFrame) -> pd.DataFrame:
        ids = [f"P{k % 15}" for k in range(60)]
        ids[0], ids[1] = "p3", " P4"
        return frame.assign(patient=[*ids[:59], " "])

    found = kinds(run_cli, site(people, privacy=PERSON))
    assert found["units"] <= 16
    assert "people have more than 2 records" in found["kinds"]["max-records"]["message"]
    assert found["kinds"]["max-records"]["count"] < 60
    assert "2 ids would be those of 1 people" in found["kinds"]["person-spelling"]["message"]
    assert "P3 and p3" in found["kinds"]["person-spelling"]["message"]
    assert found["left_out"] == [{"place": 61, "why": "names no person; the unit is a person"}]
    assert found["kinds"]["nominal-size"]["count"] == found["units"]


def test_records_that_cannot_be_used_end_with_1(site: Make, run_cli: Make) -> None:
    command = site(lambda frame: frame.assign(y="unknown"))
    found = kinds(run_cli, command, 1)
    assert found["usable"] == 0
    assert found["kinds"]["none-usable"]["level"] == "fault"
    assert "cannot be used with this plan" in run_cli(*command).output


def test_a_missing_column_is_an_error_before_anything(site: Make, run_cli: Make) -> None:
    found = kinds(run_cli, site(lambda frame: frame.drop(columns="x2")), 1)
    assert "there is no column 'x2'" in found["kinds"]["file"]["message"]


def test_a_plan_that_was_offered_is_named_by_its_digest(
    site: Make, run_cli: Make, tmp_path: Path
) -> None:
    from privet.client.link.offers import Offers

    command = site()
    bare = [*command[:2], *command[3:]]
    assert "no plan was offered here yet" in run_cli(*bare).output
    plan = Plan.load(tmp_path / "plan.toml")
    Offers(tmp_path / "north").keep(plan)
    assert kinds(run_cli, bare)["plan"] == plan.digest
    assert kinds(run_cli, [*command[:2], plan.digest, *command[3:]])["ok"]
    assert run_cli(*command[:2], "sha256:" + 64 * "0", *command[3:]).exit_code == 2


def test_nothing_is_spent(site: Make, run_cli: Make, tmp_path: Path) -> None:
    from privet.privacy.evidence.ledger import Ledger

    command = site()
    before = len(Ledger.read(tmp_path / "north" / "ledger", "North").log)
    assert run_cli(*command).exit_code == 0
    assert len(Ledger.read(tmp_path / "north" / "ledger", "North").log) == before


def test_a_simulation_checks_each_site(
    write_files: Make, plan_value: Make, write_toml: Make, run_cli: Make, tmp_path: Path
) -> None:
    data = write_files(tmp_path)
    (data / "north.csv").write_text((data / "north.csv").read_text() + "1,2\n")
    plan = Plan.parse(plan_value())
    write_toml(data / "plan.toml", _toml(plan.to_dict()))
    outcome = run_cli("simulate", str(data / "plan.toml"), "--check", "--json")
    assert outcome.exit_code == 0, outcome.output
    sites = {site["name"]: site for site in json.loads(outcome.stdout)["sites"]}
    assert len(sites["North"]["left_out"]) == 1
    assert all(not site["left_out"] for name, site in sites.items() if name != "North")
    assert not list(data.glob("runs*"))


def test_a_check_leaves_no_copy_of_a_database(
    site: Make, run_cli: Make, tmp_path: Path, frame_of: Make
) -> None:
    sql = {"url": "sqlite:///records.db", "table": "records"}
    words = site(policy={"path": None, "columns": ["x1", "x2", "colour", "y"], "sql": sql})
    home = tmp_path / "north"
    with contextlib.closing(sqlite3.connect(home / "records.db")) as database:
        frame_of(60, 1).to_sql("records", database, index=False)
    (home / "snapshots").mkdir()
    (home / "snapshots" / "d.parquet").write_bytes(b"of a client that is running")
    done = run_cli(*words)
    assert done.exit_code == 0, done.output
    copies = [path.relative_to(home) for path in home.rglob("*.parquet")]
    assert copies == [Path("snapshots/d.parquet")]
    assert (home / copies[0]).read_bytes() == b"of a client that is running"
