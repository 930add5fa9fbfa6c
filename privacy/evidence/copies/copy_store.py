"""Where the copies of others' ledgers are kept: a file for each log, which only grows.

Each line of ``FOLDER/ORIGIN.copy`` is a piece (:mod:`privet.privacy.evidence.copies.ledger_copy`)
as JSON. A line that a crash cut off counts as not written, and is asked for again.
"""

from __future__ import annotations

import json
import math
import os
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

from privet.common.errors import InputError, NoteError, reason_of
from privet.privacy.evidence.copies.ledger_copy import CopyPiece
from privet.privacy.evidence.merkle import Tree

MAX_COPY_BYTES = 256 << 20
"""Of one ledger's copy, as base64: some 40,000 rounds."""
MAX_STORE_BYTES = 2 << 30
"""Of all copies that a party keeps."""
MAX_RELAY_BYTES = 768 << 10
"""Of encrypted pieces in one message, as base64; one piece may be longer."""
SYNC_INTERVAL_S = 1.0
"""Seconds between two waits for the disk: no round is to wait for it. What a crash of the machine
loses is asked for again. It is missed only if the site loses its disk at the same time."""
EMPTY = (0, Tree().root().hex())
"""How far a copy goes that does not exist."""


@dataclass
class _Chain:
    """The newest chain of a file: how far it goes, and where its pieces are."""

    end: int = EMPTY[0]
    root: str = EMPTY[1]
    places: list[tuple[int, str, int, int]] = field(default_factory=list)
    """Of each piece: size and root before it, offset and length of its line."""
    length: int = 0
    """Bytes of the file that are whole lines."""

    def take(self, piece: CopyPiece, offset: int, length: int) -> bool:
        """Note a piece; False if it does not continue the chain and begins none."""
        if piece.start == 0:
            self.places.clear()
        elif (piece.start, piece.before) != (self.end, self.root):
            return False
        self.places.append((piece.start, piece.before, offset, length))
        self.end, self.root = piece.end, piece.root
        return True


class CopyStore:
    """Copies of ledgers in ``folder``, each bounded.

    Args:
        folder: made with the first piece, for its owner only.
        max_copy_bytes: of one ledger's file.
        max_store_bytes: of all files.
    """

    def __init__(
        self,
        folder: Path,
        *,
        max_copy_bytes: int = MAX_COPY_BYTES,
        max_store_bytes: int = MAX_STORE_BYTES,
    ) -> None:
        self.folder = folder
        self._max = max_copy_bytes, max_store_bytes
        self._chains: dict[str, _Chain] = {}
        self._synced: dict[str, float] = {}
        self._lock = threading.Lock()

    def path(self, log: str) -> Path:
        """Return the file of a log's copy."""
        return self.folder / f"{quote(log, safe='')[:200]}.copy"

    def held(self, log: str) -> tuple[int, str]:
        """Return up to which size and root (hex) the copy of a log goes."""
        with self._lock:
            chain = self._chain(log)
            return chain.end, chain.root

    def add(self, piece: CopyPiece, witness: bytes) -> bool:
        """Keep a piece, if its site signed it and it continues the copy.

        Args:
            piece: what came.
            witness: raw public bytes of the witness key of the ledger's site.

        Returns:
            Whether it was kept; also False where the copy is as long as it may be.

        Raises:
            OSError: if it cannot be written.
        """
        with self._lock:
            chain = self._chain(piece.log)
            begins = piece.start == 0 and piece.root != chain.root
            if not begins and (piece.start, piece.before) != (chain.end, chain.root):
                return False
            line = json.dumps(piece.to_json()).encode() + b"\n"
            if chain.length + len(line) > self._max[0] or not self._has_room(len(line)):
                return False
            if not piece.is_signed_by(witness):
                return False
            self._append(self.path(piece.log), chain, line)
            chain.take(piece, chain.length, len(line))
            chain.length += len(line)
            return True

    def pieces(self, log: str, held: tuple[int, str]) -> list[CopyPiece]:
        """Return what continues a copy that goes as far as ``held``, up to a message's length.

        From the beginning, where it is a part of another history.
        """
        with self._lock:
            places = self._chain(log).places
            first = next((n for n, place in enumerate(places) if place[:2] == held), None)
            if first is None:
                if not places or held == (self._chains[log].end, self._chains[log].root):
                    return []
                first = 0
            chosen: list[CopyPiece] = []
            total = 0
            with self.path(log).open("rb") as stream:
                for _, _, offset, length in places[first:]:
                    total += length
                    if chosen and total > MAX_RELAY_BYTES:
                        break
                    stream.seek(offset)
                    chosen.append(CopyPiece.from_json(json.loads(stream.read(length))))
            return chosen

    def all(self, log: str) -> list[CopyPiece]:
        """Return every piece of a log's copy that can be read, in the file's order.

        Raises:
            InputError: if there is no copy, or it cannot be read.
        """
        path = self.path(log)
        try:
            return [piece for piece, _, _ in _lines(path) if piece.log == log]
        except FileNotFoundError:
            raise InputError(f"{path}: no copy of this ledger was kept here") from None
        except OSError as error:
            raise InputError(f"{path}: cannot be read: {reason_of(error)}") from error

    def _chain(self, log: str) -> _Chain:
        if log not in self._chains:
            chain = self._chains[log] = _Chain()
            if self.path(log).exists():
                for piece, offset, length in _lines(self.path(log)):
                    if piece.log == log:
                        chain.take(piece, offset, length)
                chain.length = _whole(self.path(log))
        return self._chains[log]

    def _has_room(self, more: int) -> bool:
        taken = sum(path.stat().st_size for path in self.folder.glob("*.copy"))
        return taken + more <= self._max[1]

    def _append(self, path: Path, chain: _Chain, line: bytes) -> None:
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        with os.fdopen(descriptor, "r+b") as stream:
            stream.truncate(chain.length)  # without a line that was cut off
            stream.seek(chain.length)
            stream.write(line)
            stream.flush()
            if time.monotonic() - self._synced.get(path.name, -math.inf) > SYNC_INTERVAL_S:
                os.fdatasync(stream.fileno())
                self._synced[path.name] = time.monotonic()


def _lines(path: Path) -> Iterator[tuple[CopyPiece, int, int]]:
    """Yield each piece with offset and length of its line; what cannot be read is left out."""
    offset = 0
    with path.open("rb") as stream:
        for line in stream:
            if line.endswith(b"\n"):
                with suppress(ValueError, RecursionError, NoteError):
                    yield CopyPiece.from_json(json.loads(line)), offset, len(line)
            offset += len(line)


def _whole(path: Path) -> int:
    """Return how many bytes of a file are whole lines."""
    length = 0
    with path.open("rb") as stream:
        for line in stream:
            if line.endswith(b"\n"):
                length += len(line)
    return length
