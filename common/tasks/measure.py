"""Measure a model: metrics from scores, or from a table that the metrics mechanism may noise.

A measure decides into which cell of the table a record falls. The code that makes the table adds
the record's weight there, so that no measure can give a record more weight; one release serves all
metrics.
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
    """One way to measure a task.

    Attributes:
        headline: the metric that plots show.
        names: its metrics, in the order of tables.
        lower_is_better: of the headline.
        figures: computes the metrics from scores [N, K] and labels [N].
        cells: returns each record's cell from scores, labels and the table's shape: [N] integers,
            counted row by row from 0; -1 counts for nothing. A record's cell depends on its own
            scores and label alone.
        shape: returns rows and columns of the table, from the plan's constants.
        read: computes the metrics from a table, noised or not.
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
            "metrics of a classification need task.classes: their table has a row for each class"
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
    """Return a task's measure; a user's own task is a classification unless it has its own."""
    return getattr(task, "measure", CLASSES)


def measure_of_kind(kind: str) -> Measure:
    """Return the measure of a plan's task, by its kind alone."""
    return LIKELIHOOD if kind in LANGUAGE else CLASSES


def measure_of_table(table: Array) -> Measure:
    """Return the measure that made a table: one row means likelihoods."""
    return LIKELIHOOD if len(table) == 1 else CLASSES


def table_shape(plan: Plan) -> Shape | None:
    """Return the shape that a site's table must have; None for a user's own task."""
    return None if ":" in plan.task.kind else measure_of_kind(plan.task.kind).shape(plan)


def pooled(tables: Mapping[str, Any]) -> tuple[Figures, dict[str, Figures]]:
    """Return the metrics over all sites and of each site, from their noised tables.

    Tables that differ in shape from the majority cannot be added, and are left out.
    """
    arrays = {site: np.asarray(table, dtype=np.float64) for site, table in tables.items()}
    ((usual, _),) = Counter(array.shape for array in arrays.values()).most_common(1)
    fitting = {site: array for site, array in arrays.items() if array.shape == usual}
    total = sum(fitting.values(), np.zeros(usual))
    return read_table(total), {site: read_table(table) for site, table in fitting.items()}


def read_table(table: Any) -> Figures:
    """Return the metrics of a table of either kind; an empty dict for any other table.

    Only its own measure can read the table of a user's own task.
    """
    array = np.asarray(table, dtype=np.float64)
    try:
        return measure_of_table(array).read(array)
    except (ValueError, IndexError):
        return {}
