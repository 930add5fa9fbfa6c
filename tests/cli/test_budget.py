"""``privet budget``: figures with their terms, refusals with their reason, no traceback."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from budget_kit import CHEAP, Desk, charged, policy_value

from privet.common.plan import Plan
from privet.privacy.accounting import plan_events
from privet.privacy.accounting.events import Repeated
from privet.privacy.accounting.pld import epsilon

KEYS = {"cost", "spent", "left_after", "runs_left", "delta", "unit", "relation"}


def test_the_figures_are_those_of_the_accountant(desk: Desk):
    code, said = desk.json({}, policy_value())
    assert code == 0
    assert set(said) >= KEYS
    plan = Plan.parse(desk.plan())
    release = plan_events.training_event(plan)
    assert said["cost"]["per_round"] == epsilon([release], 1e-4)
    assert said["cost"]["total"] == epsilon([Repeated(release, 2)], 1e-4)
    assert said["left_after"] == 20.0 - said["cost"]["total"]
    assert said["spent"] == 0
    assert (said["delta"], said["unit"], said["relation"]) == (1e-4, "record", "add_or_remove_one")
    assert said["allowed"]
    assert not said["calibrated"]
    assert said["runs_left"] >= 1


def test_noise_is_calibrated_where_the_plan_leaves_it_open(desk: Desk):
    open_noise = {"epsilon": 3.0, "noise_multiplier": None}
    digest = desk.files({"privacy": open_noise}, policy_value(epsilon=3.0))
    code, out, err = desk.ask("plan.toml", "site.toml", "--json")
    said = json.loads(out)
    assert said["plan"] == digest != Plan.load(desk.folder / "plan.toml").digest
    assert code == 0
    assert said["calibrated"]
    assert said["noise_multiplier"] > 1
    assert 2.99 <= said["cost"]["total"] <= 3.0
    assert said["runs_left"] == 1
    assert "calibrating" in err


def test_the_table_says_delta_unit_and_relation(desk: Desk):
    desk.files({}, policy_value())
    code, out, _ = desk.ask("plan.toml", "site.toml")
    assert code == 0
    for part in ("δ 0.0001, per record, add or remove one", "one round", "all 2 rounds",
                 "spent so far", "left after this run", "runs that still fit"):  # fmt: skip
        assert part in out


def test_what_was_spent_before_counts(desk: Desk):
    _, first = desk.json({"privacy": CHEAP}, policy_value())
    charged(desk, {"privacy": CHEAP})
    code, said = desk.json({"privacy": CHEAP}, policy_value())
    assert code == 0
    assert said["spent"] == first["cost"]["total"]
    assert said["left_after"] < first["left_after"]
    assert said["runs_left"] == first["runs_left"] - 1
    assert said["rule"] == "filter"


def test_a_spent_budget_refuses(desk: Desk):
    charged(desk, {}, runs=50)
    code, said = desk.json({}, policy_value())
    assert code == 3
    assert said["runs_left"] == 0
    assert not said["allowed"]
    assert "the budget does not cover the plan: the filter counts ε" in said["reason"]


@pytest.mark.parametrize(
    ("plan", "policy", "reason"),
    [
        ({"model": {"kind": "ft-transformer"}}, {}, "not in allow.models"),
        ({}, {"epsilon": 15.0}, "asks for ε 20, above the population's lifetime ε 15"),
    ],
)
def test_a_plan_that_the_policy_would_refuse(desk: Desk, plan, policy, reason):
    code, said = desk.json(plan, policy_value(**policy))
    assert code == 3
    assert reason in said["reason"]
    code, out, err = desk.ask("plan.toml", "site.toml")
    assert code == 3
    assert "would refuse" in out
    assert reason in err


def test_another_unit_is_not_added_up_with_the_populations(desk: Desk):
    """ε of records must not be printed as ε of persons (H20)."""
    limits = policy_value(unit="person", max_records=4)
    limits["data"]["admissions"]["person_column"] = "patient"
    code, said = desk.json({}, limits)
    assert code == 3
    assert said["unit"] == "record"
    assert [said[key] for key in ("spent", "left_after", "runs_left", "rule")] == [None] * 4


def test_very_many_runs_are_at_least_so_many(desk: Desk):
    cheap = {"privacy": {**CHEAP, "noise_multiplier": 500.0}}
    code, said = desk.json(cheap, policy_value(epsilon=500.0))
    assert code == 0
    assert said["runs_left"] == 1000
    assert said["runs_left_at_least"]
    assert "at least 1000" in desk.ask("plan.toml", "site.toml")[1]


def test_one_of_several_data_sets_that_fit_must_be_named(desk: Desk):
    limits = policy_value()
    limits["data"]["later"] = {"population": "patients", "nominal_size": 60}
    desk.files({}, limits)
    code, _, err = desk.ask("plan.toml", "site.toml")
    assert code == 2
    assert "name one" in err
    assert desk.ask("plan.toml", "site.toml", "--data-set", "later")[0] == 0
    assert desk.ask("plan.toml", "site.toml", "--data-set", "none")[0] == 2
    limits["data"]["admissions"]["nominal_size"] = 61
    assert desk.json({}, limits)[1]["data_set"] == "later"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("plan.toml", "none.toml"), "there is no such file"),
        (("none.toml", "site.toml"), "there is no such file"),
        (("nothing", "site.toml"), "there is no scenario 'nothing'"),
        (("plan.toml", "bad.toml"), "not valid TOML"),
        (("plan.toml", "plan.toml"), "this is a plan, not a policy"),
        (("plan.toml", "."), "cannot be read: it is a folder"),
        (("plan.toml",), "Missing argument"),
    ],
)
def test_wrong_use_is_explained(desk: Desk, words, said):
    desk.files({}, policy_value())
    (desk.folder / "bad.toml").write_text("site = ")
    code, out, err = desk.ask(*words)
    assert code == 2
    assert out == ""
    assert said in err


def test_noise_that_costs_more_than_the_plan_allows_itself(desk: Desk):
    desk.write(desk.folder / "plan.toml", desk.plan(privacy={"noise_multiplier": 0.3}))
    desk.write(desk.folder / "site.toml", policy_value())
    code, _, err = desk.ask("plan.toml", "site.toml")
    assert code == 3
    assert "leave it out" in err


def test_a_ledger_that_cannot_be_read_is_not_an_empty_one(desk: Desk):
    desk.files({}, policy_value())
    (desk.folder / "ledger").mkdir()
    assert desk.ask("plan.toml", "site.toml")[0] == 0
    (desk.folder / "ledger" / "ledger.db").write_text("?")
    code, _, err = desk.ask("plan.toml", "site.toml")
    assert code == 1
    assert "the file is damaged" in err


def test_nothing_is_written(desk: Desk):
    desk.json({}, policy_value())
    assert sorted(path.name for path in desk.folder.iterdir()) == ["plan.toml", "site.toml"]


def test_neither_torch_nor_flower_nor_pandas_is_needed(desk: Desk):
    desk.json({}, policy_value())
    code = (
        "import sys\n"
        "class Blocker:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in ('torch', 'flwr', 'pandas', 'opacus', 'sklearn'):\n"
        "            raise ModuleNotFoundError('blocked: ' + name, name=name)\n"
        "sys.meta_path.insert(0, Blocker())\n"
        "from privet.cli import main\n"
        "sys.argv = ['privet', 'budget', 'plan.toml', 'site.toml', '--json']\n"
        "main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=desk.folder, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["allowed"]


def test_help_has_an_example(desk: Desk):
    code, out, _ = desk.ask("--help")
    assert code == 0
    assert "privet budget plan.toml site.toml" in out
