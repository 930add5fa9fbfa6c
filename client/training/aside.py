"""Let a trainer work while other threads of its site have their turn."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from privet.client.training.protocol import TrainerOutput, TrainerProtocol
from privet.common.flat import Arrays
from privet.common.order import Order
from privet.privacy.accounting.events import Event


class Aside:
    """A :class:`~privet.client.training.protocol.TrainerProtocol` that works without its site's
    lock.

    Args:
        training: does the work.
        turn: held by the caller; it is released until the trainer answers, and then taken again.
    """

    def __init__(self, training: TrainerProtocol, turn: threading.Lock) -> None:
        self._training, self._turn = training, turn

    @contextmanager
    def _aside(self) -> Iterator[None]:
        # Free while the trainer works: the site still answers questions about its log.
        self._turn.release()
        try:
            yield
        finally:
            self._turn.acquire()

    @property
    def event(self) -> Event:
        """The event of a training release; it follows from the plan alone."""
        return self._training.event

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """See :class:`~privet.client.training.protocol.TrainerProtocol`."""
        with self._aside():
            return self._training.shapes()

    def begins(self) -> str:
        """See :class:`~privet.client.training.protocol.TrainerProtocol`."""
        with self._aside():
            return self._training.begins()

    def self_test(self) -> tuple[str, ...]:
        """See :class:`~privet.client.training.protocol.TrainerProtocol`."""
        with self._aside():
            return self._training.self_test()

    def require_source(self) -> None:
        """See :class:`~privet.client.training.protocol.TrainerProtocol`."""
        with self._aside():
            self._training.require_source()

    def release(self, order: Order, model: Arrays) -> TrainerOutput:
        """See :class:`~privet.client.training.protocol.TrainerProtocol`.

        Args:
            order: to train or to evaluate.
            model: that came with the order.
        """
        with self._aside():
            return self._training.release(order, model)

    def committed(self, order: Order) -> None:
        """See :class:`~privet.client.training.protocol.TrainerProtocol`."""
        with self._aside():
            self._training.committed(order)

    def close(self) -> None:
        """See :class:`~privet.client.training.protocol.TrainerProtocol`."""
        self._training.close()
