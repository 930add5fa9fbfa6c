"""The commands of docs/how-to/backup.md and upgrade.md, typed as they stand, in their folder."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from office_kit import _free_port

from privet.client.link.join import Join
from privet.client.operator.decisions import make_site
from privet.client.start import come_in_by_file, take_certificate
from privet.privacy.evidence.ledger import Ledger
from privet.server.membership.registry import MemberRegistry

POLICY = """site = "North"
[populations.patients]
unit = "record"
epsilon = 3.0
delta = 1e-5
[data.records]
population = "patients"
nominal_size = 10
path = "records.csv"
[allow]
tasks = ["tabular"]
models = ["*"]
coordinators = ["{key}"]
"""
PLAIN = ("PRIVET_PASSPHRASE", "PRIVET_PASSPHRASE_FILE")
pytestmark = pytest.mark.slow


def commands(page: Path) -> list[str]:
    """The lines of all blocks that are to be typed, in order."""
    text = page.read_text(encoding="utf-8")
    blocks = re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


class Operators:
    """Types commands in one folder; what stays in the foreground gets a terminal of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        program = folder / "bin" / "privet"
        program.parent.mkdir()
        program.write_text(
            f"#!/bin/sh\nexec {sys.executable} -c 'from privet.cli import main; main()' \"$@\"\n"
        )
        program.chmod(0o755)
        path = f"{program.parent}{os.pathsep}{os.environ['PATH']}"
        self.environment = {**os.environ, "PATH": path}
        self.started: list[subprocess.Popen[bytes]] = []

    def type(self, line: str) -> str:
        if re.fullmatch(r"privet (server|client) start .*", line):
            self._start(line)
            return ""
        done = subprocess.run(
            ["sh", "-c", line], cwd=self.folder, env=self.environment, capture_output=True,
            text=True, check=False, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
        return done.stdout

    def _start(self, line: str) -> None:
        log = self.folder / f"{len(self.started)}.log"
        with log.open("wb") as stream:
            process = subprocess.Popen(
                ["sh", "-c", f"exec {line}"], cwd=self.folder, env=self.environment,
                stdout=stream, stderr=stream, stdin=subprocess.DEVNULL,
            )  # fmt: skip
        self.started.append(process)
        end = time.monotonic() + 90
        while not re.search(r"listening|info privet\.client: (started|connected)", log.read_text()):
            assert process.poll() is None and time.monotonic() < end, log.read_text()
            time.sleep(0.05)

    def close(self) -> None:
        for process in self.started:
            process.kill()
            process.wait(30)


@pytest.fixture
def operators(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Operators]:
    """A coordinator's folder ``hub`` and a site's folder ``north`` that came in to it."""
    for name in PLAIN:
        monkeypatch.delenv(name, raising=False)
    ports = [f"127.0.0.1:{_free_port()}" for _ in range(2)]
    hub = MemberRegistry.found(tmp_path / "hub", "study", *ports)
    north = tmp_path / "north"
    make_site(north, "North", None)
    key = hub.order_key().fingerprint
    (north / "site.toml").write_text(POLICY.format(key=key))
    (north / "records.csv").write_text("x\n1\n")
    (tmp_path / "north.json").write_text(json.dumps(hub.invite("North")))
    join = Join.load(tmp_path / "north.json")
    come_in_by_file(join, north, tmp_path / "request")
    asked = json.loads((tmp_path / "request").read_text())
    pem = hub.enrol(
        "North", asked["token"], asked["request"].encode(), asked["ledger"], asked["witness"]
    )
    (tmp_path / "north.pem").write_bytes(pem)
    take_certificate(join, north, tmp_path / "north.pem")
    made = Operators(tmp_path)
    yield made
    made.close()


def ledger_of(folder: Path) -> list[bytes]:
    ledger = Ledger.read(folder / "ledger")
    found = list(ledger.log.store.leaves())
    ledger.log.store.close()
    return found


def test_the_page_of_backups(root: Path, operators: Operators) -> None:
    listed = commands(root / "docs" / "how-to" / "backup.md")
    kinds = {tuple(shlex.split(line)[:3]) for line in listed if line.startswith("privet")}
    assert {("privet", "server", "backup"), ("privet", "client", "backup"),
            ("privet", "server", "start"), ("privet", "client", "status")} <= kinds  # fmt: skip
    folder = operators.folder
    operators.type("privet server start hub")  # both are at work when they are copied
    before = ledger_of(folder / "north")
    tree = {path.name for path in (folder / "hub").iterdir()}
    for line in listed:
        if line.startswith("mv hub "):
            process = operators.started.pop()
            process.kill()  # the machine is lost
            process.wait(30)
        operators.type(line)
    assert ledger_of(folder / "north") == before
    assert not (folder / "north" / "records.csv").exists()
    assert not (folder / "north" / "offline").exists()
    lost = tree - {path.name for path in (folder / "hub").iterdir()}
    assert lost <= {"spool", "server.pid", "members.lock"}
    for name in ("hub-backup.tar", "north-backup.tar"):
        assert (folder / name).stat().st_mode & 0o777 == 0o600
    # What was restored works: the coordinator invites, and the site's keys open its ledger.
    operators.type("privet server enroll hub South --out south.json")
    operators.type("privet client pause --policy north/site.toml --as Ada")
    assert len(ledger_of(folder / "north")) == len(before) + 1


def test_the_page_of_upgrades(root: Path, operators: Operators) -> None:
    operators.type("privet server start hub")
    for line in commands(root / "docs" / "how-to" / "upgrade.md"):
        operators.type(line)
        if line == "privet server stop hub":
            assert operators.started[0].wait(30) == 0
    assert (operators.folder / "north-before.tar").exists()


def test_a_newer_folder_is_refused_as_the_page_says(root: Path, operators: Operators) -> None:
    page = (root / "docs" / "how-to" / "upgrade.md").read_text(encoding="utf-8")
    path = operators.folder / "hub" / "federation.json"
    value: dict[str, Any] = json.loads(path.read_text())
    path.write_text(
        json.dumps({**value, "format": "privet/federation/v3", "software": "privet 9.0"})
    )
    before = {p: p.read_bytes() for p in path.parent.rglob("*") if p.is_file()}
    done = subprocess.run(
        ["sh", "-c", "privet server status hub"], cwd=operators.folder,
        env=operators.environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    (shown,) = re.findall(r"^privet: hub/federation.json: is of format 3.*$", page, re.MULTILINE)
    said = " ".join(done.stderr.split())
    assert re.fullmatch(".*".join(map(re.escape, shown.split("…"))), said), said
    assert {p: p.read_bytes() for p in path.parent.rglob("*") if p.is_file()} == before
    shutil.rmtree(operators.folder / "hub")
