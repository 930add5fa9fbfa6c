"""A coordinator and sites as processes of their own, for the benchmarks of the link."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import privet.common.link
from privet.client.link.join import Join
from privet.client.operator.decisions import make_site
from privet.client.start import come_in_by_file, take_certificate
from privet.common.plan import Plan
from privet.privacy.accounting.noise_calibration import calibrated
from privet.server.membership.registry import MemberRegistry
from privet.server.queue import Run, submit

assert privet.common.link
HERE = Path(__file__).parent
_PRIVET = [sys.executable, "-c", "from privet.cli import main; main()"]


def plan_for(names: list[str], rounds: int, **changes: Any) -> Plan:
    """Return a plan of a linear model whose rounds cost little work and little privacy."""
    plan: dict[str, Any] = {
        "name": "link",
        "threads": 1,
        "task": {
            "label": "y",
            "classes": ["0", "1"],
            "numeric": {"x1": {"low": -2, "high": 2}, "x2": {"low": -2, "high": 2}},
        },
        "model": {"kind": "linear"},
        "training": {
            "rounds": rounds,
            "steps": 1,
            "sample_rate": 0.5,
            "learning_rate": 0.1,
            "max_attempts": 100,
        },
        "privacy": {"epsilon": 50.0, "delta": 1e-4, "noise_multiplier": 20.0},
        "metrics": {"source": "off"},
        "strategy": {"min_sites": len(names), "timeout": 600.0, "attempts": 100},
        "sites": [{"name": name, "nominal_size": 40} for name in names],
    }
    for key, change in changes.items():
        plan[key] = {**plan[key], **change} if isinstance(change, dict) else change
    return calibrated(Plan.parse(plan, where="benchmark"))


def records(seed: int) -> pd.DataFrame:
    """Return forty made-up records."""
    chance = np.random.default_rng(seed)
    x1, x2 = chance.normal(size=40).round(3), chance.normal(size=40).round(3)
    return pd.DataFrame({"x1": x1, "x2": x2, "y": (x1 > x2).astype(int)})


class FederationFixture:
    """Folders and processes of a federation on loopback.

    Args:
        folder: a new one.
        plan: calibrated.
        how: words for ``link_site.py`` before the policy; none starts ``privet client start``.
    """

    def __init__(self, folder: Path, plan: Plan, how: tuple[str, ...] = ()) -> None:
        folder.mkdir(parents=True)
        self.folder, self.plan, self.how = folder, plan, how
        self.names = [site.name for site in plan.sites]
        self.port = free_port()
        self.registry = MemberRegistry.found(
            folder / "hub", "hub", f"127.0.0.1:{self.port}", f"127.0.0.1:{free_port()}"
        )
        for number, name in enumerate(self.names):
            self._enrol(name, number)
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def _enrol(self, name: str, number: int) -> None:
        home = self.folder / name
        (self.folder / f"{name}.join").write_text(json.dumps(self.registry.invite(name)))
        join = Join.load(self.folder / f"{name}.join")
        make_site(home, name, None, coordinators=[join.coordinator["orders"]])
        come_in_by_file(join, home, self.folder / f"{name}.request")
        _, certificate = self.registry.admit(self.folder / f"{name}.request")
        (self.folder / f"{name}.pem").write_bytes(certificate)
        take_certificate(join, home, self.folder / f"{name}.pem")
        records(number).to_csv(home / "records.csv", index=False)
        assert self.plan.privacy is not None
        (home / "site.toml").write_text(f"""
site = "{name}"
[populations.patients]
unit = "record"
epsilon = {20 * self.plan.privacy.epsilon}
delta = {self.plan.privacy.delta}
[data.records]
population = "patients"
nominal_size = 40
path = "records.csv"
[allow]
tasks = ["*"]
models = ["*"]
max_rounds = 100000
max_parameters = 1000000000
coordinators = ["{join.coordinator["orders"]}"]
plans = ["{self.plan.digest}"]
""")

    def redirect(self, name: str, port: int) -> None:
        """Have a site dial another port, such as a proxy's."""
        path = self.folder / name / "link" / "join.json"
        value = json.loads(path.read_text())
        path.write_text(json.dumps({**value, "address": f"127.0.0.1:{port}"}))

    def start(self, who: str) -> None:
        """Start the coordinator (``hub``) or a site."""
        policy = str(self.folder / who / "site.toml")
        if who == "hub":
            address = f"127.0.0.1:{self.port}"
            command = [*_PRIVET, "server", "start", str(self.folder / "hub"), "--listen", address]
        elif self.how:
            command = [sys.executable, str(HERE / "link_site.py"), *self.how, policy]
        else:
            command = [*_PRIVET, "client", "start", "--policy", policy]
        path = os.pathsep.join([str(HERE), *(entry for entry in sys.path if entry)])
        with (self.folder / f"{who}.log").open("ab") as log:
            self.processes[who] = subprocess.Popen(
                command, stdout=log, stderr=log, stdin=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
            )  # fmt: skip

    def start_all(self) -> None:
        """Start everybody."""
        for who in ("hub", *self.names):
            self.start(who)

    def kill(self, who: str) -> None:
        """Kill a process, as a power cut would."""
        process = self.processes.pop(who)
        process.send_signal(signal.SIGKILL)
        process.wait()

    def submit(self) -> Run:
        """Queue the plan."""
        return submit(self.registry, self.plan, "run")

    def peak(self, who: str) -> float:
        """Return the most memory that a process had, in MB."""
        status = Path(f"/proc/{self.processes[who].pid}/status").read_text()
        line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1000

    def logs(self) -> str:
        """Return what all said last."""
        return "\n".join(f"== {p.name}\n{p.read_text()[-1500:]}" for p in self.folder.glob("*.log"))

    def close(self) -> None:
        """End everybody."""
        for who in list(self.processes):
            self.kill(who)


def follow(
    run: Run,
    federation: FederationFixture,
    until: str = "done",
    seconds: float = 3600,
    note: Callable[[int], None] = lambda done: None,
) -> list[float]:
    """Wait for the end of a run, telling ``note`` each round; return when each was done."""
    times: list[float] = []
    end = time.monotonic() + seconds
    while True:
        status = run.status
        done = int(status.get("round", 0))
        if done > len(times):
            times += [time.perf_counter()] * (done - len(times))
            note(done)
        if status["state"] == until:
            return times
        if status["state"] == "failed" or time.monotonic() > end:
            raise SystemExit(f"{status}\n{federation.logs()}")
        time.sleep(0.004)


def free_port() -> int:
    """Return a port that is free now."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])
