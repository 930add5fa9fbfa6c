"""Detect two processes with one certificate, such as those of a copied folder.

A site's newest stream ends the one before it. If one process lost its stream and calls again, this
happens once. If two processes call, each ends the other's stream again and again.
"""

from __future__ import annotations

import logging
import time
from collections import deque

_LOG = logging.getLogger("privet.link")

_WINDOW_S = 900.0
_MIN_REPLACEMENTS = 3
_REPEAT_WARNING_S = 60.0


class Twins:
    """Note which stream replaces which; the link server's loop writes, any thread may read."""

    def __init__(self) -> None:
        self._seen: dict[str, deque[tuple[float, str, str]]] = {}
        self._said: dict[str, float] = {}

    def note(self, site: str, older: str, newer: str) -> None:
        """Note that a site's new stream replaced a living one; warn if two processes alternate.

        Args:
            site: name of the member.
            older: address from which the replaced stream came.
            newer: address from which the new stream came.
        """
        now = time.monotonic()
        self._seen.setdefault(site, deque(maxlen=_MIN_REPLACEMENTS)).append((now, older, newer))
        if self.peers(site) and now - self._said.get(site, -_REPEAT_WARNING_S) >= _REPEAT_WARNING_S:
            self._said[site] = now
            text = (
                "two processes attend as one site and end each other's streams: a second client, "
                "or a copy of its folder. Have its operator stop one"
            )
            _LOG.warning(text, extra={"site": site, "peers": ", ".join((older, newer))})

    def peers(self, site: str) -> list[str]:
        """Return the addresses of two processes that connect as ``site``, or an empty list."""
        seen = tuple(self._seen.get(site, ()))
        if len(seen) < _MIN_REPLACEMENTS or time.monotonic() - seen[0][0] > _WINDOW_S:
            return []
        return [seen[-1][1], seen[-1][2]]

    @property
    def all(self) -> dict[str, list[str]]:
        """The sites as which two processes connect, with the processes' addresses."""
        return {site: peers for site in tuple(self._seen) if (peers := self.peers(site))}
