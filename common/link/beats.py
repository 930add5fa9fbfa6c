"""Heartbeats: decide whether the other end of a stream is there, by its silence.

A ping of HTTP/2 waits behind the bytes that were written before it, on a slow line longer than any
useful time limit for its answer: a transfer would be cut again and again. Incoming messages do not
wait. While one end sends arrays, its pieces are signs of life, and the other direction is free for
the other end's heartbeats.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

BEAT = 2.0
"""Seconds between two beats."""
SILENCE = 6.0
"""Seconds in which something should have come."""
PIECE = 30.0
"""The same while numbers come, which is seen by the megabyte."""
MAX_INTERVAL_S = 60.0
_TICK_S = 1.0

REPLACED = "another process attends as this site: "
"""How the end of a stream begins that a newer one of the same site has replaced."""


async def until_silent(heard: Callable[[], int], limit: Callable[[], float]) -> None:
    """Return once nothing was received for some time.

    Time is counted in polls. A process that was stopped for a minute has polled once since then,
    and reads the waiting messages before it polls again.

    Args:
        heard: returns a number that grows with each message received.
        limit: returns the seconds of silence after which the other end counts as gone.
    """
    before, still = heard(), 0.0
    while still < limit():
        await asyncio.sleep(_TICK_S)
        now = heard()
        still += _TICK_S
        if now != before:
            before, still = now, 0.0


class Patience:
    """The allowed time of silence, which grows after each false alarm.

    An alarm was false if the other end is back at once: its line is slow, not dead.
    """

    def __init__(self) -> None:
        self.seconds = SILENCE
        self._alarm = -MAX_INTERVAL_S

    def gave_up(self, now: float) -> None:
        """Note an alarm."""
        self._alarm = now

    def is_back(self, now: float) -> None:
        """Note a new stream."""
        if now - self._alarm < BEAT:
            self.seconds = min(2 * self.seconds, MAX_INTERVAL_S)
