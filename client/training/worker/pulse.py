"""Whether the trainer's process is alive: it beats, and what it is asked has a limit.

A thread of the trainer writes the time into memory that it shares with its gate, twice a second.
It cannot while another thread holds Python's lock (a call into a driver that does not come back),
nor while the process is stopped; it can while a step takes long, which runs without the lock.
What hangs and beats all the same (threads that wait for each other) is ended by the limit.
"""

from __future__ import annotations

import mmap
import os
import select
import struct
import tempfile
import time
from pathlib import Path

from privet.common.errors import TrainerLost
from privet.common.flat import CHUNK

BEAT = 0.5
"""Seconds between two beats."""
_STEP = 0.25
_TIME = struct.Struct("d")


class Pulse:
    """Memory of two processes, in which one writes when it beat last.

    Args:
        descriptor: of the file, as the other process has it.
    """

    def __init__(self, descriptor: int) -> None:
        self._memory = mmap.mmap(descriptor, _TIME.size)

    @classmethod
    def make(cls, folder: Path) -> tuple[Pulse, int]:
        """Return a pulse and a descriptor of its file, which has no name, for another process."""
        with tempfile.TemporaryFile(dir=folder) as file:
            file.truncate(_TIME.size)
            pulse = cls(file.fileno())
            pulse.beat()
            return pulse, os.dup(file.fileno())

    def beat(self) -> None:
        """Write that this process is alive."""
        _TIME.pack_into(self._memory, 0, time.monotonic())

    @property
    def last(self) -> float:
        """When it was written last, by the clock of this machine's processes."""
        return float(_TIME.unpack_from(self._memory, 0)[0])


class TrainerWatch:
    """Looks after one question.

    Time is counted in looks: where this process was stopped too, it does not count.

    Args:
        pulse: of the process that was asked.
        still: seconds without a beat after which it hangs.
        limit: seconds that the question may take.
    """

    def __init__(self, pulse: Pulse, still: float, limit: float) -> None:
        self._pulse, self._most_still, self._limit = pulse, still, limit
        self._last, self._before = pulse.last, time.monotonic()
        self._still = self._spent = 0.0

    def look(self) -> None:
        """Look; often, while it is waited for.

        Raises:
            TrainerLost: if the process hangs, or takes too long.
        """
        now, last = time.monotonic(), self._pulse.last
        step, self._before = min(now - self._before, 2 * _STEP), now
        self._spent += step
        self._still = self._still + step if last == self._last else 0.0
        self._last = last
        if self._still > self._most_still:
            raise TrainerLost(
                f"the trainer hangs: it gave no sign of life for {self._most_still:g} s"
            )
        if self._spent > self._limit:
            raise TrainerLost(f"the trainer was not done after {self._limit:g} s")


class WatchedTrainer:
    """One end of a pipe to a process that may hang; read and written as a binary file.

    Args:
        descriptor: of the pipe; it stays with whoever opened it.
    """

    def __init__(self, descriptor: int) -> None:
        os.set_blocking(descriptor, False)
        self._descriptor = descriptor
        self.watch: TrainerWatch | None = None

    def read(self, count: int) -> bytes:
        """Return ``count`` bytes, fewer at the end.

        Raises:
            TrainerLost: by the watch.
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
            TrainerLost: by the watch.
            OSError: if nobody reads.
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
        """Nothing is held back."""

    def _wait(self, what: int) -> None:
        if self.watch is not None:
            self.watch.look()
        poll = select.poll()
        poll.register(self._descriptor, what)
        poll.poll(1000 * _STEP)
