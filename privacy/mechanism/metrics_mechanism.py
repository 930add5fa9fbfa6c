"""The metrics mechanism: one noised table for all metrics of an evaluation (H13, H15).

A task's measure says into which cell of a table each record falls (of score bin by label, of guess
by label, or of loss per token). The mechanism adds the weights: the records of one unit share
:data:`~privet.privacy.accounting.events.GATE_WEIGHT` equally, rounded down. So one unit moves the
table by that much at most, in L1 and therefore in L2, whatever a measure returns. The weights are
integers and so is the noise, an exact discrete Gaussian: the low bits of a cell say nothing. All
metrics are read from the noised table and cost nothing more.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from privet.common.errors import PrivacyError, SelfTestError
from privet.common.tasks.measure import CLASSES, OURS, Measure, Shape
from privet.privacy.accounting.events import (
    GATE_WEIGHT,
    MAX_INTEGER,
    DiscreteGaussian,
    gate_release,
)
from privet.privacy.accounting.units import UnitIndex
from privet.privacy.mechanism.discrete_gaussian import discrete_gaussian
from privet.privacy.mechanism.noise import Stream

Array = npt.NDArray[Any]
MAX_CELLS = 1_000_000
"""Cells of a table, at most: the bound that the accounting of the noise is stated for."""


def event(noise_multiplier: float) -> DiscreteGaussian:
    """Return the event of one release."""
    return gate_release(noise_multiplier)


def noised_histogram(
    scores: Array,
    labels: Array,
    units: UnitIndex,
    *,
    measure: Measure = CLASSES,
    shape: Shape,
    noise_multiplier: float,
    stream: Stream | None = None,
) -> tuple[Array, DiscreteGaussian]:
    """Return the noised table, and what it cost.

    Args:
        scores: [N, K] of each record; a row that is not finite counts for nothing.
        labels: [N] class numbers.
        units: which records belong to which unit; a record belongs to one at most.
        measure: says into which cell a record falls.
        shape: rows and columns of the table, fixed by the plan.
        noise_multiplier: standard deviation of the noise in each cell, by the weight of a unit.
        stream: randomness; None draws a new key from the operating system.

    Returns:
        The table [rows, columns] divided by GATE_WEIGHT, as float64: each number is a multiple of
        2⁻²⁰, and exact. A sum beyond 2⁵³ would not be, and is cut off there. That depends on the
        noised sum alone, so it costs nothing; the noise of a usual plan never reaches that far.
    """
    cost = event(noise_multiplier)
    table = counted(record_cells(measure, scores, labels, shape), units, shape)
    noise = discrete_gaussian(cost.standard_deviation, table.size, stream or Stream.fresh())
    sums = [
        max(-MAX_INTEGER, min(MAX_INTEGER, count + drawn))
        for count, drawn in zip(table.ravel().tolist(), noise, strict=True)
    ]
    return np.array(sums, dtype=np.int64).reshape(table.shape) / float(GATE_WEIGHT), cost


def counted(cells: Array, units: UnitIndex, shape: Shape) -> npt.NDArray[np.int64]:
    """Return the table of integer weights, without noise; no unit adds more than GATE_WEIGHT.

    Args:
        cells: [N] cell of each record; one outside the table counts for nothing.
        units: which records belong to which unit.
        shape: of the table.
    """
    rows, columns = checked_shape(shape)
    sizes = np.diff(units.starts)
    weights = np.zeros(len(cells), dtype=np.int64)
    weights[units.records] = np.repeat(GATE_WEIGHT // np.maximum(sizes, 1), sizes)
    there = (cells >= 0) & (cells < rows * columns)
    table = np.zeros(rows * columns, dtype=np.int64)
    np.add.at(table, cells[there], weights[there])
    return table.reshape(rows, columns)


def record_cells(
    measure: Measure, scores: Array, labels: Array, shape: Shape
) -> npt.NDArray[np.int64]:
    """Return the cell of each record, [N]; -1 for one that counts for nothing.

    A measure of one's own is asked about one record at a time and is given a copy of it, so that it
    sees no other. What it answers about that record, an error included, has no effect on others.
    """
    finite = np.isfinite(scores).all(axis=tuple(range(1, scores.ndim)))
    cells = np.full(len(scores), -1, dtype=np.int64)
    size = math.prod(checked_shape(shape))
    if any(measure is known for known in OURS):
        found = np.asarray(measure.cells(scores[finite], labels[finite], shape))
        if found.shape != (np.count_nonzero(finite),) or found.dtype.kind not in "iu":
            raise PrivacyError("a measure of Privet gave no cell for each record")
        cells[finite] = np.where((found >= 0) & (found < size), found, -1)
        return cells
    for place in np.flatnonzero(finite).tolist():
        cells[place] = _own_cell(measure, scores[place], labels[place], shape, size)
    return cells


def _own_cell(measure: Measure, scores: Array, label: Array, shape: Shape, size: int) -> int:
    """Return the cell that a measure of one's own says for one record; -1 if it says none."""
    try:
        found = np.asarray(measure.cells(np.array(scores)[None], np.array(label)[None], shape))
    except Exception:
        return -1  # the record alone decides this too
    if found.shape != (1,) or found.dtype.kind not in "iu":
        return -1
    cell = int(found[0])
    return cell if 0 <= cell < size else -1


def checked_shape(shape: Shape) -> Shape:
    """Return the shape of a table.

    Raises:
        PrivacyError: if it is not two integers from 1, or has more than MAX_CELLS cells.
    """
    try:
        rows, columns = shape
    except (TypeError, ValueError):
        raise PrivacyError("the shape of a metrics table is rows and columns") from None
    if type(rows) is not int or type(columns) is not int or rows < 1 or columns < 1:
        raise PrivacyError("rows and columns of a metrics table are integers from 1")
    if rows * columns > MAX_CELLS:
        raise PrivacyError(
            f"a metrics table has at most {MAX_CELLS:,} cells, not {rows * columns:,}"
        )
    return rows, columns


def check_measure(measure: Measure, shape: Shape, scores: Array, labels: Array) -> None:
    """Try a measure on generated records, before anything is paid for.

    Args:
        measure: of the task.
        shape: of its table.
        scores: of generated records.
        labels: of generated records.

    Raises:
        SelfTestError: if no record falls into a cell, or if what one falls into depends on what
            the measure was asked before (H6).
    """
    try:
        cells = record_cells(measure, scores, labels, shape)
        again = record_cells(measure, scores[::-1], labels[::-1], shape)[::-1]
    except PrivacyError as error:
        raise SelfTestError(f"H13: {error}") from error
    if not np.array_equal(cells, again):
        raise SelfTestError(
            "H6: the cells of the measure depend on the order in which records are asked about"
        )
    if len(cells) and cells.max() < 0:
        raise SelfTestError(
            "H13: the measure has no cell for any generated record: scores "
            f"{list(scores.shape)} and labels {list(labels.shape)} do not fit a table {list(shape)}"
            + _why_none(measure, scores, labels, shape)
        )


def _why_none(measure: Measure, scores: Array, labels: Array, shape: Shape) -> str:
    """Return what the measure says of the first generated record."""
    try:
        return f"; for the first it answers {measure.cells(scores[:1], labels[:1], shape)!r}"
    except Exception as error:
        return f"; for the first it fails: {error!r}"
