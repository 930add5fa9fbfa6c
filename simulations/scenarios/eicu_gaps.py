"""Pre-training on the notes of the eICU demo: predict masked tokens of a text.

The records, sites and unit are those of ``eicu-text``, without its labels. An encoder that was
trained here can continue there (``--start``), and both runs count in the same ledgers
(``--ledgers``).
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from privet.simulations.scenarios import Scenario, eicu_text


def load(data_dir: Path | None) -> pd.DataFrame:
    """Return the stays: text, region and patient."""
    return eicu_text.load(data_dir)[["text", "site", "person"]]


SCENARIO = Scenario(
    name="eicu-gaps",
    title="What was left out of a note? Pre-training in five regions, by patient",
    data="eicu_demo/ in the data folder (PhysioNet, ODbL)",
    models={
        "minilm-full": {"model": {"kind": "minilm", "options": {"tuning": "full"}}},
    },
    slow=("minilm-full",),
    plain={
        "text-encoder": {
            "training": {"clip": None, "optimizer": "adam", "learning_rate": 0.003},
            "strategy": {"kind": "fedavg", "options": {}},
        },
        "minilm-full": {
            "training": {
                "clip": None, "optimizer": "adam", "rounds": 6, "steps": 8, "sample_rate": 0.1,
                "learning_rate": 1e-4, "micro_batch": 16,
            },
            "strategy": {"kind": "fedavg", "options": {}},
        },
    },
    load=load,
    probe=eicu_text.probe,
    note="7 of the 1,777 patients have stays in two regions, so H21 is not attested.",
)  # fmt: skip
