"""The Flower ``ServerApp``: the rounds of :mod:`privet.server.rounds` over a Flower grid."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

from flwr.app import Context, Message, MessageType, RecordDict, UserConfig
from flwr.serverapp import Grid, ServerApp

from privet.common.compress import Lighter
from privet.common.errors import InputError, RunError
from privet.common.flat import Arrays
from privet.common.order import Order, Status
from privet.common.plan import Plan
from privet.common.tasks.measure import table_shape
from privet.common.wire import decode_reply, decode_show, encode_order, encode_show
from privet.server import rounds
from privet.server.aggregate import Aggregator, mean_of
from privet.server.recorder import Recorder
from privet.server.snapshot import Snapshots

_REGISTRATION = 30.0
"""Seconds to wait for nodes to register."""
_LOOK = 60.0
"""Seconds that a site has to show its log."""


class FlowerLink:
    """:class:`privet.server.rounds.Link` over any Flower grid."""

    def __init__(self, plan: Plan, grid: Grid) -> None:
        self._plan = plan
        self._grid = grid
        self._aggregator = Aggregator(plan)
        self._nodes: dict[str, int] = {}

    def enrolled(self) -> list[str]:
        """Ask every node which site it is, once as many are there as the plan has sites.

        Nodes may still be registering when a run starts: they are waited for, but not for
        longer than the plan's timeout and half a minute.

        Raises:
            RunError: if two nodes say they are the same site.
        """
        end = time.monotonic() + min(self._plan.strategy.timeout, _REGISTRATION)
        while len(ids := list(self._grid.get_node_ids())) < len(self._plan.sites):
            if time.monotonic() > end:
                break
            time.sleep(0.05)
        messages = [Message(RecordDict(), node, MessageType.QUERY) for node in ids]
        known = [site.name for site in self._plan.sites]
        for message in self._grid.send_and_receive(messages, timeout=self._plan.strategy.timeout):
            reply = _decode(message)
            if reply is None or reply.status is not Status.PRESENT or reply.site not in known:
                continue
            if reply.site in self._nodes:
                raise RunError(f"two nodes say that they are site '{reply.site}'")
            self._nodes[reply.site] = message.metadata.src_node_id
        return [name for name in known if name in self._nodes]

    def ask(
        self, round_number: int, orders: list[Order], model: Arrays, heads: dict[str, str]
    ) -> list[rounds.Reply]:
        """Send orders through the strategy's own configuration; return checked replies."""
        record, config = self._aggregator.configure(round_number, model, self._grid)
        messages = [
            Message(
                encode_order(order, record, config, heads.get(order.site, "")),
                self._nodes[order.site],
                MessageType.EVALUATE if order.purpose == "evaluate" else MessageType.TRAIN,
                group_id=str(round_number),
            )
            for order in orders
        ]
        wanted = {order.site: order for order in orders}
        names = {node: site for site, node in self._nodes.items()}
        replies: dict[str, rounds.Reply] = {}
        for message in self._grid.send_and_receive(messages, timeout=self._plan.strategy.timeout):
            site = names[message.metadata.src_node_id]
            reply = _decode(message) or rounds.Reply(site, Status.FAILED, None, message)
            if reply.site != site and reply.site in self._nodes:
                raise RunError(f"a node answered in the name of site '{reply.site}'")
            if reply.site != site:
                reply = rounds.Reply(site, Status.FAILED, None, message)
            if site in wanted:
                replies[site] = _matching(reply, wanted[site], model, self._plan)
        return [replies[order.site] for order in orders if order.site in replies]

    def show(self, questions: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        """Ask the sites that are there to show their logs; a malformed answer counts as none."""
        there = set(self._grid.get_node_ids())
        messages = [
            Message(encode_show(question), self._nodes[site], f"{MessageType.QUERY}.show")
            for site, question in questions.items()
            if self._nodes[site] in there
        ]
        names = {node: site for site, node in self._nodes.items()}
        answers: dict[str, dict[str, Any]] = {}
        timeout = min(self._plan.strategy.timeout, _LOOK)
        for message in self._grid.send_and_receive(messages, timeout=timeout):
            with suppress(InputError):
                if not message.has_error():
                    site = names[message.metadata.src_node_id]
                    answers[site] = decode_show(message.content)
        return {site: answers[site] for site in questions if site in answers}

    def wait(self, sites: list[str]) -> bool:
        """Wait for sites where the grid says that they may come; they do not in one process."""
        wait_for = getattr(self._grid, "wait_for", None)
        return wait_for is not None and bool(wait_for({self._nodes[site] for site in sites}))

    def join(self, round_number: int, model: Arrays, replies: list[rounds.Reply]) -> Arrays:
        """Hand the updates to the strategy, in site order."""
        updates = {
            reply.site: (reply.handle, reply.release.arrays)
            for reply in replies
            if reply.release is not None
        }
        return self._aggregator.aggregate(round_number, model, updates)


def _decode(message: Message) -> rounds.Reply | None:
    if message.has_error():
        return None
    try:
        site, status, release = decode_reply(message.content)
    except InputError:
        return None
    return rounds.Reply(site, status, release, message)


_SPENT = {"epsilon", "delta", "unit", "relation"}


def _matching(reply: rounds.Reply, order: Order, model: Arrays, plan: Plan) -> rounds.Reply:
    """Treat a release that does not answer the order, or has other shapes, as a failure.

    So is the answer to another question, or ``released`` without a release.
    """
    if reply.release is None:
        answers = reply.status not in (Status.PRESENT, Status.RELEASED)
        return reply if answers else replace(reply, status=Status.FAILED)
    release = reply.release
    spent = release.facts.get("spent")
    arrays = _fitting(release.arrays, order, model, plan)
    if (
        release.order != order.digest
        or arrays is None
        or not isinstance(spent, dict)
        or set(spent) != _SPENT
    ):
        return rounds.Reply(reply.site, Status.FAILED, None, reply.handle)
    return replace(reply, release=replace(release, arrays=arrays))


def _fitting(arrays: Arrays, order: Order, model: Arrays, plan: Plan) -> Arrays | None:
    """Return what an order is answered with, or None if it does not fit."""
    if order.purpose == "evaluate":
        wanted = table_shape(plan)
        fits = list(arrays) == ["histogram"] and arrays["histogram"].ndim == 2
        fits = fits and wanted in (None, arrays["histogram"].shape)
    elif plan.compression is not None:
        shapes = {name: array.shape for name, array in model.items()}
        try:
            return Lighter(arrays, shapes, plan.compression)
        except InputError:
            return None
    else:
        fits = list(arrays) == list(model) and all(
            (arrays[name].shape, arrays[name].dtype) == (model[name].shape, model[name].dtype)
            for name in model
        )
    return arrays if fits and all(array.dtype.kind == "f" for array in arrays.values()) else None


def create_app(
    run_id: str,
    plan: Plan,
    initial: Callable[[], Arrays],
    snapshots: Snapshots,
    recorder: Callable[[], Recorder],
    *,
    evaluate: Callable[[Arrays], dict[str, Any]] | None = None,
    keep: Callable[[rounds.Progress], None] = lambda progress: None,
    observe: Callable[[rounds.Progress], None] = lambda progress: None,
    finish: Callable[[rounds.Outcome], None] = lambda outcome: None,
) -> ServerApp:
    """Return the app that runs ``plan``; the outcome is handed to ``finish``.

    ``keep`` and ``observe`` are told of each round, as :func:`privet.server.rounds.run` says.
    """
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        del context
        finish(
            rounds.run(
                run_id,
                plan,
                initial,
                FlowerLink(plan, grid),
                snapshots,
                recorder(),
                average=mean_of,
                evaluate=evaluate,
                keep=keep,
                observe=observe,
            )
        )

    return app


def run_app(app: ServerApp, grid: Grid) -> None:
    """Run a ``ServerApp`` on a grid of ours, which needs nothing of Flower's context."""
    context = Context(
        run_id=1, node_id=0, node_config=UserConfig(), state=RecordDict(), run_config=UserConfig()
    )
    app(grid, context)
