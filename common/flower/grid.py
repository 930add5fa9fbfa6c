"""The parts of Flower's ``Grid`` that all of Privet's grids share, except the transport."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from privet.common.compat.flower import claim_identity, empty_run

RUN_ID = 1
"""The only run that a grid of ours knows; Privet's own name of a run is in its orders."""


@dataclass(frozen=True)
class Enough:
    """When an exchange may end before all sites have answered.

    Attributes:
        reached: whether these replies are enough.
        grace: seconds to wait for the others after that. None waits five seconds, or as long again
            as the exchange took so far; for a connected site, twice as long as its last answer
            took.
    """

    reached: Callable[[list[Message]], bool]
    grace: float | None = None


def limit(timeout: float | None) -> float:
    """Return a time limit in seconds: infinity for None, which sets none."""
    return math.inf if timeout is None else timeout


class OwnGrid(Grid):
    """Base of a grid that needs no SuperLink."""

    def __init__(self) -> None:
        claim_identity(RUN_ID)

    def set_run(self, run: Any) -> None:
        """Accept the run of Flower's own machinery; there is only one here."""

    @property
    def run(self) -> Any:
        """The one run."""
        return empty_run(RUN_ID)

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """See :class:`flwr.serverapp.Grid`.

        Args:
            content: of the message.
            message_type: such as ``train``, ``evaluate`` or ``query.show``.
            dst_node_id: node id of the receiver.
            group_id: the round's number as text, or "".
            ttl: seconds for which the message is valid; None takes Flower's default.
        """
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)


class PassingGrid(Grid):
    """Pass every call to another grid; a subclass overrides the calls that it changes."""

    def __init__(self, grid: Grid) -> None:
        self._grid = grid

    def set_run(self, run: Any) -> None:
        """See :class:`flwr.serverapp.Grid`."""
        self._grid.set_run(run)

    @property
    def run(self) -> Any:
        """See :class:`flwr.serverapp.Grid`."""
        return self._grid.run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """See :meth:`OwnGrid.create_message`."""
        return self._grid.create_message(content, message_type, dst_node_id, group_id, ttl)

    def get_node_ids(self) -> Iterable[int]:
        """See :class:`flwr.serverapp.Grid`."""
        ids: Iterable[int] = self._grid.get_node_ids()
        return ids

    def push_messages(self, messages: Iterable[Message]) -> Any:
        """See :class:`flwr.serverapp.Grid`."""
        return self._grid.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Any:
        """See :class:`flwr.serverapp.Grid`."""
        return self._grid.pull_messages(message_ids)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """See :class:`flwr.serverapp.Grid`.

        Args:
            messages: to send.
            timeout: seconds to wait for replies; None waits without end.
        """
        came: Iterable[Message] = self._grid.send_and_receive(messages, timeout=timeout)
        return came
