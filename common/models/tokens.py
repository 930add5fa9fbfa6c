"""Convert texts to token numbers, and back. Every row depends on its own text alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from privet.common.compat.torch import is_transformed
from privet.common.errors import PlanError

TOKENIZER = Path(__file__).parent / "tokenizer.json"
"""Byte-level BPE of 4,096 tokens, learnt on public-domain English (see ``tokenizer.md``)."""

_TOGETHER = 256
"""Texts whose uncut encodings are in memory at once."""


@dataclass(frozen=True)
class Tokens:
    """A tokenizer file, and how its numbers are used.

    Attributes:
        path: of a ``tokenizer.json``.
        max_tokens: length to which rows are cut and padded, so that no row depends on another's.
        padding: number that fills a row.
        start: number before a text that is to be generated; None for none.
        end: number after it; None for none.
        mask: number that replaces a masked token.
        special: numbers that stand for no text, and are never masked.
        filler: number that the tokenizer itself fills rows with, if it names one.
        unknown: number of what the tokenizer does not know, if it has one.
    """

    path: Path
    max_tokens: int
    padding: int = 0
    start: int | None = 1
    end: int | None = 1
    mask: int = 1
    special: tuple[int, ...] = ()
    filler: int | None = None
    unknown: int | None = None

    @property
    def size(self) -> int:
        """Number of different tokens."""
        return int(_tokenizer(self.path).get_vocab_size())

    def encode(
        self, texts: list[str], *, ends: bool = False, begins: bool = True
    ) -> tuple[Tensor, Tensor]:
        """Return token numbers [N, T], and the number of characters of each text that they cover,
        [N].

        The tokenizer's own frame, such as ``[CLS]`` and ``[SEP]``, is around each text.

        Args:
            texts: N texts.
            ends: whether to add ``end`` after a text that is not cut, unless the frame has it.
            begins: whether to keep the frame's ``start``; False if the task adds it itself.
        """
        tokenizer = _tokenizer(self.path)
        tokenizer.no_padding()
        tokenizer.enable_truncation(self.max_tokens)
        rows = torch.full((len(texts), self.max_tokens), self.padding, dtype=torch.int64)
        characters = torch.zeros(len(texts), dtype=torch.int64)
        for row, encoding in enumerate(tokenizer.encode_batch(texts)):
            ids = self.plain(encoding.ids, encoding.special_tokens_mask)
            characters[row] = max((end for _, end in encoding.offsets), default=0)
            frame = [k for k, put in enumerate(encoding.special_tokens_mask) if put]
            ended = bool(frame) and frame[-1] == len(ids) - 1 and ids[-1] == self.end
            if ends and self.end is not None and len(ids) < self.max_tokens and not ended:
                ids.append(self.end)
            if not begins and frame[:1] == [0] and ids[0] == self.start:
                del ids[0]
            rows[row, : len(ids)] = torch.tensor(ids, dtype=torch.int64)
        return rows, characters

    @property
    def stand_in(self) -> int:
        """Number that takes the place of a special token that a record spells."""
        if self.unknown is not None:
            return self.unknown
        return int(_frame_of(self)[1][0])

    def plain(self, ids: list[int], frame: Iterable[object] = ()) -> list[int]:
        """Return tokens without special ones but for those of the frame.

        Some tokenizers have the letters of a special token in their vocabulary, too, and would
        read an end, or a turn of a chat, where a record spells one.

        Args:
            ids: tokens of a text.
            frame: by token, whether it is of the tokenizer's frame; without it none is.
        """
        special = _marks_of(self)
        if special.isdisjoint(ids):
            return list(ids)
        stand_in = self.stand_in
        framed = list(frame) or [False] * len(ids)
        return [
            number if put or number not in special else stand_in
            for number, put in zip(ids, framed, strict=True)
        ]

    def encodings(self, texts: list[Any]) -> Iterator[Any]:
        """Yield the tokenizer's own encodings, neither cut nor padded.

        Args:
            texts: N texts, or N pairs of texts.
        """
        tokenizer = _tokenizer(self.path)
        for start in range(0, len(texts), _TOGETHER):
            tokenizer.no_padding()
            tokenizer.no_truncation()
            yield from tokenizer.encode_batch(texts[start : start + _TOGETHER])

    def numbers(self, texts: list[str]) -> Tensor:
        """Return token numbers [N, T]."""
        return self.encode(texts)[0]

    def sizes(self, rows: Tensor) -> Tensor | None:
        """Return the length of each row, [N]; None on CUDA, where the host would have to wait."""
        if rows.is_cuda:
            return None
        places = torch.arange(1, rows.shape[1] + 1)
        return ((rows != self.padding) * places).amax(1) if rows.shape[1] else rows.sum(1)

    def trimmed(self, rows: Tensor) -> Tensor:
        """See :func:`trimmed`."""
        return trimmed(rows, self.padding)

    def decode(self, rows: Tensor) -> list[str]:
        """Return the texts of token numbers [N, T], up to the first end."""
        found = []
        for row in rows.tolist():
            # The first token may be the end's too, where a model starts with it.
            stop = row.index(self.end, 1) if self.end in row[1:] else len(row)
            kept = [number for number in row[:stop] if number not in (self.padding, self.start)]
            found.append(_tokenizer(self.path).decode(kept).strip())
        return found

    def words(self, text: str) -> list[tuple[str, list[int]]]:
        """Return the words of a text as written, each with the positions of its tokens."""
        tokenizer = _tokenizer(self.path)
        tokenizer.no_padding()
        tokenizer.enable_truncation(self.max_tokens)
        encoding = tokenizer.encode(text)
        found: list[tuple[str, list[int]]] = []
        ends: tuple[int | None, int] = None, 0
        for place, word in enumerate(encoding.word_ids):
            start, end = encoding.offsets[place]
            if word is None:
                found.append((encoding.tokens[place], [place]))
            elif found and ends[0] == word:
                name, places = found.pop()
                found.append((name + text[ends[1] : end], [*places, place]))
            else:
                found.append((text[start:end].strip(), [place]))
            ends = word, end
        return found

    def random(self, records: int, generator: torch.Generator) -> Tensor:
        """Return generated rows, of which the last is padded, and the first has a hole.

        From four rows on they have any length, and one is empty. Up to eight rows, the longest has
        the plan's full length; with more rows none is long, so that many of them are read quickly.

        Args:
            records: number of rows.
            generator: source of the rows' randomness.
        """
        length = self.max_tokens if 4 <= records <= 8 else min(self.max_tokens, 24)
        lengths = [length] * records
        lengths[-1] = length // 2
        if records > 3:
            ends = torch.randint(0, length + 1, (records - 3,), generator=generator)
            lengths[1:-2] = [0, *ends[1:].tolist()]
        before, _, after = _frame_of(self)
        rows = torch.full((records, length), self.padding, dtype=torch.int64)
        for row, end in enumerate(lengths):
            end = max(end, min(length, len(before) + len(after)))  # as an empty text has
            rows[row, :end] = self.generated(end, generator)
        rows[0, max(2, len(before)) : length // 2] = self.padding
        return rows

    def generated(self, length: int, generator: torch.Generator) -> Tensor:
        """Return a generated row of a number of tokens, in the tokenizer's frame.

        Args:
            length: number of tokens, with the frame's.
            generator: source of the row's randomness.
        """
        before, ordinary, after = _frame_of(self)
        row = ordinary[torch.randint(0, len(ordinary), (length,), generator=generator)]
        if length >= len(before) + len(after):
            row[: len(before)] = before
            row[length - len(after) :] = after
        return row


def trimmed(rows: Tensor, padding: int = 0) -> Tensor:
    """Return rows without the columns that are padding in every row, up to a multiple of 16.

    A record's result does not change, because nothing reads padding; its time does. Rows stay as
    they are on CUDA, where the host would have to wait, in an export, and in ``torch.vmap``, where
    all have one length.

    Args:
        rows: token numbers [B, T].
        padding: number that fills a row.
    """
    if rows.is_cuda or torch.compiler.is_exporting() or not rows.shape[0] or is_transformed(rows):
        return rows
    # The last column that holds anything: there may be holes before it.
    there = (rows != padding).any(0).nonzero()
    longest = int(there[-1]) + 1 if len(there) else 0
    return rows[:, : max(16, -(-longest // 16) * 16)]


@lru_cache(maxsize=16)
def _marks_of(tokens: Tokens) -> frozenset[int]:
    """Return the numbers that no record may write."""
    named = {*tokens.special, tokens.padding, tokens.start, tokens.end, tokens.filler}
    return frozenset(number for number in named if number is not None) - {tokens.unknown}


@lru_cache(maxsize=16)
def _frame_of(tokens: Tokens) -> tuple[Tensor, Tensor, Tensor]:
    """Return the tokens before a text, those that a text may hold, and those after it."""
    tokenizer = _tokenizer(tokens.path)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    encoding = tokenizer.encode("a")
    ids, put = encoding.ids, encoding.special_tokens_mask
    inner = [place for place, is_put in enumerate(put) if not is_put] or [len(ids)]
    apart = {*tokens.special, tokens.padding, tokens.start, tokens.end}
    ordinary = [number for number in range(tokens.size) if number not in apart]
    return (
        torch.tensor(ids[: inner[0]], dtype=torch.int64),
        torch.tensor(ordinary, dtype=torch.int64),
        torch.tensor(ids[inner[-1] + 1 :], dtype=torch.int64),
    )


def fitting(cuttable: Tensor, size: int) -> Tensor | None:
    """Return the places of the tokens that fit: all but the last ones of those that may be cut.

    Args:
        cuttable: which tokens of a row may be cut [L].
        size: most tokens that are kept.

    Returns:
        The places; None if no token that may be cut fits.
    """
    room = size - int((~cuttable).sum())
    if room < 1:
        return None
    return (~cuttable | (cuttable.cumsum(0) <= room)).nonzero().flatten()


@lru_cache(maxsize=4)
def _tokenizer(path: Path) -> Any:
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # it raises nothing more special
        raise PlanError(f"{path}: cannot be read as a tokenizer: {error}") from error
    # A record is plain text: "[PAD]" in it is five characters, and no padding.
    tokenizer.encode_special_tokens = True
    return tokenizer
