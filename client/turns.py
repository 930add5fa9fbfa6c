"""What the gates of one site share, so that one thing happens at a time."""

from __future__ import annotations

import threading
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
        heads: what each coordinator saw of the ledger; whoever uses it holds ``ledger``.
    """

    ledger: threading.Lock = field(default_factory=threading.Lock)
    order: threading.Lock = field(default_factory=threading.Lock)
    stopping: threading.Event = field(default_factory=threading.Event)
    heads: NewestHeads = field(default_factory=NewestHeads)

    @contextmanager
    def for_order(self) -> Iterator[None]:
        """Wait until no other coordinator's order is being answered.

        Raises:
            InputError: if the client is being stopped.
        """
        while not self.order.acquire(timeout=_STOP_INTERVAL_S):
            self._require_going_on()
        try:
            self._require_going_on()
            yield
        finally:
            self.order.release()

    def _require_going_on(self) -> None:
        if self.stopping.is_set():
            raise InputError("the client is being stopped: no order is begun")
