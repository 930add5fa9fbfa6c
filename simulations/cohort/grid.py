"""A grid that lets the sites of one exchange train together, and in several processes.

::

    orders ──► each site admits and reserves ──► trained: here, elsewhere ──► each site answers

Every site's ledger reserves before any record of it is read, as ever. What cannot be trained
together is trained by its site when it answers.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from privet.client.app import AnsweringSite
from privet.common.flat import Arrays
from privet.common.flower.grid import limit
from privet.common.flower.wire import decode_order
from privet.common.order import Order
from privet.simulations.cohort.cohort import Cohort
from privet.simulations.cohort.member import CohortMember, train_together
from privet.simulations.cohort.processes import TrainingProcesses
from privet.simulations.grid import InProcessGrid

_LOG = logging.getLogger("privet.cohort")


@contextmanager
def _threads(count: int | None, cohort: Cohort | None) -> Iterator[None]:
    """Compute with as many threads meanwhile; None changes nothing."""
    before = torch.get_num_threads(), cohort.threads if cohort else 1
    if count is not None:
        torch.set_num_threads(count)
        if cohort:
            cohort.threads = count
    try:
        yield
    finally:
        if count is not None:
            torch.set_num_threads(before[0])
            if cohort:
                cohort.threads = before[1]


class CohortGrid(InProcessGrid):
    """As :class:`InProcessGrid`, for sites whose trainers are :class:`CohortMember`.

    Args:
        client_app: called for each message with the node's own context.
        sites: number of nodes.
        site_of: finds the site of a context, and its trainer.
        cohort: trains sites together; None: each by itself.
        processes: trains some of them elsewhere; None: all here.
        tell: called with what is done now.
    """

    def __init__(
        self,
        client_app: ClientApp,
        sites: int,
        site_of: Callable[[Context], tuple[AnsweringSite, CohortMember]],
        cohort: Cohort | None,
        processes: TrainingProcesses | None = None,
        *,
        tell: Callable[[str], None] = lambda text: None,
    ) -> None:
        super().__init__(client_app, sites, tell=tell)
        self._site_of = site_of
        self._cohort, self._processes = cohort, processes
        self.most_processes = 1
        """Processes that trained in a round, at most."""

    @property
    def engine(self) -> str:
        """What trained the sites: ``cohort``, or ``inline`` since it failed."""
        return "inline" if self._cohort is None else "cohort"

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """As :meth:`InProcessGrid.push_messages`."""
        messages = list(messages)
        began = time.monotonic()
        last = self._train_ahead(messages)
        pushed = list(super().push_messages(messages))
        if last is not None and self._processes is not None:
            self._processes.round_took(time.monotonic() - began, last)
        return pushed

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """As :meth:`InProcessGrid.send_and_receive`; replies come together, or too late.

        Every message is delivered, also after the limit: its site has paid, keeps its release,
        and gives the same one when it is asked again.

        Args:
            messages: to answer.
            timeout: seconds for all of them; None sets no limit.
        """
        end = time.monotonic() + limit(timeout)
        arrived = list(self.pull_messages(self.push_messages(messages)))
        return arrived if time.monotonic() <= end else []

    def _train_ahead(self, messages: list[Message]) -> int | None:
        """Train what can be trained before the sites answer; return the round, if it trains."""
        members: list[CohortMember] = []
        orders: list[Order] = []
        model: Arrays = {}
        round_ = None
        for message in messages:
            if message.metadata.message_type != "train":
                continue
            try:
                order, came, head = decode_order(message.content)
                site, member = self._site_of(self._contexts[message.metadata.dst_node_id])
            except Exception:
                continue  # answered, and logged, as always
            round_ = order.round
            if self._cohort is None and not self._is_shared(len(messages)):
                break  # each trains when it answers
            if not orders:
                model = came
            elif order.model != orders[0].model:
                continue
            if site.reserve_ahead(order, came, head):
                members.append(member)
                orders.append(order)
        if orders:
            self._train(members, orders, model)
        return round_

    def _is_shared(self, sites: int) -> bool:
        return self._processes is not None and len(self._processes.shares(sites)) > 1

    def _train(self, members: list[CohortMember], orders: list[Order], model: Arrays) -> None:
        processes = self._processes
        shares = processes.shares(len(orders)) if processes is not None else [len(orders)]
        mine, others = shares[0], members[shares[0] :]
        if processes is not None and others:
            processes.begin(shares, orders, model)
            self.most_processes = max(self.most_processes, processes.used)
        began = time.perf_counter()
        with _threads(1 if others else None, self._cohort):
            self._train_here(members[:mine], orders[:mine], model, len(orders), len(shares))
        if processes is not None and others:
            made = processes.end(time.perf_counter() - began)
            for member, order in zip(others, orders[mine:], strict=True):
                if order.digest in made:
                    member.keep(order, made[order.digest])

    def _train_here(
        self,
        members: list[CohortMember],
        orders: list[Order],
        model: Arrays,
        sites: int,
        processes: int,
    ) -> None:
        where = "together" if processes == 1 else f"in {processes} processes"
        self._tell(f"training: {sites} sites {where}")
        if self._cohort is None:
            for number, (member, order) in enumerate(zip(members, orders, strict=True), 1):
                self._tell(f"training: site {number} of {len(members)}, in {processes} processes")
                member.train_ahead(order, model)
            return
        try:
            train_together(self._cohort, members, orders, model)
        except Exception as error:  # each site meets it again, and logs it
            _LOG.warning("sites are trained one after another: %r", error)
            self._cohort = None
