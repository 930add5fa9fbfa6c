"""The hostile campaign, a short round of it; and that it notices what it must."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "campaigns"))
from hostile import attack_coordinator, attack_site
from hostile_attacks import KINDS
from hostile_monitor import ProcessMonitor, Sample, Verdict, verdict

PROCESSES = pytest.mark.xdist_group("hostile")


def judged(folder: Path, requests: int = 1000, **changes: object) -> Verdict:
    """A verdict of a made-up monitor on a process that is there."""
    log = folder / "log"
    log.write_text(str(changes.pop("log", "fine\n")))
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        monitor = ProcessMonitor(process.pid, log, requests)
        monitor.stop()
        now = monitor.sample()
        assert now is not None
        if changes.pop("gone", False):
            process.kill()
            process.wait()
        warm = Sample(0, now.memory - float(str(changes.pop("grown", 0))), now.files, now.threads)
        before = Sample(0, 0, now.files - int(str(changes.pop("files", 0))), now.threads)
        wrong = {"stranger": int(str(changes.pop("told", 0)))}
        left = int(str(changes.pop("left", 0)))
        traffic = {"asked": 9, "answered": 9, "lost": 0, "wrong": 0, "gap": 1.0} | changes
        return verdict(monitor, before, warm, wrong, left, traffic)
    finally:
        process.kill()
        process.wait()
        assert process.stdin is not None
        process.stdin.close()


@pytest.mark.parametrize(
    ("changes", "row"),
    [
        ({}, None),
        ({"gone": True}, "crashes"),
        ({"log": "x\nTraceback (most recent call last):\n"}, "errors that nothing handled"),
        ({"told": 1}, "wrong answers, stranger"),
        ({"lost": 1}, "honest messages unanswered"),
        ({"asked": 30}, "honest messages unanswered"),
        ({"wrong": 1}, "honest messages answered wrongly"),
        ({"gap": 40.0}, "longest time without an honest answer"),
        ({"grown": 60}, "memory growth"),
        ({"files": 9}, "file descriptors left"),
        ({"left": 1}, "spool files left"),
    ],
)
def test_each_row_of_the_verdict_can_fail(
    tmp_path: Path, changes: dict[str, object], row: str | None
) -> None:
    failed = judged(tmp_path, **changes).failed
    assert (row in failed) if row else not failed


@pytest.mark.slow
@PROCESSES
def test_a_coordinator_stands_a_short_campaign(tmp_path: Path) -> None:
    found, tally = attack_coordinator(600, tmp_path / "a", patience=2.0)
    assert not found.failed, (found.rows, tally.examples)
    assert len(tally.words) == len(KINDS)
    assert {kind.split(":")[0] for kind in tally.words} == {
        "stranger",
        "outsider",
        "member",
        "newcomer",
    }


@pytest.mark.slow
@PROCESSES
@pytest.mark.parametrize(
    ("fault", "row"),
    [
        pytest.param("leak", "memory growth", marks=pytest.mark.long),
        pytest.param("tells", "wrong answers, outsider", marks=pytest.mark.long),
        pytest.param("traceback", "errors that nothing handled", marks=pytest.mark.long),
        pytest.param("unanswered", "honest service at an end", marks=pytest.mark.long),
        ("dies", "crashes"),
    ],
)
def test_a_coordinator_with_a_planted_fault_does_not(tmp_path: Path, fault: str, row: str) -> None:
    found, _ = attack_coordinator(400, tmp_path / "a", fault=fault, patience=1.0)
    assert row in found.failed, found.rows


@pytest.mark.slow
@PROCESSES
def test_a_site_stands_a_hostile_coordinator(tmp_path: Path) -> None:
    found, did = attack_site(700, tmp_path / "b", large=100)
    assert not found.failed, found.rows
    assert len(did) > 10


@pytest.mark.long
@pytest.mark.slow
@PROCESSES
def test_a_site_with_a_planted_fault_does_not(tmp_path: Path) -> None:
    found, _ = attack_site(700, tmp_path / "b", large=100, fault="leak")
    assert "memory growth" in found.failed, found.rows


@pytest.mark.long
@pytest.mark.slow
@PROCESSES
def test_the_command(root: Path) -> None:
    command = [sys.executable, "campaigns/hostile.py", "--json", "--requests", "300",
               "--messages", "300", "--quick"]  # fmt: skip
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=300)
    rows = {row["name"]: row for row in json.loads(done.stdout)["rows"]}
    assert done.returncode == 0, done.stderr
    assert rows["coordinator: requests"]["value"] >= 300
    assert rows["site: crashes"]["peer_value"] == 0
