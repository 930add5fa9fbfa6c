"""Serialise the work of a site's endpoints, which share one ledger and one machine."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from privet.client.newest_head import NewestHeads
from privet.common.errors import InputError

_STOP_INTERVAL_S = 0.5


@dataclass
class Turns:
    """The locks and facts that the endpoints of one site share.

    Attributes:
        ledger: held while ledger, witness or outbox is used; a trainer at work releases it.
        order: held from an order's reservation to its release: the ledger has one open reservation
            at a time, and the machine one trainer at work.
        stopping: set once the client is stopping; no order begins after it.
        order_ends: time on the monotonic clock from which the last order's answer is too late for
            its round.
        heads: the heads that each coordinator saw of the ledger; hold ``ledger`` to use it.
    """

    ledger: threading.Lock = field(default_factory=threading.Lock)
    order: threading.Lock = field(default_factory=threading.Lock)
    stopping: threading.Event = field(default_factory=threading.Event)
    order_ends: float = 0.0
    heads: NewestHeads = field(default_factory=NewestHeads)

    @contextmanager
    def for_order(self, seconds: float = 0.0) -> Iterator[None]:
        """Wait until no other coordinator's order is being answered.

        Args:
            seconds: longest time of a round, by the order's plan.

        Raises:
            InputError: if the client is being stopped.
        """
        while not self.order.acquire(timeout=_STOP_INTERVAL_S):
            self._require_going_on()
        try:
            # Again: the client may have been stopped while this waited for the lock.
            self._require_going_on()
            # And once more after `order_ends` is set: the signal handler sets `stopping`, and then
            # reads from it how long to wait.
            self.order_ends = time.monotonic() + seconds
            self._require_going_on()
            yield
        finally:
            self.order.release()

    def _require_going_on(self) -> None:
        if self.stopping.is_set():
            raise InputError("the client is being stopped: no order is begun")
