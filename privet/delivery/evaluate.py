"""Metrics of a trained model: over all, by site, by group; and the gaps between groups.

Counts and metrics are exact: they are for records that are public, or that stay where they are.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from privet.common.cells import text_of
from privet.common.errors import InputError
from privet.common.tasks.measure import measure_of
from privet.common.tasks.written import likeness

if TYPE_CHECKING:
    import pandas as pd

    from privet.delivery.trained import Trained

Array = npt.NDArray[Any]
SITE = "site"
_BINS = 10
_NUMBER = re.compile(r"\s*([<>]=?|[≤≥]?)\s*([+-]?\d+(?:\.\d*)?(?:[eE][+-]?\d+)?)\s*\+?\s*")
"""A number, or a bound in its place: "> 89", "90+", "<=18"."""


@dataclass(frozen=True)
class FigureGroup:
    """A column by which records are grouped.

    Attributes:
        column: its name.
        bounds: where numbers are cut into bands, ascending; empty takes each value as it is.
    """

    column: str
    bounds: tuple[float, ...] = ()

    @classmethod
    def parse(cls, text: str) -> FigureGroup:
        """Read ``COLUMN`` or ``COLUMN:BOUND,BOUND``, such as ``age:40,65``.

        Raises:
            InputError: if a bound is not a number, or they do not ascend.
        """
        column, mark, rest = text.partition(":")
        try:
            bounds = tuple(float(part) for part in rest.split(",")) if mark else ()
        except ValueError:
            bounds = (math.nan,)
        if not all(map(math.isfinite, bounds)):
            raise InputError(f"--group {text}: bounds are numbers, such as age:40,65")
        if not column or list(bounds) != sorted(set(bounds)):
            raise InputError(f"--group {text}: write COLUMN, or COLUMN:40,65 with rising bounds")
        return cls(column, bounds)

    def of(self, frame: pd.DataFrame) -> Array:
        """Return each record's group as text; a missing cell is "missing".

        Where numbers are cut into bands, a cell may be a bound: "> 89" lies above 89.

        Raises:
            InputError: if the column is not there, or is to be cut and holds no numbers.
        """
        if self.column not in frame.columns:
            known = ", ".join(f"'{name}'" for name in frame.columns[:20])
            raise InputError(f"there is no column '{self.column}' to group by; there are {known}")
        cells = frame[self.column]
        if not self.bounds:
            return np.array([text_of(cell).strip() or "missing" for cell in cells])
        numbers = np.array([_number(cell) for cell in cells])
        if np.isnan(numbers).all():
            raise InputError(f"the column '{self.column}' holds no numbers to cut")
        names = [f"below {self.bounds[0]:g}"]
        names += [f"{a:g} to {b:g}" for a, b in zip(self.bounds, self.bounds[1:], strict=False)]
        names.append(f"from {self.bounds[-1]:g}")
        found = np.array(names)[np.digitize(numbers, self.bounds)]
        return np.where(np.isnan(numbers), "missing", found)


def evaluate(trained: Trained, frame: pd.DataFrame, groups: list[FigureGroup]) -> dict[str, Any]:
    """Return all metrics of a model on labelled records, as JSON values.

    Args:
        trained: the model.
        frame: the records; with a column ``site`` the metrics are also computed by site.
        groups: columns by which they are computed, too.

    Returns:
        ``records``, ``metrics``, ``calibration`` (of classes), ``sites``, and ``groups``: by
        column, the metrics of each group and the gap between the best and the worst.

    Raises:
        InputError: if a group's column is not there.
        DataError: if the records do not fit the task, or do not say what was right.
    """
    parts = {group.column: group.of(frame) for group in groups}
    if len(parts) < len(groups):
        raise InputError("--group: a column is named twice; ask for its bands one after the other")
    trained.require_answers(frame)
    measure = measure_of(trained.task)
    batch = trained.encode(frame)
    scores = trained.scores(batch)
    classes = "label" in batch
    labels = batch["label"].numpy() if classes else np.zeros(len(frame), np.int64)
    texts = trained.written(batch)
    wanted = trained.wanted(frame) if texts else []

    def figures(chosen: Array) -> dict[str, Any]:
        found: dict[str, Any] = {"records": int(chosen.sum())}
        found |= measure.figures(scores[chosen], labels[chosen])
        if classes:
            belief = calibration(scores[chosen], labels[chosen])
            found |= {"calibration_error": belief["error"], "brier": belief["brier"]}
            if scores.shape[1] == 2:
                found |= _of_two(scores[chosen].argmax(1), labels[chosen])
        if texts:
            places = chosen.nonzero()[0]
            found |= likeness([texts[k] for k in places], [wanted[k] for k in places])
        return found

    everyone = figures(np.ones(len(frame), bool))
    value: dict[str, Any] = {
        "records": everyone.pop("records"),
        "metrics": everyone,
        "calibration": calibration(scores, labels) if classes else None,
        "sites": {},
        "groups": {},
    }
    if SITE in frame.columns:
        sites = frame[SITE].astype(str).to_numpy()
        value["sites"] = {name: figures(sites == name) for name in sorted(set(sites))}
    for column, names in parts.items():
        table = {name: figures(names == name) for name in sorted(set(names), key=_order)}
        value["groups"][column] = {"figures": table, "gaps": _gaps(table)}
    return value


def calibration(scores: Array, labels: Array, bins: int = _BINS) -> dict[str, Any]:
    """Return how far stated probabilities can be believed.

    The expected calibration error over bins of equal width (Naeini et al. 2015; Guo et al. 2017) of
    the predicted class's probability, the Brier score over classes, and the curve.

    Args:
        scores: [N, K] probabilities.
        labels: [N].
        bins: of the probability.
    """
    sure, right = scores.max(1), scores.argmax(1) == labels
    place = np.minimum((sure * bins).astype(int), bins - 1)
    curve = []
    error = 0.0
    for k in range(bins):
        here = place == k
        if here.any():
            said, was = float(sure[here].mean()), float(right[here].mean())
            error += float(here.mean()) * abs(said - was)
            curve.append({"said": said, "was": was, "records": int(here.sum())})
    hot = np.eye(scores.shape[1])[labels]
    brier = float(((scores - hot) ** 2).sum(1).mean())
    return {"error": error, "brier": brier, "curve": curve}


def _of_two(guess: Array, labels: Array) -> dict[str, float | None]:
    """Return shares of class 1 that fairness is judged by (Hardt et al. 2016).

    And None for each share of nothing in a group: 0 would be a gap.
    """

    def share(of: Array) -> float | None:
        return float(guess[of].mean()) if of.any() else None

    undefined = {"precision": not guess.any(), "recall": not labels.any()}
    undefined["f1"] = all(undefined.values())
    return {
        "selected": share(np.ones(len(labels), bool)),
        "true_positive_rate": share(labels == 1),
        "false_positive_rate": share(labels == 0),
        **dict.fromkeys((name for name, none in undefined.items() if none), None),
    }


def _gaps(table: dict[str, dict[str, Any]]) -> dict[str, float]:
    """Return for each metric the difference between the largest and the smallest group's."""
    names = [name for name in next(iter(table.values()), {}) if name != "records"]
    found = {}
    for name in names:
        values = [row[name] for row in table.values() if row[name] is not None]
        if len(values) > 1:
            found[name] = max(values) - min(values)
    return found


def _order(name: str) -> tuple[bool, float, str]:
    """Sort bands from below, and what is missing last."""
    number = name.removeprefix("below ").removeprefix("from ").partition(" to ")[0]
    try:
        place = float(number)
        if name.startswith("below "):
            place -= 0.5
    except ValueError:
        place = 0.0
    return name == "missing", place, name


def _number(cell: object) -> float:
    """Return a cell as a number, NaN if it is none."""
    if isinstance(cell, int | float | np.number):
        return float(cell)
    found = _NUMBER.fullmatch(str(cell))
    if found is None:
        return math.nan
    sign, number = found[1], float(found[2])
    if sign == ">":
        return math.nextafter(number, math.inf)
    if sign in ("<", "<=", "≤"):  # an upper bound mostly stands for less than the bound
        return math.nextafter(number, -math.inf)
    return number
