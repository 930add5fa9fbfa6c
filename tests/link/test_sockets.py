"""Which sockets the commands have while they train: the one connection, and nothing else.

Every socket of every process and of its children is looked at again and again, from its start to
its end. Where this machine lets us, all of it runs in a network of its own, whose kernel also counts
what came and went between two looks: a datagram, or an attempt to reach another machine.
"""

from __future__ import annotations

import ipaddress
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
from observe_kit import Commands, can_be_apart
from process_kit import LOOKS_IN

from privet.common.plan import Plan

Make = Callable[..., Any]
SITES = ("North", "East")
pytestmark = [LOOKS_IN, pytest.mark.slow, pytest.mark.xdist_group("hostile")]


Place = tuple[str, int]
_LISTENS = 10


@dataclass(frozen=True)
class Socket:
    """A line of the kernel's table; ``state`` is TCP's."""

    kind: str
    here: Place
    there: Place
    state: int
    inode: str


def table(pid: int) -> Iterator[Socket]:
    """What sockets there are in the network that a process is in, also if it is not ours."""
    for kind in ("tcp", "tcp6", "udp", "udp6", "raw", "raw6"):
        for line in Path(f"/proc/{pid}/net/{kind}").read_text().splitlines()[1:]:
            words = line.split()
            here, there = (place(word) for word in words[1:3])
            yield Socket(kind.rstrip("6"), here, there, int(words[3], 16), words[9])


def place(text: str) -> Place:
    """Read an address as the kernel writes it: words of four bytes, each turned round."""
    host, port = text.split(":")
    raw = b"".join(bytes.fromhex(host[k : k + 8])[::-1] for k in range(0, len(host), 8))
    address = ipaddress.ip_address(raw)
    return str(getattr(address, "ipv4_mapped", None) or address), int(port, 16)


def sockets_of(pid: int) -> list[Socket]:
    """The sockets that a process holds."""
    held = set()
    for one in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):
            held.add(str(one.readlink()))
    return [one for one in table(pid) if f"socket:[{one.inode}]" in held]


@dataclass
class Watcher:
    """Looks at the sockets of processes and their children until it is stopped.

    Attributes:
        roots: the processes, by name.
        listening: where a process listened, by name.
        dialled: to where it connected, from which port, if it did not listen there.
        datagrams: its sockets for datagrams, or raw ones.
        looks: how often it was looked at.
    """

    roots: dict[str, int] = field(default_factory=dict)
    listening: dict[str, set[Place]] = field(default_factory=dict)
    dialled: dict[str, set[tuple[int, Place]]] = field(default_factory=dict)
    datagrams: dict[str, set[Socket]] = field(default_factory=dict)
    looks: dict[str, int] = field(default_factory=dict)

    def __enter__(self) -> Watcher:
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()

    def add(self, who: str, pid: int) -> None:
        self.listening[who], self.dialled[who], self.datagrams[who] = set(), set(), set()
        self.looks[who] = 0
        self.roots[who] = pid

    def destinations(self) -> dict[str, set[Place]]:
        return {who: {there for _, there in found} for who, found in self.dialled.items()}

    def _watch(self) -> None:
        while not self._stopped.wait(0.005):
            for who, pid in list(self.roots.items()):
                with suppress(psutil.Error, OSError):
                    for one in (pid, *(c.pid for c in psutil.Process(pid).children(True))):
                        with suppress(OSError):
                            self._look(who, sockets_of(one))
                    self.looks[who] += 1

    def _look(self, who: str, found: list[Socket]) -> None:
        self.listening[who] |= {
            one.here for one in found if one.kind == "tcp" and one.state == _LISTENS
        }
        own = {port for _, port in self.listening[who]}
        for one in found:
            if one.kind != "tcp":
                self.datagrams[who].add(one)
            elif one.state != _LISTENS and one.here[1] not in own:
                self.dialled[who].add((one.here[1], one.there))


def counted(pid: int) -> dict[str, int]:
    """What the kernel counted in the network that a process is in."""
    net = Path(f"/proc/{pid}/net")
    lines = [line.split() for line in (net / "snmp").read_text().splitlines()]
    found = {
        names[0] + name: int(value)
        for names, values in zip(lines[::2], lines[1::2], strict=True)
        for name, value in zip(names[1:], values[1:], strict=True)
    }
    for line in (net / "snmp6").read_text().splitlines():
        name, value = line.split()
        found[name] = int(value)
    return found


_OUTSIDE = (
    "Ip:OutNoRoutes", "Ip6OutNoRoutes", "Udp:OutDatagrams", "Udp6OutDatagrams", "Icmp:OutMsgs",
    "Tcp:AttemptFails",
)  # fmt: skip
"""Counts of what went to nowhere, and of datagrams."""


def outside(pid: int) -> dict[str, int]:
    return {name: counted(pid)[name] for name in _OUTSIDE}


@pytest.fixture
def town(tmp_path: Path, root: Path, plan_value: Make, frame_of: Make) -> Iterator[Commands]:
    plan = Plan.parse(
        plan_value(
            metrics={"source": "gate"},
            training={"rounds": 3},
            sites=[{"name": name, "nominal_size": 40} for name in SITES],
        )
    )
    frames = {name: frame_of(40, number) for number, name in enumerate(SITES)}
    made = Commands(tmp_path, root, plan, frames, apart=can_be_apart())
    yield made
    made.close()


def listens(town: Commands) -> None:
    while "listening" not in town.said("hub"):
        assert town.running["hub"].poll() is None, town.said("hub")
        time.sleep(0.1)


def test_one_connection_and_nothing_else(town: Commands) -> None:
    link = ("127.0.0.1", town.port)
    town.federation.invite("West")  # the port for enrolment is open
    with Watcher() as watcher:
        watcher.add("hub", town.run("hub").pid)
        listens(town)
        watcher.add("North", town.run("North").pid)
        watcher.add("East", town.run("East", metrics=False).pid)
        town.wait(town.submit(), lambda status: status["state"] == "done", 240)
    for who in ("hub", *SITES):
        assert town.running[who].poll() is None
        assert watcher.looks[who] > 20
    assert watcher.destinations() == {"hub": set(), "North": {link}, "East": {link}}
    assert watcher.listening == {
        "hub": {link, ("127.0.0.1", town.enrolment), ("127.0.0.1", town.metrics["hub"])},
        "North": {("127.0.0.1", town.metrics["North"])},
        "East": set(),
    }
    assert watcher.datagrams == {"hub": set(), "North": set(), "East": set()}
    if town.keeper is not None:
        assert set(outside(town.keeper.pid).values()) == {0}, outside(town.keeper.pid)
        # Nobody dialled what was not seen.
        seen = sum(len(found) for found in watcher.dialled.values())
        assert counted(town.keeper.pid)["Tcp:ActiveOpens"] == seen


def test_without_an_invitation_no_port_for_enrolment(town: Commands) -> None:
    with Watcher() as watcher:
        watcher.add("hub", town.run("hub", metrics=False).pid)
        listens(town)
        seen = watcher.looks["hub"]
        while watcher.looks["hub"] < seen + 50:
            time.sleep(0.01)
    assert watcher.listening["hub"] == {("127.0.0.1", town.port)}
    assert watcher.dialled["hub"] == set()


_CHATTER = """
import socket, subprocess, sys, time
with socket.create_server(("127.0.0.1", 0)) as other:
    child = "import socket, time; s = socket.create_connection(('127.0.0.1', %d)); time.sleep(60)"
    started = subprocess.Popen([sys.executable, "-c", child % other.getsockname()[1]])
    name = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    name.connect(("127.0.0.1", 53))
    name.send(b"who is there?")
    time.sleep(60)
"""


def test_a_process_that_calls_elsewhere_is_caught(town: Commands) -> None:
    """The negative control: a child's connection, a port, a question to a name service."""
    with Watcher() as watcher:
        watcher.add("chatter", town.command("chatter", sys.executable, "-c", _CHATTER).pid)
        end = time.monotonic() + 60
        kinds = watcher.listening, watcher.dialled, watcher.datagrams
        while not all(kind["chatter"] for kind in kinds):
            assert time.monotonic() < end, (watcher, town.said("chatter"))
            time.sleep(0.05)
    if town.keeper is not None:
        assert outside(town.keeper.pid)["Udp:OutDatagrams"] == 1


@pytest.mark.skipif(not can_be_apart(), reason="no network namespace can be made here")
def test_an_attempt_to_leave_is_counted(town: Commands) -> None:
    """The negative control of the kernel's counters: it is over before anybody can look."""
    assert town.keeper is not None
    for call in ("socket.create_connection(('192.0.2.1', 443))",
                 "socket.create_connection(('2001:db8::1', 443))"):  # fmt: skip
        before = sum(outside(town.keeper.pid).values())
        assert town.command("leaver", sys.executable, "-c", f"import socket; {call}").wait(60) == 1
        assert "unreachable" in town.said("leaver")
        assert sum(outside(town.keeper.pid).values()) > before
