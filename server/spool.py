"""Numbers that a site brought, left on disk until they are joined."""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import Self

import numpy as np

from privet.common.flat import Arrays, Sealed, layouts


class Spooled(Sealed):
    """The arrays of a flat stream in a file, of which memory holds what is being read.

    The file's name is gone once this exists; its bytes are, when this is.
    """

    _map: mmap.mmap

    @classmethod
    def take(cls, path: Path, digest: str) -> Self:
        """Open a whole stream and remove its name.

        Args:
            path: the file.
            digest: of these bytes, as they were hashed when they came.

        Raises:
            InputError: if it is not a stream.
        """
        with path.open("rb") as stream:
            mapped = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        path.unlink()
        arrays: Arrays = {}
        for layout in layouts(memoryview(mapped)):
            count = layout.size // np.dtype(layout.dtype).itemsize
            flat = np.frombuffer(mapped, layout.dtype, count, layout.offset)
            arrays[layout.name] = flat.reshape(layout.shape)
        spooled = cls(arrays, digest)
        spooled._map = mapped
        spooled.forget()
        return spooled

    def forget(self) -> None:
        """Give back the pages that were read; they are read again when they are needed."""
        if hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED)
