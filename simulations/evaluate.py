"""Figures about a model: on a public test split, or read from the sites' noised tables."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import torch

from privet.client.workbench import labels_of, workbench
from privet.common.flat import Arrays
from privet.common.plan import Plan
from privet.common.tasks.language import TextToText
from privet.common.tasks.written import likeness
from privet.simulations.partition import SITE


class PublicTest:
    """Evaluates models on records that the scenario declares public.

    Args:
        plan: gives task and model.
        frame: the test records of all sites, with the column ``site``.
    """

    def __init__(self, plan: Plan, frame: pd.DataFrame) -> None:
        self._plan = plan
        self._frame = frame
        self._examples: dict[str, torch.Tensor] | None = None

    def measure(self, model: Arrays) -> dict[str, Any]:
        """Return the figures over all test records and, under ``sites``, of each site's."""
        if not len(self._frame):
            return {}
        bench = workbench(self._plan)
        if self._examples is None:
            found = bench.encode_records(self._frame)
            self._examples, self._frame = found.batch, self._frame.iloc[found.rows]
        if not len(self._frame):
            return {}
        bench.load(model)
        scores, labels = bench.score(self._examples), labels_of(self._examples)
        sites = self._frame[SITE].to_numpy()
        figures: dict[str, Any] = dict(bench.measure.figures(scores, labels))
        if "label" in self._examples:
            # What saying the most frequent class each time would reach: a weak signal shows.
            figures["majority"] = float(np.bincount(labels).max() / len(labels))
        figures["sites"] = {
            site.name: bench.measure.figures(scores[mine], labels[mine])
            for site in self._plan.sites
            if (mine := sites == site.name).any()
        }
        return figures

    def written(self, model: Arrays) -> dict[str, float]:
        """Return chrF and BLEU of what the model writes for the test records, if it writes any."""
        bench = workbench(self._plan)
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
        return likeness(texts, bench.task.texts(self._frame, self._plan.task.target))
