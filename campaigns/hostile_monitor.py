"""Watches a process from outside, and says what became of it."""

from __future__ import annotations

import os
import signal
import statistics
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

MOST_GROWTH = 20.0
"""MB by which a process may have grown from after the warm-up to the end."""
MOST_GAP = 15.0
"""Seconds between two honest answers; an honest site dials anew now and then."""
MOST_FILES, MOST_THREADS = 5, 8
"""How many more there may be at the end than before; gRPC's own threads come and go."""


@dataclass(frozen=True)
class Sample:
    """One look: memory in MB (unique to the process), descriptors, threads."""

    requests: int
    memory: float
    files: int
    threads: int


@dataclass
class Watch:
    """Looks at a process every half second, in a thread.

    Args:
        pid: of the process.
        log: where it writes.
    """

    pid: int
    log: Path
    requests: int = 0
    samples: list[Sample] = field(default_factory=list)
    died: bool = False

    def __post_init__(self) -> None:
        self._process = psutil.Process(self.pid)
        self._born = self._process.create_time()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.wait(0.5):
            if (sample := self.look()) is None:
                self.died = True
                return
            self.samples.append(sample)

    def look(self) -> Sample | None:
        """Look now; None if the process is gone."""
        try:
            alive = self._process.status() != psutil.STATUS_ZOMBIE
            if not alive or self._process.create_time() != self._born:
                return None
            memory = self._process.memory_full_info().uss / 1e6
            files, threads = self._process.num_fds(), self._process.num_threads()
        except psutil.Error:
            return None
        return Sample(self.requests, memory, files, threads)

    def stop(self) -> None:
        """Look no more."""
        self._stop.set()
        self._thread.join()

    def tidy(self) -> None:
        """Have a victim give back what is free: what an allocator keeps is no leak."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGUSR1)
        time.sleep(2)

    def calm(self, seconds: float, files: int) -> None:
        """Wait until the process has let go of its connections, at most ``seconds``."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            sample = self.look()
            if sample is None or sample.files <= files:
                return
            time.sleep(0.5)


@dataclass(frozen=True)
class Verdict:
    """What a campaign came to; a row each, with a goal or without."""

    rows: list[tuple[str, float, str, float | None]]

    @property
    def failed(self) -> list[str]:
        """The rows that miss their goals."""
        return [name for name, value, _, goal in self.rows if goal is not None and value > goal]


def verdict(
    watch: Watch,
    before: Sample,
    warm: Sample,
    wrong: dict[str, int],
    left: int,
    traffic: Any,
    unhandled: tuple[str, ...] = ("Traceback",),
    most_growth: float = MOST_GROWTH,
) -> Verdict:
    """Judge what was seen.

    Args:
        watch: of the process, stopped.
        before: a look before the first request.
        warm: a look after the warm-up.
        wrong: answers that must not be, by who got them.
        left: spool files at the end.
        traffic: honest messages: asked, answered, lost, wrong, and the longest gap in seconds.
        unhandled: what its log must not have.
        most_growth: MB by which it may have grown since the warm-up.
    """
    end = watch.look()
    late = [s for s in watch.samples if s.requests >= watch.requests / 2]
    slope = 0.0
    if len({s.requests for s in late}) > 2:
        numbers = [s.requests for s in late]
        slope = statistics.linear_regression(numbers, [s.memory for s in late]).slope * 10_000
    text = watch.log.read_text(errors="replace") if watch.log.exists() else ""
    gone = watch.died or end is None
    now = end or Sample(0, float("inf"), 1 << 20, 1 << 20)
    waiting = traffic.get("asked", 0) - traffic.get("answered", 0) - traffic.get("lost", 0)
    rows: list[tuple[str, float, str, float | None]] = [
        ("requests", watch.requests, "requests", None),
        ("crashes", float(gone), "processes", 0),
        ("errors that nothing handled", sum(map(text.count, unhandled)), "errors", 0),
        *((f"wrong answers, {who}", count, "answers", 0) for who, count in sorted(wrong.items())),
        ("honest messages", traffic.get("asked", 0), "messages", None),
        ("honest messages unanswered", traffic.get("lost", 0) + max(0, waiting - 2), "messages", 0),
        ("honest messages answered wrongly", traffic.get("wrong", 0), "messages", 0),
        ("longest time without an honest answer", round(traffic.get("gap", 0), 1), "s", MOST_GAP),
        ("memory after the warm-up", round(warm.memory, 1), "MB", None),
        ("memory growth", round(now.memory - warm.memory, 1), "MB", most_growth),
        ("memory, most", round(max([s.memory for s in watch.samples], default=0), 1), "MB", None),
        ("slope over the last half", round(slope, 2), "MB per 10,000 requests", None),
        ("file descriptors left", now.files - before.files, "descriptors", MOST_FILES),
        ("threads left", now.threads - warm.threads, "threads", MOST_THREADS),
        ("spool files left", left, "files", 0),
        ("log", round(len(text) / max(1, watch.requests), 1), "bytes per request", None),
    ]
    return Verdict(rows)
