"""Flower's ``Grid`` over the link: the ``ServerApp`` runs as it does in a simulation."""

from __future__ import annotations

import time
from collections.abc import Iterable
from concurrent.futures import Future, wait

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.run import Run

from privet.common.errors import InputError
from privet.common.wire import claim_identity, number_message, pack, unpack
from privet.server.hub import Answered, Hub

_RUN_ID = 1


class LinkGrid(Grid):
    """Sends messages to sites through a hub; node ids are places in ``sites``, from 1.

    Args:
        hub: listening.
        sites: names of the sites, in the roster's order.
    """

    def __init__(self, hub: Hub, sites: list[str]) -> None:
        self._hub = hub
        self._sites = sites
        self._open: dict[str, tuple[Message, str, Future[Answered]]] = {}
        claim_identity(_RUN_ID)

    def set_run(self, run: Run) -> None:
        """Accept the run of Flower's own machinery; there is only one here."""

    @property
    def run(self) -> Run:
        """The one run."""
        return Run.create_empty(run_id=_RUN_ID)

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """See :class:`flwr.serverapp.Grid`."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

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
        return [reply for reply in replies if reply is not None]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Send, wait, and return what came in ``timeout`` seconds, in the order sent.

        What has not come by then is withdrawn: a later answer is counted and not used.
        """
        end = None if timeout is None else time.monotonic() + timeout
        numbers = [self._push(message) for message in messages]
        answers = [self._open[number][2] for number in numbers]
        wait(answers, None if end is None else max(0.0, end - time.monotonic()))
        replies = list(self.pull_messages(numbers))
        for number in numbers:
            if number in self._open:
                self._hub.withdraw(self._open.pop(number)[1])
        return replies

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


def _reply(message: Message, answered: Answered) -> Message | None:
    """Return a site's answer as a message; what cannot be read counts as none."""
    try:
        reply = Message(unpack(answered.records, answered.arrays), reply_to=message)
    except InputError:
        return None
    number_message(reply)
    return reply
