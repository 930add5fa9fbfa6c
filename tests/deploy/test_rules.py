"""The alerts, tried by Prometheus's own tool: each is seen silent and seen firing."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

PROMTOOL = os.environ.get("PROMTOOL") or shutil.which("promtool")
needs_promtool = pytest.mark.skipif(
    PROMTOOL is None,
    reason="promtool is not installed (package prometheus); PROMTOOL may name the program",
)


def run(*words: object) -> tuple[int, str]:
    done = subprocess.run(
        [str(PROMTOOL), *map(str, words)], capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout + done.stderr


def alerts(root: Path) -> set[str]:
    rules = yaml.safe_load((root / "deploy/privet.rules.yml").read_text())
    return {rule["alert"] for group in rules["groups"] for rule in group["rules"]}


def test_each_alert_is_seen_silent_and_firing(root: Path) -> None:
    cases = yaml.safe_load((root / "deploy/privet.rules.test.yml").read_text())["tests"]
    seen = {(case["alertname"], bool(case["exp_alerts"]))
            for test in cases for case in test["alert_rule_test"]}  # fmt: skip
    assert seen == {(name, fires) for name in alerts(root) for fires in (False, True)}


@needs_promtool
def test_the_rules_do_what_their_tests_say(root: Path) -> None:
    code, said = run("check", "rules", root / "deploy/privet.rules.yml")
    assert code == 0, said
    code, said = run("test", "rules", root / "deploy/privet.rules.test.yml")
    assert code == 0, said


@needs_promtool
@pytest.mark.parametrize("name", ["PrivetRoundOverdue", "PrivetBudgetSpent", "PrivetPlanClosed"])
def test_a_rule_that_never_fires_is_found(root: Path, tmp_path: Path, name: str) -> None:
    """The control."""
    rules = yaml.safe_load((root / "deploy/privet.rules.yml").read_text())
    (rule,) = [one for one in rules["groups"][0]["rules"] if one["alert"] == name]
    rule["expr"] = f"({rule['expr']}) and vector(1) > 2"
    (tmp_path / "privet.rules.yml").write_text(yaml.safe_dump(rules))
    shutil.copy(root / "deploy/privet.rules.test.yml", tmp_path)
    code, said = run("test", "rules", tmp_path / "privet.rules.test.yml")
    assert code != 0 and name in said
