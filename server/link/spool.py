"""Store the flat streams that sites upload, each in a file until it is complete and used."""

from __future__ import annotations

import asyncio
import ctypes
import hashlib
import mmap
import threading
from contextlib import suppress
from pathlib import Path
from typing import Self

import numpy as np

from privet.common.errors import InputError
from privet.common.flat import Arrays, layouts
from privet.common.mapped import Mapped


class Upload:
    """A flat stream that a site is uploading; its hash is computed as the bytes arrive.

    Args:
        path: of its file.
        sha256: of the whole stream, 32 bytes, as announced.
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
        # Threads write; the event loop may discard at any moment.
        self._file = threading.Lock()

    def write(self, data: bytes | memoryview) -> None:
        """Append bytes; may be called from any thread.

        Raises:
            InputError: if the stream was discarded.
            OSError: if the disk does not accept them; the bytes before stay.
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
        """Whether all announced bytes have arrived."""
        return self.held == self.size and self._running.digest() == self.sha256

    def read(self) -> Spooled:
        """Return the arrays of a complete stream; they stay valid when the file is discarded.

        The file holds exactly the bytes that were hashed as they arrived, so it is not hashed
        again.

        Raises:
            InputError: if it is no flat stream.
        """
        return Spooled.open(self._path, "sha256:" + self.sha256.hex())

    def discard(self) -> None:
        """Remove the file; later writes fail."""
        with self._file:
            self._gone = True
            with suppress(OSError):
                self._path.unlink(missing_ok=True)


class Spooled(Mapped):
    """The arrays of a flat stream in a file; memory holds only the part that is being read."""

    @classmethod
    def open(cls, path: Path, digest: str) -> Self:
        """Open a file; the caller may remove its name afterwards.

        Args:
            path: the file.
            digest: of the bytes, computed as they arrived.

        Raises:
            InputError: if it is no flat stream.
        """
        with path.open("rb") as stream:
            mapped = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        arrays: Arrays = {}
        for layout in layouts(memoryview(mapped)):
            count = layout.size // np.dtype(layout.dtype).itemsize
            flat = np.frombuffer(mapped, layout.dtype, count, layout.offset)
            arrays[layout.name] = flat.reshape(layout.shape)
        return cls(arrays, mapped, digest)


def clear(folder: Path) -> None:
    """Create the folder, and remove the files that an earlier process left in it."""
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob("*.part"):
        left.unlink()


def give_back() -> None:
    """Return freed memory to the system, if the C library keeps it (glibc)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
