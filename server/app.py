"""Run the rounds of :mod:`privet.server.rounds` in a Flower ``ServerApp``, over a Flower grid."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from flwr.app import Context, Message, MessageType, RecordDict, UserConfig
from flwr.serverapp import Grid, ServerApp

from privet.common.compress import CompressedUpdate
from privet.common.errors import InputError, RunError
from privet.common.flat import Arrays
from privet.common.flower.grid import Enough
from privet.common.flower.wire import SHOW, decode_reply, decode_show, encode_order, encode_show
from privet.common.order import Order, Status
from privet.common.plan import Plan
from privet.common.tasks.measure import table_shape
from privet.server import rounds
from privet.server.aggregate import Aggregator, Nodes, mean_of
from privet.server.evidence.run_evidence import RunEvidence
from privet.server.replies import Reply
from privet.server.snapshot import Snapshots

_TYPES = {"train": MessageType.TRAIN, "evaluate": MessageType.EVALUATE}
_REGISTRATION_TIMEOUT_S = 30.0
"""Seconds to wait for nodes to register."""
_LOG_TIMEOUT_S = 60.0
"""Seconds, at most, that sites have to show their logs."""
_MIN_LOG_TIMEOUT_S = 5.0
"""The same where a round has used up its time."""


class Limit:
    """The time limit of a round: orders, measurement, publishing and witnessing share one timeout.

    Args:
        timeout: seconds for a round, from the plan.
    """

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._kept = min(_LOG_TIMEOUT_S, timeout / 10)
        self._asked: set[tuple[int, str]] = set()
        self._end = 0.0

    def order(self, number: int, purpose: str) -> float:
        """Return the seconds that sites have to answer the orders of a round.

        The time of a round starts at its first order, and again each time the same purpose is
        ordered again. A tenth of the time (at most a few seconds) is kept for the sites' logs, and
        a measurement always has at least that much.

        Args:
            number: number of the round, from 1.
            purpose: ``train`` or ``evaluate``.

        Returns:
            Seconds from now.
        """
        now = time.monotonic()
        others = {asked for asked in self._asked if asked[0] == number}
        if not others or (number, purpose) in others:
            self._end, others = now + self._timeout, set()
        self._asked = {*others, (number, purpose)}
        return max(self._end - self._kept - now, self._kept)

    def look(self) -> float:
        """Return the seconds that sites have to answer with their logs."""
        if not self._asked:
            return min(self._timeout, _LOG_TIMEOUT_S)
        least = min(self._timeout, _MIN_LOG_TIMEOUT_S)
        return min(_LOG_TIMEOUT_S, max(self._end - time.monotonic(), least))


class FlowerLink:
    """Carry orders over any Flower grid, as :class:`privet.server.rounds.Link`.

    Args:
        plan: of the run; names the sites, the quorum and the timeouts.
        grid: of Flower or of Privet; its nodes are the sites.
        scratch: a folder for aggregated models; None keeps them in memory.
    """

    def __init__(self, plan: Plan, grid: Grid, scratch: Path | None = None) -> None:
        self._plan = plan
        self._grid = grid
        self._aggregator = Aggregator(plan, scratch)
        self._nodes: dict[str, int] = {}
        self._limit = Limit(plan.strategy.timeout)
        self._answered: set[str] = set()

    def enrolled(self) -> list[str]:
        """Ask each node for its site, once the grid has a node for each site that takes part.

        Nodes may still be registering when a run starts. The coordinator waits for them, but not
        longer than the plan's timeout and half a minute.

        Returns:
            The names of the sites that answered, in the plan's order.

        Raises:
            RunError: if two nodes report that they are the same site.
        """
        end = time.monotonic() + min(self._plan.strategy.timeout, _REGISTRATION_TIMEOUT_S)
        while len(ids := list(self._grid.get_node_ids())) < len(self._plan.participants):
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
        self._answered = set(self._nodes)
        return [name for name in known if name in self._nodes]

    def ask(
        self,
        round_number: int,
        orders: list[Order],
        model: Arrays,
        heads: dict[str, str],
        questions: Mapping[str, dict[str, Any]] | None = None,
    ) -> list[Reply]:
        """Send orders through the strategy's own configuration, and return the checked replies.

        Args:
            round_number: number of the round, from 1.
            orders: signed orders of one purpose, at most one for each site.
            model: the model that the updates start from.
            heads: by site, the newest head of its log that somebody witnessed.
            questions: by site, what it shows of its log beside its release; None asks for nothing.

        Returns:
            The replies that came in time, in the order of ``orders``. A release that does not match
            its order or the model is replaced by a failure.
        """
        beside = questions or {}
        nodes: Any = self._grid
        if self._plan.schedule is not None:
            nodes = Nodes([self._nodes[order.site] for order in orders])
        record, config = self._aggregator.configure(round_number, model, nodes)
        messages = [
            Message(
                encode_order(
                    order, record, config, heads.get(order.site, ""), beside.get(order.site)
                ),
                self._nodes[order.site],
                _TYPES[order.purpose],
                group_id=str(round_number),
            )
            for order in orders
        ]
        wanted = {order.site: order for order in orders}
        names = {node: site for site, node in self._nodes.items()}
        replies: dict[str, Reply] = {}
        taken: set[int] = set()

        def take(came: list[Message]) -> None:
            for message in came:
                if id(message) in taken:
                    continue
                taken.add(id(message))
                reply = self._read(message, names[message.metadata.src_node_id])
                if reply.site in wanted:
                    replies[reply.site] = _matching(reply, wanted[reply.site], model, self._plan)

        def is_enough(came: list[Message]) -> bool:
            take(came)
            released = sum(reply.release is not None for reply in replies.values())
            return released >= min(self._plan.quorum, len(orders))

        seconds = self._limit.order(round_number, orders[0].purpose) if orders else 0.0
        take(self._exchange(messages, seconds, Enough(is_enough, self._plan.strategy.grace)))
        self._answered = set(replies)
        return [replies[order.site] for order in orders if order.site in replies]

    def _read(self, message: Message, site: str) -> Reply:
        """Return a node's answer.

        Raises:
            RunError: if it did so in the name of another site.
        """
        reply = _decode(message) or Reply(site, Status.FAILED, None, message)
        if reply.site != site and reply.site in self._nodes:
            raise RunError(f"a node answered in the name of site '{reply.site}'")
        return reply if reply.site == site else Reply(site, Status.FAILED, None, message)

    def _exchange(self, messages: list[Message], seconds: float, enough: Enough) -> list[Message]:
        """Send and receive; a grid that supports it stops waiting once the replies are enough."""
        gather = getattr(self._grid, "gather", None)
        if gather is None:
            return list(self._grid.send_and_receive(messages, timeout=seconds))
        return list(gather(messages, seconds, enough))

    def show(self, questions: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        """Ask the connected sites for evidence of their logs; a malformed answer counts as none."""
        there = set(self._grid.get_node_ids())
        messages = [
            Message(encode_show(question), self._nodes[site], f"{MessageType.QUERY}.show")
            for site, question in questions.items()
            if self._nodes[site] in there
        ]
        names = {node: site for site, node in self._nodes.items()}
        answers: dict[str, dict[str, Any]] = {}
        # A site that did not answer the order may still answer in time; nothing waits for it.
        needed = min(self._plan.quorum, len(self._answered & set(questions)))
        enough = Enough(lambda came: len(came) >= needed)
        for message in self._exchange(messages, self._limit.look(), enough):
            with suppress(InputError):
                if not message.has_error():
                    site = names[message.metadata.src_node_id]
                    answers[site] = decode_show(message.content)
        self._answered -= set(questions) - set(answers)
        return {site: answers[site] for site in questions if site in answers}

    def wait(self, away: list[str], seconds: float | None = None) -> list[str] | None:
        """Wait for sites, if the grid can report that a site came.

        Args:
            away: sites that did not answer.
            seconds: longest wait; None waits until one of them comes.

        Returns:
            The sites of ``away`` that are connected. None if waiting is useless: in one process, an
            absent site never comes.
        """
        wait_for = getattr(self._grid, "wait_for", lambda nodes, seconds: None)
        there = wait_for({self._nodes[site] for site in away}, seconds)
        if there is None:
            return None
        return [site for site in away if self._nodes[site] in there]

    def state(self) -> Arrays:
        """Return the state that the strategy keeps from round to round."""
        return self._aggregator.state()

    def restore(self, state: Arrays) -> None:
        """Restore the strategy's state as it was when the run was stopped."""
        self._aggregator.restore(state)

    def join(self, round_number: int, model: Arrays, replies: list[Reply]) -> Arrays:
        """Aggregate the updates with the strategy, in site order.

        Args:
            round_number: number of the round, from 1.
            model: the model that the updates start from.
            replies: of the round; those without a release are left out.

        Returns:
            The next model.

        Raises:
            RunError: as :meth:`privet.server.aggregate.Aggregator.aggregate`.
        """
        updates = {
            reply.site: (reply.handle, reply.release.arrays)
            for reply in replies
            if reply.release is not None
        }
        return self._aggregator.aggregate(round_number, model, updates)


def _decode(message: Message) -> Reply | None:
    if message.has_error():
        return None
    try:
        site, status, release = decode_reply(message.content)
    except InputError:
        return None
    shown = None
    if release is not None and SHOW in message.content:
        with suppress(InputError):  # it is asked for again
            shown = decode_show(message.content)
    return Reply(site, status, release, message, shown=shown)


_SPENT = {"epsilon", "delta", "unit", "relation"}


def _matching(reply: Reply, order: Order, model: Arrays, plan: Plan) -> Reply:
    """Treat a release that does not answer the order, or has other shapes, as a failure.

    So is the answer to another question, or ``released`` without a release.
    """
    if reply.release is None:
        if reply.status in (Status.PRESENT, Status.RELEASED, Status.WAITS_FOR_APPROVAL):
            return replace(reply, status=Status.FAILED)
        return reply
    release = reply.release
    spent = release.facts.get("spent")
    arrays = _fitting(release.arrays, order, model, plan)
    if (
        release.order != order.digest
        or arrays is None
        or not isinstance(spent, dict)
        or set(spent) != _SPENT
    ):
        return Reply(reply.site, Status.FAILED, None, reply.handle)
    return replace(reply, release=replace(release, arrays=arrays))


def _fitting(arrays: Arrays, order: Order, model: Arrays, plan: Plan) -> Arrays | None:
    """Return a release's arrays; None if they do not match the order and the model."""
    if order.purpose == "evaluate":
        wanted = table_shape(plan)
        fits = list(arrays) == ["histogram"] and arrays["histogram"].ndim == 2
        fits = fits and wanted in (None, arrays["histogram"].shape)
    elif plan.compression is not None:
        shapes = {name: array.shape for name, array in model.items()}
        try:
            return CompressedUpdate(arrays, shapes, plan.compression)
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
    collector: Callable[[], RunEvidence],
    *,
    evaluate: Callable[[Arrays], dict[str, Any]] | None = None,
    keep: Callable[[rounds.Progress], None] = lambda progress: None,
    observe: Callable[[rounds.Progress], None] = lambda progress: None,
    finish: Callable[[rounds.Outcome], None] = lambda outcome: None,
    scratch: Path | None = None,
    link: Callable[[Grid], FlowerLink] | None = None,
) -> ServerApp:
    """Return the app that runs ``plan``.

    Args:
        run_id: identifier of the run.
        plan: what is trained, with its noise calibrated.
        initial: makes the first model; called once, when the app runs.
        snapshots: where the model is kept after each round.
        collector: opens what keeps the run's evidence; called when the app runs.
        evaluate: computes metrics of a model on a public test split; None computes none.
        keep: called with a round's progress before the round counts as done, as
            :func:`privet.server.rounds.run` says.
        observe: called with the progress of each round that is done.
        finish: called once with the outcome of the run.
        scratch: a folder for aggregated models; None keeps them in memory.
        link: makes what reaches the sites; default a :class:`FlowerLink`.

    Raises:
        InputError: if the plan has central noise, which no coordinator adds.
    """
    if plan.privacy is not None and plan.privacy.is_central:
        raise InputError("privacy.trust 'central' is for `privet simulate` alone")
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        del context
        finish(
            rounds.run(
                run_id,
                plan,
                initial,
                link(grid) if link else FlowerLink(plan, grid, scratch),
                snapshots,
                collector(),
                average=partial(mean_of, scratch=scratch),
                evaluate=evaluate,
                keep=keep,
                observe=observe,
            )
        )

    return app


def run_app(app: ServerApp, grid: Grid) -> None:
    """Run a ``ServerApp`` on one of Privet's grids, which need nothing of Flower's context.

    Args:
        app: of :func:`create_app`.
        grid: reaches the sites.

    Raises:
        RunError: if the run fails.
    """
    context = Context(
        run_id=1, node_id=0, node_config=UserConfig(), state=RecordDict(), run_config=UserConfig()
    )
    app(grid, context)
