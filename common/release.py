"""A release: the one thing a site lets out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from privet.common.canonical import digest_parts

Arrays = dict[str, npt.NDArray[Any]]
"""Named arrays in a fixed order, as they travel and as they are hashed."""


@dataclass(frozen=True)
class Release:
    """Tensors and public facts that answer one order.

    Attributes:
        order: digest of the order it answers.
        facts: JSON values: site, event, digest of the tensors, what was spent.
        arrays: float32 arrays by name.
    """

    order: str
    facts: dict[str, Any]
    arrays: Arrays


def digest_arrays(arrays: Arrays) -> str:
    """Return one digest over names, shapes and little-endian bytes, in order."""
    parts: list[tuple[str, bytes | memoryview]] = []
    for name, array in arrays.items():
        little = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
        label = f"{name}\0{little.dtype.str}\0{','.join(map(str, little.shape))}"
        parts.append((label, little.tobytes()))
    return digest_parts(parts)
