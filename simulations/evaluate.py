"""Evaluate a model on a public test split."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from privet.client.training.model_runtime import ModelRuntime, labels_of, model_runtime
from privet.client.training.rehearsal import RECORDS, made_up
from privet.common.errors import PlanError
from privet.common.flat import Arrays
from privet.common.plan import Plan
from privet.common.tasks import Batch
from privet.common.tasks.language import TextToText
from privet.common.tasks.measure import CLASSES
from privet.common.tasks.weakness import weakness_of_scores
from privet.common.tasks.written import likeness
from privet.simulations.partition import SITE

_MEASURED_SITES = 1000
"""Sites up to which the model is measured on each one's test records too."""


class PublicTest:
    """Evaluate models on records that the scenario declares public.

    Args:
        plan: names task and model.
        frame: the test records of all sites, with the column ``site``.
    """

    def __init__(self, plan: Plan, frame: pd.DataFrame) -> None:
        self._plan = plan
        self._frame = frame
        self._examples: dict[str, torch.Tensor] | None = None
        self.weakness = ""
        """Says of the model measured last that it is worth no more than a constant answer."""

    def measure(self, model: Arrays) -> dict[str, Any]:
        """Return the metrics over all test records and, under ``sites``, of each site's records."""
        if not len(self._frame):
            return {}
        bench = model_runtime(self._plan)
        if self._examples is None:
            found = bench.encode_records(self._frame)
            self._examples, self._frame = found.batch, self._frame.iloc[found.rows]
        if not len(self._frame):
            return {}
        bench.load(model)
        figures, self.weakness = _figures(bench, self._examples, self._frame[SITE].to_numpy())
        return figures

    def written(self, model: Arrays) -> dict[str, float]:
        """Return chrF and BLEU of the model's texts for the test records, if it generates any."""
        bench = model_runtime(self._plan)
        if not isinstance(bench.task, TextToText) or not len(self._frame):
            return {}
        bench.load(model)
        network = bench.engine.model
        network.eval()
        try:
            with bench.engine.hooks_off():
                texts = bench.task.write(network, bench.encode(self._frame))
        finally:
            network.train()
        return likeness(texts, bench.task.wanted(self._frame))


def rehearse_public(plan: Plan) -> None:
    """Compute the metrics of a public test split on generated records.

    Args:
        plan: with its noise calibrated, rehearsed at a site.

    Raises:
        PlanError: if they cannot be computed.
    """
    bench = model_runtime(plan)
    batch = made_up(bench)
    sites = np.array([plan.sites[0].name] * RECORDS)
    try:
        _figures(bench, batch, sites)
    except Exception as error:
        raise PlanError(
            f"plan '{plan.name}' cannot run: metrics of generated records cannot be computed: "
            f"{error!r}"
        ) from error


def _figures(
    bench: ModelRuntime, examples: Batch, sites: npt.NDArray[Any]
) -> tuple[dict[str, Any], str]:
    """Return the metrics over all records and, under ``sites``, of each site's; and a weakness."""
    scores, labels = bench.score(examples), labels_of(examples)
    weakness = ""
    figures: dict[str, Any] = dict(bench.measure.figures(scores, labels))
    if "label" in examples and bench.measure is CLASSES:
        # What saying the most frequent class each time would reach: a weak signal shows.
        figures["majority"] = float(np.bincount(labels).max() / len(labels))
        weakness = weakness_of_scores(
            scores, labels, bench.plan.task.labels, figures.get("auc"),
            is_private=bench.plan.privacy is not None,
        )  # fmt: skip
    figures["sites"] = {}
    if len(bench.plan.sites) <= _MEASURED_SITES:
        places = pd.Series(sites).groupby(sites).indices
        figures["sites"] = {
            site.name: bench.measure.figures(scores[mine], labels[mine])
            for site in bench.plan.sites
            if (mine := places.get(site.name)) is not None
        }
    return figures, weakness
