"""Figures about a model: on a public test split, or read from the sites' noised tables."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import torch

from privet.client.workbench import workbench
from privet.common.flat import Arrays
from privet.common.plan import Plan
from privet.common.tasks import metrics
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
            self._examples = bench.encode(self._frame)
        bench.load(model)
        scores = bench.score(self._examples)
        labels = self._examples["label"].cpu().numpy()
        sites = self._frame[SITE].to_numpy()
        figures: dict[str, Any] = dict(metrics.from_scores(scores, labels))
        # What saying the most frequent class each time would reach: a weak signal shows.
        figures["majority"] = float(np.bincount(labels).max() / len(labels))
        figures["sites"] = {
            site.name: metrics.from_scores(scores[mine], labels[mine])
            for site in self._plan.sites
            if (mine := sites == site.name).any()
        }
        return figures


def pooled_gate(tables: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the figures over all sites and of each site, from noised tables."""
    total = sum(np.asarray(table, dtype=np.float64) for table in tables.values())
    by_site = {site: metrics.from_histogram(np.asarray(table)) for site, table in tables.items()}
    return metrics.from_histogram(np.asarray(total)), by_site
