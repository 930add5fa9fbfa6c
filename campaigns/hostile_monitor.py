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

MAX_GROWTH = 20.0
"""MB by which a process may have grown from after the warm-up to the end."""
MAX_GAP = 15.0
"""Seconds between two honest answers; an honest site dials anew now and then."""
MAX_FILES, MAX_THREADS = 5, 8
"""How many more there may be at the end than before; gRPC's own threads come and go."""


@dataclass(frozen=True)
class Sample:
    """One sample: memory in MB (unique to the process), descriptors, threads."""

    requests: int
    memory: float
    files: int
    threads: int


@dataclass
class ProcessMonitor:
    """Samples a process every half second, in a thread.

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
            if (sample := self.sample()) is None:
                self.died = True
                return
            self.samples.append(sample)

    def sample(self) -> Sample | None:
        """Take a sample now; None if the process is gone."""
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
        """Stop."""
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
            sample = self.sample()
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
    monitor: ProcessMonitor,
    before: Sample,
    warm: Sample,
    wrong: dict[str, int],
    left: int,
    traffic: Any,
    unhandled: tuple[str, ...] = ("Traceback",),
    max_growth: float = MAX_GROWTH,
) -> Verdict:
    """Judge what was seen.

    Args:
        monitor: of the process, stopped.
        before: a sample before the first request.
        warm: a sample after the warm-up.
        wrong: answers that must not be, by who got them.
        left: spool files at the end.
        traffic: honest messages: asked, answered, lost, wrong, and the longest gap in seconds.
        unhandled: what its log must not have.
        max_growth: MB by which it may have grown since the warm-up.
    """
    end = monitor.sample()
    late = [s for s in monitor.samples if s.requests >= monitor.requests / 2]
    slope = 0.0
    if len({s.requests for s in late}) > 2:
        numbers = [s.requests for s in late]
        slope = statistics.linear_regression(numbers, [s.memory for s in late]).slope * 10_000
    text = monitor.log.read_text(errors="replace") if monitor.log.exists() else ""
    gone = monitor.died or end is None
    now = end or Sample(0, float("inf"), 1 << 20, 1 << 20)
    waiting = traffic.get("asked", 0) - traffic.get("answered", 0) - traffic.get("lost", 0)
    rows: list[tuple[str, float, str, float | None]] = [
        ("requests", monitor.requests, "requests", None),
        ("crashes", float(gone), "processes", 0),
        ("errors that nothing handled", sum(map(text.count, unhandled)), "errors", 0),
        *((f"wrong answers, {who}", count, "answers", 0) for who, count in sorted(wrong.items())),
        ("honest messages", traffic.get("asked", 0), "messages", None),
        ("honest messages unanswered", traffic.get("lost", 0) + max(0, waiting - 2), "messages", 0),
        ("honest messages answered wrongly", traffic.get("wrong", 0), "messages", 0),
        ("longest time without an honest answer", round(traffic.get("gap", 0), 1), "s", MAX_GAP),
        ("memory after the warm-up", round(warm.memory, 1), "MB", None),
        ("memory growth", round(now.memory - warm.memory, 1), "MB", max_growth),
        ("memory, most", round(max([s.memory for s in monitor.samples], default=0), 1), "MB", None),
        ("slope over the last half", round(slope, 2), "MB per 10,000 requests", None),
        ("file descriptors left", now.files - before.files, "descriptors", MAX_FILES),
        ("threads left", now.threads - warm.threads, "threads", MAX_THREADS),
        ("spool files left", left, "files", 0),
        ("log", round(len(text) / max(1, monitor.requests), 1), "bytes per request", None),
    ]
    return Verdict(rows)
