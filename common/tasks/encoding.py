"""Encode records as tensors, each record from itself alone (H6); leave out unusable ones (H7).

A record that cannot be encoded adds nothing to a site's releases, and no answer reveals it: the
other records are encoded as if it did not exist. Privet's own tasks convert cell by cell. A user's
own task gets one record at a time, so that its code cannot let one record change another's tensors,
whatever it computes from its table.
"""

from __future__ import annotations

import copy
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch

from privet.common.errors import DataError, InputError
from privet.common.tasks import Batch, Task

if TYPE_CHECKING:
    import pandas as pd

MAX_FAULT_CHARACTERS = 200
"""Length of a user's own task's message about a record."""

Faults = dict[int, str]
"""Why a record cannot be used, by its place in the table, from 0; in words for the operator."""


@dataclass(frozen=True)
class Encoded:
    """The usable records of a table.

    Attributes:
        batch: their tensors, each with first dimension M.
        rows: their rows in the table, [M], ascending, from 0.
        faults: why the other records are left out, by row.
    """

    batch: Batch
    rows: npt.NDArray[np.int64]
    faults: Faults = field(default_factory=dict)


@runtime_checkable
class EncodesRows(Protocol):
    """A task that converts cell by cell."""

    def encode_rows(self, frame: pd.DataFrame) -> tuple[Batch, Faults]:
        """Return tensors of all N records, and the faults of those whose rows are invalid.

        Raises:
            DataError: if a column is missing.
        """


class RowEncoding:
    """Derive :meth:`encode` from ``encode_rows``, for tables whose records must all be usable."""

    def encode_rows(self, frame: pd.DataFrame) -> tuple[Batch, Faults]:
        """See :class:`EncodesRows`."""
        raise NotImplementedError

    def encode(self, frame: pd.DataFrame) -> Batch:
        """See :class:`privet.common.tasks.Task`.

        Raises:
            DataError: if a column is missing, or a record cannot be used.
        """
        batch, faults = self.encode_rows(frame)
        if faults:
            row = min(faults)
            raise DataError(f"row {frame.index[row]}: {faults[row]}")
        return batch


def encode_records(task: Task, frame: pd.DataFrame) -> Encoded:
    """Encode each record of a table from itself alone; leave out those that cannot be encoded.

    Args:
        task: the plan's.
        frame: the records.

    Raises:
        DataError: if a column is missing that a task of Privet's own reads.
        InputError: if a task of the user's own makes no random batch.
    """
    own = not type(task).__module__.startswith("privet.common.tasks.")
    if own or not isinstance(task, EncodesRows):
        return _one_by_one(task, frame)
    batch, faults = task.encode_rows(frame)
    rows = np.array([row for row in range(len(frame)) if row not in faults], dtype=np.int64)
    if faults:
        batch = {name: tensor[torch.from_numpy(rows)] for name, tensor in batch.items()}
    return Encoded(batch, rows, faults)


def _one_by_one(task: Task, frame: pd.DataFrame) -> Encoded:
    try:
        like = task.random_batch(1, 0)  # it reads no record
    except Exception as error:
        name = f"{type(task).__module__}:{type(task).__qualname__}"
        raise InputError(f"task '{name}': random_batch(1, 0) fails: {error!r}") from error
    parts: dict[str, list[torch.Tensor]] = {name: [] for name in like}
    rows, faults = [], Faults()
    memory = _Memory(task)
    for row in range(len(frame)):
        try:
            batch = task.encode(_alone(frame, row))
            _require_like(batch, like)
            # A copy: what it returned may be its own, and the next record's soon.
            kept = {name: tensor.detach().cpu().clone() for name, tensor in batch.items()}
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # it is this record's alone, whatever it is
            faults[row] = f"{type(error).__name__}: {error}"[:MAX_FAULT_CHARACTERS]
            continue
        finally:
            memory.restore()
        rows.append(row)
        for name, tensor in kept.items():
            parts[name].append(tensor)
    # Of generated records the shape alone is kept.
    batch = {
        name: torch.cat(tensors) if tensors else like[name][:0].cpu()
        for name, tensors in parts.items()
    }
    return Encoded(batch, np.array(rows, dtype=np.int64), faults)


def _alone(frame: pd.DataFrame, row: int) -> pd.DataFrame:
    """Return one record as a table that shares nothing with the others'."""
    import pandas as pd

    cells = {name: [frame.iat[row, place]] for place, name in enumerate(frame.columns)}
    return pd.DataFrame(cells, dtype=object)


class _Memory:
    """A task's state before it sees a record, which is restored after each record.

    Its attributes are set again, from copies if they are lists, dicts, sets, arrays or tensors.
    Other objects (a tokenizer), class attributes and globals stay as the task leaves them: a task
    must keep nothing there.
    """

    def __init__(self, task: Task) -> None:
        self._task = task
        names = [name for kind in type(task).__mro__ for name in getattr(kind, "__slots__", ())]
        self._slots = [name for name in names if isinstance(name, str) and hasattr(task, name)]
        self._kept = self._copy()

    def restore(self) -> None:
        """Set the task's state again."""
        kept = self._kept
        self._kept = {name: _copied(value) for name, value in kept.items()}
        own = getattr(self._task, "__dict__", None)
        if own is not None:
            own.clear()
            own.update({name: value for name, value in kept.items() if name not in self._slots})
        for name in self._slots:
            if name in kept:
                setattr(self._task, name, kept[name])

    def _copy(self) -> dict[str, Any]:
        own = dict(getattr(self._task, "__dict__", {}))
        own |= {name: getattr(self._task, name) for name in self._slots}
        return {name: _copied(value) for name, value in own.items()}


def _copied(value: Any) -> Any:
    """Return a deep copy of a container, an array or a tensor; any other value itself."""
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    if isinstance(value, np.ndarray | bytearray):
        return value.copy()
    if type(value) is dict:
        return {key: _copied(part) for key, part in value.items()}
    if type(value) in (list, set, tuple, deque):
        return type(value)(map(_copied, value))
    return copy.copy(value) if isinstance(value, dict | list | set) else value


def _require_like(batch: Batch, like: Batch) -> None:
    """Check that one encoded record has the form of a generated one, which is public.

    Raises:
        DataError: saying what differs.
    """
    if set(batch) != set(like):
        raise DataError(
            f"'encode' makes {', '.join(map(repr, sorted(batch)))}, 'random_batch' makes "
            f"{', '.join(map(repr, sorted(like)))}; they must be the same"
        )
    for name, tensor in batch.items():
        if tensor.shape != like[name].shape or tensor.dtype != like[name].dtype:
            raise DataError(
                f"'encode' makes '{name}' as {list(tensor.shape)} of {tensor.dtype} for one "
                f"record, 'random_batch' {list(like[name].shape)} of {like[name].dtype}; every "
                "record must have the same form: pad to a constant length"
            )
