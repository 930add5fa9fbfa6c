"""What sections of several kinds of task have in common."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import AfterValidator, Field

from privet.common.schema import Variant

T = TypeVar("T", bound=tuple[str, ...])


def _different(values: tuple[str, ...]) -> tuple[str, ...]:
    if len({value.strip() for value in values}) != len(values):
        raise ValueError("names one twice")
    return values


Once = Annotated[T, AfterValidator(_different), Field(json_schema_extra={"uniqueItems": True})]


class AnyTask(Variant):
    """What can be asked of every kind of task.

    Attributes:
        blanks: what canonical form says for keys that a kind has not. Plans of before named the
            keys of all kinds, and digests are over that form.
        reads: names of the keys that name columns.
        nested: those of them whose cells may be lists or bytes.
        kind: ``tabular``, ``text``, ``image`` and ``audio`` classify; ``token-classification``
            classifies each word of a text; ``question-answering`` finds an answer in a text;
            ``causal-text`` predicts the next token of a text, ``masked-text`` tokens that were left
            out, ``text-to-text`` one text from another; or ``"module:object"`` of a user's own
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
    nested: ClassVar[tuple[str, ...]] = ()

    @property
    def number_columns(self) -> tuple[str, ...]:
        """The columns whose cells are read as numbers."""
        return tuple(getattr(self, "numeric", {}) or ())

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that it reads; none are known of a user's own task."""
        found: list[str] = []
        for name in self.reads:
            value = getattr(self, name)
            if value is not None:  # an optional column
                found += [value] if isinstance(value, str) else getattr(value, "columns", value)
        return tuple(found)

    @property
    def nested_columns(self) -> frozenset[str]:
        """Those of its columns whose cells may be lists or bytes."""
        return frozenset(getattr(self, name) for name in self.nested)

    @property
    def texts(self) -> tuple[str, ...]:
        """Those of its columns that hold texts."""
        names = ("text", "target", "question", "answer", "prompt")
        found = (getattr(self, name) for name in self.reads if name in names)
        return tuple(column for column in found if column is not None)

    @property
    def labels(self) -> tuple[str, ...]:
        """The declared labels, in order; none where it does not classify."""
        return getattr(self, "classes", ())

    @property
    def answer_column(self) -> str | None:
        """The column that says what is right, if one does."""
        if self.labels:
            return getattr(self, "label", None)
        for name in ("target", "answer"):
            if name in self.reads:
                return getattr(self, name)  # type: ignore[no-any-return]
        return None


class LabelledTask(AnyTask):
    """What classifies.

    Attributes:
        label: name of the label column.
        classes: the declared labels, in order; a record with another label, or none, is left out.
    """

    label: str = "label"
    classes: Once[Annotated[tuple[str, ...], Field(min_length=2)]]


class TokenTask(AnyTask):
    """What reads texts as tokens.

    Attributes:
        text: text column, of ``text-to-text`` the column of what is read.
        max_tokens: texts are cut to this many tokens.
    """

    text: str = "text"
    max_tokens: Annotated[int, Field(ge=2, le=8192)] = 128


class ReadingTask(TokenTask):
    """What reads texts that may be cleaned.

    Attributes:
        clean: what is taken out of texts first (:mod:`privet.common.tasks.cleaning`).
        clean_region: where phone numbers without a country code are from.
    """

    clean: tuple[Literal["dates", "emails", "links", "phones", "ids", "names"], ...] = ()
    clean_region: Annotated[str, Field(pattern=r"^[A-Z]{2}$")] = "US"
