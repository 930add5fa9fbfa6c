"""What the gates of one site share, so that one thing happens at a time."""

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
    """What the gates of one site share, so that one thing happens at a time.

    Attributes:
        ledger: held by whoever uses ledger, witness or outbox; a trainer at work lets it go.
        order: held from an order's reservation to its release: the ledger has one open
            reservation at a time, and the machine one trainer at work.
        stopping: set once the client is to end; no order begins after it.
        order_ends: when the order that was begun last is too late for its round, on the monotonic
            clock.
        heads: what each coordinator saw of the ledger; whoever uses it holds ``ledger``.
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
            seconds: that a round may take by the plan of the order.

        Raises:
            InputError: if the client is being stopped.
        """
        while not self.order.acquire(timeout=_STOP_INTERVAL_S):
            self._require_going_on()
        try:
            self._require_going_on()
            # And once more after it is said: whoever sets ``stopping`` then reads how long to wait.
            self.order_ends = time.monotonic() + seconds
            self._require_going_on()
            yield
        finally:
            self.order.release()

    def _require_going_on(self) -> None:
        if self.stopping.is_set():
            raise InputError("the client is being stopped: no order is begun")
