"""Count the traffic over the coordinator's end of the link."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

REASONS = (
    "not-a-member", "too-many-calls", "malformed", "version", "not-offered", "out-of-step",
    "stalled", "unread", "disk",
)  # fmt: skip
"""Why a call is refused. ``not-offered``: numbers that are not this site's to fetch or to bring;
``out-of-step``: an upload that continues from another byte than the coordinator holds; ``stalled``:
it stood still; ``unread``: the members cannot be read; ``disk``: it took no more."""


@dataclass
class LinkCounters:
    """Traffic since the link server was made; its loop writes the counts, any thread may read them.

    Attributes:
        late: answers that arrived late, twice, or to no request, by site.
        streams: streams that a site opened, by site.
        received, sent: bytes of messages, without the bytes of gRPC and TLS, by site.
        refused: calls that were refused, by reason (of :data:`REASONS`).
    """

    late: Counter[str] = field(default_factory=Counter)
    streams: Counter[str] = field(default_factory=Counter)
    received: Counter[str] = field(default_factory=Counter)
    sent: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
