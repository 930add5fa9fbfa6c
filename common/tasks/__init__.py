"""What is learnt: encoding of records, loss, and scores.

A task of one's own is any object with the four methods of :class:`Task`; a plan names a
factory for it as ``kind = "module:object"``. It is measured as a classification unless it has an
attribute ``measure`` (:mod:`privet.common.tasks.measure`). A method ``sizes(batch)`` may say how
long each record is, [B] on the CPU or None: records of like length are then computed together. A
method ``augment(batch, words)`` may make another view of each record in each step
(:mod:`privet.common.tasks.augment`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from privet.common.config import make
from privet.common.errors import InputError
from privet.common.sections.task import (
    ImageTaskSpec,
    LanguageTaskSpec,
    TabularTaskSpec,
    TextTaskSpec,
    TextToTextTaskSpec,
)

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor, nn

    from privet.common.plan import Plan

Batch = dict[str, Any]
"""Tensors by name, each with first dimension B; ``label`` holds the classes [B] if there are."""


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
        """Return what each record is measured by: class probabilities [B, K], or likelihoods."""
        ...

    def random_batch(self, records: int, seed: int) -> Batch:
        """Return made-up records of the right shapes and types, for the start-up tests."""
        ...


def augment_of(task: Task) -> Callable[[Batch, Tensor], Batch] | None:
    """Return what makes other views of a task's records; None if they are seen as they are."""
    found: Callable[[Batch, Tensor], Batch] | None = getattr(task, "augment", None)
    return found


def sizes_of(task: Task) -> Callable[[Batch], Tensor | None]:
    """Return what says how long each record of a batch is; a task need not know."""
    found: Callable[[Batch], Tensor | None] = getattr(task, "sizes", lambda batch: None)
    return found


def build_task(plan: Plan) -> Task:
    """Return the plan's task.

    Raises:
        InputError: if a user's own task cannot be imported or lacks a method.
    """
    spec = plan.task
    if isinstance(spec, TabularTaskSpec):
        from privet.common.tasks.tabular import TabularTask

        return TabularTask(spec)
    if isinstance(spec, ImageTaskSpec):
        from privet.common.tasks.image import ImageTask

        return ImageTask(spec)
    if isinstance(spec, TextTaskSpec):
        from privet.common.tasks.text import TextTask

        return TextTask(spec, plan.model)
    if isinstance(spec, LanguageTaskSpec | TextToTextTaskSpec):
        from privet.common.tasks import language

        known: dict[str, Any] = {
            "causal-text": language.CausalText,
            "masked-text": language.MaskedText,
            "text-to-text": language.TextToText,
        }
        return known[spec.kind](spec, plan.model)  # type: ignore[no-any-return]
    task = make(spec.kind, object, spec)
    if not isinstance(task, Task):
        raise InputError(
            f"'{spec.kind}' did not make a task: it must have the methods encode, "
            "loss, scores and random_batch"
        )
    return task
