"""What is predicted from what: a section for each kind of task."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar

from pydantic import (
    AfterValidator,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from privet.common.schema import Finite, OwnKind, Part, Variant

T = TypeVar("T", bound=tuple[str, ...])


def _different(values: tuple[str, ...]) -> tuple[str, ...]:
    if len({value.strip() for value in values}) != len(values):
        raise ValueError("names one twice")
    return values


_Once = Annotated[T, AfterValidator(_different), Field(json_schema_extra={"uniqueItems": True})]


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


class AnyTask(Variant):
    """What can be asked of every kind of task.

    Attributes:
        blanks: what canonical form says for keys that a kind has not. Plans of before named the
            keys of all kinds, and digests are over that form.
        reads: names of the keys that name columns.
        kind: ``tabular``, ``text`` and ``image`` classify; ``causal-text`` predicts the next
            token of a text, ``masked-text`` tokens that were left out, ``text-to-text`` one text
            from another; or ``"module:object"`` of a user's own
            :class:`privet.common.tasks.Task` factory.
    """

    blanks: ClassVar[dict[str, Any]] = {
        "label": "label",
        "classes": [],
        "numeric": {},
        "categorical": {},
        "text": "text",
        "target": "target",
        "max_tokens": 128,
        "clean": [],
        "clean_region": "US",
        "augment": [],
        "image": None,
        "options": {},
    }
    reads: ClassVar[tuple[str, ...]] = ()

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that it reads; none are known of a user's own task."""
        found: list[str] = []
        for name in self.reads:
            value = getattr(self, name)
            value = value.columns if isinstance(value, Image) else value
            found += [value] if isinstance(value, str) else value or ()
        return tuple(found)

    @property
    def texts(self) -> tuple[str, ...]:
        """Those of its columns that hold texts."""
        found = (getattr(self, name) for name in self.reads if name in ("text", "target", "prompt"))
        return tuple(column for column in found if column is not None)

    @property
    def labels(self) -> tuple[str, ...]:
        """The declared labels, in order; none where it does not classify."""
        return getattr(self, "classes", ())

    @property
    def answer(self) -> str | None:
        """The column that says what is right, if one does."""
        if self.labels:
            return getattr(self, "label", None)
        if "target" in self.reads:
            return getattr(self, "target", None)
        return None


class LabelledTask(AnyTask):
    """What classifies.

    Attributes:
        label: name of the label column.
        classes: the declared labels, in order; a record with another label, or none, is left out.
    """

    label: str = "label"
    classes: _Once[Annotated[tuple[str, ...], Field(min_length=2)]]


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


class ReadingTask(AnyTask):
    """What reads texts.

    Attributes:
        text: text column, of ``text-to-text`` the column of what is read.
        max_tokens: texts are cut to this many tokens.
        clean: what is taken out of texts first (:mod:`privet.common.tasks.cleaning`).
        clean_region: where phone numbers without a country code are from.
    """

    text: str = "text"
    max_tokens: Annotated[int, Field(ge=2, le=8192)] = 128
    clean: tuple[Literal["dates", "emails", "links", "phones", "ids", "names"], ...] = ()
    clean_region: Annotated[str, Field(pattern=r"^[A-Z]{2}$")] = "US"


class TabularTaskSpec(TableTask):
    """A class from numbers and categories.

    Attributes:
        augment: makes augmented copies (:mod:`privet.common.tasks.augment`): ``hide`` cells.
    """

    reads = ("numeric", "categorical", "label")
    kind: Literal["tabular"] = "tabular"
    augment: _Once[tuple[Literal["hide"], ...]] = ()

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
    augment: _Once[tuple[Literal["drop"], ...]] = ()


class ImageTaskSpec(LabelledTask):
    """A class from pixels.

    Attributes:
        image: where the pixels are.
        augment: makes augmented copies: ``shift`` or ``flip`` an image.
    """

    reads = ("image", "label")
    kind: Literal["image"]
    image: Image
    augment: _Once[tuple[Literal["shift", "flip"], ...]] = ()


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
    classes: _Once[tuple[str, ...]] = ()
    target: str = "target"
    options: dict[str, Any] = {}


TaskSpec = (
    TabularTaskSpec
    | TextTaskSpec
    | ImageTaskSpec
    | CausalTaskSpec
    | MaskedTaskSpec
    | TextToTextTaskSpec
    | OwnTaskSpec
)
"""What is predicted from what."""
LANGUAGE = ("causal-text", "masked-text", "text-to-text")
"""Kinds that are measured by likelihoods."""
