r"""Arrays as one flat stream of bytes, whose SHA-256 is their digest.

::

    for each array, in order:
        8 bytes    length of the label, little-endian
        label      name NUL dtype NUL shape       "head.weight\\0<f4\\02,7", UTF-8
        8 bytes    length of the data, little-endian
        data       the array, little-endian, in C order

The digest that orders, releases and ledgers name (:func:`digest_arrays`)
is the SHA-256 of exactly these bytes, so what is moved is hashed once, while it moves.
Nothing is pickled, and nothing is copied but at the edge of a chunk.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from privet.common.errors import InputError

Arrays = dict[str, npt.NDArray[Any]]
"""Named arrays in a fixed order, as they travel and as they are hashed."""

CHUNK = 1 << 20
"""Bytes in a chunk."""
LARGEST = 1e18
"""No update and no model has numbers above it; their squares are finite in single precision."""
BLOCK = 1 << 20
"""Numbers that are worked on at once, where a model may be larger than memory should hold twice."""

_DTYPES = ("<f2", "<f4", "<f8", "|i1", "<i4")
_MAX_ARRAYS = 100_000
_MAX_LABEL_BYTES = 4096
_SHAPE = re.compile(r"(?:[0-9]{1,15}(?:,[0-9]{1,15}){0,15})?", re.ASCII)


@dataclass(frozen=True)
class ArrayHeader:
    """One array of a stream: its label's parts, and where its data begins."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int = 0

    @property
    def label(self) -> bytes:
        """The bytes before the data that describe it, without their length."""
        return f"{self.name}\0{self.dtype}\0{','.join(map(str, self.shape))}".encode()

    @property
    def size(self) -> int:
        """Bytes of data."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize

    @classmethod
    def of(cls, name: str, array: npt.NDArray[Any]) -> Self:
        """Return the layout of ``array``."""
        return cls(name, array.dtype.newbyteorder("<").str, array.shape)

    @classmethod
    def read(cls, label: bytes, offset: int) -> Self:
        """Read a label.

        Raises:
            InputError: if it is not one, or not of numbers that travel.
        """
        try:
            name, dtype, shape = label.decode().split("\0")
        except ValueError:
            raise InputError("a label of the stream is malformed") from None
        if not name or dtype not in _DTYPES or not _SHAPE.fullmatch(shape):
            raise InputError("an array of the stream has no name, type or shape that can be read")
        found = cls(name, dtype, tuple(int(part) for part in shape.split(",") if part), offset)
        # "02,7" is the shape 2,7 as well: the same arrays would have several digests.
        if found.label != label:
            raise InputError("a label of the stream is not in its one form")
        return found


def _parts(arrays: Mapping[str, npt.NDArray[Any]]) -> Iterator[bytes | memoryview]:
    # What lies in a file is given back piece by piece, so that reading it needs no memory for all.
    piece = 4 * BLOCK
    for name, array in arrays.items():
        layout = ArrayHeader.of(name, array)
        label = layout.label
        size = layout.size.to_bytes(8, "little")
        yield len(label).to_bytes(8, "little") + label + size
        if array.size:
            little = np.ascontiguousarray(array, dtype=layout.dtype)
            data = little.reshape(-1).view(np.uint8).data
            for start in range(0, data.nbytes, piece):
                yield data[start : start + piece]
                if isinstance(arrays, FrozenArrays):
                    arrays.forget()


def size_of(arrays: Mapping[str, npt.NDArray[Any]]) -> int:
    """Return the length of the stream in bytes."""
    layouts = [ArrayHeader.of(name, array) for name, array in arrays.items()]
    return sum(16 + len(layout.label) + layout.size for layout in layouts)


class FrozenArrays(dict[str, npt.NDArray[Any]]):
    """Named arrays that nobody changes any more, so that their digest is computed once.

    Args:
        arrays: from here on read-only.
        digest: of their stream, where it was computed from the same bytes before.
    """

    def __init__(self, arrays: Arrays, digest: str = "") -> None:
        super().__init__({name: _read_only(array) for name, array in arrays.items()})
        self._digest = digest

    @classmethod
    def of(cls, arrays: Arrays) -> FrozenArrays:
        """Return ``arrays`` themselves if they are frozen, else the same arrays frozen."""
        return arrays if isinstance(arrays, FrozenArrays) else cls(arrays)

    @property
    def digest(self) -> str:
        """``sha256:…`` of the stream."""
        if not self._digest:
            self._digest = _digest(self)
        return self._digest

    def forget(self) -> None:
        """Give back memory that can be had again from a file; here there is none."""


def _read_only(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    view = array.view()
    view.flags.writeable = False
    return view


def blocks(arrays: Arrays) -> Iterator[tuple[str, npt.NDArray[Any]]]:
    """Yield all numbers, flat, :data:`BLOCK` at a time, each with the name of its array."""
    for name, array in arrays.items():
        flat = array.reshape(-1)
        for start in range(0, flat.size, BLOCK):
            yield name, flat[start : start + BLOCK]
            if flat.size > BLOCK and isinstance(arrays, FrozenArrays):
                arrays.forget()


def not_finite(arrays: Arrays) -> str | None:
    """Return the name of an array that holds a number that is not finite, or None.

    So is one above :data:`LARGEST`: sums and squares of such numbers would not be.
    """
    return next((name for name, part in blocks(arrays) if not usable(part)), None)


def usable(array: npt.NDArray[Any]) -> bool:
    """Whether all numbers are finite and at most :data:`LARGEST`."""
    # As floats of Python: in float16 the limit itself is infinite, and anything would be below it.
    return not array.size or (float(array.min()) >= -LARGEST and float(array.max()) <= LARGEST)


def digest_arrays(arrays: Mapping[str, npt.NDArray[Any]]) -> str:
    """Return ``sha256:…`` of the stream."""
    return arrays.digest if isinstance(arrays, FrozenArrays) else _digest(arrays)


def _digest(arrays: Mapping[str, npt.NDArray[Any]]) -> str:
    running = hashlib.sha256()
    for part in _parts(arrays):
        running.update(part)
    return "sha256:" + running.hexdigest()


def chunks(
    arrays: Mapping[str, npt.NDArray[Any]],
    start: int = 0,
    size: int = CHUNK,
    head: Callable[[int], bytes] = lambda count: b"",
) -> Generator[bytes, None, None]:
    """Yield the stream from byte ``start`` in chunks of ``size`` bytes, the last one shorter.

    Before each chunk stands what ``head`` gives for its length.
    """
    pending: list[memoryview] = []
    held = 0
    for part in _parts(arrays):
        view = memoryview(part)
        # A download that was cut continues at its byte: nothing before it is copied again.
        if start >= view.nbytes:
            start -= view.nbytes
            continue
        view, start = view[start:], 0
        while held + view.nbytes >= size:
            cut = size - held
            yield b"".join((head(size), *pending, view[:cut]))
            pending, held, view = [], 0, view[cut:]
        if view.nbytes:
            pending.append(view)
            held += view.nbytes
    if held:
        yield b"".join((head(held), *pending))


class StreamDecoder:
    """Takes a stream in as it comes, and gives the arrays with their digest.

    Memory is claimed for an array when its label has come and fits in what is left of the
    stream, so a label alone cannot claim more than was announced.

    Args:
        size: length of the whole stream, as it was announced.
        hashing: whether the digest is wanted.

    Example::

        intake = Intake(size)
        for chunk in stream:
            intake.take(chunk)
        arrays, digest = intake.finish()
    """

    def __init__(self, size: int, *, hashing: bool = True) -> None:
        self.size = size
        self.taken = 0
        self._hash = hashlib.sha256() if hashing else None
        self._arrays: Arrays = {}
        self._need = 8
        self._head = bytearray()
        self._stage = 0
        self._into: memoryview | None = None
        self._layout: ArrayHeader | None = None

    def take(self, chunk: bytes | memoryview) -> None:
        """Take the next bytes.

        Raises:
            InputError: if they cannot follow the bytes that were taken before.
        """
        view = memoryview(chunk).cast("B")
        if self.taken + view.nbytes > self.size:
            raise InputError("more bytes came than were announced")
        if self._hash is not None:
            self._hash.update(view)
        self.taken += view.nbytes
        while view.nbytes:
            if self._into is not None:
                view = self._fill(self._into, view)
                continue
            cut = min(self._need - len(self._head), view.nbytes)
            self._head += view[:cut]
            view = view[cut:]
            if len(self._head) == self._need:
                self._step(bytes(self._head))
                self._head.clear()

    def _fill(self, into: memoryview, view: memoryview) -> memoryview:
        cut = min(into.nbytes, view.nbytes)
        into[:cut] = view[:cut]
        self._into = into[cut:] if cut < into.nbytes else None
        return view[cut:]

    def _step(self, head: bytes) -> None:
        """Continue after a whole length (stages 0 and 2) or label (stage 1)."""
        if self._stage == 0:
            self._need = int.from_bytes(head, "little")
            if not 0 < self._need <= _MAX_LABEL_BYTES or len(self._arrays) >= _MAX_ARRAYS:
                raise InputError("the stream has a label too long, or too many arrays")
        elif self._stage == 1:
            self._layout, self._need = ArrayHeader.read(head, 0), 8
            if self._layout.name in self._arrays:
                raise InputError(f"the stream has '{self._layout.name}' twice")
        else:
            self._open(int.from_bytes(head, "little"))
            self._need = 8
        self._stage = (self._stage + 1) % 3

    def _open(self, size: int) -> None:
        layout = self._layout
        assert layout is not None
        if size != layout.size:
            raise InputError(f"'{layout.name}' has another length than its shape")
        if size > self.size:
            raise InputError(f"'{layout.name}' is longer than the whole stream")
        try:
            array = np.empty(layout.shape, layout.dtype)
        except (ValueError, MemoryError) as error:  # a shape with a zero may have any other length
            raise InputError(f"'{layout.name}' has a shape that cannot be: {error}") from None
        self._arrays[layout.name] = array
        self._into = array.reshape(-1).view(np.uint8).data if size else None

    def finish(self) -> tuple[Arrays, str]:
        """Return the arrays and ``sha256:…`` of the stream, or "" where it was not wanted.

        Raises:
            InputError: if the stream is not at its end.
        """
        if self.taken != self.size or self._stage or self._head or self._into is not None:
            raise InputError("the stream ended before its end")
        if self._hash is None:
            return self._arrays, ""
        digest = "sha256:" + self._hash.hexdigest()
        return FrozenArrays(self._arrays, digest), digest


def layouts(stream: bytes | memoryview) -> Iterator[ArrayHeader]:
    """Yield what a whole stream holds, without touching the numbers.

    Raises:
        InputError: if it is not a stream.
    """
    view = memoryview(stream).cast("B")
    names: set[str] = set()
    at = 0
    while at < view.nbytes:
        length = int.from_bytes(view[at : at + 8], "little")
        if not 0 < length <= _MAX_LABEL_BYTES or len(names) >= _MAX_ARRAYS:
            raise InputError("the stream has a label too long, or too many arrays")
        data = at + 16 + length
        layout = ArrayHeader.read(bytes(view[at + 8 : at + 8 + length]), data)
        size = int.from_bytes(view[data - 8 : data], "little")
        if size != layout.size or data + size > view.nbytes or layout.name in names:
            raise InputError(
                f"'{layout.name}' is there twice, or has another length than its shape"
            )
        names.add(layout.name)
        yield layout
        at = data + size
