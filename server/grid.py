"""Flower's ``Grid`` over the link: the ``ServerApp`` runs as it does in a simulation."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, wait

from flwr.app import Error, Message

from privet.common.errors import InputError
from privet.common.grid import OwnGrid
from privet.common.wire import number_message, pack, unpack
from privet.server.hub import Answered, Hub

_STEP = 0.25
"""Seconds between two looks whether to stop, and who is there."""


class Stopped(Exception):
    """The coordinator was told to end; the run goes on when it is started again.

    No :class:`RunError`, which would be noted as the end of the run.
    """


class LinkGrid(OwnGrid):
    """Sends messages to sites through a hub; node ids are places in ``sites``, from 1.

    Args:
        hub: listening.
        sites: names of the sites, in the roster's order.
        stopped: once set, whatever waits raises :class:`Stopped`.
        patience: seconds that a site that is not connected is waited for, where all that are
            have answered.
        on_wait: told the names of those who are waited for, because too few have answered.
    """

    def __init__(
        self,
        hub: Hub,
        sites: list[str],
        *,
        stopped: threading.Event | None = None,
        patience: float = 30.0,
        on_wait: Callable[[list[str]], None] = lambda sites: None,
    ) -> None:
        super().__init__()
        self._hub = hub
        self._sites = sites
        self._stopped = stopped or threading.Event()
        self._patience = patience
        self._on_wait = on_wait
        self._open: dict[str, tuple[Message, str, Future[Answered]]] = {}

    def get_node_ids(self) -> Iterable[int]:
        """Return the numbers of the sites that are connected."""
        present = self._hub.present()
        return [place for place, name in enumerate(self._sites, 1) if name in present]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Offer each message to its site; return the messages' ids."""
        return [self._push(message) for message in messages]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies that have come to these messages; each can be had once."""
        replies = []
        for number in message_ids:
            if number in self._open and self._open[number][2].done():
                message, _, answer = self._open.pop(number)
                replies.append(_reply(message, answer.result()))
        return replies

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Send, wait, and return what came in ``timeout`` seconds, in the order sent.

        What has not come by then is withdrawn: a later answer is counted and not used.

        Raises:
            Stopped: if the coordinator is to end.
        """
        end = float("inf") if timeout is None else time.monotonic() + timeout
        numbers = [self._push(message) for message in messages]
        try:
            self._wait(numbers, end)
            return list(self.pull_messages(numbers))
        finally:
            for number in numbers:
                if number in self._open:
                    self._hub.withdraw(self._open.pop(number)[1])

    def _wait(self, numbers: list[str], end: float) -> None:
        """Wait for answers: until ``end``, or until only sites are missing that are gone."""
        todo = {self._open[number][2]: self._site_of(number) for number in numbers}
        seen = time.monotonic()
        while todo:
            now = time.monotonic()
            if set(todo.values()) & set(self._hub.present()):
                seen = now
            if now >= min(end, seen + self._patience):
                return
            done, _ = wait(todo, min(_STEP, max(0.0, end - now)))
            for answer in done:
                del todo[answer]
            self._look()

    def wait_for(self, nodes: set[int]) -> bool:
        """Wait until one of ``nodes`` is connected, for as long as it takes.

        Raises:
            Stopped: if the coordinator is to end.
        """
        names = {self._sites[place - 1] for place in nodes}
        while not names & self._hub.wait_for_any(names, _STEP):
            self._on_wait(sorted(names))
            self._look()
        return True

    def _look(self) -> None:
        if self._stopped.is_set():
            raise Stopped("the coordinator was told to end")

    def _site_of(self, number: str) -> str:
        place: int = self._open[number][0].metadata.dst_node_id
        return self._sites[place - 1]

    def _push(self, message: Message) -> str:
        number = number_message(message)
        metadata = message.metadata
        place = metadata.dst_node_id
        if not 0 < place <= len(self._sites):
            raise ValueError(f"there is no node {place}")
        records, arrays = pack(message.content)
        posted, answer = self._hub.post(
            self._sites[place - 1], metadata.message_type, metadata.group_id, records, arrays
        )
        self._open[number] = message, posted, answer
        return number


def _reply(message: Message, answered: Answered) -> Message:
    """Return a site's answer as a message; what cannot be read is one of an error."""
    try:
        reply = Message(unpack(answered.records, answered.arrays), reply_to=message)
    except InputError as error:
        reply = Message(Error(0, str(error)), reply_to=message)
    number_message(reply)
    return reply
