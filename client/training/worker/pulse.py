"""Detect a trainer's process that hangs: by its heartbeat, and by a limit on each request.

A thread of the trainer writes the time into memory that it shares with its endpoint, twice a
second. It cannot do so while another thread holds Python's lock (a driver's call that never
returns), nor while the process is stopped. It can during a long step, which runs without the lock.
A process that hangs with a heartbeat (threads that wait for each other) is ended by the limit.
"""

from __future__ import annotations

import mmap
import os
import select
import struct
import tempfile
import time
from pathlib import Path

from privet.common.errors import TrainerLostError
from privet.common.flat import CHUNK

BEAT = 0.5
"""Seconds between two beats."""
_POLL_INTERVAL_S = 0.25
_TIME = struct.Struct("d")


class Pulse:
    """Memory shared by two processes, in which one writes the time of its last beat.

    Args:
        descriptor: of the shared file.
    """

    def __init__(self, descriptor: int) -> None:
        self._memory = mmap.mmap(descriptor, _TIME.size)

    @classmethod
    def make(cls, folder: Path) -> tuple[Pulse, int]:
        """Return a pulse, and a descriptor of its unnamed file for the other process."""
        with tempfile.TemporaryFile(dir=folder) as file:
            file.truncate(_TIME.size)
            pulse = cls(file.fileno())
            pulse.beat()
            return pulse, os.dup(file.fileno())

    def beat(self) -> None:
        """Write the time, as a sign of life."""
        _TIME.pack_into(self._memory, 0, time.monotonic())

    @property
    def last(self) -> float:
        """Time of the last beat, by the machine's monotonic clock."""
        return float(_TIME.unpack_from(self._memory, 0)[0])


class TrainerWatch:
    """Limit one request to a trainer.

    Time is the sum of the intervals between polls, each at most two steps, so that the time during
    which this process itself was stopped does not count.

    Args:
        pulse: of the trainer's process.
        still: seconds without a beat after which the process counts as hanging.
        limit: seconds that the request may take.
    """

    def __init__(self, pulse: Pulse, still: float, limit: float) -> None:
        self._pulse, self._most_still, self._limit = pulse, still, limit
        self._last, self._before = pulse.last, time.monotonic()
        self._still = self._spent = 0.0

    def look(self) -> None:
        """Poll the pulse; call this often while waiting for the answer.

        Raises:
            TrainerLostError: if the process hangs, or takes too long.
        """
        now, last = time.monotonic(), self._pulse.last
        step, self._before = min(now - self._before, 2 * _POLL_INTERVAL_S), now
        self._spent += step
        self._still += step
        if last != self._last:
            self._still = 0.0
        self._last = last
        if self._still > self._most_still:
            raise TrainerLostError(
                f"the trainer hangs: it gave no sign of life for {self._most_still:g} s"
            )
        if self._spent > self._limit:
            raise TrainerLostError(f"the trainer was not done after {self._limit:g} s")


class WatchedTrainer:
    """One end of a pipe to a process that may hang; read and written as a binary file.

    Args:
        descriptor: of the pipe; the caller keeps and closes it.
    """

    def __init__(self, descriptor: int) -> None:
        os.set_blocking(descriptor, False)
        self._descriptor = descriptor
        self.watch: TrainerWatch | None = None

    def read(self, count: int) -> bytes:
        """Return ``count`` bytes, fewer at the end.

        Raises:
            TrainerLostError: if the watch says so.
        """
        data = bytearray()
        while len(data) < count:
            try:
                part = os.read(self._descriptor, min(CHUNK, count - len(data)))
            except BlockingIOError:
                self._wait(select.POLLIN)
                continue
            if not part:
                break
            data += part
        return bytes(data)

    def write(self, data: bytes | memoryview) -> int:
        """Write all of ``data``.

        Raises:
            TrainerLostError: if the watch says so.
            OSError: if the other end is closed.
        """
        left = memoryview(data).cast("B")
        size = len(left)
        while left:
            try:
                left = left[os.write(self._descriptor, left) :]
            except BlockingIOError:
                self._wait(select.POLLOUT)
        return size

    def flush(self) -> None:
        """Do nothing: writes are not buffered."""

    def _wait(self, what: int) -> None:
        if self.watch is not None:
            self.watch.look()
        poll = select.poll()
        poll.register(self._descriptor, what)
        poll.poll(1000 * _POLL_INTERVAL_S)
