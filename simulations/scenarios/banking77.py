"""13,083 questions of bank customers in 77 intents, assigned to ten sites.

Source: BANKING77, CC BY 4.0. The set has no natural sites, so questions are assigned at random; the
published test file is the test split.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from privet.common.config import find_data
from privet.simulations.partition import deal
from privet.simulations.scenarios import Scenario, tuned_minilm, tuned_minilm_plain

_SOURCE = "PolyAI (task-specific-datasets, banking77)"
_SITES = 10


def probe(data_dir: Path | None) -> Path:
    """Return the folder of the files."""
    return find_data("banking77", data_dir, source=_SOURCE)


def load(data_dir: Path | None) -> pd.DataFrame:
    """Return all questions: text, intent, site, and whether it is in the published test file."""
    folder = probe(data_dir)
    root = folder.parent
    train = pd.read_csv(find_data("banking77/train.csv", root, source=_SOURCE))
    test = pd.read_csv(find_data("banking77/test.csv", root, source=_SOURCE))
    joined = pd.concat([train.assign(part="train"), test.assign(part="test")], ignore_index=True)
    site = deal(len(joined), _SITES, seed=77)
    return joined.assign(site=[f"Branch {number + 1}" for number in site])


SCENARIO = Scenario(
    name="banking77",
    title="What does a customer want? Ten bank branches, 13,083 questions, 77 intents",
    data="banking77/ in the data folder (CC BY 4.0)",
    models={
        "text-encoder": {
            "model": {"kind": "text-encoder", "options": {"width": 64, "layers": 1}},
            "training": {
                "rounds": 10, "steps": 4, "sample_rate": 0.1, "learning_rate": 0.5,
                "micro_batch": 128,
            },
            "strategy": {"kind": "fedavg", "options": {}, "average_last": 3},
        },
        **tuned_minilm(rounds=20, sample_rate=0.2, eta=0.01, clip=1.0),
    },
    slow=("minilm-lora", "minilm-full"),
    plain={
        "minilm": {"training": {"clip": None, "rounds": 40}, "strategy": {"average_last": 10}},
        "text-encoder": {
            "training": {
                "clip": None, "optimizer": "adam", "rounds": 20, "steps": 10,
                "learning_rate": 0.003,
            },
        },
        **tuned_minilm_plain(
            rounds=8, steps=40, sample_rate=0.02, rates={"lora": 4e-3, "full": 3e-4}
        ),
    },
    load=load,
    probe=probe,
    attested={"H21": "each question is dealt to one branch"},
)  # fmt: skip
