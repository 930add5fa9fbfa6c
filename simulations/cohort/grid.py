"""A grid that lets the sites of one exchange train together.

::

    orders ──► each site admits and reserves ──► Cohort trains those that did ──► each site answers

Every site's ledger reserves before any record of it is read, as ever. What cannot be trained
together is trained by its site when it answers.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable

import torch
from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from privet.client.app import AnsweringSite
from privet.common.flower.grid import limit
from privet.common.flower.wire import decode_order
from privet.common.order import Order
from privet.simulations.cohort.cohort import Cohort, Steps
from privet.simulations.cohort.member import CohortMember
from privet.simulations.grid import InProcessGrid

_LOG = logging.getLogger("privet.cohort")


class CohortGrid(InProcessGrid):
    """As :class:`InProcessGrid`, for sites whose trainers are :class:`CohortMember`.

    Args:
        client_app: called for each message with the node's own context.
        sites: number of nodes.
        site_of: finds the site of a context, and its trainer.
        cohort: trains them.
        tell: called with what is done now.
    """

    def __init__(
        self,
        client_app: ClientApp,
        sites: int,
        site_of: Callable[[Context], tuple[AnsweringSite, CohortMember]],
        cohort: Cohort,
        *,
        tell: Callable[[str], None] = lambda text: None,
    ) -> None:
        super().__init__(client_app, sites, tell=tell)
        self._site_of = site_of
        self._cohort: Cohort | None = cohort

    @property
    def engine(self) -> str:
        """What trained the sites: ``cohort``, or ``inline`` since it failed."""
        return "inline" if self._cohort is None else "cohort"

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """As :meth:`InProcessGrid.push_messages`."""
        messages = list(messages)
        self._train_together(messages)
        return super().push_messages(messages)

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

    def _train_together(self, messages: list[Message]) -> None:
        if self._cohort is None:
            return
        members: list[CohortMember] = []
        steps: list[Steps] = []
        start = None
        for message in messages:
            if message.metadata.message_type != "train":
                continue
            try:
                order, model, head = decode_order(message.content)
                site, member = self._site_of(self._contexts[message.metadata.dst_node_id])
            except Exception:
                continue  # answered, and logged, as always
            if start is None:
                start = order.model, {n: torch.from_numpy(a.copy()) for n, a in model.items()}
            if order.model == start[0] and site.reserve_ahead(order, model, head):
                found = self._begun(site, member, order)
                if found is not None:
                    members.append(member)
                    steps.append(found)
        if start is None or not steps:
            return
        self._tell(f"training: {len(steps)} sites together")
        try:
            made = self._cohort.train(steps, start[1])
        except Exception as error:  # each site meets it again, and logs it
            _LOG.warning("sites are trained one after another: %r", error)
            self._cohort = None
            return
        for member, update in zip(members, made, strict=True):
            member.take(update)

    def _begun(self, site: AnsweringSite, member: CohortMember, order: Order) -> Steps | None:
        try:
            return member.begin(order)
        except Exception:  # it is met again, and told to the operator, when the site answers
            _LOG.debug("%s: %s cannot be begun", site.name, order.slot, exc_info=True)
            return None
