"""The interface between a site and its trainer, which may run in a process of its own.

A trainer holds the model, the records and the gradient engine of one plan. It has no keys and no
ledger: :mod:`privet.client.site` decides beforehand whether it may work. Its callers need neither
torch nor pandas.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from privet.common.flat import Arrays, usable
from privet.common.order import Order
from privet.privacy.accounting.events import Event


@dataclass(frozen=True)
class TrainerOutput:
    """A trainer's result for one order, noised.

    Attributes:
        arrays: the update, or the histogram.
        event: from the code that drew the batch and added the noise.
        reproducible: whether the noise came from a seed, and so protects nobody.
        notes: for the operator, about the records, such as which are left out. They contain private
            data, and are for the operator's log only.
    """

    arrays: Arrays
    event: Event
    reproducible: bool
    notes: tuple[str, ...] = ()


class TrainerProtocol(Protocol):
    """The trainer of one plan at one site."""

    @property
    def event(self) -> Event:
        """The event of a training release, which is reserved before the trainer works."""
        ...

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the trained parameters in order, each with its shape."""
        ...

    def begins(self) -> str:
        """Return the digest of the trained parameters before any training."""
        ...

    def self_test(self) -> tuple[str, ...]:
        """Run the start-up tests, once; return the rows of the register that passed.

        Raises:
            SelfTestError: naming the row and the layer.
        """
        ...

    def require_source(self) -> None:
        """Check the records' source, without reading a record, until they were opened.

        This is called before each reservation: a fault found here costs nothing.

        Raises:
            InputError: with a text for the operator that quotes no record.
        """
        ...

    def release(self, order: Order, model: Arrays) -> TrainerOutput:
        """Train or evaluate, as the order says; the first order opens the records.

        Args:
            order: already charged.
            model: trained parameters by name; it was compared with :meth:`shapes`.

        Returns:
            The noised update or histogram, with its event.

        Raises:
            PrivetError: with a text that may contain private data, for the operator only.
        """
        ...

    def committed(self, order: Order) -> None:
        """Note that the output for an order was committed and will be released.

        A site calls this if the plan has ``compression``: the remainder that is added to the next
        update may follow only from released updates.
        """
        ...

    def close(self) -> None:
        """Free model and records."""
        ...


def shape_mismatch(shapes: dict[str, tuple[int, ...]], model: Arrays) -> str | None:
    """Return what is wrong with a model that came with an order; None if it can be trained.

    Args:
        shapes: of the plan's trained parameters, by name.
        model: arrays by name; it is not trusted.
    """
    for name, shape in shapes.items():
        array = model.get(name)
        if array is None or array.shape != shape or array.dtype.kind != "f":
            return f"'{name}' has another shape or type than in the plan's model"
        if not usable(array):
            return f"'{name}' is not finite, or too large"
    return None
