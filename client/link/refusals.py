"""A site's refusals: a neutral log line for each order and offer, and the last of them on disk.

A line names run, round and attempt, and the status that the coordinator received. The reason is in
the operator's log and nowhere else: it may speak of records (H30).
"""

from __future__ import annotations

import json
import logging
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from privet.common.canonical import write_json
from privet.common.order import Order, Status

_LOG = logging.getLogger("privet.site")
_FILE = "refusals.json"


@dataclass(frozen=True)
class Refusals:
    """The last order without a release, and the offer for which the site is not ready.

    Args:
        home: folder of the site.
    """

    home: Path

    def note_order(self, order: Order, status: Status) -> None:
        """Log an order without a release, and store it as the last one; do nothing for a release.

        Args:
            order: that was answered.
            status: of the answer.
        """
        if status is Status.RELEASED:
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

    def note_ready(self) -> None:
        """Remove the stored offer: the site is ready for it."""
        if self.read()["offer"] is not None:
            self._keep(offer=None)

    def read(self) -> dict[str, dict[str, Any] | None]:
        """Return ``last_order`` and ``offer`` in JSON values, each None if there is none."""
        try:
            value = json.loads((self.home / _FILE).read_text(encoding="utf-8"))
            found = {name: value.get(name) for name in ("last_order", "offer")}
        except (OSError, ValueError, AttributeError):
            found = {"last_order": None, "offer": None}
        return {name: one if isinstance(one, dict) else None for name, one in found.items()}

    def _keep(self, **facts: dict[str, Any] | None) -> None:
        with suppress(OSError):  # the line was logged; a full disk must not change an answer
            write_json(self.home / _FILE, {**self.read(), **facts})
