"""The part of each record that is right, from 0 to 1, in the metrics mechanism's table.

A record falls into one cell: that of the nearest of ``bins`` shares from 0 to 1. Only a record that
is right in full falls into the last one, so that their number is exact.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def cells(shares: Array, bins: int) -> Array:
    """Return the bin of each record, [N]; -1 for a share that is not from 0 to 1.

    Args:
        shares: [N].
        bins: of the table, at least two.
    """
    shares = np.asarray(shares, dtype=np.float64)
    known = (shares >= 0) & (shares <= 1)
    column = np.rint(np.where(known, shares, 0.0) * (bins - 1)).astype(np.int64)
    column = np.where(shares < 1, np.minimum(column, bins - 2), column)
    return np.where(known, column, -1)


def means(table: Array) -> tuple[float | None, float | None]:
    """Return the mean share, and the part of records that are right in full, from a noised table.

    Negative cells count as zero. Both are None if nothing is left.

    Args:
        table: [1, bins].
    """
    counts = np.maximum(np.asarray(table, dtype=np.float64), 0.0)[0]
    total = counts.sum()
    if not total > 0:
        return None, None
    levels = np.linspace(0.0, 1.0, len(counts))
    return float((counts * levels).sum() / total), float(counts[-1] / total)
