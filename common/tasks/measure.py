"""How well a task is done: figures from scores, or from a table that the metrics gate may noise.

A measure says into which cell of the table a record falls. The weight that goes there is added by
who makes the table, so that no measure can let a record count for more; one release serves all
figures.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from privet.common.errors import InputError
from privet.common.plan import Plan
from privet.common.sections.task import LANGUAGE
from privet.common.tasks import likelihood, metrics

Array = npt.NDArray[Any]
Figures = dict[str, float | None]
Shape = tuple[int, int]


@dataclass(frozen=True)
class Measure:
    """One way to measure.

    Attributes:
        headline: the figure that pictures show.
        names: its figures, in the order in which tables show them.
        lower_is_better: of the headline.
        figures: from scores [N, K] and labels [N].
        cells: from scores, labels and the shape of the table, the number of each record's cell,
            [N] integers, counted row by row from 0; -1 counts for nothing. What a record gets
            depends on its own scores and label alone.
        shape: rows and columns of the table, from the plan's constants.
        read: the figures of a table, noised or not.
    """

    headline: str
    names: tuple[str, ...]
    lower_is_better: bool
    figures: Callable[[Array, Array], Figures]
    cells: Callable[[Array, Array, Shape], Array]
    shape: Callable[[Plan], Shape]
    read: Callable[[Array], Figures]


def _shape_of_classes(plan: Plan) -> Shape:
    classes, bins = len(plan.task.labels), plan.metrics.bins
    if classes < 2:
        raise InputError(
            "figures of a classification need task.classes: their table has a row for each class"
        )
    return (2, bins) if classes == 2 else (classes, classes)


def _shape_of_likelihoods(plan: Plan) -> Shape:
    return 1, plan.metrics.bins


CLASSES = Measure(
    "accuracy", metrics.NAMES, False,
    metrics.from_scores, metrics.cells, _shape_of_classes, metrics.from_histogram,
)  # fmt: skip
LIKELIHOOD = Measure(
    "perplexity", likelihood.NAMES, True,
    likelihood.from_scores, likelihood.cells, _shape_of_likelihoods, likelihood.from_histogram,
)  # fmt: skip


def measure_of(task: object) -> Measure:
    """Return how a task is measured; a user's own classifies unless it says otherwise."""
    found: Measure = getattr(task, "measure", CLASSES)
    return found


def measure_of_kind(kind: str) -> Measure:
    """Return how a plan's task is measured, by its kind alone."""
    return LIKELIHOOD if kind in LANGUAGE else CLASSES


def measure_of_table(table: Array) -> Measure:
    """Return what a table was made by: one row holds likelihoods."""
    return LIKELIHOOD if len(table) == 1 else CLASSES


def table_shape(plan: Plan) -> Shape | None:
    """Return the shape that a site's table must have; a user's own task may have any."""
    return None if ":" in plan.task.kind else measure_of_kind(plan.task.kind).shape(plan)


def pooled(tables: Mapping[str, Any]) -> tuple[Figures, dict[str, Figures]]:
    """Return the figures over all sites and of each, from their noised tables.

    Tables of another shape than most have cannot be added, and are left out.
    """
    arrays = {site: np.asarray(table, dtype=np.float64) for site, table in tables.items()}
    ((usual, _),) = Counter(array.shape for array in arrays.values()).most_common(1)
    fitting = {site: array for site, array in arrays.items() if array.shape == usual}
    total = sum(fitting.values(), np.zeros(usual))
    return read_table(total), {site: read_table(table) for site, table in fitting.items()}


def read_table(table: Any) -> Figures:
    """Return the figures of a table of either kind; none of one that is of neither.

    A user's own task may have tables that only its own measure can read.
    """
    array = np.asarray(table, dtype=np.float64)
    try:
        return measure_of_table(array).read(array)
    except (ValueError, IndexError):
        return {}
