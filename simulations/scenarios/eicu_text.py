"""2,221 ICU stays of the eICU demo as text; which organ system brought the patient in?

Source: eICU Collaborative Research Database Demo, ODbL 1.0. A patient has several stays:
the unit of privacy is the patient. Four US regions and "unknown" are the sites.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from privet.common.config import find_data
from privet.simulations.scenarios import Scenario, tuned_minilm, tuned_minilm_plain

_FILE = "eicu_demo/eicu_demo_text.csv"
_SOURCE = "PhysioNet (eICU Collaborative Research Database Demo)"

_PROBLEMS = "Problems:"


def probe(data_dir: Path | None) -> Path:
    """Return the path of the file."""
    return find_data(_FILE, data_dir, source=_SOURCE)


def load(data_dir: Path | None) -> pd.DataFrame:
    """Return the labelled stays: text, organ system, region, patient, and groups.

    The list of problems stands last in the text and says most; it is put first, so that cutting a
    long text to 256 tokens does not lose it.
    """
    table = pd.read_csv(probe(data_dir))
    table = table[table["organ_system"].notna()]
    return pd.DataFrame(
        {
            "text": table["text"].map(_problems_first),
            "organ_system": table["organ_system"],
            "site": table["region"].fillna("unknown"),
            "person": table["uniquepid"],
            **{name: table[name] for name in ("gender", "age", "ethnicity")},
        }
    )


def _problems_first(text: str) -> str:
    before, mark, after = text.partition(_PROBLEMS)
    return f"{mark}{after} {before}".strip()


SCENARIO = Scenario(
    name="eicu-text",
    title="Which organ system brought a patient to intensive care? Five regions, by patient",
    data="eicu_demo/ in the data folder (PhysioNet, ODbL)",
    models={
        "text-encoder": {
            "model": {"kind": "text-encoder", "options": {"width": 64, "layers": 1}},
            "training": {
                "rounds": 10, "steps": 2, "sample_rate": 0.25, "learning_rate": 0.5,
                "micro_batch": 64,
            },
            "strategy": {"kind": "fedavg", "options": {}, "average_last": 3},
            "privacy": {"clip": 1.0},
        },
        **tuned_minilm(rounds=20, sample_rate=0.25, eta=0.01, clip=1.0),
    },
    slow=("minilm-lora", "minilm-full"),
    plain={
        "minilm": {"training": {"clip": None, "learning_rate": 1.6}},
        "text-encoder": {
            "training": {
                "clip": None, "optimizer": "adam", "rounds": 20, "steps": 4,
                "learning_rate": 0.003,
            },
        },
        **tuned_minilm_plain(
            rounds=10, steps=10, sample_rate=0.08, rates={"lora": 3e-3, "full": 2e-4}
        ),
    },
    load=load,
    probe=probe,
    strata=("site",),
    note="7 of the 1,777 patients have stays in two regions, so H21 is not attested.",
)  # fmt: skip
