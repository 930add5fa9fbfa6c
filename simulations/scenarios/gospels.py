"""3,778 verses of four gospels, English and Spanish; each gospel is a site.

Source: World English Bible and Reina-Valera 1909, both in the public domain.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from privet.common.config import find_data
from privet.simulations.scenarios import Scenario

_FILE = "en_es_gospels/web_rv1909_nt_en_es.tsv.gz"
_SOURCE = "verse-aligned gospels of the World English Bible and Reina-Valera 1909"
GOSPELS = {"Matthew": 770, "Mark": 480, "Luke": 830, "John": 630}
"""Gospel and its declared nominal number of training verses."""


def probe(data_dir: Path | None) -> Path:
    """Return the path of the file."""
    return find_data(_FILE, data_dir, source=_SOURCE)


def load(data_dir: Path | None) -> pd.DataFrame:
    """Return the verses: english, spanish, and the gospel as site."""
    table = pd.read_csv(
        probe(data_dir), sep="\t", header=None, names=["site", "verse", "english", "spanish"],
        quoting=3,
    )  # fmt: skip
    return table[table["site"].isin(GOSPELS)][["english", "spanish", "site"]].dropna()


SCENARIO = Scenario(
    name="gospels",
    title="How is an English verse said in Spanish? Four gospels, 3,778 verses",
    data="en_es_gospels/ in the data folder (public domain)",
    plan={
        "name": "gospels",
        "title": "Four gospels learn to translate",
        "task": {
            "kind": "text-to-text", "text": "english", "target": "spanish", "max_tokens": 64,
        },
        "model": {"kind": "encoder-decoder", "options": {"width": 128, "layers": 2, "heads": 4}},
        "training": {
            "rounds": 100, "steps": 4, "sample_rate": 0.05, "learning_rate": 1.0,
            "micro_batch": 64,
        },
        "strategy": {
            "kind": "fedavgm", "options": {"server_momentum": 0.8}, "average_last": 5,
        },
        "privacy": {"epsilon": 8.0, "delta": 1e-4, "unit": "record", "clip": 0.5},
        "metrics": {"source": "public", "every": 20},
        "split": {"test": 0.1, "validation": 0.05},
        "sites": [{"name": name, "nominal_size": size} for name, size in GOSPELS.items()],
    },
    models={"t5": {"model": {"kind": "t5"}}},
    slow=("t5",),
    plain={
        name: {
            # As in `shakespeare`: small steps at the sites, and Adam at the coordinator.
            "training": {
                "clip": None, "rounds": 350, "steps": 1, "sample_rate": 0.02, "learning_rate": 1.0,
            },
            "strategy": {
                "kind": "fedadam", "options": {"eta": 0.002, "tau": 1e-8}, "average_last": 50,
            },
            "metrics": {"every": 50},
        }
        for name in ("encoder-decoder", "t5")
    },
    load=load,
    probe=probe,
    attested={"H21": "a verse stands in one gospel"},
    note="The gospels tell the same events: verses of one site resemble those of another. Privet's "
    "vocabulary was learnt on these verses, among others.",
)  # fmt: skip
