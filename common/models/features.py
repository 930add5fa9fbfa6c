"""Features of texts by the frozen public encoder: each text is read once.

They stay in memory as long as the process. A caller who may keep them longer, such as a sweep of
simulations, gives a :class:`FeatureStore`. A site never does: features are as private as the
texts, which they nearly give away (Morris et al. 2023, arXiv 2310.06816).
"""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

_CHUNK = 32
"""Texts that are read at once."""
_PART = 16 * _CHUNK
"""Texts after which a store is read again, and written to."""
_memory: dict[tuple[int, str], Tensor] = {}


class FeatureStore(Protocol):
    """Keeps features over processes; it may forget any."""

    def read(self, encoder: str, texts: Sequence[str]) -> Mapping[str, Tensor]:
        """Return the features [D] of those texts that it has.

        Args:
            encoder: digest of what made them.
            texts: that are wanted.
        """
        ...

    def write(self, encoder: str, features: Mapping[str, Tensor]) -> None:
        """Keep features.

        Args:
            encoder: digest of what made them.
            features: [D] by text.
        """
        ...


_store: FeatureStore | None = None


def use_store(store: FeatureStore | None) -> FeatureStore | None:
    """Read features from a store from now on, and write them there; return the one before.

    Args:
        store: or None, for memory alone.
    """
    global _store
    before, _store = _store, store
    return before


def features_of(
    texts: Sequence[str],
    folder: Path,
    max_tokens: int,
    read: Callable[[list[str]], Tensor],
    width: int,
    tell: Callable[[int, int], None] = lambda done, total: None,
) -> list[Tensor]:
    """Return the features of texts, [D] each.

    Args:
        texts: N texts, any of them more than once.
        folder: of the encoder's weights and tokenizer.
        max_tokens: length at which texts are cut.
        read: returns the features [n, D] of n texts.
        width: D.
        tell: called with how many of the texts that are not in memory are done, and their number.
    """
    fresh = sorted({t for t in texts if (max_tokens, t) not in _memory}, key=len)
    if fresh:
        encoder = encoder_digest(folder, max_tokens)
        done = 0
        for part in _parts(fresh):
            known = {} if _store is None else _usable(_store.read(encoder, part), width)
            lacking = [text for text in part if text not in known]
            made: dict[str, Tensor] = {}
            for start in range(0, len(lacking), _CHUNK):
                chunk = lacking[start : start + _CHUNK]
                made.update(zip(chunk, read(chunk), strict=True))
                tell(done + len(known) + len(made), len(fresh))
            if made and _store is not None:
                _store.write(encoder, made)
            _memory.update({(max_tokens, text): row for text, row in (known | made).items()})
            done += len(part)
            tell(done, len(fresh))
    return [_memory[max_tokens, text] for text in texts]


def _usable(found: Mapping[str, Tensor], width: int) -> dict[str, Tensor]:
    """Return the rows that an encoder may have made."""
    return {
        text: row
        for text, row in found.items()
        if row.shape == (width,) and bool(torch.isfinite(row).all())
    }


def _parts(fresh: list[str]) -> list[list[str]]:
    """Return parts of similar length, in an order of this process's own where there is a store.

    Processes that begin together then seldom read the same part: what one has written, the others
    find.
    """
    parts = [fresh[start : start + _PART] for start in range(0, len(fresh), _PART)]
    if _store is not None:
        random.Random(os.getpid()).shuffle(parts)
    return parts


@lru_cache(maxsize=8)
def encoder_digest(folder: Path, max_tokens: int) -> str:
    """Return a digest of everything that decides a text's features.

    Args:
        folder: of the encoder's weights and tokenizer.
        max_tokens: length at which texts are cut.
    """
    found = hashlib.sha256(f"mean-pooled, unit length; {max_tokens}".encode())
    for path in _files(folder):
        found.update(path.name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return found.hexdigest()


def _files(folder: Path) -> Iterable[Path]:
    return (folder / name for name in ("config.json", "model.safetensors", "tokenizer.json"))


def forget() -> None:
    """Forget what is in memory."""
    _memory.clear()


__all__ = ["FeatureStore", "encoder_digest", "features_of", "forget", "use_store"]
