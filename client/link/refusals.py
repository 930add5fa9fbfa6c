"""A site's refusals: a neutral log line for each order and offer, and the last of them on disk.

A line names run, round and attempt, and the status that the coordinator received. The reason is in
the operator's log and nowhere else: it may contain data of records (H30).
"""

from __future__ import annotations

import json
import logging
import os
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from privet.common.canonical import write_json
from privet.common.order import Order, Status

_LOG = logging.getLogger("privet.site")
_FILE = "refusals.json"
OFFER_GOES_S = 180.0
"""Seconds after which an offer that is not repeated counts as gone: its run ended, or nobody asks.

A coordinator repeats it each second, and for a minute at a time where several runs wait.
"""


@dataclass(frozen=True)
class Refusals:
    """The last order without a release, and the offer for which the site is not ready.

    Args:
        home: folder of the site.
    """

    home: Path

    def note_order(self, order: Order, status: Status) -> None:
        """Log an order without a release, and store it as the last one.

        A release removes a stored order that was answered with "not now": that state has passed.

        Args:
            order: that was answered.
            status: of the answer.
        """
        if status is Status.RELEASED:
            last = self.read()["last_order"]
            if last is not None and last.get("status") == Status.NOT_NOW:
                self._keep(last_order=None)
            return
        about = {
            "run": order.run,
            "purpose": order.purpose,
            "round": order.round,
            "attempt": order.attempt,
            "status": str(status),
        }
        _LOG.warning("an order got no release", extra=about)
        self._keep(last_order={**about, "time": int(time.time())})

    def note_offer(self, plan: str, status: Status) -> None:
        """Store the offer for which the site is not ready.

        Args:
            plan: digest of the offered plan.
            status: of the answer.
        """
        self._keep(offer={"plan": plan, "status": str(status), "time": int(time.time())})

    def note_repeated(self) -> None:
        """Note that the coordinator repeated the offer for which the site is not ready."""
        with suppress(OSError):
            os.utime(self.home / _FILE)

    def note_ready(self) -> None:
        """Remove the stored offer: the site is ready for it."""
        if self.read()["offer"] is not None:
            self._keep(offer=None)

    def read(self) -> dict[str, dict[str, Any] | None]:
        """Return ``last_order`` and ``offer`` in JSON values, each None if there is none.

        An offer that is no longer repeated counts as none, unless the ledger is too old for it.
        """
        path = self.home / _FILE
        found: dict[str, dict[str, Any] | None] = {"last_order": None, "offer": None}
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
            kept = [(name, value.get(name)) for name in found]
            still = time.time() - path.stat().st_mtime <= OFFER_GOES_S
        except (OSError, ValueError, AttributeError):
            return found
        found.update((name, one) for name, one in kept if isinstance(one, dict))
        offer = found["offer"]
        if offer is not None and not still and offer.get("status") != Status.REFUSED_ROLLBACK:
            found["offer"] = None
        return found

    def _keep(self, **facts: dict[str, Any] | None) -> None:
        with suppress(OSError):  # the line was logged; a full disk must not change an answer
            write_json(self.home / _FILE, {**self.read(), **facts})
