"""What a site needs of its trainer, which may run in this process or in one of its own.

A trainer holds the model, the records and the gradient engine of one plan. It has no keys and
no ledger: whether it may work is decided before it is asked (:mod:`privet.client.site`).
Neither torch nor pandas is needed to talk to one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from privet.common.flat import Arrays, usable
from privet.common.order import Order
from privet.privacy.accounting.events import Event


@dataclass(frozen=True)
class TrainerOutput:
    """What a trainer made for one order, noised.

    Attributes:
        arrays: the update, or the histogram.
        event: emitted by what drew the batch and added the noise.
        reproducible: the noise came from a seed, and protects nobody.
        notes: what the operator should know of the records, such as which are left out. They speak
            of private data, and are for the operator's log only.
    """

    arrays: Arrays
    event: Event
    reproducible: bool
    notes: tuple[str, ...] = ()


class TrainerProtocol(Protocol):
    """One plan's trainer at one site."""

    @property
    def event(self) -> Event:
        """What a training release will cost, to be reserved before it runs."""
        ...

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the trained parameters in order, each with its shape."""
        ...

    def begins(self) -> str:
        """Return the digest of the trained parameters as the plan has them before any training."""
        ...

    def self_test(self) -> tuple[str, ...]:
        """Run the start-up tests, once; return the rows of the honesty list that passed.

        Raises:
            SelfTestFailed: naming the row and the layer.
        """
        ...

    def require_source(self) -> None:
        """Check where the records are, without reading one, until they were opened.

        Asked before each reservation: what is wrong then costs nothing.

        Raises:
            InputError: with a text for the operator, which speaks of no record.
        """
        ...

    def release(self, order: Order, model: Arrays) -> TrainerOutput:
        """Train, or evaluate, as the order says; records are opened at the first one.

        Raises:
            PrivetError: with a text that may speak of private data, for the operator only.
        """
        ...

    def committed(self, order: Order) -> None:
        """Hear that what was made for an order was paid for and will leave.

        It is told where the plan has ``compression``: only what was released may be in the
        rest that is added to the next update.
        """
        ...

    def close(self) -> None:
        """Let go of model and records."""
        ...


def shape_mismatch(shapes: dict[str, tuple[int, ...]], model: Arrays) -> str | None:
    """Say what is wrong with a model that came with an order; None if it can be trained."""
    for name, shape in shapes.items():
        array = model.get(name)
        if array is None or array.shape != shape or array.dtype.kind != "f":
            return f"'{name}' has another shape or type than in the plan's model"
        if not usable(array):
            return f"'{name}' is not finite, or too large"
    return None
