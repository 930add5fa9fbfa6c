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
from privet.common.tasks import likelihood, metrics, spans, tags

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


def _shape_of_bins(plan: Plan) -> Shape:
    return 1, plan.metrics.bins


CLASSES = Measure(
    "accuracy", metrics.NAMES, False,
    metrics.from_scores, metrics.cells, _shape_of_classes, metrics.from_histogram,
)  # fmt: skip
LIKELIHOOD = Measure(
    "perplexity", likelihood.NAMES, True,
    likelihood.from_scores, likelihood.cells, _shape_of_bins, likelihood.from_histogram,
)  # fmt: skip


TAGS = Measure(
    "token_accuracy", tags.NAMES, False,
    tags.from_scores, tags.cells, _shape_of_bins, tags.from_histogram,
)  # fmt: skip
SPANS = Measure(
    "f1", spans.NAMES, False,
    spans.from_scores, spans.cells, _shape_of_bins, spans.from_histogram,
)  # fmt: skip
OURS = (CLASSES, LIKELIHOOD, TAGS, SPANS)
"""Measures of Privet: a record's cell follows from its own scores."""
_BY_KIND = {
    "token-classification": TAGS,
    "question-answering": SPANS,
    **dict.fromkeys(LANGUAGE, LIKELIHOOD),
}


def measure_of(task: object) -> Measure:
    """Return a task's measure; a user's own task is a classification unless it has its own."""
    return getattr(task, "measure", CLASSES)


def measure_of_kind(kind: str) -> Measure:
    """Return the measure of a plan's task, by its kind alone."""
    return _BY_KIND.get(kind, CLASSES)


def measure_of_table(table: Array) -> Measure:
    """Return the measure that made a table of a user's own task: one row means likelihoods."""
    return LIKELIHOOD if len(table) == 1 else CLASSES


def table_shape(plan: Plan) -> Shape | None:
    """Return the shape that a site's table must have; None for a user's own task."""
    return None if ":" in plan.task.kind else measure_of_kind(plan.task.kind).shape(plan)


def pooled(
    tables: Mapping[str, Any], kind: str | None = None
) -> tuple[Figures, dict[str, Figures]]:
    """Return the metrics over all sites and of each site, from their noised tables.

    Tables that differ in shape from the majority cannot be added, and are left out.

    Args:
        tables: by site.
        kind: of the plan's task; None reads a table by its shape.
    """
    arrays = {site: np.asarray(table, dtype=np.float64) for site, table in tables.items()}
    ((usual, _),) = Counter(array.shape for array in arrays.values()).most_common(1)
    fitting = {site: array for site, array in arrays.items() if array.shape == usual}
    total = sum(fitting.values(), np.zeros(usual))
    by_site = {site: read_table(table, kind) for site, table in fitting.items()}
    return read_table(total, kind), by_site


def read_table(table: Any, kind: str | None = None) -> Figures:
    """Return the metrics of a table; an empty dict for one that cannot be read.

    The table of a user's own task is read as that of classes or of likelihoods, by its shape; only
    its own measure can read any other.

    Args:
        table: noised or not.
        kind: of the plan's task; None reads a table by its shape.
    """
    array = np.asarray(table, dtype=np.float64)
    by_shape = kind is None or ":" in kind
    measure = measure_of_table(array) if by_shape else measure_of_kind(str(kind))
    try:
        return measure.read(array)
    except (ValueError, IndexError):
        return {}
