"""A federation that is left alone: what a site that falls silent costs the others.

    python campaigns/unattended.py --json           120 rounds each; soaks of 300
    python campaigns/unattended.py --quick          30 rounds each; soaks of 40
    python campaigns/unattended.py --part silence   that alone

Coordinator and sites are processes of their own over TLS on loopback, with a linear model.

- ``round``: two sites, both there; the time of a round.
- ``silent``: three sites with a quorum of two. One of them dials through a proxy that at some time
  passes nothing more and tells nobody: how long both ends take to notice, what the round costs in
  which it happens, and the rounds after it against those of two sites.
- ``soak``: five sites, disturbed all the time (``soak.py``).
"""

from __future__ import annotations

import asyncio
import itertools
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

import soak
from federation_fixture import FederationFixture, follow, plan_for
from harness import Row, finish, parser, row, tell

SITES = ["North", "East", "South"]
_GOAL_ROUND, _GOAL_NOTICED, _GOAL_RATIO = 0.04, 10.0, 1.2
_BEFORE = 5
"""Rounds before a site falls silent."""


class Hold:
    """A proxy on loopback that passes everything, until it passes nothing.

    Args:
        port: of the coordinator.
    """

    def __init__(self, port: int) -> None:
        self._port = port
        self._open = asyncio.Event()
        self._open.set()
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        made = asyncio.start_server(self._pass, "127.0.0.1", 0)
        server = asyncio.run_coroutine_threadsafe(made, self._loop).result()
        self.port = int(server.sockets[0].getsockname()[1])

    def shut(self) -> None:
        """Pass nothing from now on; connections stay open."""
        self._loop.call_soon_threadsafe(self._open.clear)

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there = await asyncio.open_connection("127.0.0.1", self._port)
        except OSError:  # the coordinator is not up yet
            writer.close()
            return
        await asyncio.gather(self._pump(reader, there[1]), self._pump(there[0], writer))

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(1 << 16):
                await self._open.wait()
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.close()


def steps(times: list[float]) -> list[float]:
    """Return how long each round took, but for the first."""
    return [after - before for before, after in itertools.pairwise(times)]


def undisturbed(folder: Path, rounds: int) -> list[float]:
    """Run two sites in peace; return the seconds of each round."""
    federation = FederationFixture(folder, plan_for(SITES[:2], rounds))
    run = federation.submit()
    try:
        federation.start_all()
        return steps(follow(run, federation))
    finally:
        federation.close()


def noticed(log: Path, text: str, since: float, found: dict[str, float]) -> None:
    """Note in ``found`` when a text stands in a log, in seconds after ``since``."""
    already = log.read_text().count(text) if log.exists() else 0
    while log.name not in found and time.monotonic() - since < 120:
        if log.read_text().count(text) > already:
            found[log.name] = time.monotonic() - since
        time.sleep(0.02)


def silenced(folder: Path, rounds: int) -> tuple[list[float], int, dict[str, float]]:
    """Run three sites, and let one fall silent.

    Returns:
        The seconds of each round but the first, the place of that in which it fell silent, and
        the seconds until coordinator and site noticed, by their logs.
    """
    plan = plan_for(SITES, rounds, strategy={"min_sites": 2})
    federation = FederationFixture(folder, plan)
    proxy = Hold(federation.port)
    federation.redirect(SITES[2], proxy.port)
    run = federation.submit()
    found: dict[str, float] = {}
    fell: list[int] = []
    watchers: list[threading.Thread] = []

    def note(done: int) -> None:
        if done < _BEFORE or fell:
            return
        proxy.shut()
        fell.append(done)
        now = time.monotonic()
        for log, text in (("hub.log", "nothing is heard of a site"), ("South.log", "cut off")):
            given = (federation.folder / log, text, now, found)
            watchers.append(threading.Thread(target=noticed, args=given))
            watchers[-1].start()

    try:
        federation.start_all()
        times = follow(run, federation, note=note)
        for watcher in watchers:
            watcher.join()
    finally:
        federation.close()
    return steps(times), fell[0], found


def measure(folder: Path, rounds: int) -> list[Row]:
    """Return the rows of rounds and silence."""
    tell(f"{rounds} rounds of two sites …")
    calm = undisturbed(folder / "calm", rounds)
    tell(f"{rounds} rounds of three sites, of which one falls silent …")
    after, fell, found = silenced(folder / "silent", rounds)
    tell(f"{rounds} rounds of two sites …")
    calm += undisturbed(folder / "calm again", rounds)
    two = statistics.median(calm)
    # Two rounds may touch the moment in which it happened: that in which it fell silent is long.
    first = max(after[fell - 1 : fell + 1])
    rest = statistics.median(after[fell + 1 :])
    worst = max(after[fell + 1 :])
    return [
        row("round of a linear model, 2 sites", two, "s", "goal", _GOAL_ROUND),
        row("noticed by the coordinator", found["hub.log"], "s", "goal", _GOAL_NOTICED),
        row("noticed by the site", found["South.log"], "s", "goal", _GOAL_NOTICED),
        row("round in which one of three falls silent", first, "s", None, None),
        row("rounds after it, against two sites", rest, "s", "two sites", two, goal=_GOAL_RATIO),
        row("longest of them", worst, "s", "longest of two sites", max(calm)),
    ]


def silence(folder: Path, quick: bool) -> list[Row]:
    """Return the rows of a site that falls silent."""
    return measure(folder, 30 if quick else 120)


PARTS: dict[str, Callable[[Path, bool], list[Row]]] = {"silence": silence, "soak": soak.measure}
"""What is run, each in a folder of its own."""


def main() -> None:
    """Run the benchmark."""
    asked = parser(__doc__)
    asked.add_argument("--part", choices=PARTS, action="append", help="only these parts")
    args = asked.parse_args()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        for name in args.part or PARTS:
            rows += PARTS[name](Path(folder) / name, args.quick)

    def line(one: Row) -> str:
        against = f"  {one['ratio']:.2f} × {one['peer']}" if one["ratio"] else ""
        return f"{one['name']:<45} {one['value']:8.3f} {one['unit']}{against}"

    finish(rows, args.json, line)


if __name__ == "__main__":
    main()
