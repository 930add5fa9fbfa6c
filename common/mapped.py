"""Arrays that lie in a file, of which memory holds what is being worked on.

A model may be larger than a coordinator should hold twice, the one that sites train and the one
that is being made. Both are mapped from files; who reads or writes them block by block calls
:meth:`Mapped.forget` in between, and the pages are had again from the file when they are needed.
"""

from __future__ import annotations

import json
import mmap
import tempfile
from pathlib import Path
from typing import Any, Self

import numpy as np

from privet.common.files.disk_space import allocate
from privet.common.flat import ArrayHeader, Arrays, FrozenArrays

_KINDS = {"F16": "<f2", "F32": "<f4", "F64": "<f8"}


class Mapped(FrozenArrays):
    """Arrays of one mapped file, read-only.

    Args:
        arrays: views of the file.
        mapped: the file.
        digest: of their stream, where it was computed from the same bytes before.
    """

    def __init__(self, arrays: Arrays, mapped: mmap.mmap, digest: str = "") -> None:
        super().__init__(arrays, digest)
        self._map = mapped
        self.forget()

    def forget(self) -> None:
        """Give back the pages that were read or written; the file has them."""
        _forget(self._map)

    def part(self, names: dict[str, str]) -> Mapped:
        """Return some of the arrays, each under a new name: ``{new: old}``."""
        return Mapped({new: self[old] for new, old in names.items()}, self._map)

    @classmethod
    def of_safetensors(cls, path: Path) -> tuple[Self, dict[str, str]]:
        """Map a file that :func:`privet.server.snapshot.save_model` wrote; return its facts, too.

        It may be replaced by another of its name after this.

        Raises:
            OSError: if it cannot be read.
            ValueError, KeyError, TypeError: if it is not such a file.
        """
        with path.open("rb") as stream:
            mapped = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        size = int.from_bytes(mapped[:8], "little")
        header = json.loads(mapped[8 : 8 + size])
        facts: dict[str, str] = header["__metadata__"]
        arrays: Arrays = {}
        for name in json.loads(facts["names"]):
            item = header[name]
            begin, end = item["data_offsets"]
            layout = ArrayHeader(
                name, _KINDS[item["dtype"]], tuple(item["shape"]), 8 + size + begin
            )
            if layout.size != end - begin or layout.offset + layout.size > len(mapped):
                raise ValueError(f"'{name}' has another length than its shape")
            arrays[name] = _array(mapped, layout)
        return cls(arrays, mapped), facts


class Draft:
    """Arrays that are being made, in a file that has no name: it goes with them.

    Args:
        folder: on a disk that has room for them.
        like: arrays of the same names, shapes and types.

    Attributes:
        arrays: to be written.

    Raises:
        OSError: if the disk has no room.
    """

    def __init__(self, folder: Path, like: Arrays) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        layouts: list[ArrayHeader] = []
        end = 0
        for name, array in like.items():
            kind = array.dtype.newbyteorder("<").str
            layouts.append(ArrayHeader(name, kind, array.shape, end))
            end += -(-layouts[-1].size // 8) * 8  # each where its numbers may begin
        with tempfile.TemporaryFile(dir=folder) as stream:
            # Where the disk is full, a write to the mapped file would end the process (SIGBUS).
            allocate(stream.fileno(), max(end, 1))
            self._map = mmap.mmap(stream.fileno(), 0)
        self.arrays: Arrays = {layout.name: _array(self._map, layout) for layout in layouts}

    def forget(self) -> None:
        """Give back the pages that were written; the file has them."""
        _forget(self._map)

    def seal(self) -> Mapped:
        """Return the arrays, which nobody changes any more."""
        return Mapped(self.arrays, self._map)


def _array(mapped: mmap.mmap, layout: ArrayHeader) -> Any:
    count = layout.size // np.dtype(layout.dtype).itemsize
    return np.frombuffer(mapped, layout.dtype, count, layout.offset).reshape(layout.shape)


def _forget(mapped: mmap.mmap) -> None:
    if hasattr(mmap, "MADV_DONTNEED"):
        mapped.madvise(mmap.MADV_DONTNEED)
