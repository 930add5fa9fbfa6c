"""Read types, ranges, categories and sizes from records that are public.

A plan that holds them reveals something of every record, so this is for records that anybody may
see (H12).
"""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pandas as pd

from privet.common.cells import is_missing, number_of, text_of
from privet.common.errors import InputError
from privet.common.text_format import with_point
from privet.simulations.draft.columns import Columns
from privet.simulations.draft.from_header import is_identifier

MAX_CATEGORIES = 40
"""Values of a categorical column that are declared, the most frequent first; others are "other"."""
_FEW_NUMBERS = 2
"""A column with no more different numbers than this is categorical."""
_SKEWED = 4.0
"""A column without negative numbers is logarithmic where its high tail is this times as long as the
low one, and its high end this times as far from 0."""
_UNIQUE = 0.5
"""A column of words with a larger share of different ones is text, or identifies people."""
_TEXT_CHARACTERS = 30
_MAX_NUMBERS = 50
"""Different numbers of a label from which it is none of classes."""
_DATE = re.compile(r"\d{4}-\d{1,2}-\d{1,2}|\d{1,2}[./]\d{1,2}[./]\d{2,4}")


def declare(found: Columns, frame: pd.DataFrame, names: list[str]) -> None:
    """Declare columns by what they hold.

    Args:
        found: is extended.
        frame: public records.
        names: of the columns that are no label, text, site or person.
    """
    for name in names:
        column = _there(frame[name])
        is_comma = found.form.decimal == ","
        numbers = numbers_in(column.map(with_point) if is_comma else column)
        if column.nunique() < 2:
            found.left_out[name] = "it holds one value"
        elif re.fullmatch(r"Unnamed: \d+", name):
            found.left_out[name] = "row numbers, by its name"
        elif column.map(lambda text: bool(_DATE.match(text))).mean() > _UNIQUE:
            found.left_out[name] = "dates: a number such as an age in days can be read"
        elif is_identifier(name) and column.nunique() > _UNIQUE * len(column):
            found.left_out[name] = "an identifier, by its name and its values"
        elif numbers is not None and len(np.unique(numbers)) > _FEW_NUMBERS:
            found.numeric[name] = range_of(numbers)
        elif column.nunique() > max(MAX_CATEGORIES, _UNIQUE * len(column)):
            long = column.map(len).mean() > _TEXT_CHARACTERS
            found.left_out[name] = (
                "a text: --text reads it in place of the columns" if long else "too many values"
            )
        else:
            found.categorical[name] = values_of(column)
    if found.label is not None and not found.classes:
        found.classes = _classes_of(_there(frame[found.label]), found.label)


def _classes_of(column: pd.Series, label: str) -> list[str]:
    """Return the labels that occur.

    Raises:
        InputError: if they are numbers of which there are many, which no class is.
    """
    found = sorted(values_of(column, most=None))
    if len(found) > _MAX_NUMBERS and numbers_in(column) is not None:
        raise InputError(
            f"the label '{label}' has {len(found)} different numbers: a class is predicted, and no "
            "number. Make classes of its ranges, such as low and high"
        )
    return found


def task_of(frame: pd.DataFrame, label: str, leave_out: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return the ``[task]`` section that reads a table's columns.

    Args:
        frame: public records.
        label: column of the classes.
        leave_out: columns that are not read, such as those of the site and the person.
    """
    found = Columns(label=label)
    names = [str(name) for name in frame.columns if name != label and name not in leave_out]
    declare(found, frame, names)
    return {
        "kind": "tabular",
        "label": label,
        "classes": found.classes,
        "numeric": found.numeric,
        "categorical": found.categorical,
    }


def numbers_in(column: pd.Series) -> np.ndarray | None:
    """Return a column's numbers, or None where a cell is none.

    Args:
        column: texts, without missing ones.
    """
    try:
        found = [number_of(cell) for cell in column]
    except ValueError:
        return None
    return np.array([number for number in found if not math.isnan(number)])


def range_of(numbers: np.ndarray) -> dict[str, Any]:
    """Return the range of nine tenths of some numbers, in round ones.

    Args:
        numbers: two different ones or more.
    """
    low, middle, high = (float(one) for one in np.quantile(numbers, (0.05, 0.5, 0.95)))
    if low == high:
        low, high = float(numbers.min()), float(numbers.max())
    is_log = low >= 0 and high > _SKEWED * max(low, 1.0)
    is_log = is_log and high - middle > _SKEWED * (middle - low)
    step = 10.0 ** math.floor(math.log10(high - low) - 1)
    low, high = math.floor(low / step) * step, math.ceil(high / step) * step
    found = {"low": _tidy(low), "high": _tidy(high)}
    if not found["low"] < found["high"]:  # they differ beyond the sixth digit
        found = {"low": float(numbers.min()), "high": float(numbers.max())}
    return {**found, "log": True} if is_log else found


def _tidy(value: float) -> float:
    """Return a number without rounding errors; a whole one as such."""
    found = float(f"{value:.6g}")
    return int(found) if found.is_integer() else found


def values_of(column: pd.Series, most: int | None = MAX_CATEGORIES) -> list[str]:
    """Return a column's most frequent values, as a plan writes them.

    Args:
        column: texts, without missing ones.
        most: values that are returned; None returns all.
    """
    return [str(value) for value in column.value_counts().index[:most]]


def nominal(units: float) -> int:
    """Return a round number of two digits near a number of units.

    Args:
        units: counted.
    """
    step: int = 10 ** max(0, len(str(int(units))) - 2)
    return max(1, round(units / step) * step)


def _there(column: pd.Series) -> pd.Series:
    """Return the texts of the cells that are not missing."""
    return pd.Series(
        [text_of(cell).strip() for cell in column.tolist() if not is_missing(cell)], dtype=object
    )
