"""Extractive question answering: find the span of a text that answers a question.

One record is one question with its text, as one sequence; units are never packed together. The
loss is the cross-entropy of the answer's first token, plus that of its last, among the tokens of
the text: those of the question and of the frame are no answer. A text is cut to ``max_tokens``
together with its question, and the question is never cut. A record whose answer is cut away with
the text's end predicts nothing: its loss is 0, and in metrics it counts as not answered.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional

from privet.common.cells import number_of, odd_text, text_of
from privet.common.errors import DataError
from privet.common.models.text import tokens_for
from privet.common.models.tokens import fitting
from privet.common.sections.model import ModelSpec
from privet.common.sections.sequence_task import QuestionAnsweringTaskSpec
from privet.common.tasks import Batch, span_scores
from privet.common.tasks.encoding import Faults, RowEncoding
from privet.common.tasks.measure import SPANS
from privet.common.tasks.words import Span

NO_ANSWER = -1
"""Place of an answer that is not there."""
_EXCLUDED = -1e9
"""Log-likelihood of a token that is no part of the text."""


@dataclass(frozen=True)
class _Asked:
    """A record: its question, its text, and the characters of the answer."""

    question: str = ""
    text: str = ""
    answer: Span = (0, 0)


class AnsweringTask(RowEncoding):
    """Pairs become ``tokens``, ``types`` and ``context`` [B, T], ``start`` and ``end`` [B].

    ``context`` is 1 for the tokens of the text. ``start`` and ``end`` are the places of the
    answer's first and last token, -1 if it was cut away.
    """

    measure = SPANS

    def __init__(self, spec: QuestionAnsweringTaskSpec, model: ModelSpec) -> None:
        self.spec = spec
        self.tokens = tokens_for(model, spec.max_tokens)
        (pair,) = self.tokens.encodings([("a", "b")])
        self._type_of_text: int = max(pair.type_ids, default=0)  # some models have one type

    def encode_rows(self, frame: pd.DataFrame) -> tuple[Batch, Faults]:
        """See :class:`RowEncoding`; an answer that is not in its text makes a record unusable."""
        for name in self.spec.columns:
            if name not in frame.columns:
                raise DataError(f"the column '{name}' is missing, which the plan reads")
        faults = Faults()
        records = []
        columns = [frame[name].tolist() for name in self.spec.columns]
        for row, cells in enumerate(zip(*columns, strict=True)):
            try:
                records.append(self._read(*cells))
            except ValueError as error:
                faults[row] = str(error)
                records.append(_Asked())
        return self._rows(records, faults), faults

    def _read(self, question: Any, text: Any, answer: Any, place: Any = None) -> _Asked:
        """Return a record.

        Raises:
            ValueError: if a cell cannot be read, or the answer is not in the text.
        """
        names = (self.spec.question, self.spec.text, self.spec.answer)
        texts = []
        for name, cell in zip(names, (question, text, answer), strict=True):
            found = _text(cell)
            if found is None or not found.strip():
                raise ValueError(f"there is no text in '{name}'")
            texts.append(found)
        wanted = texts[2].strip()
        blanks = len(texts[2]) - len(texts[2].lstrip())
        start = self._start(texts[1], wanted, place, blanks)
        return _Asked(texts[0], texts[1], (start, start + len(wanted)))

    def _start(self, text: str, wanted: str, place: Any, blanks: int) -> int:
        """Return the answer's first character.

        Args:
            text: that contains it.
            wanted: the answer, without the blanks around it.
            place: cell that may say where it is, with its blanks.
            blanks: before the answer in its own cell.

        Raises:
            ValueError: if it is not there.
        """
        try:
            given = number_of(place)
        except ValueError:
            raise ValueError(f"'{self.spec.answer_start}' is no number") from None
        if given != given:  # NaN: the cell is empty, or there is no such column
            start = text.find(wanted)
            if start < 0:
                raise ValueError(f"'{self.spec.answer}' does not occur in '{self.spec.text}'")
            return start
        start = int(given) + blanks
        if given != int(given) or given < 0 or not text.startswith(wanted, start):
            raise ValueError(
                f"'{self.spec.answer}' does not occur in '{self.spec.text}' at the character that "
                f"'{self.spec.answer_start}' names"
            )
        return start

    def _rows(self, records: list[_Asked], faults: Faults) -> Batch:
        shape = (len(records), self.spec.max_tokens)
        tokens = torch.full(shape, self.tokens.padding, dtype=torch.int64)
        types, context = (torch.zeros(shape, dtype=torch.int64) for _ in range(2))
        ends = torch.full((len(records), 2), NO_ANSWER, dtype=torch.int64)
        encodings = self.tokens.encodings([(one.question, one.text) for one in records])
        for row, (encoding, record) in enumerate(zip(encodings, records, strict=True)):
            pair = _Pair(encoding)
            kept = fitting(pair.of_text, self.spec.max_tokens)
            if kept is None:
                faults.setdefault(
                    row,
                    f"'{self.spec.question}' leaves no room for '{self.spec.text}' among "
                    f"{self.spec.max_tokens} tokens",
                )
                continue
            ids = self.tokens.plain(encoding.ids, encoding.special_tokens_mask)
            tokens[row, : len(kept)] = torch.tensor(ids)[kept]
            types[row, : len(kept)] = torch.tensor(encoding.type_ids)[kept]
            context[row, : len(kept)] = pair.of_text[kept]
            ends[row] = torch.tensor(pair.answer(record.answer, kept))
        return {
            "tokens": tokens, "types": types, "context": context,
            "start": ends[:, 0], "end": ends[:, 1],
        }  # fmt: skip

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the cross-entropy of the answer's first and last token, [B].

        Args:
            model: maps ``tokens`` and ``types`` [B, T] to logits [B, T, 2].
            batch: of :meth:`encode_rows`.
        """
        start, end = self._logits(model, batch)
        nats = functional.cross_entropy(start, batch["start"].clamp(min=0), reduction="none")
        nats = nats + functional.cross_entropy(end, batch["end"].clamp(min=0), reduction="none")
        return torch.where(batch["start"] >= 0, nats, nats * 0.0)

    def scores(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return [exact, f1] of each record (:mod:`privet.common.tasks.spans`).

        Args:
            model: maps ``tokens`` and ``types`` [B, T] to logits [B, T, 2].
            batch: of :meth:`encode_rows`.
        """
        start, end = (logits.log_softmax(1) for logits in self._logits(model, batch))
        return span_scores.overlap(*span_scores.best(start, end), batch["start"], batch["end"])

    def _logits(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the logits of starts and of ends [B, T], with the text's tokens alone."""
        tokens = self.tokens.trimmed(batch["tokens"])
        types, context = (batch[name][:, : tokens.shape[1]] for name in ("types", "context"))
        logits = model(tokens=tokens, types=types)
        logits = logits.masked_fill(context[..., None] == 0, _EXCLUDED)
        return logits[..., 0], logits[..., 1]

    def sizes(self, batch: Batch) -> Tensor | None:
        """Return how many tokens each record has, [B]."""
        return self.tokens.sizes(batch["tokens"])

    def random_batch(self, records: int, seed: int) -> Batch:
        """See :class:`privet.common.tasks.Task`; of an empty record the answer was cut away.

        Args:
            records: number B of records.
            seed: the same seed gives the same records.
        """
        generator = torch.Generator().manual_seed(seed)
        tokens = self.tokens.random(records, generator)
        there = tokens != self.tokens.padding
        order = there.cumsum(1)
        framed = torch.isin(tokens, torch.tensor(self.tokens.special, dtype=tokens.dtype))
        context = there & ~framed & (order > (order[:, -1:] + 2) // 3)
        drawn = torch.rand((2, *tokens.shape), generator=generator).masked_fill(~context, -1.0)
        ends = drawn.argmax(2).sort(0).values
        ends = ends.masked_fill(~context.any(1), NO_ANSWER)
        return {
            "tokens": tokens, "types": context * self._type_of_text, "context": context.long(),
            "start": ends[0], "end": ends[1],
        }  # fmt: skip


def _text(cell: Any) -> str | None:
    """Return a cell's text; None if it holds none, or what is no text."""
    if isinstance(cell, list | tuple | dict | bytes | bytearray):
        return None
    text = text_of(cell)
    return None if odd_text(text) else text


class _Pair:
    """A question and its text, as the tokenizer encodes them, uncut.

    Args:
        encoding: of the tokenizer.

    Attributes:
        of_text: whether each token is of the text.
    """

    def __init__(self, encoding: Any) -> None:
        self._offsets: list[Span] = encoding.offsets
        self.of_text = torch.tensor([k == 1 for k in encoding.sequence_ids], dtype=torch.bool)

    def answer(self, characters: Span, kept: Tensor) -> Span:
        """Return the first and the last token of an answer; twice -1 if any of it is not kept.

        Args:
            characters: of the text.
            kept: places of the tokens that are kept.
        """
        begin, end = characters
        places = [
            place
            for place in self.of_text.nonzero().flatten().tolist()
            if self._offsets[place][0] < end and self._offsets[place][1] > begin
        ]
        new = {old: place for place, old in enumerate(kept.tolist())}
        if not places or places[-1] not in new:
            return NO_ANSWER, NO_ANSWER
        return new[places[0]], new[places[-1]]
