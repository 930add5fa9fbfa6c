"""Ends a trainer that nobody has asked for a while, so that it holds no records for nothing."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


class IdleWatch:
    """Calls ``end`` when :meth:`touch` was not called for a while; again, while it says no.

    Args:
        limit_s: seconds without a touch.
        end: ends what is idle; returns False where it is not, after all.
    """

    def __init__(self, limit_s: float, end: Callable[[], bool]) -> None:
        self._limit_s = limit_s
        self._end = end
        self._last = time.monotonic()
        self._stopped = threading.Event()
        threading.Thread(target=self._watch, daemon=True).start()

    def touch(self) -> None:
        """Begin to count anew."""
        self._last = time.monotonic()

    @property
    def is_due(self) -> bool:
        """Whether nothing touched it for as long as is allowed."""
        return time.monotonic() - self._last >= self._limit_s

    def stop(self) -> None:
        """Watch no longer."""
        self._stopped.set()

    def _watch(self) -> None:
        while not self._stopped.wait(max(0.05, self._last + self._limit_s - time.monotonic())):
            if self.is_due and self._end():
                return
