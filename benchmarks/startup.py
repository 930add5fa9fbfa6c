"""How long a person waits: for help, for the first import, for the first round.

    python benchmarks/startup.py
    python benchmarks/startup.py --quick --json

The peer of ``privet --help`` is ``flwr --help``, run in turn with it.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from harness import Row, finish, parser, row, tell

_BIN = Path(sys.executable).parent


def seconds(*command: str) -> float:
    """Return how long a command takes from start to end."""
    started = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - started


def in_turn(mine: list[str], peer: list[str], times: int) -> tuple[float, float]:
    """Return the medians of two commands run in turn."""
    pairs = [(seconds(*mine), seconds(*peer)) for _ in range(times)]
    return statistics.median(p[0] for p in pairs), statistics.median(p[1] for p in pairs)


def first_round() -> float:
    """Return the time from start to the end of the first round of the main job."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            str(_BIN / "privet"), "simulate", "lending", "--rounds", "1", "--out", f"{folder}/run",
        ]  # fmt: skip
        started = time.perf_counter()
        process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
        assert process.stderr is not None
        waited = 0.0
        for line in process.stderr:
            if line.startswith(b"round 1/"):
                waited = time.perf_counter() - started
        if process.wait() or not waited:
            raise SystemExit("the main job failed")
        return waited


def main() -> None:
    options = parser(__doc__).parse_args()
    times = 1 if options.quick else 7
    tell("help")
    helped, peer = in_turn([str(_BIN / "privet"), "--help"], [str(_BIN / "flwr"), "--help"], times)
    tell("import")
    imported, _ = in_turn(
        [sys.executable, "-c", "import privet"], [sys.executable, "-c", ""], times
    )
    tell("first round")
    rounds = [first_round() for _ in range(1 if options.quick else 3)]
    rows: list[Row] = [
        row("privet --help", helped, "s", "flwr --help", peer, goal=0.5),
        row("import privet", imported, "s", None, None, goal=0.3),
        row(
            "simulate lending --rounds 1, first round",
            statistics.median(rounds), "s", None, None, goal=15.0,
        ),
    ]  # fmt: skip
    finish(rows, options.json, _line)


def _line(item: Row) -> str:
    peer = f"  {item['peer']} {item['peer_value']:.2f} s" if item["peer"] else ""
    return f"{item['name']:42} {item['value']:.2f} s (goal {item['goal']:g}){peer}"


if __name__ == "__main__":
    main()
