"""A town whose processes are the real commands, each an interpreter of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from typing import Any

from office_kit import Town, _free_port

_MAIN = "from privet.cli import main; main()"


class Commands(Town):
    """Starts ``privet server start`` and ``privet client start`` as they are typed.

    With ``apart``, in a network namespace of their own: what they send can go nowhere else, and
    the kernel counts it. The namespace is held by a process that sleeps.
    """

    def __init__(self, *args: Any, apart: bool = False, **named: Any) -> None:
        super().__init__(*args, **named)
        self.metrics: dict[str, int] = {}
        self.enrolment = _free_port()
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        self.keeper: subprocess.Popen[bytes] | None = None
        if apart:
            hold = "ip link set lo up && echo up && exec sleep 900"
            self.keeper = subprocess.Popen(
                ["unshare", "-rn", "sh", "-c", hold], stdout=subprocess.PIPE
            )
            assert self.keeper.stdout is not None
            if self.keeper.stdout.readline() != b"up\n":
                raise OSError("no namespace can be had")

    def run(self, who: str, *options: str, metrics: bool = True) -> subprocess.Popen[bytes]:
        """Start the coordinator (``hub``) or a site; its streams go to ``WHO.log``."""
        words = ["client", "start", "--policy", str(self.folder / who / "site.toml")]
        if who == "hub":
            words = ["server", "start", str(self.folder / "hub")]
            words += ["--listen", f"127.0.0.1:{self.port}"]
            words += ["--listen-enrolment", f"127.0.0.1:{self.enrolment}"]
        if metrics:
            self.metrics[who] = _free_port()
            words += ["--metrics", str(self.metrics[who])]
        return self.command(who, sys.executable, "-c", _MAIN, *words, *options)

    def command(self, who: str, *words: str) -> subprocess.Popen[bytes]:
        """Start any command beside the others."""
        into: list[str] = []
        if self.keeper is not None:
            into = ["nsenter", "-t", str(self.keeper.pid), "-U", "-n", "--preserve-credentials"]
        log = (self.folder / f"{who}.log").open("ab")
        given = {k: v for k, v in os.environ.items() if not k.startswith(("FLWR_", "GRPC_"))}
        # What these switch off is to be off without them.
        started = subprocess.Popen(
            [*into, *words], stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=given
        )
        log.close()
        self.running[who] = started
        return started

    def said(self, who: str) -> str:
        """What a process has written until now."""
        return (self.folder / f"{who}.log").read_text()

    def scrape(self, who: str, path: str = "/metrics") -> tuple[int, str]:
        """Ask for the figures of one process; wait until its port is open."""
        url = f"http://127.0.0.1:{self.metrics[who]}{path}"
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        end = time.monotonic() + 60
        while True:
            try:
                with opener.open(url, timeout=20) as answer:
                    return answer.status, answer.read().decode()
            except urllib.error.HTTPError as error:
                with error:
                    return error.code, error.read().decode()
            except OSError:
                assert time.monotonic() < end, self.said(who)
                time.sleep(0.1)

    def close(self) -> None:
        super().close()
        for process in (*self.running.values(), self.keeper):
            if process is not None:
                process.kill()
                process.wait(30)
                if process.stdout is not None:
                    process.stdout.close()


def can_be_apart() -> bool:
    """Whether this machine lets us make a network namespace."""
    if not all(shutil.which(name) for name in ("unshare", "nsenter", "ip")):
        return False
    done = subprocess.run(["unshare", "-rn", "ip", "link", "set", "lo", "up"], check=False,
                          capture_output=True)  # fmt: skip
    return done.returncode == 0
