"""A whole federation of processes on loopback: a coordinator and its sites, to be killed."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from privet.client import start
from privet.client.link.coordinators import LINK
from privet.client.link.join import Join, enrol
from privet.client.operator.decisions import make_site
from privet.common.models.start import FOLDERS
from privet.common.plan import Plan
from privet.privacy.accounting.noise_calibration import calibrated
from privet.privacy.evidence.keys import FileSigner
from privet.privacy.evidence.signed_note import COSIGN, Key, key_name
from privet.server import coordinator, queue
from privet.server.membership.enrolment import EnrolmentServer
from privet.server.membership.registry import MemberRegistry

# A process that has imported everything, from which each party is forked: importing torch takes
# longer than a run. It finds installed modules alone, and passes over the others in silence.
_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload([
    "privet.server.coordinator", "privet.client.start", "torch",
    "privet.common.compat.dp_accounting", "privet.privacy.accounting.ceiling", "scipy.optimize",
])  # fmt: skip


def run_office(folder: Path, address: str, log: Path, models: str) -> None:
    """What `privet server start` does."""
    _write_to(log)
    os.environ[FOLDERS] = models
    coordinator._RUN_TURN_S = 2.0
    at_work = coordinator.Coordinator(MemberRegistry.load(folder), link=address)
    signal.signal(signal.SIGTERM, lambda *_: at_work.stopped.set())
    at_work.serve()


def run_site(policy: Path, seed: str, log: Path, models: str) -> None:
    """What `privet client start` does; with a seed, its noise can be made again."""
    _write_to(log)
    os.environ[FOLDERS] = models

    endpoints = start.make_endpoints(policy, None, seed=seed)
    asyncio.run(start.run(*map(start.dialer, endpoints), turns=endpoints[0].turns))
    for endpoint in endpoints:
        endpoint.close()


def _write_to(log: Path) -> None:
    torch.set_num_threads(1)
    with log.open("ab") as stream:
        for descriptor in (1, 2):
            os.dup2(stream.fileno(), descriptor)


class Town:
    """Folders of a coordinator and of sites, and their processes."""

    def __init__(
        self, folder: Path, root: Path, plan: Plan, frames: dict[str, pd.DataFrame], seed: str = ""
    ) -> None:
        self.folder, self.root, self.seed = folder, root, seed
        self.plan = calibrated(plan)
        self.port = _free_port()
        address = f"127.0.0.1:{self.port}"
        self.federation = MemberRegistry.found(folder / "hub", "hub", address, "127.0.0.1:0")
        self.processes: dict[str, Any] = {}
        self.sites = tuple(frames)
        with EnrolmentServer(self.federation, "127.0.0.1:0") as door:
            for name, frame in frames.items():
                self._enrol(name, frame, door)

    def _enrol(self, name: str, frame: pd.DataFrame, door: EnrolmentServer) -> None:
        home = self.folder / name
        make_site(home, name, None)
        keys = {}
        for kind, type_ in (("ledger", 1), ("witness", COSIGN)):
            public = FileSigner.load(home / "ledger" / f"{kind}.pem", None).public
            keys[kind] = str(Key(key_name(kind, name, public), public, type_))
        invitation = self.federation.invite(name)
        while not door.is_open:
            time.sleep(0.02)
        (home / "join.json").write_text(json.dumps({**invitation, "enrolment": door.address}))
        join = Join.load(home / "join.json")
        enrol(join, home / LINK, keys["ledger"], keys["witness"])
        frame.to_csv(home / "records.csv", index=False)
        (home / "site.toml").write_text(self._policy(name, join))

    def _policy(self, name: str, join: Join) -> str:
        privacy = self.plan.privacy
        assert privacy is not None
        size = self.plan.site(name).nominal_size
        return f"""
site = "{name}"

[populations.patients]
unit = "{privacy.unit}"
epsilon = {20 * privacy.epsilon}
delta = {privacy.delta}

[data.records]
population = "patients"
nominal_size = {size}
path = "records.csv"

[allow]
tasks = ["*"]
models = ["*"]
coordinators = ["{join.coordinator["orders"]}"]
plans = ["{self.plan.digest}"]
"""

    def start(self, who: str, office: Any = None) -> None:
        """Start the coordinator (``hub``) or a site, as a process of its own."""
        log = self.folder / f"{who}.log"
        # Everybody finds what the first run trained.
        models = str(self.federation.folder / "runs" / "first" / "model")
        if who == "hub":
            given: Any = (
                office or run_office,
                (self.folder / "hub", f"127.0.0.1:{self.port}", log, models),
            )
        else:
            given = (run_site, (self.folder / who / "site.toml", self.seed, log, models))
        process = _PROCESSES.Process(target=given[0], args=given[1], daemon=True)
        process.start()
        self.processes[who] = process

    def kill(self, who: str, how: int = signal.SIGKILL) -> int | None:
        process = self.processes.pop(who)
        assert process.pid is not None
        with suppress(ProcessLookupError):  # a site that was revoked ends by itself
            os.kill(process.pid, how)
        process.join(30)
        return process.exitcode

    def submit(self, run: str = "first") -> queue.Run:
        return queue.submit(self.federation, self.plan, run)

    def start_all(self) -> None:
        """Start the coordinator and all sites."""
        for who in ("hub", *self.sites):
            self.start(who)

    def run_all(self) -> queue.Run:
        """Queue the plan, and start everybody."""
        run = self.submit()
        self.start_all()
        return run

    def wait(self, run: queue.Run, check: Any, seconds: float = 400) -> dict[str, Any]:
        end = time.monotonic() + seconds
        while True:
            status = run.status
            if check(status):
                return status
            if time.monotonic() > end or status["state"] == "failed":
                logs = {p.name: p.read_text()[-2000:] for p in self.folder.glob("*.log")}
                raise AssertionError(
                    f"{status}\n" + "\n".join(f"== {k}\n{v}" for k, v in logs.items())
                )
            time.sleep(0.05)

    def close(self) -> None:
        for who in list(self.processes):
            self.kill(who)


def _free_port() -> int:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])
