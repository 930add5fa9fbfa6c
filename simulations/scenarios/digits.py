"""1,797 handwritten digits, assigned to five sites.

Source: the test set of UCI's Optical Recognition of Handwritten Digits, as scikit-learn includes it
(CC BY 4.0). The set names no writers, so the images are assigned at random.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from privet.simulations.partition import deal
from privet.simulations.scenarios import Scenario

_SITES = 5


def probe(_: Path | None) -> None:
    """Do nothing: scikit-learn includes the images."""


def load(_: Path | None) -> pd.DataFrame:
    """Return the images: 64 pixels from 0 to 16, the digit, and the site."""
    from sklearn.datasets import load_digits

    found = load_digits()
    columns = {f"pixel_{number}": found.data[:, number] for number in range(64)}
    site = deal(len(found.target), _SITES, seed=8)
    return pd.DataFrame(
        {**columns, "digit": found.target, "site": [f"Post {number + 1}" for number in site]}
    )


SCENARIO = Scenario(
    name="digits",
    title="Which digit was written? Five post offices, 1,797 images",
    data="comes with scikit-learn (UCI, CC BY 4.0)",
    models={"resnet": {"model": {"kind": "resnet", "options": {"width": 16, "stages": 2}}}},
    plain={
        name: {
            "training": {"clip": None, "learning_rate": rate},
            "strategy": {"kind": "fedadam", "options": {"eta": 0.01, "tau": 1e-4}},
        }
        for name, rate in (("vit", 0.1), ("resnet", 0.1))
    },
    load=load,
    probe=probe,
    attested={"H21": "each image is dealt to one office"},
    strata=("site", "digit"),
)  # fmt: skip
