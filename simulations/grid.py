"""A Flower ``Grid`` in this process: each message goes to its site's ``ClientApp`` in turn.

Nothing is serialised, and nothing waits on a poll.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from flwr.app import Context, Error, Message, RecordDict, UserConfig
from flwr.clientapp import ClientApp

from privet.common.compat.flower import CLIENT_FAILED, number_message
from privet.common.flower.grid import RUN_ID, OwnGrid, limit

_WORK = {"train": "training", "evaluate": "measuring"}


class InProcessGrid(OwnGrid):
    """Run ``client_app`` for ``sites`` nodes, numbered from 1, one after the other.

    Args:
        client_app: called for each message with the node's own context.
        sites: number of nodes; ``partition-id`` of a context counts from 0.
        config: the app's config, as ``flwr run`` would pass it.
        tell: called with what is done now.
    """

    def __init__(
        self,
        client_app: ClientApp,
        sites: int,
        config: UserConfig | None = None,
        *,
        tell: Callable[[str], None] = lambda text: None,
    ) -> None:
        super().__init__()
        self._app, self._tell = client_app, tell
        self._contexts = {
            number + 1: Context(
                run_id=RUN_ID,
                node_id=number + 1,
                node_config=UserConfig({"partition-id": number, "num-partitions": sites}),
                state=RecordDict(),
                run_config=config or UserConfig(),
            )
            for number in range(sites)
        }
        self._replies: dict[str, Message] = {}

    def get_node_ids(self) -> Iterable[int]:
        """Return the node ids."""
        return list(self._contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Answer each message at once and keep the replies; return the messages' ids."""
        return [self._deliver(message) for message in messages]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies to these messages; each reply is returned once."""
        ready = (self._replies.pop(number, None) for number in message_ids)
        return [reply for reply in ready if reply is not None]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Answer the messages one after the other.

        Args:
            messages: to answer, in this order.
            timeout: seconds for all of them; a reply that comes later is dropped. None sets no
                limit.
        """
        end = time.monotonic() + limit(timeout)
        replies: list[Message] = []
        messages = list(messages)
        for number, message in enumerate(messages, 1):
            if time.monotonic() > end:
                break
            if (work := _WORK.get(message.metadata.message_type)) is not None:
                self._tell(f"{work}: site {number} of {len(messages)}")
            arrived = self.pull_messages([self._deliver(message)])
            if time.monotonic() <= end:
                replies.extend(arrived)
        return replies

    def _deliver(self, message: Message) -> str:
        number = number_message(message)
        context = self._contexts.get(message.metadata.dst_node_id)
        if context is None:
            raise ValueError(f"there is no node {message.metadata.dst_node_id}")
        try:
            reply = self._app(message, context)
        except Exception as error:
            # Only the kind of error: its text could contain private data.
            reply = Message(Error(CLIENT_FAILED, type(error).__name__), reply_to=message)
        number_message(reply)
        self._replies[number] = reply
        return number
