"""An ε that was spent or is claimed is rounded up wherever it is shown, and what is left, down."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from privet.cli.output import show_plans, show_server
from privet.privacy.accounting.units import rounded_down, rounded_up
from privet.privacy.audit.report import phrases
from privet.privacy.audit.verify.rules.unfinished import _words

SPENT = 0.99911
"""To the nearest it is 0.999."""
ROOMS = ("client", "common", "privacy", "server", "simulations", "privet/cli", "privet/delivery")
OWN = {"privacy/accounting/units.py": 2, "privacy/audit/verify/rules/unfinished.py": 1}
"""Where ε gets its decimals: the verifier shares no code with those it verifies."""


def test_the_two_functions() -> None:
    assert (rounded_up(SPENT), rounded_down(SPENT)) == ("1.000", "0.999")
    assert (rounded_up(0.5), rounded_down(0.5)) == ("0.500", "0.500")
    assert (rounded_up(float("inf")), rounded_down(-1e-9)) == ("∞", "0.000")


def test_server_status_rounds_what_sites_spent_up(capsys: pytest.CaptureFixture[str]) -> None:
    run = {
        "run": "first", "state": "done", "round": 2, "plan": "sha256:00",
        "sites": {"North": "released"}, "spent": {"North": {"epsilon": SPENT}},
    }  # fmt: skip
    show_server.status({"federation": "hub", "listening": False, "sites": [], "runs": [run]})
    assert "ε 1.000 spent" in capsys.readouterr().out


def test_offered_plans_round_up(capsys: pytest.CaptureFixture[str]) -> None:
    plan: dict[str, Any] = {
        "state": "offered", "plan": "sha256:00", "name": "tiny", "coordinator": "hub", "also": [],
        "data_set": "records", "population": "patients", "by": [], "offered": None, "why": "",
        "epsilon": SPENT, "spent": SPENT, "left_after": SPENT, "fits": True, "against": None,
        "cost": {"epsilon": SPENT, "delta": 1e-5, "unit": "record"},
    }  # fmt: skip
    show_plans.listed([plan], Path("operator.log"))
    said = capsys.readouterr().out
    assert said.count("1.000") == 3 and said.count("0.999") == 1  # what is left


def test_report_and_verifier_round_up() -> None:
    assert phrases.figure_of(SPENT) == "1.000" and phrases.left_of(SPENT, 2 * SPENT) == "0.999"
    one: Any = SimpleNamespace(site="North", run="first", epsilon=SPENT, releases=1)
    assert "epsilon 1.000" in _words(one, "")


def test_epsilon_gets_its_decimals_in_one_place(root: Path) -> None:
    """A number that speaks of ε and is cut to a fixed number of decimals."""
    decimals = re.compile(r"\{[^{}]*:\.\d[feg]\}")
    about = re.compile(r"epsilon|eps\b|ε|spent|loss\b|(?<!frame\.)left\b")
    found = Counter(
        str(path.relative_to(root))
        for room in ROOMS
        for path in (root / room).rglob("*.py")
        for line in path.read_text().splitlines()
        if decimals.search(line) and about.search(line)
    )
    assert found == OWN
