"""Stock Flower on loopback: a SuperLink and SuperNodes with TLS and node keys, as processes."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from privet.client.link.join import Join
from privet.client.operator.decisions import make_site
from privet.client.start import come_in_by_file
from privet.common.plan import Plan
from privet.server.membership.registry import MemberRegistry

PROGRAMS = Path(sys.executable).parent
NAME = "there"
ROOT = Path(__file__).parents[1]


class StockFlower:
    """A SuperLink in a folder, and who was started at it; everything is ended by :meth:`close`."""

    def __init__(self, folder: Path, **environment: str) -> None:
        self.folder = folder
        folder.mkdir(parents=True)
        self.port = free_port()
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("FLWR_", "PRIVET_"))}
        self.environment = {
            **kept,
            "PATH": f"{PROGRAMS}{os.pathsep}{os.environ['PATH']}",
            "FLWR_HOME": str(folder / "home"),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
            # Asks for tasks more often than once a second; nothing else is hurried.
            "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.5",
            "OMP_NUM_THREADS": "1",
            **environment,
        }
        self._processes: list[subprocess.Popen[bytes]] = []
        certify(folder)
        self._start(
            "superlink", PROGRAMS / "flower-superlink",
            "--host", "127.0.0.1", "--port", self.port, "--enable-supernode-auth",
            "--ssl-ca-certfile", folder / "ca.pem", "--ssl-certfile", folder / "server.pem",
            "--ssl-keyfile", folder / "server.key", "--disable-runtime-dependency-installation",
        )  # fmt: skip
        (folder / "home").mkdir()
        (folder / "home" / "config.toml").write_text(
            f'[superlink]\ndefault = "{NAME}"\n\n[superlink.{NAME}]\n'
            f'address = "127.0.0.1:{self.port}"\nroot-certificates = "{folder / "ca.pem"}"\n'
        )
        self._wait_for_port(self.port)

    def node(
        self, name: str, program: Path, *, home: Path | None = None, config: str = "", **more: str
    ) -> None:
        """Start a SuperNode with a key of its own, by ``program``."""
        key, public = node_key(self.folder, name)
        self.flwr("supernode", "register", str(public))
        where = {"FLWR_HOME": str(home)} if home else {}
        port = free_port()
        self._start(
            name, program, "--superlink", f"127.0.0.1:{self.port}",
            "--root-certificates", self.folder / "ca.pem", "--auth-supernode-private-key", key,
            "--host", "127.0.0.1", "--port", port,
            *(["--node-config", config] if config else []), environment={**where, **more},
        )  # fmt: skip

    def flwr(self, *words: str) -> Any:
        """Run ``flwr``; return what it prints as JSON."""
        done = subprocess.run(
            [str(PROGRAMS / "flwr"), *words, "--format", "json"],
            env=self.environment, capture_output=True, text=True, timeout=400, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads(done.stdout[done.stdout.index("{") :])

    def said(self, run: str) -> str:
        """What a run's ServerApp said."""
        done = subprocess.run(
            [str(PROGRAMS / "flwr"), "log", run, NAME, "--show"],
            env=self.environment, capture_output=True, text=True, timeout=400, check=False,
        )  # fmt: skip
        return done.stdout + done.stderr

    def run(self, app: Path, config: str = "") -> str:
        """Start a run; return its id."""
        value = self.flwr("run", str(app), NAME, *(["--run-config", config] if config else []))
        return str(value["run-id"])

    def ended(self, run: str, over: Callable[[], bool], seconds: float = 900) -> str:
        """Wait for the end of a run; return how Flower says it ended.

        ``over`` says when to ask: each `flwr list` starts a Python of its own.
        """
        end = time.monotonic() + seconds
        while True:
            if over():
                found = [one for one in self.flwr("list")["runs"] if str(one["run-id"]) == run]
                status = str(found[0]["status"])
                if status.startswith("finished"):
                    return status
            assert time.monotonic() < end, self.logs()
            time.sleep(0.5)

    def logs(self) -> str:
        """What all processes said last."""
        return "\n".join(
            f"== {path.name}\n{path.read_text()[-3000:]}" for path in self.folder.glob("*.log")
        )

    def close(self) -> None:
        """End every process that was started here, and what these started."""
        for process in reversed(self._processes):
            for number in (signal.SIGTERM, signal.SIGKILL):
                if process.poll() is None:
                    os.killpg(process.pid, number)
                    try:
                        process.wait(10)
                    except subprocess.TimeoutExpired:
                        continue
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)

    def _start(
        self, name: str, program: Path, *words: object, environment: dict[str, str] | None = None
    ) -> None:
        with (self.folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                [str(program), *map(str, words)],
                env={**self.environment, **(environment or {})}, cwd=self.folder,
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        self._processes.append(process)

    def _wait_for_port(self, port: int) -> None:
        end = time.monotonic() + 300
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                return
            except OSError:
                assert time.monotonic() < end, self.logs()
                time.sleep(0.1)


def enrol(
    federation: MemberRegistry, plan: Plan, home: Path, name: str, frame: pd.DataFrame,
    secret: str | None = None,
) -> Path:  # fmt: skip
    """Let a site in by files alone; return its policy."""
    (home.parent / f"{name}.join").write_text(json.dumps(federation.invite(name)))
    join = Join.load(home.parent / f"{name}.join")
    make_site(home, name, secret, coordinators=[join.coordinator["orders"]])
    come_in_by_file(join, home, home.parent / f"{name}.request")
    assert federation.admit(home.parent / f"{name}.request")[0] == name
    frame.to_csv(home / "records.csv", index=False)
    assert plan.privacy is not None
    (home / "site.toml").write_text(f"""
site = "{name}"
[populations.patients]
unit = "{plan.privacy.unit}"
epsilon = {20 * plan.privacy.epsilon}
delta = {plan.privacy.delta}
[data.records]
population = "patients"
nominal_size = {plan.site(name).nominal_size}
path = "records.csv"
[allow]
tasks = ["*"]
models = ["*"]
coordinators = ["{join.coordinator["orders"]}"]
plans = ["{plan.digest}"]
""")
    return home / "site.toml"


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def certify(folder: Path, name: str = "IP:127.0.0.1") -> None:
    """Make authority and certificate by the commands of the page, for another name.

    Args:
        folder: where the files go.
        name: in the certificate, in place of the page's ``DNS:hub.example.org``.
    """
    if not shutil.which("openssl"):
        pytest.skip("openssl is not here")
    page = (ROOT / "docs" / "how-to" / "flower.md").read_text(encoding="utf-8")
    (commands,) = re.findall(
        r"^```sh\n(umask 077\nopenssl .*?)^```", page, re.DOTALL | re.MULTILINE
    )
    assert "DNS:hub.example.org" in commands
    subprocess.run(
        ["sh", "-euc", commands.replace("DNS:hub.example.org", name)], cwd=folder, check=True,
        capture_output=True,
    )  # fmt: skip


def node_key(folder: Path, name: str) -> tuple[Path, Path]:
    """Make what `ssh-keygen -t ecdsa -b 384` makes."""
    key = ec.generate_private_key(ec.SECP384R1())
    private, public = folder / f"{name}.key", folder / f"{name}.key.pub"
    private.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH,
            serialization.NoEncryption(),
        )
    )  # fmt: skip
    public.write_bytes(
        key.public_key().public_bytes(
            serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
        )
    )
    return private, public
