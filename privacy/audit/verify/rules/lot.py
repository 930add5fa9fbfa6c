"""Which sites the lot names to cosign a log, from what the journal has."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable


def drawn(
    run: str, number: int, log: str, heads: Iterable[tuple[str, int, str]], sites: Iterable[str]
) -> list[str]:
    """Return sites in the order of the lot.

    Args:
        run: identifier of the run.
        number: of the round.
        log: whose witnesses are named.
        heads: log, size and root of the other sites' logs, as the round before had them.
        sites: that may be named.
    """
    said = ["privet/lot/v1", run, number, log, sorted([*head] for head in heads)]
    text = json.dumps(said, ensure_ascii=False, separators=(",", ":"))
    seed = hashlib.sha256(text.encode()).digest()
    return sorted(sites, key=lambda site: hashlib.sha256(seed + site.encode()).digest())
