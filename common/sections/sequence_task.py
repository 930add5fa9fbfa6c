"""Sections of tasks that classify the words of a text, or find an answer in one."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import model_validator

from privet.common.bio import tag_scheme
from privet.common.sections.task_base import LabelledTask, TokenTask


class TokenClassificationTaskSpec(TokenTask, LabelledTask):
    """A tag for each word of a text.

    Words are never cleaned: without one of them the tags would be those of other words.

    Attributes:
        text: column of the words, separated by white space, or as a list.
        label: column of their tags, in the same form.
        classes: the tags, in order: ``O``, ``B-X`` and ``I-X`` of BIO, or plain ones.
    """

    reads = ("text", "label")
    nested = ("text", "label")
    kind: Literal["token-classification"]

    @model_validator(mode="after")
    def _is_scheme(self) -> Self:
        tag_scheme(self.classes)
        return self


class QuestionAnsweringTaskSpec(TokenTask):
    """The place of an answer in a text.

    Texts are never cleaned: an answer is found where it is written.

    Attributes:
        question: column of the question.
        text: column of the text that contains the answer.
        answer: column of the answer, as it is written in the text.
        answer_start: column of the answer's first character in the text, from 0; None takes the
            first occurrence, and so does an empty cell.
    """

    reads = ("question", "text", "answer", "answer_start")
    kind: Literal["question-answering"]
    question: str = "question"
    answer: str = "answer"
    answer_start: str | None = None
