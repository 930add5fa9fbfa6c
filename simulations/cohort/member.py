"""The trainer of one site of a cohort: its records, its random numbers, and its update."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch

from privet.client.training.protocol import TrainerOutput
from privet.client.training.trainer import Trainer
from privet.common.errors import PrivetError
from privet.common.flat import Arrays
from privet.common.order import Order
from privet.privacy.mechanism.dpsgd import NoisedUpdate, NoisySteps, PlainSteps, PlainUpdate
from privet.privacy.mechanism.noise import Stream
from privet.simulations.cohort.cohort import Cohort, Steps

_LOG = logging.getLogger("privet.cohort")


class CohortMember(Trainer):
    """As :class:`Trainer`, with local training that a cohort may do ahead.

    What was not done ahead it does itself.
    """

    _done: tuple[str, TrainerOutput | Exception] | None = None
    _begun: tuple[Order, Stream] | None = None
    _made: NoisedUpdate | PlainUpdate | PrivetError | None = None

    def begin(self, order: Order) -> NoisySteps | PlainSteps:
        """Open the records and return the steps of an order's release.

        Args:
            order: to train, already charged.

        Raises:
            DataError: if the records cannot be read as a table.
        """
        data = self._opened()
        encoded = self._usable("train", data, data.train)
        stream = self._stream_for(order) or Stream.fresh()
        self._begun, self._made = (order, stream), None
        return self.mechanism.begin(
            encoded.examples,
            encoded.units,
            nominal_size=self.site.nominal_size,
            stream=stream,
            views=self._bench.views,
        )

    def keep(self, order: Order, output: TrainerOutput | Exception) -> None:
        """Keep what was made of an order elsewhere, or the error that there was."""
        self._done = order.digest, output

    def train_ahead(self, order: Order, model: Arrays) -> None:
        """Train now what :meth:`release` will be asked for, or keep the error that there was.

        Args:
            order: to train, already charged.
            model: that came with it.
        """
        try:
            self.keep(order, self.release(order, model))
        except Exception as error:
            self.keep(order, error)

    def take(self, made: NoisedUpdate | PlainUpdate | PrivetError) -> None:
        """Keep the update of the steps that were begun, or why there is none."""
        self._made = made

    def release(self, order: Order, model: Arrays) -> TrainerOutput:
        """As :meth:`Trainer.release`; what the cohort made is handed out once."""
        begun, made, self._begun, self._made = self._begun, self._made, None, None
        done, self._done = self._done, None
        if done is not None and done[0] == order.digest:
            if isinstance(done[1], Exception):
                raise done[1]
            return done[1]
        if begun is None or made is None or begun[0].digest != order.digest:
            return super().release(order, model)
        if isinstance(made, PrivetError):
            raise made
        return self._output(order, made, begun[1])


def train_together(
    cohort: Cohort, members: Sequence[CohortMember], orders: Sequence[Order], model: Arrays
) -> None:
    """Train members by a cohort. What cannot be begun trains by itself when its site answers.

    Args:
        cohort: trains them.
        members: of the sites.
        orders: one for each member, reserved; all with the same model.
        model: that came with them.

    Raises:
        PrivetError: as :meth:`Cohort.train`.
    """
    begun: list[CohortMember] = []
    steps: list[Steps] = []
    for member, order in zip(members, orders, strict=True):
        try:
            steps.append(member.begin(order))
        except Exception:  # it is met again, and told to the operator, when the site answers
            _LOG.debug("%s cannot be begun", order.slot, exc_info=True)
            continue
        begun.append(member)
    if steps:
        start = {name: torch.from_numpy(array.copy()) for name, array in model.items()}
        for member, update in zip(begun, cohort.train(steps, start), strict=True):
            member.take(update)
