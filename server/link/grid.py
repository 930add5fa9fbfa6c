"""Implement Flower's ``Grid`` over the link, so that the ``ServerApp`` runs as in a simulation.

A site may owe an answer from an earlier exchange. Once the other sites' answers are enough, the
grid does not wait for this site; and it sends the site nothing more until that answer arrives or
the site opens a new stream. So a site that was silent for an hour finds one order when it returns,
and not one for each round.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, wait
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from flwr.app import Error, Message

from privet.common.compat.flower import number_message
from privet.common.errors import InputError
from privet.common.flower.grid import Enough, OwnGrid, limit
from privet.common.flower.wire import decode_show, encode_show, pack, unpack
from privet.server.link.parcel import LinkReply
from privet.server.link.server import LinkServer

_POLL_INTERVAL_S = 0.25
"""Seconds between two polls of the stop event and the connected sites."""
MIN_GRACE_S = 5.0
"""Seconds, at least, that others are waited for once there is enough."""
_GRACE_FACTOR = 2.0
"""The grid waits for a connected site for this many times its last answer's duration."""

_LOG = logging.getLogger("privet.grid")


class CoordinatorStopped(Exception):
    """The coordinator was stopped; the run continues when it is started again.

    This is no :class:`RunError`, which would be noted as the end of the run.
    """


@dataclass
class _Sent:
    """A message of an exchange; ``parcel``, its request's id, is empty while it is held back."""

    message: Message
    site: str
    parcel: str = ""
    answer: Future[LinkReply] = field(default_factory=Future)
    posted: float = 0.0


@dataclass
class _Debt:
    """A site's owed answer to a message that was withdrawn, on one stream."""

    pace: tuple[str, str]
    order: bool
    answer: Future[LinkReply]
    posted: float
    stream: int


class LinkGrid(OwnGrid):
    """Send messages to sites through the link server; node ids are places in ``sites``, from 1.

    Args:
        link_server: the link server, listening.
        sites: names of the sites, in the roster's order.
        stopped: once set, every call that waits raises :class:`CoordinatorStopped`.
        patience: seconds to wait for a site that is not connected, when all connected sites have
            answered and their answers are not enough.
        on_wait: called with the names of the sites that the grid waits for because too few have
            answered.
    """

    def __init__(
        self,
        link_server: LinkServer,
        sites: list[str],
        *,
        stopped: threading.Event | None = None,
        patience: float = 30.0,
        on_wait: Callable[[list[str]], None] = lambda sites: None,
    ) -> None:
        super().__init__()
        self._link_server = link_server
        self._sites = sites
        self._stopped = stopped or threading.Event()
        self._patience = patience
        self._on_wait = on_wait
        self._open: dict[str, _Sent] = {}
        self._debts: dict[str, list[_Debt]] = {}
        self._took: dict[tuple[str, str], tuple[int, float]] = {}
        self._left: set[str] = set()

    def get_node_ids(self) -> Iterable[int]:
        """Return the node ids of the connected sites."""
        present = self._link_server.present()
        return [place for place, name in enumerate(self._sites, 1) if name in present]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send each message to its site, now or once it connects; return the messages' ids."""
        return [self._push(message) for message in messages]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies to these messages that have arrived; each reply is returned once."""
        replies = []
        for number in message_ids:
            if number in self._open and self._open[number].answer.done():
                sent = self._open.pop(number)
                replies.append(_reply(sent.message, sent.answer.result()))
                stream, seconds = (
                    self._link_server.tally.streams[sent.site],
                    time.monotonic() - sent.posted,
                )
                self._took[_pace_of(sent)] = stream, seconds
                if _is_order(sent.message):
                    self._left.discard(sent.site)
        return replies

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Send messages, wait, and return the replies in the order in which the messages were sent.

        A message without a reply by then is withdrawn: a later answer is counted and not used.

        Args:
            messages: one for each site.
            timeout: seconds to wait; None waits without end.

        Raises:
            CoordinatorStopped: if the coordinator is stopped.
        """
        return self.gather(messages, timeout)

    def show(
        self, questions: Mapping[str, dict[str, Any]], timeout: float
    ) -> dict[str, dict[str, Any]]:
        """Ask the connected sites for evidence of their logs; a malformed answer counts as none.

        Args:
            questions: by site, as the methods of
                :class:`privet.server.evidence.collector.EvidenceCollector` make them.
            timeout: seconds to wait for answers.

        Returns:
            The answers by site.

        Raises:
            CoordinatorStopped: if the coordinator is stopped.
        """
        there = self._link_server.present()
        messages = [
            Message(encode_show(questions[site]), place, "query.show")
            for place, site in enumerate(self._sites, 1)
            if site in questions and site in there
        ]
        answers: dict[str, dict[str, Any]] = {}
        for message in self.send_and_receive(messages, timeout=timeout):
            with suppress(InputError):
                if not message.has_error():
                    site = self._sites[message.metadata.src_node_id - 1]
                    answers[site] = decode_show(message.content)
        return answers

    def gather(
        self,
        messages: Iterable[Message],
        timeout: float | None = None,
        enough: Enough | None = None,
    ) -> list[Message]:
        """Send messages and wait until the replies are enough and the grace for the others is over.

        Args:
            messages: one for each site.
            timeout: seconds to wait at most; None waits without end.
            enough: decides when the replies are enough; None waits for all.

        Returns:
            The replies, in the order in which the messages were sent. The other messages are
            withdrawn.

        Raises:
            CoordinatorStopped: if the coordinator is stopped.
        """
        end = time.monotonic() + limit(timeout)
        numbers = [self._push(message) for message in messages]
        replies: dict[str, Message] = {}
        try:
            self._wait(numbers, end, enough, replies)
        finally:
            for number in numbers:
                if number in self._open:
                    self._withdraw(self._open.pop(number))
        return [replies[number] for number in numbers if number in replies]

    def _wait(
        self, numbers: list[str], end: float, enough: Enough | None, replies: dict[str, Message]
    ) -> None:
        """Collect answers until ``end``, or until enough came, or only absent sites are missing."""
        began = seen = time.monotonic()
        since: float | None = None
        todo = set(numbers)
        while todo:
            for number in [number for number in numbers if number in todo]:
                self._post_if_free(self._open[number])
                if came := self.pull_messages([number]):
                    replies[number], *_ = came
                    todo.discard(number)
            if since is None and enough is not None and enough.reached(list(replies.values())):
                since = time.monotonic()
            now = time.monotonic()
            missing = [self._open[number] for number in todo]
            # The time of patience runs only while all missing sites are disconnected.
            if {sent.site for sent in missing} & set(self._link_server.present()):
                seen = now
            if now >= min(end, seen + self._patience):
                break
            until = end
            if since is not None and enough is not None:
                graces = [self._until(sent, enough.grace, began, since) for sent in missing]
                until = min(end, max(graces, default=now))
                if now >= until:
                    break
            wait(
                [sent.answer for sent in missing],
                min(_POLL_INTERVAL_S, until - now),
                "FIRST_COMPLETED",
            )
            self._look()
        if since is not None:
            orders = [self._open[number] for number in numbers if number in todo]
            self._tell_left({sent.site for sent in orders if _is_order(sent.message)})

    def _until(self, sent: _Sent, grace: float | None, began: float, since: float) -> float:
        """Return the time until which to wait for a site whose answer is not needed."""
        if self._is_behind(sent):
            return since  # its site first answers an earlier message: waiting longer brings nothing
        if grace is not None:
            return since + grace
        until = since + max(MIN_GRACE_S, since - began)
        if sent.site not in self._link_server.present() or not _is_order(sent.message):
            return until
        stream, took = self._took.get(_pace_of(sent), (0, 0.0))
        if stream != self._link_server.tally.streams[sent.site]:
            return float("inf")  # a trainer that has just started is slow
        return max(until, began + _GRACE_FACTOR * took)

    def _tell_left(self, sites: set[str]) -> None:
        """Log the sites for whose answers the round no longer waits, once until they are back."""
        if news := sites - self._left:
            _LOG.warning("a round continues without", extra={"sites": ", ".join(sorted(news))})
        self._left |= sites

    def _withdraw(self, sent: _Sent) -> None:
        """Withdraw a message, and remember that its site owes the answer."""
        if not sent.parcel:
            return
        self._link_server.withdraw(sent.parcel)
        stream, order = self._link_server.tally.streams[sent.site], _is_order(sent.message)
        # Without the message, which has a model.
        debt = _Debt(_pace_of(sent), order, sent.answer, sent.posted, stream)
        self._debts.setdefault(sent.site, []).append(debt)

    def _is_behind(self, sent: _Sent) -> bool:
        """Whether a message's site owes an answer that it would give before this one's.

        A trainer at work keeps no site from showing its log.
        """
        order = _is_order(sent.message)
        return any(order or not debt.order for debt in self._owes(sent.site))

    def _owes(self, site: str) -> list[_Debt]:
        """Return a site's open debts; an answer, or a new stream, settles one."""
        stream, open_ = self._link_server.tally.streams[site], []
        for debt in self._debts.pop(site, []):
            if debt.answer.done():
                self._took[debt.pace] = stream, time.monotonic() - debt.posted
            elif debt.stream == stream:
                open_.append(debt)
        if open_:
            self._debts[site] = open_
        return open_

    def wait_for(self, nodes: set[int], seconds: float | None = None) -> set[int]:
        """Wait until one of several nodes is connected.

        Args:
            nodes: node ids of the absent sites.
            seconds: longest wait; None waits without end.

        Returns:
            Those of ``nodes`` that are connected; none if the time is over.

        Raises:
            CoordinatorStopped: if the coordinator is stopped.
        """
        names = {self._sites[place - 1]: place for place in nodes}
        end = time.monotonic() + limit(seconds)
        while True:
            left = max(0.0, min(_POLL_INTERVAL_S, end - time.monotonic()))
            there = self._link_server.wait_for_any(set(names), left)
            if there or time.monotonic() >= end:
                return {names[name] for name in there}
            self._on_wait(sorted(names))
            self._look()

    def _look(self) -> None:
        if self._stopped.is_set():
            raise CoordinatorStopped("the coordinator is stopping")

    def _push(self, message: Message) -> str:
        number = number_message(message)
        place = message.metadata.dst_node_id
        if not 0 < place <= len(self._sites):
            raise ValueError(f"there is no node {place}")
        self._open[number] = _Sent(message, self._sites[place - 1])
        self._post_if_free(self._open[number])
        return number

    def _post_if_free(self, sent: _Sent) -> None:
        """Offer a message, once its site owes nothing."""
        if sent.parcel or self._is_behind(sent):
            return
        records, arrays = pack(sent.message.content)
        metadata = sent.message.metadata
        sent.posted = time.monotonic()
        sent.parcel, sent.answer = self._link_server.post(
            sent.site, metadata.message_type, metadata.group_id, records, arrays
        )


def _is_order(message: Message) -> bool:
    return not str(message.metadata.message_type).startswith("query")


def _pace_of(sent: _Sent) -> tuple[str, str]:
    return sent.site, str(sent.message.metadata.message_type)


def _reply(message: Message, answered: LinkReply) -> Message:
    """Return a site's answer as a message; an unreadable answer becomes an error message."""
    try:
        reply = Message(unpack(answered.records, answered.arrays), reply_to=message)
    except InputError as error:
        reply = Message(Error(0, str(error)), reply_to=message)
    number_message(reply)
    return reply
