"""scikit-learn's models on the records of a run, without privacy: what the same columns allow.

Logistic regression is trained by a solver until it converges, boosted trees until their own
validation share gains nothing more. A plan's settings have no part in either.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from torch.nn import functional

from privet.client.training.model_runtime import labels_of, model_runtime
from privet.common.plan import Plan
from privet.common.sections.task import TableTask
from privet.common.tasks import Batch

MAX_ITERATIONS = 2000
"""Of the solver of a logistic regression."""
_MIN_BOOSTED = 50
"""Records below which no trees are trained: their own validation share would say nothing."""
_VALIDATION = 0.1
"""Share of the records by which trees know when to stop."""
_MAX_BINS = 255
"""Categories of a column that trees tell apart, at most: scikit-learn's limit."""
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Fitted:
    """A reference model's metrics.

    Attributes:
        metrics: on the test records.
        has_converged: whether its solver came to an end.
    """

    metrics: dict[str, Any]
    has_converged: bool


class ReferenceModels:
    """Train scikit-learn's models on training records, and measure them on the test records.

    Args:
        plan: names the task and the columns.
        test: records that the models are measured on.
    """

    def __init__(self, plan: Plan, test: pd.DataFrame) -> None:
        self._plan = plan
        self._bench = model_runtime(plan)
        self._test = self._encoded(test)

    @staticmethod
    def fit_for(plan: Plan) -> bool:
        """Whether the task has classes, and its columns are those that scikit-learn can read.

        Args:
            plan: of the run.
        """
        return plan.task.kind == "tabular" or (
            plan.model.reads_features and plan.task.kind == "text"
        )

    @property
    def reads_table(self) -> bool:
        """Whether the task's inputs are columns of a table."""
        return self._plan.task.kind == "tabular"

    def logistic(self, train: pd.DataFrame) -> Fitted | None:
        """Return logistic regression on the columns, numbers scaled and categories one-hot.

        Args:
            train: records to train on.

        Returns:
            None where the records have fewer than two classes.
        """
        batch = self._encoded(train)
        labels = labels_of(batch)
        if len(np.unique(labels)) < 2:
            return None
        model = LogisticRegression(max_iter=MAX_ITERATIONS)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # it is in the row's name
            model.fit(linear_inputs(self._plan, batch), labels)
        converged = bool(np.all(model.n_iter_ < MAX_ITERATIONS))
        found = model.predict_proba(linear_inputs(self._plan, self._test))
        return Fitted(self._metrics(model.classes_, found), converged)

    def boosted(self, train: pd.DataFrame) -> Fitted | None:
        """Return gradient boosted trees on the columns as they are.

        Args:
            train: records to train on.

        Returns:
            None where the records are few for their classes, or have one class or a class of one.
        """
        batch = self._encoded(train)
        labels = labels_of(batch)
        counts = np.unique(labels, return_counts=True)[1]
        if len(labels) < _MIN_BOOSTED or len(counts) < 2 or counts.min() < 2:
            return None
        if len(labels) * _VALIDATION < len(counts):
            return None  # each class needs a place in its validation share
        inputs = _table(batch)
        numeric = batch["numeric"].shape[1]
        assert isinstance(self._plan.task, TableTask)
        sizes = [len(values) + 1 for _, values in sorted(self._plan.task.categorical.items())]
        model = HistGradientBoostingClassifier(
            early_stopping=True,
            validation_fraction=_VALIDATION,
            # With more categories than bins the codes are taken for numbers.
            categorical_features=[*[False] * numeric, *(size <= _MAX_BINS for size in sizes)],
            random_state=0,
        )
        model.fit(inputs, labels)
        found = model.predict_proba(_table(self._test))
        return Fitted(self._metrics(model.classes_, found), model.n_iter_ < model.max_iter)

    def _encoded(self, frame: pd.DataFrame) -> Batch:
        return self._bench.encode_records(frame).batch

    def _metrics(self, classes: npt.NDArray[Any], chances: Floats) -> dict[str, Any]:
        """Return the task's metrics; a class that was in no training record has no chance."""
        whole = np.zeros((len(chances), len(self._plan.task.labels)))
        whole[:, classes] = chances
        scores = whole.astype(np.float32)
        return dict(self._bench.measure.figures(scores, labels_of(self._test)))


def linear_inputs(plan: Plan, batch: Batch) -> Floats:
    """Return what a linear model reads, [N, F]; features of an encoder have the head's length.

    Args:
        plan: of a table, or of a head on frozen features.
        batch: encoded records.
    """
    if "features" in batch:
        scale = float(getattr(plan.model.options, "scale", 1.0))
        return np.asarray(batch["features"], dtype=np.float64) * scale
    columns = [batch["numeric"].numpy(), batch["missing"].numpy()]
    assert isinstance(plan.task, TableTask)
    for place, (_, values) in enumerate(sorted(plan.task.categorical.items())):
        one_hot = functional.one_hot(batch["categorical"][:, place], len(values) + 1)
        columns.append(one_hot.numpy())
    return np.concatenate(columns, 1).astype(np.float64)


def _table(batch: Batch) -> Floats:
    """Return numbers, missing ones as NaN, and the codes of categories, [N, F + G]."""
    numeric = batch["numeric"].numpy().astype(np.float64)
    numeric[batch["missing"].numpy() > 0] = np.nan
    return np.concatenate([numeric, batch["categorical"].numpy()], 1)
