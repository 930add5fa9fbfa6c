"""Tasks: encoding of records, loss, and scores.

A user's own task is any object with the four methods of :class:`Task`; a plan names a factory for
it as ``kind = "module:object"``. It is measured as a classification unless it has an attribute
``measure`` (:mod:`privet.common.tasks.measure`). A method ``sizes(batch)`` may return the length of
each record, [B] on the CPU or None: then records of similar length are computed together. A method
``augment(batch, words)`` may make an augmented copy of each record in each step
(:mod:`privet.common.tasks.augment`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from privet.common.config import make
from privet.common.errors import InputError
from privet.common.sections.audio_task import AudioTaskSpec
from privet.common.sections.sequence_task import (
    QuestionAnsweringTaskSpec,
    TokenClassificationTaskSpec,
)
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
    """The interface of a task."""

    def encode(self, frame: pd.DataFrame) -> Batch:
        """Convert N records to tensors with first dimension N.

        Each row depends on its own record and on public constants only.

        Raises:
            DataError: if the records do not fit; the message stays at the site.
        """

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return one loss for each record, [B]; no mean, no sum.

        Args:
            model: the plan's network.
            batch: tensors of B records, as :meth:`encode` returns them.
        """

    def scores(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return each record's scores: class probabilities [B, K], or likelihoods.

        Args:
            model: the plan's network.
            batch: tensors of B records, as :meth:`encode` returns them.
        """

    def random_batch(self, records: int, seed: int) -> Batch:
        """Return generated records of the right shapes and types, for the start-up tests.

        Args:
            records: number B of records.
            seed: the same seed gives the same records.
        """


def augment_of(task: Task) -> Callable[[Batch, Tensor], Batch] | None:
    """Return the function that augments a task's records; None if it has none."""
    return getattr(task, "augment", None)


def sizes_of(task: Task) -> Callable[[Batch], Tensor | None]:
    """Return the function of each record's length in a batch; it may return None."""
    return getattr(task, "sizes", lambda batch: None)


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
    if isinstance(spec, TokenClassificationTaskSpec):
        from privet.common.tasks.tagging import TaggingTask

        return TaggingTask(spec, plan.model)
    if isinstance(spec, QuestionAnsweringTaskSpec):
        from privet.common.tasks.answering import AnsweringTask

        return AnsweringTask(spec, plan.model)
    if isinstance(spec, AudioTaskSpec):
        from privet.common.tasks.audio import AudioTask

        return AudioTask(spec)
    task = make(spec.kind, object, spec)
    if not isinstance(task, Task):
        raise InputError(
            f"'{spec.kind}' did not make a task: it must have the methods encode, "
            "loss, scores and random_batch"
        )
    return task
