"""What Privet uses of Flower beside its public ``flwr.app`` and ``flwr.serverapp``."""

from __future__ import annotations

import io
from typing import Any
from uuid import uuid4

import numpy as np
import numpy.typing as npt
from flwr.app import Array, ArrayRecord, Message
from flwr.common.constant import ErrorCode
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from privet.common.flat import Arrays

CLIENT_FAILED: int = ErrorCode.CLIENT_APP_RAISED_EXCEPTION
"""Flower's error code for an exception in a ``ClientApp``; no public module has the codes."""


def claim_identity(run_id: int) -> None:
    """Give this process the identity that Flower's ``Message`` wants to see.

    ``flwr.supercore.task_identity``, since 1.38. A grid that is not Flower's has no public way:
    every message would have to be made by a SuperLink's own grid.
    """
    TaskIdentity.task_id = 1
    TaskIdentity.run_id = run_id
    TaskIdentity.node_id = 1


def require_identity(run_id: int) -> None:
    """Claim the identity where this process has none; Flower's own stays as it is."""
    try:
        _ = TaskIdentity.run_id
    except RuntimeError:
        claim_identity(run_id)


def number_message(message: Message) -> str:
    """Give ``message`` an id of its own, and return it.

    ``_message_id`` in the metadata, as Flower's own grids set it. ``Metadata.message_id`` can be
    read only; a public way would be to keep a table of messages beside them.
    """
    number = str(uuid4())
    message.metadata.__dict__["_message_id"] = number
    return number


def empty_run(run_id: int) -> Run:
    """Return a run without a bundle, which ``Grid.run`` must return.

    ``flwr.supercore.run``; the public ``Grid`` names the type, and no public module has it.
    """
    return Run.create_empty(run_id=run_id)


class ZeroCopyArray(Array):  # type: ignore[misc]
    """A numpy array as Flower's: its bytes are made only where Flower's transport asks for them.

    Flower's own ``Array`` copies into a buffer at once, and out of it at each use. That ``data``
    may be a property, and that the transport goes by ``__qualname__``, is nowhere documented; the
    public way is the copy, twice a model's size a site and round.
    """

    __qualname__ = "Array"
    """Flower's transport writes a class's name, and knows its own only."""
    stype = "numpy.ndarray"

    def __init__(self, array: npt.NDArray[Any]) -> None:
        self._array = array.view()
        self._array.flags.writeable = False
        self.dtype, self.shape = str(array.dtype), tuple(array.shape)

    def __reduce__(self) -> tuple[Any, ...]:
        return Array, (self.dtype, self.shape, self.stype, self.data)

    @property
    def data(self) -> bytes:
        """The array in numpy's file format."""
        buffer = io.BytesIO()
        np.save(buffer, self._array, allow_pickle=False)
        return buffer.getvalue()

    def numpy(self) -> npt.NDArray[Any]:
        """Return the array itself, read-only."""
        return self._array


class ZeroCopyRecord(ArrayRecord):  # type: ignore[misc]
    """Flower's record of arrays that keeps what it was made of: a digest need not be made again."""

    __qualname__ = "ArrayRecord"

    def __init__(self, arrays: Arrays) -> None:
        # Given a mapping, Flower would copy every array.
        super().__init__()
        for name, array in arrays.items():
            self[name] = ZeroCopyArray(array)
        self._views = list(self.items())
        self._arrays = arrays

    def __reduce__(self) -> tuple[Any, ...]:
        return ArrayRecord, (dict(self.items()),)

    @property
    def arrays(self) -> Arrays | None:
        """What it was made of, unless something was put in its place."""
        now = list(self.items())
        same = len(now) == len(self._views) and all(
            (name, id(view)) == (key, id(made))
            for (name, view), (key, made) in zip(now, self._views, strict=True)
        )
        return self._arrays if same else None
