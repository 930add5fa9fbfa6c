"""``privet budget``: figures with their terms, refusals with their reason, no traceback."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from privet.common.errors import BudgetExceeded
from privet.common.order import Order
from privet.common.plan import Plan
from privet.privacy import program
from privet.privacy.accounting import epsilon
from privet.privacy.book import Budget
from privet.privacy.events import Repeated
from privet.privacy.keys import FileSigner
from privet.privacy.ledger import Ledger, Request
from privet.privacy.signed_note import COSIGN, Key, key_name
from privet.privacy.units import Relation, Unit

Make = Callable[..., dict[str, Any]]
KEYS = {"cost", "spent", "left_after", "runs_left", "delta", "unit", "relation"}
CHEAP = {"epsilon": 20.0, "delta": 1e-4, "noise_multiplier": 9.0}


def policy_value(**population: Any) -> dict[str, Any]:
    """Return a policy of site North that allows the tiny plan."""
    return {
        "site": "North",
        "populations": {"patients": {"unit": "record", "epsilon": 20.0, "delta": 1e-4, **population}},
        "data": {"admissions": {"population": "patients", "nominal_size": 60}},
        "allow": {"tasks": ["tabular"], "models": ["linear"]},
    }  # fmt: skip


class Desk:
    """Runs ``privet budget`` in this process, in an empty folder."""

    def __init__(self, capsys: Any, monkeypatch: Any, folder: Path, write: Any, plan: Make):
        self.capsys, self.monkeypatch, self.folder = capsys, monkeypatch, folder
        self.write, self.plan = write, plan

    def ask(self, *words: object) -> tuple[int, str, str]:
        from privet.cli import main

        self.monkeypatch.setattr(sys, "argv", ["privet", "budget", *map(str, words)])
        code = 0
        try:
            main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        said = self.capsys.readouterr()
        assert "Traceback" not in said.out + said.err
        return code, said.out, said.err

    def json(self, plan: dict[str, Any], policy: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        self.write(self.folder / "plan.toml", self.plan(**plan))
        self.write(self.folder / "site.toml", policy)
        code, out, _ = self.ask("plan.toml", "site.toml", "--json")
        assert len(out.splitlines()) == 1
        return code, json.loads(out)


@pytest.fixture
def desk(capsys, monkeypatch, tmp_path, write_toml, plan_value) -> Desk:
    monkeypatch.chdir(tmp_path)
    return Desk(capsys, monkeypatch, tmp_path, write_toml, plan_value)


def charged(desk: Desk, plan: dict[str, Any], runs: int = 1) -> None:
    """Let the site's ledger be charged with whole runs of a plan, as far as its cap goes."""
    folder, found = desk.folder / "ledger", Plan.parse(desk.plan(**plan))
    witness = FileSigner.generate()
    ledger = Ledger(
        folder, FileSigner.generate(), "North", create=True,
        witness=Key(key_name("witness", "North", witness.public), witness.public, COSIGN),
    )  # fmt: skip
    ledger.register("patients", Budget(20.0, 1e-4, Unit.RECORD, Relation.ADD_OR_REMOVE_ONE))
    ledger.add_data_set("admissions", "patients")
    ledger.set_policy({})
    ledger.keep("plan", found.digest, found.to_dict())
    ledger.approve(found.digest, ["dpo"], "manual")
    event, model = program.training_event(found), "sha256:" + "0" * 64
    with suppress(BudgetExceeded):
        for run in range(runs):
            for number in range(1, found.training.rounds + 1):
                order = Order(
                    f"run-{run}",
                    "North",
                    number,
                    1,
                    "train",
                    found.digest,
                    model,
                    ("w",),
                    keyid="0" * 64,
                )
                ledger.reserve(Request(order, event, "admissions"))
    ledger.log.store.close()


def test_the_figures_are_those_of_the_accountant(desk: Desk):
    code, said = desk.json({}, policy_value())
    assert code == 0
    assert set(said) >= KEYS
    plan = Plan.parse(desk.plan())
    release = program.training_event(plan)
    assert said["cost"]["per_round"] == epsilon([release], 1e-4)
    assert said["cost"]["total"] == epsilon([Repeated(release, 2)], 1e-4)
    assert said["left_after"] == 20.0 - said["cost"]["total"]
    assert said["spent"] == 0
    assert (said["delta"], said["unit"], said["relation"]) == (1e-4, "record", "add_or_remove_one")
    assert said["allowed"]
    assert not said["calibrated"]
    assert said["runs_left"] >= 1


def test_noise_is_calibrated_where_the_plan_leaves_it_open(desk: Desk):
    plan = desk.plan()
    del plan["privacy"]["noise_multiplier"]
    desk.write(desk.folder / "plan.toml", {**plan, "privacy": {"epsilon": 3.0, "delta": 1e-4}})
    desk.write(desk.folder / "site.toml", policy_value(epsilon=3.0))
    code, out, err = desk.ask("plan.toml", "site.toml", "--json")
    said = json.loads(out)
    assert code == 0
    assert said["calibrated"]
    assert said["noise_multiplier"] > 1
    assert 2.99 <= said["cost"]["total"] <= 3.0
    assert said["runs_left"] == 1
    assert "calibrating" in err


def test_the_table_says_delta_unit_and_relation(desk: Desk):
    desk.write(desk.folder / "plan.toml", desk.plan())
    desk.write(desk.folder / "site.toml", policy_value())
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
        ({}, {"epsilon": 15.0}, "asks for ε 20, above the population's life-time ε 15"),
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


def test_one_of_several_data_sets_must_be_named(desk: Desk):
    limits = policy_value()
    limits["data"]["later"] = {"population": "patients", "nominal_size": 60}
    desk.write(desk.folder / "plan.toml", desk.plan())
    desk.write(desk.folder / "site.toml", limits)
    code, _, err = desk.ask("plan.toml", "site.toml")
    assert code == 2
    assert "name one" in err
    assert desk.ask("plan.toml", "site.toml", "--data-set", "later")[0] == 0
    assert desk.ask("plan.toml", "site.toml", "--data-set", "none")[0] == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("plan.toml", "none.toml"), "there is no such file"),
        (("none.toml", "site.toml"), "there is no such file"),
        (("nothing", "site.toml"), "there is no scenario 'nothing'"),
        (("plan.toml", "bad.toml"), "not valid TOML"),
        (("plan.toml", "plan.toml"), "unknown key"),
        (("plan.toml", "."), "cannot be read"),
        (("plan.toml",), "Missing argument"),
    ],
)
def test_wrong_use_is_explained(desk: Desk, words, said):
    desk.write(desk.folder / "plan.toml", desk.plan())
    desk.write(desk.folder / "site.toml", policy_value())
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
    desk.write(desk.folder / "plan.toml", desk.plan())
    desk.write(desk.folder / "site.toml", policy_value())
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
