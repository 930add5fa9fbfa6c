"""The page *Run it for a year*, typed as it stands: real processes, real disks lost.

The test is the world around the page: it gives the addresses, brings files from one party to the
other, presses Ctrl-C where the page says so, and waits where the page says *when*.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.xdist_group("year")]
PLAN = """
name = "year"
[task]
label = "ill"
classes = ["no", "yes"]
[task.numeric]
x1 = { low = -3, high = 3 }
x2 = { low = -3, high = 3 }
[model]
kind = "linear"
[training]
rounds = 3
steps = 2
sample_rate = 0.2
learning_rate = 0.3
[privacy]
epsilon = 1.0
delta = 1e-4
[metrics]
source = "gate"
[strategy]
min_sites = 2
timeout = 600
[[sites]]
name = "North"
nominal_size = 60
[[sites]]
name = "East"
nominal_size = 60
"""


def commands(page: Path) -> list[str]:
    """Every line of the page that is typed, in order."""
    blocks = re.findall(r"^```sh\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


class World:
    """A folder in which all parties' folders lie, and the processes that run in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ports = {"hub.example.org:7443": _port(), "hub2.example.org:7443": _port()}
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        secret = folder / "passphrase"
        secret.touch(mode=0o600)
        secret.write_text("a hedge around a flower\n")
        self.environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith("PRIVET_PASS")},
            "PRIVET_PASSPHRASE_FILE": str(secret),
            "OMP_NUM_THREADS": "1",
        }
        self.plan = ""

    def type(self, line: str) -> str:
        """Type one line; return what it printed."""
        for name, port in self.ports.items():
            line = line.replace(name, f"127.0.0.1:{port}")
        words = shlex.split(line.replace("PLAN", self.plan))
        if words[0] != "privet":
            done = subprocess.run(words, cwd=self.folder, check=False, capture_output=True)
            assert done.returncode == 0, (line, done.stderr)
            return ""
        if words[2:3] == ["start"]:
            self._start(words)
            return ""
        words += ["--yes"] * (words[2:3] in (["approve"], ["withdraw"]))
        done = subprocess.run(
            [*_PRIVET, *words[1:]], cwd=self.folder, env=self.environment, text=True,
            capture_output=True, check=False, stdin=subprocess.DEVNULL, timeout=600,
        )  # fmt: skip
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}\n{self.logs()}"
        return done.stdout

    def _start(self, words: list[str]) -> None:
        who = "hub" if words[1] == "server" else Path(words[words.index("--policy") + 1]).parts[0]
        self.stop(who)
        with (self.folder / f"{who}.log").open("ab") as log:
            self.running[who] = subprocess.Popen(
                [*_PRIVET, *words[1:]], cwd=self.folder, env=self.environment,
                stdout=log, stderr=log, stdin=subprocess.DEVNULL,
            )  # fmt: skip

    def stop(self, who: str) -> None:
        """Press Ctrl-C."""
        process = self.running.pop(who, None)
        if process is not None:
            process.send_signal(signal.SIGINT)
            process.wait(120)

    def lose(self, who: str) -> None:
        """Lose a machine: the process and all of its folder."""
        process = self.running.pop(who)
        process.kill()
        process.wait()
        shutil.rmtree(self.folder / who)

    def status(self, *words: str) -> Any:
        return json.loads(self.type(f"privet {' '.join(words)} --json"))

    def until(self, check: Callable[[], bool], seconds: float = 300) -> None:
        end = time.monotonic() + seconds
        while not check():
            assert time.monotonic() < end, self.logs()
            assert all(one.poll() is None for one in self.running.values()), self.logs()
            time.sleep(0.3)

    def run_of(self, name: str) -> dict[str, Any]:
        path = self.folder / "hub" / "runs" / name / "status.json"
        found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        return found

    def until_done(self, name: str) -> None:
        self.until(lambda: self.run_of(name).get("state") == "done")

    def model_of(self, run: str) -> bytes:
        return (self.folder / "hub" / "runs" / run / "model" / "model.safetensors").read_bytes()

    def connected(self) -> set[str]:
        sites = self.status("server", "status", "hub")["sites"]
        return {one["site"] for one in sites if one["connected"]}

    def spent(self, site: str) -> float:
        value = self.status("client", "status", "--policy", f"{site}/site.toml")
        return float(value["populations"][0]["epsilon"])

    def logs(self) -> str:
        return "\n".join(f"== {p.name}\n{p.read_text()[-2500:]}" for p in self.folder.glob("*.log"))


_PRIVET = [sys.executable, "-c", "from privet.cli import main; main()"]


def _port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    (tmp_path / "plan.toml").write_text(PLAN)
    yield made
    for who in list(made.running):
        made.running[who].kill()
        made.running[who].wait()


def fill_in(world: World, site: str, seed: int) -> None:
    """Fill the policy in, and put the records where it says they are."""
    path = world.folder / site / "site.toml"
    text = path.read_text()
    for key, value in (
        ("delta", "1e-4"), ("nominal_size", "60"), ("path", '"records.csv"'), ("epsilon", "20.0"),
    ):  # fmt: skip
        text, count = re.subn(rf"^{key} = .*$", f"{key} = {value}", text, flags=re.MULTILINE)
        assert count, (key, text)
    path.write_text(text)
    records(world, site, seed)


def records(world: World, site: str, seed: int) -> None:
    chance = np.random.default_rng(seed)
    x1, x2 = chance.normal(size=60).round(3), chance.normal(size=60).round(3)
    frame = pd.DataFrame({"x1": x1, "x2": x2, "ill": np.where(x1 > x2, "yes", "no")})
    frame.to_csv(world.folder / site / "records.csv", index=False)


def test_a_year(root: Path, world: World) -> None:
    lines = iter(commands(root / "docs" / "how-to" / "run-it-for-a-year.md"))

    def go(start: str) -> str:
        """Type the page's next line, which begins so."""
        line = next(lines)
        assert line.startswith(f"{start} ") or line == start, (start, line)
        return world.type(line)

    # January
    go("privet server init hub")
    go("privet server enroll hub North")
    go("privet server enroll hub East")
    go("privet server start hub")
    world.until(lambda: "enrolment" in world.logs())
    go("privet client init north.join.json")
    go("mv north/offline safe")
    fill_in(world, "north", 1)
    go("privet client check plan.toml")
    go("privet client start")
    world.type("privet client init east.join.json --dir east --only-ledger")
    fill_in(world, "east", 2)
    world.type("privet client start --policy east/site.toml")

    # February
    said = go("privet server submit hub plan.toml --run february")
    world.plan = re.findall(r"sha256:\w+", said)[0]
    world.until(lambda: all(list((world.folder / s / "offers").glob("*.json")) for s in SITES))
    assert world.plan.removeprefix("sha256:")[:8] in go("privet client plans").replace("\n", "")
    go("privet client approve")
    world.type("privet client approve PLAN --policy east/site.toml")
    world.until_done("february")
    assert "february" in go("privet server status")
    once = world.spent("north")
    assert once > 0
    go("privet audit bundle")
    shutil.copy(world.folder / "hub/runs/february/roster-fingerprints.json", _roster(world))
    assert "Verified" in go("privet audit verify")

    # March
    go("privet client pause --policy")
    go("privet server submit hub plan.toml --run march")
    world.until(lambda: "not-now" in str(world.run_of("march")) or "paused" in world.logs())
    assert world.spent("north") == once
    go("privet client pause --end")
    world.until_done("march")
    assert world.spent("north") > once

    # April
    go("privet client rotate-key")
    go("privet server rotate-key hub --key orders")
    go("privet server status")

    # May
    go("privet server set-address")
    world.until(lambda: "all sites know it" in world.type("privet server status hub"))
    assert "all sites know it" in go("privet server status")
    go("privet server stop")
    world.running.pop("hub").wait(60)
    go("privet server start hub")
    world.until(lambda: world.connected() == NAMES)

    # June
    go("privet server backup")
    go("privet client backup")
    go("privet server submit hub plan.toml --run june")
    world.until_done("june")
    spent = world.spent("north")

    # July
    world.lose("north")
    go("tar xf north-backup.tar")
    go("privet server copy hub North")
    go("privet client copy North")
    go("privet client recover")
    records(world, "north", 1)
    assert world.spent("north") == spent
    go("privet client start")
    world.until(lambda: world.connected() == NAMES)

    go("privet server backup")

    # August
    go("privet server submit hub plan.toml --run august")
    world.until_done("august")
    assert world.spent("north") > spent
    spent = world.spent("north")
    model = world.model_of("august")
    world.lose("hub")
    go("tar xf hub-july.tar")
    go("privet server start hub")
    world.until(lambda: "august" in world.type("privet server status hub"))
    assert "august" in go("privet server status")
    go("privet server resume hub august")
    world.until_done("august")
    assert world.spent("north") == spent
    assert world.model_of("august") == model

    # September
    world.stop("north")
    go("privet --version")
    go("privet client status")
    go("privet client start")
    world.until(lambda: world.connected() == NAMES)

    # December
    go("privet client withdraw")
    go("privet server revoke hub North")
    go("privet audit bundle")
    shutil.copy(world.folder / "hub/runs/august/roster-fingerprints.json", _roster(world))
    assert "58 of 59 entries" in go("privet audit verify").replace("\n", " ")
    go("privet audit report")
    assert any("North" in page.read_text() for page in (world.folder / "year").glob("*.html"))
    assert not list(lines)


SITES = ("north", "east")
NAMES = {"North", "East"}


def _roster(world: World) -> Path:
    return world.folder / "roster.json"
