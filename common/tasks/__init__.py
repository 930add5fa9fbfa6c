"""What is learnt: encoding of records, loss, and scores.

A task of one's own is any object with the four methods of :class:`Task`; a plan names a
factory for it as ``kind = "module:object"``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from privet.common.config import make
from privet.common.errors import InputError

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor, nn

    from privet.common.plan import Plan

Batch = dict[str, Any]
"""Tensors by name, each with first dimension B; ``label`` holds the classes [B]."""


@runtime_checkable
class Task(Protocol):
    """What Privet needs to know of a task."""

    def encode(self, frame: pd.DataFrame) -> Batch:
        """Turn N records into tensors with first dimension N.

        Each row depends on its own record and on public constants only.

        Raises:
            DataError: if the records do not fit; the message stays at the site.
        """
        ...

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return one loss for each record, [B]; no mean, no sum."""
        ...

    def scores(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return class probabilities [B, K]."""
        ...

    def random_batch(self, records: int, seed: int) -> Batch:
        """Return made-up records of the right shapes and types, for the start-up tests."""
        ...


def build_task(plan: Plan) -> Task:
    """Return the plan's task.

    Raises:
        InputError: if a user's own task cannot be imported or lacks a method.
    """
    from privet.common.tasks.tabular import TabularTask
    from privet.common.tasks.text import TextTask

    if plan.task.kind == "tabular":
        return TabularTask(plan.task)
    if plan.task.kind == "text":
        return TextTask(plan.task, plan.model)
    task = make(plan.task.kind, object, plan.task)
    if not isinstance(task, Task):
        raise InputError(
            f"'{plan.task.kind}' did not make a task: it must have the methods encode, "
            "loss, scores and random_batch"
        )
    return task
