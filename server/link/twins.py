"""Two processes with one certificate, such as those of a folder that was copied.

A site's newest stream ends the one before it. A site that was cut and calls again is ended so once;
where two processes call, each ends the other's, again and again.
"""

from __future__ import annotations

import logging
import time
from collections import deque

_LOG = logging.getLogger("privet.hub")

_WINDOW = 900.0
_ENOUGH = 3
_SAY_AGAIN = 60.0


class Twins:
    """Notes who replaces whom; written in the hub's loop, read anywhere."""

    def __init__(self) -> None:
        self._seen: dict[str, deque[tuple[float, str, str]]] = {}
        self._said: dict[str, float] = {}

    def note(self, site: str, older: str, newer: str) -> None:
        """Note that a site's stream from ``newer`` replaced a living one from ``older``."""
        now = time.monotonic()
        self._seen.setdefault(site, deque(maxlen=_ENOUGH)).append((now, older, newer))
        if self.peers(site) and now - self._said.get(site, -_SAY_AGAIN) >= _SAY_AGAIN:
            self._said[site] = now
            text = (
                "two processes attend as one site and end each other's streams: a second client, "
                "or a copy of its folder. Have its operator stop one"
            )
            _LOG.warning(text, extra={"site": site, "peers": ", ".join((older, newer))})

    def peers(self, site: str) -> list[str]:
        """Return the addresses of two processes that attend as ``site``, or nothing."""
        seen = tuple(self._seen.get(site, ()))
        if len(seen) < _ENOUGH or time.monotonic() - seen[0][0] > _WINDOW:
            return []
        return [seen[-1][1], seen[-1][2]]

    @property
    def all(self) -> dict[str, list[str]]:
        """The sites as which two processes attend, with their addresses."""
        return {site: peers for site in tuple(self._seen) if (peers := self.peers(site))}
