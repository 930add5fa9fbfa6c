"""Classification of the words of a text: named entities, parts of speech.

One record is one sequence; units are never packed together. The first token of each word has the
word's tag, and no other token counts (Devlin et al. 2019). Each tagged token has the same weight,
in whatever record: the loss of a record is the sum over its tagged tokens, divided by the constant
``max_tokens``. A mean over a record's own words would give the words of short texts more weight,
and its divisor would follow from the record.
"""

from __future__ import annotations

from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional

from privet.common.bio import tag_scheme
from privet.common.cells import Codes
from privet.common.errors import DataError
from privet.common.models.text import tokens_for
from privet.common.models.tokens import fitting
from privet.common.printable import counted
from privet.common.sections.model import ModelSpec
from privet.common.sections.sequence_task import TokenClassificationTaskSpec
from privet.common.tasks import Batch, span_scores
from privet.common.tasks.encoding import Faults, RowEncoding
from privet.common.tasks.measure import TAGS
from privet.common.tasks.words import Span, first_tokens, items_of, word_spans, words_of

NO_TAG = -1
"""Class of a token that does not count."""


class TaggingTask(RowEncoding):
    """Words become ``tokens`` [B, T] and ``tags`` [B, T], the class of a word's first token."""

    measure = TAGS

    def __init__(self, spec: TokenClassificationTaskSpec, model: ModelSpec) -> None:
        self.spec = spec
        self.tokens = tokens_for(model, spec.max_tokens)
        self._codes = Codes(spec.classes)
        self._scheme = tag_scheme(spec.classes)

    def encode_rows(self, frame: pd.DataFrame) -> tuple[Batch, Faults]:
        """See :class:`RowEncoding`; words beyond ``max_tokens`` are not read."""
        for name in self.spec.columns:
            if name not in frame.columns:
                raise DataError(f"the column '{name}' is missing, which the plan reads")
        faults = Faults()
        records = []
        cells = zip(frame[self.spec.text].tolist(), frame[self.spec.label].tolist(), strict=True)
        for row, (words, labels) in enumerate(cells):
            try:
                records.append(self._read(words, labels))
            except ValueError as error:
                faults[row] = str(error)
                records.append(([], []))
        return self._rows(records, faults), faults

    def _read(self, words: Any, labels: Any) -> tuple[list[str], list[int]]:
        """Return the words of a record and their classes.

        Raises:
            ValueError: if they cannot be read, or do not belong together.
        """
        read = _named(self.spec.text, words_of, words)
        given = _named(self.spec.label, items_of, labels)
        if not read:
            raise ValueError(f"there is no word in '{self.spec.text}'")
        if len(read) != len(given):
            raise ValueError(
                f"'{self.spec.text}' has {counted(len(read), 'word')} and '{self.spec.label}' "
                f"{counted(len(given), 'label')}: each word needs one"
            )
        places = self._codes.find_each(given)
        if None in places:
            where = places.index(None) + 1
            raise ValueError(f"label {where} in '{self.spec.label}' is not declared in 'classes'")
        return read, [place for place in places if place is not None]

    def _rows(self, records: list[tuple[list[str], list[int]]], faults: Faults) -> Batch:
        shape = (len(records), self.spec.max_tokens)
        tokens = torch.full(shape, self.tokens.padding, dtype=torch.int64)
        classes = torch.full(shape, NO_TAG, dtype=torch.int64)
        encodings = self.tokens.encodings([" ".join(words) for words, _ in records])
        for row, (encoding, (words, places)) in enumerate(zip(encodings, records, strict=True)):
            added = torch.tensor(encoding.special_tokens_mask, dtype=torch.bool)
            kept = fitting(~added, self.spec.max_tokens)
            if kept is None:
                faults.setdefault(row, f"no word fits among {self.spec.max_tokens} tokens")
                continue
            ids = self.tokens.plain(encoding.ids, encoding.special_tokens_mask)
            tokens[row, : len(kept)] = torch.tensor(ids, dtype=torch.int64)[kept]
            offsets = _offsets(encoding)
            firsts = first_tokens([offsets[old] for old in kept.tolist()], word_spans(words))
            for first, place in zip(firsts, places, strict=True):
                if first is not None:
                    classes[row, first] = place
        return {"tokens": tokens, "tags": classes}

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the sum over each record's tagged tokens, divided by ``max_tokens``, [B].

        Args:
            model: maps ``tokens`` [B, T] to logits [B, T, K].
            batch: with ``tokens`` and ``tags``, each [B, T].
        """
        logits, classes = self._logits(model, batch)
        nats = functional.cross_entropy(logits.mT, classes.clamp(min=0), reduction="none")
        return (nats * (classes >= 0).to(nats.dtype)).sum(1) / self.spec.max_tokens

    def scores(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the counts of each record (:mod:`privet.common.tasks.tags`).

        Args:
            model: maps ``tokens`` [B, T] to logits [B, T, K].
            batch: with ``tokens`` and ``tags``, each [B, T].
        """
        logits, classes = self._logits(model, batch)
        return span_scores.counts(logits.argmax(2), classes, self._scheme, len(self.spec.classes))

    def _logits(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        tokens = self.tokens.trimmed(batch["tokens"])
        return model(tokens=tokens), batch["tags"][:, : tokens.shape[1]]

    def sizes(self, batch: Batch) -> Tensor | None:
        """Return how many tokens each record has, [B]."""
        return self.tokens.sizes(batch["tokens"])

    def random_batch(self, records: int, seed: int) -> Batch:
        """See :class:`privet.common.tasks.Task`; one token in three has no tag.

        Args:
            records: number B of records.
            seed: the same seed gives the same records.
        """
        generator = torch.Generator().manual_seed(seed)
        tokens = self.tokens.random(records, generator)
        classes = torch.randint(0, len(self.spec.classes), tokens.shape, generator=generator)
        counts = torch.rand(tokens.shape, generator=generator) < 2 / 3
        return {
            "tokens": tokens,
            "tags": classes.where(counts & (tokens != self.tokens.padding), NO_TAG),
        }


def _offsets(encoding: Any) -> list[Span | None]:
    """Return the characters of each token; None for one that the tokenizer added."""
    pairs = zip(encoding.offsets, encoding.special_tokens_mask, strict=True)
    return [None if added else span for span, added in pairs]


def _named(column: str, read: Any, cell: Any) -> Any:
    try:
        return read(cell)
    except ValueError as error:
        raise ValueError(f"'{column}' {error}") from error
