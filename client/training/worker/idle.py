"""End a trainer that has been idle for a while, so that it holds no records needlessly."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


class IdleWatch:
    """Call ``end`` if :meth:`touch` was not called for a while; try again while it returns False.

    Args:
        limit_s: seconds without a touch.
        end: ends the idle object; returns False if it is busy after all.
    """

    def __init__(self, limit_s: float, end: Callable[[], bool]) -> None:
        self._limit_s = limit_s
        self._end = end
        self._last = time.monotonic()
        self._stopped = threading.Event()
        threading.Thread(target=self._watch, daemon=True).start()

    def touch(self) -> None:
        """Start the time again."""
        self._last = time.monotonic()

    @property
    def is_due(self) -> bool:
        """Whether the time since the last touch has reached the limit."""
        return time.monotonic() - self._last >= self._limit_s

    def stop(self) -> None:
        """Stop watching."""
        self._stopped.set()

    def _watch(self) -> None:
        while not self._stopped.wait(max(0.05, self._last + self._limit_s - time.monotonic())):
            if self.is_due and self._end():
                return
