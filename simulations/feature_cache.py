"""What a frozen encoder reads out of texts, kept in a file that simulations share.

A scenario's records are public: their features are kept for the user, in
``~/.cache/privet/features.db``. Those of a user's own records are kept nowhere, unless a folder is
named (``--cache DIR``); the runs of a sweep share a file in its folder, which is removed when the
sweep ends. A file that cannot be read is not used: reading texts again costs time alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from privet.common.errors import InputError
from privet.common.models.features import use_store

MOST_BYTES = 1 << 30
"""Of the file; the oldest quarter is forgotten above it. A text takes 1.6 kB."""
_NAME = "features.db"
_CHECK = 8
"""Bytes of a digest behind each row: a damaged one is not used."""
_ASKED = 500
_PATIENCE_S = 30.0
_LOG = logging.getLogger("privet.simulations")


@contextlib.contextmanager
def cached(folder: Path | None, *, required: bool = True) -> Iterator[Path | None]:
    """Keep features in a folder for the time being; yield the folder that is used.

    Args:
        folder: or None, for memory alone.
        required: False goes without, with a warning, where the folder cannot be made.

    Raises:
        InputError: if the folder cannot be made, and is required.
    """
    try:
        store = None if folder is None else FeatureCache(folder)
    except InputError as error:
        if required:
            raise
        _LOG.warning("no cache is used: %s", error)
        folder = store = None
    before = use_store(store)
    try:
        yield folder
    finally:
        use_store(before)


def use_cache(folder: Path | None) -> None:
    """Keep features in a folder from now on.

    Args:
        folder: of the cache, which was made before; or None, for memory alone.
    """
    store = use_store(None)
    if folder is None:
        return
    if not (isinstance(store, FeatureCache) and store.path.parent == folder):
        try:
            store = FeatureCache(folder)
        except InputError as error:  # on another machine of a cluster
            _LOG.warning("no cache is used: %s", error)
            return
    use_store(store)


class FeatureCache:
    """A :class:`privet.common.models.features.FeatureStore` in a SQLite file.

    Args:
        folder: of the file; it is made, for its owner alone.
        most: bytes above which the oldest rows are forgotten.

    Raises:
        InputError: if the folder cannot be made.
    """

    def __init__(self, folder: Path, most: int = MOST_BYTES) -> None:
        self.path, self._most = folder / _NAME, most
        self._is_broken = False
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            # A link to another's file is not followed.
            made = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
            os.close(made)
        except OSError as error:
            raise InputError(f"{folder}: cannot hold a cache: {error.strerror}") from error

    def read(self, encoder: str, texts: Sequence[str]) -> dict[str, Tensor]:
        """Return the features of those texts that are here.

        Args:
            encoder: digest of what made them.
            texts: that are wanted.
        """
        wanted = {_key(encoder, text): text for text in texts}
        keys, found = list(wanted), {}

        def look(database: sqlite3.Connection) -> None:
            for start in range(0, len(keys), _ASKED):
                some = keys[start : start + _ASKED]
                marks = ",".join("?" * len(some))
                ask = f"SELECT key, row FROM features WHERE key IN ({marks})"  # marks alone
                for key, row in database.execute(ask, some):
                    values = row[:-_CHECK]
                    if _check(key, values) == row[-_CHECK:]:
                        found[wanted[key]] = torch.from_numpy(np.frombuffer(values, "<f4").copy())

        self._use(look)
        return found

    def write(self, encoder: str, features: Mapping[str, Tensor]) -> None:
        """Keep features, and forget the oldest if they are too many.

        Args:
            encoder: digest of what made them.
            features: [D] by text.
        """
        rows = []
        for text, row in features.items():
            key, values = _key(encoder, text), row.numpy().astype("<f4").tobytes()
            rows.append((key, values + _check(key, values)))
        self._use(lambda database: self._add(database, rows))

    def _add(self, database: sqlite3.Connection, rows: list[tuple[bytes, bytes]]) -> None:
        database.executemany("INSERT OR REPLACE INTO features (key, row) VALUES (?, ?)", rows)
        forgotten = len(rows)
        while forgotten and _bytes(database) > self._most:
            forgotten = database.execute(
                "DELETE FROM features WHERE number IN (SELECT number FROM features "
                "ORDER BY number LIMIT (SELECT max(1, count(*) / 4) FROM features))"
            ).rowcount

    def _use(self, use: Callable[[sqlite3.Connection], None]) -> None:
        """Use the file in a transaction; from a fault on, it is used no more."""
        if self._is_broken:
            return
        try:
            with contextlib.closing(sqlite3.connect(self.path, timeout=_PATIENCE_S)) as database:
                # What a power cut loses is read again.
                database.execute("PRAGMA synchronous = off")
                database.execute(
                    "CREATE TABLE IF NOT EXISTS features "
                    "(number INTEGER PRIMARY KEY, key BLOB NOT NULL UNIQUE, row BLOB NOT NULL)"
                )
                with database:
                    use(database)
        except (sqlite3.Error, ValueError, TypeError) as error:
            _LOG.warning("the cache %s is not used: %s", self.path, error)
            self._is_broken = True


def _bytes(database: sqlite3.Connection) -> int:
    """Return what the rows take."""
    pages, free, size = (
        int(database.execute(f"PRAGMA {name}").fetchone()[0])
        for name in ("page_count", "freelist_count", "page_size")
    )
    return (pages - free) * size


def _key(encoder: str, text: str) -> bytes:
    said = encoder.encode() + b"\0" + text.encode("utf-8", "surrogatepass")
    return hashlib.blake2b(said, digest_size=16).digest()


def _check(key: bytes, values: bytes) -> bytes:
    return hashlib.blake2b(key + values, digest_size=_CHECK).digest()


__all__ = ["MOST_BYTES", "FeatureCache", "cached", "use_cache"]
