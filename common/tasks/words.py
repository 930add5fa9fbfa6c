"""The words of a cell, and the places of words in a tokenizer's encoding."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from privet.common.cells import is_missing, odd_text, plain, text_of

Span = tuple[int, int]
"""First character, and the one after the last."""


def items_of(cell: Any) -> list[Any]:
    """Return what a cell lists: words, or tags.

    A cell is a list (of a Parquet file), a text that is a list in JSON, or any other text, whose
    items are separated by white space. A missing cell lists nothing.

    Raises:
        ValueError: if it is something else, or an item is no text and no number. The message does
            not quote the cell.
    """
    found = _listed(cell)
    if found is None:
        if isinstance(cell, bytes | bytearray | dict):
            raise ValueError("is neither a text nor a list")
        return [] if is_missing(cell) else text_of(cell).split()
    for item in found:
        if isinstance(plain(item), bool) or not isinstance(item, str | int | float):
            raise ValueError("lists something that is no text and no number")
    return found


def words_of(cell: Any) -> list[str]:
    """Return the words of a cell; see :func:`items_of`.

    Raises:
        ValueError: if it does not list texts.
    """
    words = items_of(cell)
    for word in words:
        if not isinstance(word, str) or odd_text(word):
            raise ValueError("lists something that is no text")
    return words


def word_spans(words: Sequence[str]) -> list[Span]:
    """Return where each word is in the text in which a blank separates them."""
    spans, start = [], 0
    for word in words:
        spans.append((start, start + len(word)))
        start += len(word) + 1
    return spans


def first_tokens(offsets: Sequence[Span | None], spans: Sequence[Span]) -> list[int | None]:
    """Return the place of the first token of each word; None for a word without its own first one.

    Args:
        offsets: characters of each token, in order; None for a token that is not of the text.
        spans: characters of each word, in order.
    """
    found: list[int | None] = []
    place, last = 0, -1
    for start, end in spans:
        while place < len(offsets) and not _ends_after(offsets[place], start):
            place += 1
        first = None
        if place < len(offsets) and place != last and _begins_before(offsets[place], end):
            first = last = place
        found.append(first)
    return found


def _ends_after(token: Span | None, start: int) -> bool:
    return token is not None and token[1] > start


def _begins_before(token: Span | None, end: int) -> bool:
    return token is not None and token[0] < end


def _listed(cell: Any) -> list[Any] | None:
    """Return a list's items; None if the cell is no list."""
    if isinstance(cell, str):
        if not cell.lstrip().startswith("["):
            return None
        try:
            value = json.loads(cell)
        except (ValueError, RecursionError):
            return None  # words, of which the first begins with a bracket
        return value if isinstance(value, list) else None
    if isinstance(cell, bytes | bytearray | dict):
        return None
    if isinstance(cell, list | tuple):
        return list(cell)
    listed = getattr(cell, "tolist", None)  # an array, of numpy or of Python
    value = listed() if callable(listed) else None
    return value if isinstance(value, list) else None
