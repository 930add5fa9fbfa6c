"""Compare a site's columns with the ranges and values of a plan, for its operator alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from privet.common.cells import Codes, is_missing, number_of, text_of
from privet.common.sections.task import Numeric, TableTask, TaskSpec
from privet.common.tasks.tabular import scaled

HALF = 0.5
"""Share of a column's cells from which its range or its list of values counts as wrong."""


@dataclass(frozen=True)
class ColumnFit:
    """How well the cells of one feature match the plan's declaration.

    Attributes:
        name: of the column.
        shares: from 0 to 1: ``missing`` of all cells, and ``unreadable`` as numbers; of the other
            cells ``outside`` the range and ``clipped`` at the border of the model's input, or
            ``unmatched`` by any declared value.
        faults: what is wrong with more than half of the cells, by kind, in words.
        odd: number of cells that are outside or unmatched.
    """

    name: str
    shares: dict[str, float]
    faults: dict[str, str]
    odd: int


def column_fits(task: TaskSpec, frame: pd.DataFrame) -> Iterator[ColumnFit]:
    """Yield the fit of each declared feature that the records have.

    Args:
        task: of the plan; it declares ranges and values.
        frame: the records, one row each.
    """
    if not len(frame) or not isinstance(task, TableTask):
        return
    for name, feature in task.numeric.items():
        if name in frame:
            yield _numeric(name, feature, frame[name])
    for name, values in task.categorical.items():
        if name in frame:
            yield _categorical(name, values, frame[name])


def _numeric(name: str, feature: Numeric, column: pd.Series) -> ColumnFit:
    cells = [_number(cell) for cell in column]
    numbers = np.array([cell for cell in cells if cell is not None])
    there = numbers[~np.isnan(numbers)]
    outside = (there < feature.low) | (there > feature.high)
    shares = {
        "missing": (len(numbers) - len(there)) / len(cells),
        "unreadable": 1 - len(numbers) / len(cells),
        "outside": int(outside.sum()) / max(len(there), 1),
        "clipped": int((np.abs(scaled(there, feature)) >= 4).sum()) / max(len(there), 1),
    }
    faults = {}
    if max(shares["clipped"], shares["outside"]) > HALF:
        faults["range"] = (
            f"'{name}': {shares['outside']:.0%} of the numbers lie outside {feature.low:g} to "
            f"{feature.high:g}, and {shares['clipped']:.0%} are cut at the border"
        )
    if shares["missing"] > HALF:
        faults["missing"] = f"'{name}': {shares['missing']:.0%} of the cells are empty"
    if shares["unreadable"] > HALF:
        faults["unreadable"] = f"'{name}': {shares['unreadable']:.0%} of the cells are no numbers"
    return ColumnFit(name, shares, faults, int(outside.sum()))


def _number(cell: Any) -> float | None:
    try:
        return number_of(cell)
    except ValueError:
        return None


def _categorical(name: str, values: tuple[str, ...], column: pd.Series) -> ColumnFit:
    cells = column.tolist()
    there = [cell for cell in cells if not is_missing(cell)]
    codes = Codes(values)
    odd = [text_of(cell).strip() for cell in there if codes.find(cell) is None]
    shares = {"missing": 1 - len(there) / len(cells), "unmatched": len(odd) / max(len(there), 1)}
    faults = {}
    if shares["unmatched"] > HALF:
        said = ", ".join(f"'{value[:40]}' ({n})" for value, n in Counter(odd).most_common(3))
        faults["categories"] = (
            f"'{name}': {shares['unmatched']:.0%} of the cells match no declared value, such as "
            f"{said}; declared are {', '.join(map(repr, values[:8]))}"
        )
    if shares["missing"] > HALF:
        faults["missing"] = f"'{name}': {shares['missing']:.0%} of the cells are empty"
    return ColumnFit(name, shares, faults, len(odd))
