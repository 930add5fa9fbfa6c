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


def probe(data_dir: Path | None) -> Path:
    """Return the path of the file."""
    return find_data(_FILE, data_dir, source=_SOURCE)


def load(data_dir: Path | None) -> pd.DataFrame:
    """Return the verses: english, spanish, and the gospel as site."""
    table = pd.read_csv(
        probe(data_dir), sep="\t", header=None, names=["site", "verse", "english", "spanish"],
        quoting=3,
    )  # fmt: skip
    return table[table["site"].isin(SCENARIO.sites)][["english", "spanish", "site"]].dropna()


SCENARIO = Scenario(
    name="gospels",
    title="How is an English verse said in Spanish? Four gospels, 3,778 verses",
    data="en_es_gospels/ in the data folder (public domain)",
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
