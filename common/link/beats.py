"""Whether the other end of a stream is there: who says nothing at all is gone.

A ping of HTTP/2 waits behind what was written before it, on a slow line for longer than any time
within which its answer could be asked for: a transfer would be cut again and again. What comes in
does not wait: while one end brings numbers, its pieces say that it is there, and the other way is
free for the beats of the other end.
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
LONGEST = 60.0
_TICK = 1.0

REPLACED = "another process attends as this site: "
"""How the end of a stream begins that a newer one of the same site has replaced."""


async def until_silent(heard: Callable[[], int], limit: Callable[[], float]) -> None:
    """Return once nothing came for some time.

    Time is counted in looks. A process that was stopped for a minute has looked once since, and
    reads what is waiting for it before it looks again.

    Args:
        heard: grows with what comes.
        limit: seconds without anything.
    """
    before, still = heard(), 0.0
    while still < limit():
        await asyncio.sleep(_TICK)
        now = heard()
        still = 0.0 if now != before else still + _TICK
        before = now


class Patience:
    """For how long silence is borne: for longer after each alarm that was false.

    An alarm was false if who was given up is back at once: its line is slow, not dead.
    """

    def __init__(self) -> None:
        self.seconds = SILENCE
        self._alarm = -LONGEST

    def gave_up(self, now: float) -> None:
        """Note an alarm."""
        self._alarm = now

    def is_back(self, now: float) -> None:
        """Note a new stream."""
        if now - self._alarm < BEAT:
            self.seconds = min(2 * self.seconds, LONGEST)
