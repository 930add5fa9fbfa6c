"""What is predicted from what: a section for each kind of task."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from privet.common.schema import Finite, OwnKind, Part
from privet.common.sections.audio_task import AudioTaskSpec
from privet.common.sections.sequence_task import (
    QuestionAnsweringTaskSpec,
    TokenClassificationTaskSpec,
)
from privet.common.sections.task_base import LabelledTask, Once, ReadingTask


class Range(Part):
    """What cells typically are, a public constant and not a statistic (H12)."""

    low: Finite
    high: Finite

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.low < self.high:
            raise ValueError("'low' must be below 'high'")
        return self


class Numeric(Range):
    """A numeric feature.

    The cell ``x`` becomes ``4 (f(x) - f(low)) / (f(high) - f(low)) - 2``, held to
    [-4, 4], with ``f = log1p`` when ``log`` is set. A missing cell becomes 0 and is marked.
    """

    log: bool = False

    @model_validator(mode="after")
    def _has_logarithm(self) -> Self:
        if self.log and self.low <= -1:
            raise ValueError("a logarithmic feature needs 'low' above -1")
        return self


class Image(Range):
    """An image in columns, one a pixel: ``prefix`` and a number from 0, by channel, row, column.

    The cell ``x`` becomes ``2 (x - low) / (high - low) - 1``.
    """

    height: Annotated[int, Field(ge=1, le=1024)]
    width: Annotated[int, Field(ge=1, le=1024)]
    channels: Annotated[int, Field(ge=1, le=16)] = 1
    prefix: str = "pixel_"
    low: Finite = 0.0
    high: Finite = 255.0

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of the pixels, in order."""
        count = self.channels * self.height * self.width
        return tuple(f"{self.prefix}{number}" for number in range(count))


class TableTask(LabelledTask):
    """What reads features of a table.

    Attributes:
        numeric, categorical: features by column. The values of a categorical feature are declared;
            any other cell counts as "other".
    """

    numeric: dict[str, Numeric] = {}
    categorical: dict[str, tuple[str, ...]] = {}

    @model_validator(mode="after")
    def _apart(self) -> Self:
        if self.label in self.numeric or self.label in self.categorical:
            raise ValueError(f"the label '{self.label}' is also a feature")
        if both := set(self.numeric) & set(self.categorical):
            raise ValueError(f"'{min(both)}' is declared numeric and categorical")
        return self


class TabularTaskSpec(TableTask):
    """A class from numbers and categories.

    Attributes:
        augment: makes augmented copies (:mod:`privet.common.tasks.augment`): ``hide`` cells.
    """

    reads = ("numeric", "categorical", "label")
    kind: Literal["tabular"] = "tabular"
    augment: Once[tuple[Literal["hide"], ...]] = ()

    @model_validator(mode="after")
    def _reads_something(self) -> Self:
        if not (self.numeric or self.categorical):
            raise ValueError("a tabular task needs features in 'numeric' or 'categorical'")
        return self


class TextTaskSpec(ReadingTask, LabelledTask):
    """A class from a text.

    Attributes:
        augment: makes augmented copies: ``drop`` tokens of a text.
    """

    reads = ("text", "label")
    kind: Literal["text"]
    augment: Once[tuple[Literal["drop"], ...]] = ()


class ImageTaskSpec(LabelledTask):
    """A class from pixels.

    Attributes:
        image: where the pixels are.
        augment: makes augmented copies: ``shift`` or ``flip`` an image.
    """

    reads = ("image", "label")
    kind: Literal["image"]
    image: Image
    augment: Once[tuple[Literal["shift", "flip"], ...]] = ()


class LanguageTaskSpec(ReadingTask):
    """A text is predicted from itself."""

    reads: ClassVar[tuple[str, ...]] = ("text",)


class CausalTaskSpec(LanguageTaskSpec):
    """Each token of a text from those before it.

    Attributes:
        prompt: column of what is before the text; then the text alone is predicted, as its answer.
        chat: whether the two are turns of a chat, by the template of the model's tokenizer.
    """

    reads = ("prompt", "text")
    kind: Literal["causal-text"]
    prompt: str | None = None
    chat: bool = False

    @model_validator(mode="after")
    def _has_two_columns(self) -> Self:
        if self.chat and self.prompt is None:
            raise ValueError("'chat' needs 'prompt', the column of what is asked")
        if self.prompt == self.text:
            raise ValueError(f"'prompt' and 'text' are both the column '{self.text}'")
        return self

    @model_serializer(mode="wrap")
    def _without_prompt(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out what was not written: a plan from before there were prompts is the same."""
        value: dict[str, Any] = dump(self)
        if self.prompt is None:
            value.pop("prompt", None)
        if not self.chat:
            value.pop("chat", None)
        return value


class MaskedTaskSpec(LanguageTaskSpec):
    """Tokens of a text that were left out."""

    kind: Literal["masked-text"]


class TextToTextTaskSpec(ReadingTask):
    """One text from another.

    Attributes:
        target: column of what is to be written.
    """

    reads = ("text", "target")
    kind: Literal["text-to-text"]
    target: str = "target"


class OwnTaskSpec(ReadingTask, TableTask):
    """A task of the user's own, whose factory reads the keys that it needs.

    Attributes:
        options: further arguments of the factory.
        augment, image: no keys of such a task; empty, for factories that extend a task of Privet's.
    """

    augment: ClassVar[tuple[str, ...]] = ()
    image: ClassVar[None] = None
    kind: OwnKind
    classes: Once[tuple[str, ...]] = ()
    target: str = "target"
    options: dict[str, Any] = {}


TaskSpec = (
    TabularTaskSpec
    | TextTaskSpec
    | ImageTaskSpec
    | CausalTaskSpec
    | MaskedTaskSpec
    | TextToTextTaskSpec
    | TokenClassificationTaskSpec
    | QuestionAnsweringTaskSpec
    | AudioTaskSpec
    | OwnTaskSpec
)
"""What is predicted from what."""
LANGUAGE = ("causal-text", "masked-text", "text-to-text")
"""Kinds that are measured by likelihoods."""
