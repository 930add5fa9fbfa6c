"""Flat streams that sites are bringing, each in a file until it is whole and used."""

from __future__ import annotations

import asyncio
import hashlib
import threading
from contextlib import suppress
from pathlib import Path

from privet.common.errors import InputError
from privet.common.flat import CHUNK, Intake


class Upload:
    """A flat stream that a site is bringing; the hash runs beside it.

    Args:
        path: of its file.
        sha256: of the whole stream, as announced.
        size: of the whole stream in bytes, as announced.
    """

    def __init__(self, path: Path, sha256: bytes, size: int) -> None:
        self.sha256 = sha256
        self.size = size
        self.held = 0
        self.turn = asyncio.Lock()
        self._path = path
        self._running = hashlib.sha256()
        self._gone = False
        self._file = threading.Lock()

    def write(self, data: bytes) -> None:
        """Append; called from any thread.

        Raises:
            InputError: if the stream is wanted no more.
            OSError: if the disk does not take it; what was held stays.
        """
        with self._file:
            if self._gone:
                raise InputError("this is not asked for any more")
            with self._path.open("ab") as stream:
                stream.truncate(self.held)  # what a full disk left of an earlier try
                stream.write(data)
            self._running.update(data)
            self.held += len(data)

    @property
    def whole(self) -> bool:
        """Whether everything that was announced is there."""
        return self.held == self.size and self._running.digest() == self.sha256

    def read(self) -> Intake:
        """Read it all.

        Raises:
            InputError: if it is no flat stream.
        """
        intake = Intake(self.size)
        with self._path.open("rb") as stream:
            while part := stream.read(CHUNK):
                intake.take(part)
        return intake

    def discard(self) -> None:
        """Remove the file; nothing is written to it after this."""
        with self._file:
            self._gone = True
            with suppress(OSError):
                self._path.unlink(missing_ok=True)


def clear(folder: Path) -> None:
    """Make the folder, and remove what an earlier process left there."""
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob("*.part"):
        left.unlink()
