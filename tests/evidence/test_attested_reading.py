"""H6 is tested where Privet reads records one by one, and attested where only the site can say so."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from privet.cli import app
from privet.common.plan import Plan
from privet.privacy.policy import Policy
from privet.simulations.result import Result
from privet.simulations.run import Setting, run_plan

Make = Callable[..., Any]


def h6(rows: list[dict[str, str]]) -> tuple[str, str]:
    row = next(row for row in rows if row["id"] == "H6")
    return row["state"], row["why"]


@pytest.fixture
def ran(files: Path, plan_value: Make, tmp_path: Path) -> Callable[..., Result]:
    def run(**data: Any) -> Result:
        plan = Plan.parse(plan_value(data=data, training={"rounds": 1}))
        return run_plan(plan, Setting(base=files), tmp_path / "out")

    return run


@pytest.mark.parametrize(
    ("data", "state", "said"),
    [({}, "tested", "records are read one by one"), ({"multiline": True}, "attested", "quotes")],
)
def test_result_and_report_say_who_stands_for_the_reading(
    ran: Callable[..., Result], tmp_path: Path, data: dict[str, Any], state: str, said: str
) -> None:
    result = ran(**data)
    found = h6(json.loads((result.out / "result.json").read_text())["honesty"])
    assert (found[0], said in found[1]) == (state, True)
    bundle, run = tmp_path / "b", CliRunner().invoke
    assert run(app, ["audit", "bundle", str(result.out), "--out", str(bundle)]).exit_code == 0
    done = run(app, ["audit", "report", str(bundle), "--out", str(tmp_path / "report")])
    assert done.exit_code == 0, done.output
    report = next(tmp_path.rglob("report*.json"))
    found = h6(json.loads(report.read_text())["honesty"])
    assert (found[0], said in found[1]) == (state, True)


def test_a_policy_vouches_for_what_it_says_of_a_data_set() -> None:
    def vouched(**data: Any) -> dict[str, str]:
        value = {
            "site": "North",
            "populations": {"p": {"unit": "record", "epsilon": 1.0, "delta": 1e-5}},
            "data": {"d": {"population": "p", "nominal_size": 9, "path": "a.csv", **data}},
            "attested": {"H21": "one county"},
        }
        found: dict[str, str] = Policy.parse(value).public()["attested"]
        return found

    assert vouched() == {"H21": "one county"}
    assert vouched(multiline=True)["H6"].startswith("data set 'd': quoted cells hold line ends")
    assert vouched(independent="it joins by key")["H6"] == "data set 'd': it joins by key"
    assert vouched(independent="  ") == {"H21": "one county"}
