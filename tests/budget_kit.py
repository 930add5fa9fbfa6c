"""What the tests of the operator's commands share: a desk with a plan and a policy on it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from privet.common.errors import BudgetExceededError
from privet.common.order import Order
from privet.common.plan import Plan
from privet.privacy.accounting import noise_calibration, plan_events
from privet.privacy.accounting.units import Relation, Unit
from privet.privacy.evidence.keys import FileSigner
from privet.privacy.evidence.ledger import Ledger, Request
from privet.privacy.evidence.ledger_state import Budget
from privet.privacy.evidence.signed_note import COSIGN, Key, key_name

Make = Callable[..., dict[str, Any]]
CHIEF = "sha256:" + "c0" * 32
CHEAP = {"epsilon": 20.0, "delta": 1e-4, "noise_multiplier": 9.0}


def policy_value(**population: Any) -> dict[str, Any]:
    """Return a policy of site North that lets its coordinator ask for the tiny plan."""
    return {
        "site": "North",
        "populations": {"patients": {"unit": "record", "epsilon": 20.0, "delta": 1e-4, **population}},
        "data": {"admissions": {"population": "patients", "nominal_size": 60}},
        "allow": {"tasks": ["tabular"], "models": ["linear"], "coordinators": [CHIEF]},
    }  # fmt: skip


class Desk:
    """Runs commands in this process, in an empty folder."""

    def __init__(self, capsys: Any, monkeypatch: Any, folder: Path, write: Any, plan: Make):
        self.capsys, self.monkeypatch, self.folder = capsys, monkeypatch, folder
        self.write, self.plan = write, plan

    def ask(self, *words: object) -> tuple[int, str, str]:
        """Run ``privet budget``."""
        return self.run("budget", *words)

    def client(self, *words: object) -> dict[str, Any]:
        """Run a command of ``privet client`` that must succeed; return its JSON."""
        code, out, err = self.run("client", *words, "--json")
        assert code == 0, err
        found: dict[str, Any] = json.loads(out)
        return found

    def refused(self, code: int, *words: object) -> str:
        """Run a command that must end with ``code``; return what it said."""
        ended, out, err = self.run(*words)
        assert ended == code, err
        assert out == ""
        assert err.startswith(("privet: ", "Usage", " Usage"))
        return err

    def run(self, *words: object) -> tuple[int, str, str]:
        """Run any command as its entry point does; return code, output, errors."""
        from privet.cli import main

        self.monkeypatch.setattr(sys, "argv", ["privet", *map(str, words)])
        code = 0
        try:
            main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        said = self.capsys.readouterr()
        assert "Traceback" not in said.out + said.err
        return code, said.out, said.err

    def files(self, plan: dict[str, Any], policy: dict[str, Any]) -> str:
        """Write plan and policy, which lists the plan; return the plan's digest."""
        value = self.plan(**plan)
        value["privacy"] = {k: v for k, v in value["privacy"].items() if v is not None}
        self.write(self.folder / "plan.toml", value)
        digest = noise_calibration.calibrated(Plan.parse(value)).digest
        policy = {**policy, "allow": {"plans": [digest], **policy["allow"]}}
        self.write(self.folder / "site.toml", policy)
        return digest

    def json(self, plan: dict[str, Any], policy: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        self.files(plan, policy)
        code, out, _ = self.ask("plan.toml", "site.toml", "--json")
        assert len(out.splitlines()) == 1
        return code, json.loads(out)


def charged(desk: Desk, plan: dict[str, Any], runs: int = 1) -> None:
    """Let the site's ledger be charged with whole runs of a plan, as far as its cap goes."""
    folder, found = desk.folder / "ledger", Plan.parse(desk.plan(**plan))
    witness, key = FileSigner.generate(), FileSigner.generate()
    key.save(desk.folder / "ledger.pem", None)
    ledger = Ledger(
        folder, key, "North", create=True,
        witness=Key(key_name("witness", "North", witness.public), witness.public, COSIGN),
    )  # fmt: skip
    ledger.register("patients", Budget(20.0, 1e-4, Unit.RECORD, Relation.ADD_OR_REMOVE_ONE))
    ledger.add_data_set("admissions", "patients")
    ledger.set_policy({})
    ledger.keep("plan", found.digest, found.to_dict())
    ledger.approve(found.digest, ["dpo"], "manual")
    event, model = plan_events.training_event(found), "sha256:" + "0" * 64
    with suppress(BudgetExceededError):
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
