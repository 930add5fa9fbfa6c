"""The columns of a table whose records are public, as a plan declares them.

Types, ranges and categories are read from the records themselves. A plan that holds them tells
something of every record, so this is for records that anybody may see (H12).
"""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from privet.common.cells import text_of

MAX_CATEGORIES = 40
"""Values of a categorical column that are declared, the most frequent first; others are "other"."""
_FEW_NUMBERS = 2
"""A column with no more different numbers than this is categorical."""
_SKEWED = 4.0
"""A column without negative numbers is logarithmic where its high tail is this times as long as the
low one, and its high end this times as far from 0."""


def task_of(frame: pd.DataFrame, label: str, leave_out: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return the ``[task]`` section that reads a table's columns.

    Args:
        frame: public records.
        label: column of the classes.
        leave_out: columns that are not read, such as those of the site and the person.
    """
    numeric: dict[str, dict[str, Any]] = {}
    categorical: dict[str, list[str]] = {}
    for name in frame.columns:
        if name == label or name in leave_out:
            continue
        column = frame[name].dropna()
        numbers = pd.api.types.is_numeric_dtype(column) and not column.dtype == bool
        if column.nunique() < 2:
            continue
        if numbers and column.nunique() > _FEW_NUMBERS:
            numeric[str(name)] = range_of(column)
        else:
            categorical[str(name)] = values_of(column)
    return {
        "kind": "tabular",
        "label": label,
        "classes": sorted(values_of(frame[label].dropna(), most=None)),
        "numeric": numeric,
        "categorical": categorical,
    }


def range_of(column: pd.Series) -> dict[str, Any]:
    """Return the range of nine tenths of a column's numbers, in round ones.

    Args:
        column: numbers, without missing ones.
    """
    low, middle, high = (float(column.quantile(share)) for share in (0.05, 0.5, 0.95))
    if low == high:
        low, high = float(column.min()), float(column.max())
    is_log = low >= 0 and high > _SKEWED * max(low, 1.0)
    is_log = is_log and high - middle > _SKEWED * (middle - low)
    step = 10.0 ** math.floor(math.log10(high - low) - 1)
    low, high = math.floor(low / step) * step, math.ceil(high / step) * step
    found = {"low": float(f"{low:.6g}"), "high": float(f"{high:.6g}")}
    return {**found, "log": True} if is_log else found


def values_of(column: pd.Series, most: int | None = MAX_CATEGORIES) -> list[str]:
    """Return a column's most frequent values, as a plan writes them.

    Args:
        column: cells, without missing ones.
        most: values that are returned; None returns all.
    """
    texts = pd.Series([text_of(cell).strip() for cell in column], dtype=object)
    return [str(value) for value in texts.value_counts().index[:most]]
