r"""Compression of an update: fewer bits for each number, or the largest numbers alone.

The site compresses an update after it added the noise, so compression costs no privacy and changes
no charge. The compressed update is what is signed, stored and sent again.

::

    int8    a number for each of 4,096 values, and a byte for each value, rounded at random so that
            the mean is right (Alistarh et al. 2017)
    top-k   the share of each array's values that are the largest, and their places; what was left
            out is added to the next round's update (Stich et al. 2018)

The length of both depends on shapes alone. An update of a small site is mostly noise under privacy:
its largest values are then largely the largest noise, so try ``int8`` first.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from privet.common.errors import InputError
from privet.common.flat import LARGEST, Arrays
from privet.common.plan import Compression

GROUP = 4096
"""Values that share one scale."""
_SCALES, _PLACES = "|scales", "|places"

Floats = npt.NDArray[np.float32]


class Random(Protocol):
    """What rounding needs of a stream of random numbers."""

    def uniform(self, count: int) -> npt.NDArray[np.float64]:
        """Return numbers in (0, 1]."""


class CompressedUpdate(dict[str, npt.NDArray[Any]]):
    """A compressed update as it travels, that gives back any part of the update.

    Args:
        arrays: as :func:`compress` makes them.
        shapes: of the update, by name.
        how: as in the plan.

    Raises:
        InputError: if they are not what the plan asks for.
    """

    def __init__(
        self, arrays: Arrays, shapes: Mapping[str, tuple[int, ...]], how: Compression
    ) -> None:
        wanted = _layout(shapes, how)
        found = [(name, array.dtype.str, array.shape) for name, array in arrays.items()]
        if found != wanted:
            raise InputError(f"the update is not compressed as the plan says ({how.kind})")
        super().__init__(arrays)
        self._how, self._shapes = how, shapes
        for name, shape in shapes.items():
            if how.kind == "int8":
                scales = arrays[name + _SCALES]
                if not ((scales >= 0) & (scales <= LARGEST / 126)).all():
                    raise InputError(f"scales of '{name}' are not between 0 and {LARGEST / 126:g}")
                continue
            places = arrays[name + _PLACES]
            if (np.diff(places, prepend=-1) <= 0).any() or (places[-1:] >= math.prod(shape)).any():
                raise InputError(f"places of '{name}' do not ascend within its shape")

    def part(self, name: str, start: int = 0, stop: int | None = None) -> Floats:
        """Return values ``start`` to ``stop`` of one array of the update, flat."""
        size = math.prod(self._shapes[name])
        stop = size if stop is None else min(stop, size)
        if self._how.kind == "int8":
            scales = self[name + _SCALES][start // GROUP : -(-stop // GROUP)]
            each = np.repeat(scales, GROUP)[start % GROUP :][: stop - start]
            steps = self[name].reshape(-1)[start:stop].astype(np.float32)
            product: Floats = steps * each
            return product
        places = self[name + _PLACES]
        low, high = np.searchsorted(places, (start, stop))
        values = np.zeros(stop - start, np.float32)
        values[places[low:high] - start] = self[name][low:high]
        return values

    def whole(self) -> Arrays:
        """Return the update, every array in its shape."""
        return {name: self.part(name).reshape(shape) for name, shape in self._shapes.items()}


def compress(
    update: Arrays, how: Compression, random: Random, rest: Arrays | None = None
) -> tuple[Arrays, Arrays]:
    """Compress an update.

    Args:
        update: float32 arrays by name.
        how: as in the plan.
        random: for rounding.
        rest: what earlier updates left out (``top-k``), or None.

    Returns:
        The arrays that travel, and what they leave out; that is empty for ``int8``, whose error
        has mean zero.

    Raises:
        InputError: if parameters are named so that they cannot be told apart any more.
    """
    shapes = {name: array.shape for name, array in update.items()}
    _layout(shapes, how)  # refuses names that would meet
    if how.kind == "int8":
        packed: Arrays = {}
        for name, array in update.items():
            steps, scales = _rounded(array.reshape(-1), random)
            packed |= {name: steps.reshape(array.shape), name + _SCALES: scales}
        return packed, {}
    if rest:
        update = {name: array + rest[name] for name, array in update.items()}
    packed = {}
    for name, array in update.items():
        flat = array.reshape(-1)
        count = _kept(flat.size, how)
        places = np.sort(np.argpartition(-np.abs(flat), count - 1)[:count] if count else [])
        places = places.astype("<i4")
        packed |= {name: flat[places].astype("<f4"), name + _PLACES: places}
    sent = CompressedUpdate(packed, shapes, how).whole()
    return packed, {name: array - sent[name] for name, array in update.items()}


def bytes_of(shapes: Mapping[str, tuple[int, ...]], how: Compression | None) -> int:
    """Return how many bytes of numbers an update has, compressed or not.

    Raises:
        InputError: if parameters are named so that it cannot be compressed.
    """
    if how is None:
        return sum(4 * math.prod(shape) for shape in shapes.values())
    return sum(
        math.prod(shape) * np.dtype(kind).itemsize for _, kind, shape in _layout(shapes, how)
    )


def _layout(
    shapes: Mapping[str, tuple[int, ...]], how: Compression
) -> list[tuple[str, str, tuple[int, ...]]]:
    """Return name, type and shape of each array that travels."""
    found: list[tuple[str, str, tuple[int, ...]]] = []
    for name, shape in shapes.items():
        size = math.prod(shape)
        if how.kind == "int8":
            groups = -(-size // GROUP)
            found += [(name, "|i1", shape), (name + _SCALES, "<f4", (groups,))]
        else:
            kept = (_kept(size, how),)
            found += [(name, "<f4", kept), (name + _PLACES, "<i4", kept)]
    if len({name for name, _, _ in found}) < len(found):
        raise InputError(
            "two arrays of the compressed update would have one name: rename the parameter whose "
            f"name ends in '{_SCALES}' or '{_PLACES}'"
        )
    return found


def _kept(size: int, how: Compression) -> int:
    return min(size, math.ceil(how.share * size))


def _rounded(flat: npt.NDArray[Any], random: Random) -> tuple[npt.NDArray[np.int8], Floats]:
    """Return steps in [-127, 127] and a scale for each group of values."""
    steps = np.empty(flat.size, np.int8)
    scales = np.empty(-(-flat.size // GROUP), np.float32)
    for number, start in enumerate(range(0, flat.size, GROUP)):
        part = flat[start : start + GROUP].astype(np.float64)
        # In single precision before it is used: this is the number that the other side has.
        scale = np.float32(np.abs(part).max() / 127)
        scales[number] = scale
        if not scale > 0:
            steps[start : start + GROUP] = 0
            continue
        up = np.floor(part / float(scale) + 1.0 - random.uniform(part.size))
        steps[start : start + GROUP] = np.clip(up, -127, 127)
    return steps, scales
