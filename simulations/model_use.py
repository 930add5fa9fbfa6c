"""Predict and measure with a run's model, in the process that has it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from privet.client.training.model_runtime import labels_of, model_runtime
from privet.common.errors import DataError, InputError
from privet.common.flat import Arrays
from privet.common.plan import Plan

PREDICTION = "prediction"


def predictions_of(plan: Plan, model: Arrays, frame: pd.DataFrame) -> pd.DataFrame:
    """Return the chance of each class, and the likeliest one, for each record.

    Args:
        plan: that the model was trained by.
        model: trained parameters by name.
        frame: records with the columns that the plan reads; they need no label.

    Returns:
        A column for each class and ``prediction`` (``likeliest prediction`` where a class is called
        so), with the index of ``frame``; NaN and None for a
        record that cannot be read.

    Raises:
        InputError: if the task has no classes.
        DataError: if a column is missing, or there is no record.
    """
    classes = list(getattr(plan.task, "classes", ()))
    if not classes:
        raise InputError(
            f"a task of kind '{plan.task.kind}' predicts no class; `privet model evaluate` and "
            "`privet.load(folder).network` are for its models"
        )
    if not isinstance(frame, pd.DataFrame):
        raise InputError(f"records are a pandas DataFrame, not {type(frame).__name__}")
    if not len(frame):
        raise DataError("there is no record")
    answer = plan.task.answer_column
    if answer is not None:
        frame = frame.assign(**{answer: classes[0]})  # read with the others, and not used
    bench = model_runtime(plan)
    found = bench.encode_records(frame)
    bench.load(model)
    chances = np.full((len(frame), len(classes)), np.nan)
    if len(found.rows):
        chances[found.rows] = bench.score(found.batch)
    table = pd.DataFrame(chances, index=frame.index, columns=classes)
    there = ~np.isnan(chances[:, 0])
    best = np.where(there, np.nan_to_num(chances).argmax(1), 0)
    chosen = [
        classes[place] if is_read else None for place, is_read in zip(best, there, strict=True)
    ]
    name = PREDICTION if PREDICTION not in classes else "likeliest " + PREDICTION
    table[name] = pd.Series(chosen, frame.index, dtype=object)
    return table


def metrics_of(plan: Plan, model: Arrays, frame: pd.DataFrame) -> dict[str, Any]:
    """Return the metrics of a model on records that have the task's label.

    They are not private: they tell of these records as any un-noised statistic does.

    Args:
        plan: that the model was trained by.
        model: trained parameters by name.
        frame: the records.

    Raises:
        DataError: if a column is missing, or no record can be read.
    """
    bench = model_runtime(plan)
    found = bench.encode_records(frame)
    if not len(found.rows):
        raise DataError("no record can be read: `privet simulate PLAN --check` says why")
    bench.load(model)
    return dict(bench.measure.figures(bench.score(found.batch), labels_of(found.batch)))
