"""22,304 small-business loans guaranteed by the US SBA; 18 banks and all others as one.

Source: US federal data, ``sba_loans/sba_loans_by_bank.csv``. ``Term`` is left out: it partly
reveals the outcome (with it, accuracy rises from .81 to .86).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from privet.common.config import find_data
from privet.simulations.scenarios import Scenario

_FILE = "sba_loans/sba_loans_by_bank.csv"
_SOURCE = "the US Small Business Administration (loans by bank)"

BANKS = {
    "BANK OF AMERICA NATL ASSOC": ("Bank of America", 4500),
    "CAPITAL ONE NATL ASSOC": ("Capital One", 1700),
    "WELLS FARGO BANK NATL ASSOC": ("Wells Fargo", 800),
    "PNC BANK, NATIONAL ASSOCIATION": ("PNC", 800),
    "CITIZENS BANK NATL ASSOC": ("Citizens", 650),
    "JPMORGAN CHASE BANK NATL ASSOC": ("JPMorgan Chase", 600),
    "ZIONS FIRST NATIONAL BANK": ("Zions First", 500),
    "TD BANK, NATIONAL ASSOCIATION": ("TD Bank", 350),
    "MANUFACTURERS & TRADERS TR CO": ("Manufacturers and Traders", 250),
    "CALIFORNIA BANK & TRUST": ("California Bank and Trust", 250),
    "KEYBANK NATIONAL ASSOCIATION": ("KeyBank", 200),
    "U.S. BANK NATIONAL ASSOCIATION": ("U.S. Bank", 150),
    "BMO HARRIS BK NATL ASSOC": ("BMO Harris", 150),
    "BBCN BANK": ("BBCN", 130),
    "READYCAP LENDING, LLC": ("ReadyCap", 130),
    "BRANCH BK. & TR CO": ("Branch Banking and Trust", 100),
    "ASSOCIATED BANK NATL ASSOC": ("Associated Bank", 100),
    "TRUSTMARK NATIONAL BANK": ("Trustmark", 80),
}
"""Bank as written in the file, its short name, and its declared nominal size."""
_OTHERS = ("All other banks", 4000)

_MONEY = {"low": 5_000, "high": 1_000_000, "log": True}
NUMERIC: dict[str, dict[str, Any]] = {
    "NoEmp": {"low": 1, "high": 100, "log": True},
    "CreateJob": {"low": 0, "high": 20, "log": True},
    "RetainedJob": {"low": 0, "high": 40, "log": True},
    "ApprovalFY": {"low": 1985, "high": 2006},
    "DisbursementGross": _MONEY,
    "GrAppv": _MONEY,
    "SBA_Appv": {"low": 2_500, "high": 750_000, "log": True},
    "guaranteed_share": {"low": 0.5, "high": 0.9},
}
_SECTORS = ("11 21 22 23 31 32 33 42 44 45 48 49 51 52 53 54 55 56 61 62 71 72 81 92").split()
CATEGORICAL = {
    "NewExist": ["1", "2"],
    "UrbanRural": ["1", "2"],
    "RevLineCr": ["N", "Y", "T", "0"],
    "LowDoc": ["N", "Y"],
    "franchise": ["0", "1"],
    "same_state": ["0", "1"],
    "sector": _SECTORS,
}


def probe(data_dir: Path | None) -> Path:
    """Return the path of the file."""
    return find_data(_FILE, data_dir, source=_SOURCE)


def load(data_dir: Path | None) -> pd.DataFrame:
    """Return the loans with their bank and the declared features."""
    table = pd.read_csv(probe(data_dir), dtype={"RevLineCr": str, "LowDoc": str})
    short = {name: label for name, (label, _) in BANKS.items()}
    table = table.assign(
        site=table["Bank"].map(short).fillna(_OTHERS[0]),
        guaranteed_share=table["SBA_Appv"] / table["GrAppv"],
        franchise=(table["FranchiseCode"] > 1).astype(int),
        same_state=(table["State"] == table["BankState"]).astype(int),
        sector=(table["NAICS"] // 10_000).astype(str),
    )
    return table[[*NUMERIC, *CATEGORICAL, "default", "site"]]


SCENARIO = Scenario(
    name="sba-loans",
    title="Will a small business default? 18 banks and all others, 22,304 loans",
    data="sba_loans/ in the data folder (US federal data)",
    plan={
        "name": "sba-loans",
        "title": "Nineteen lenders predict default of small businesses",
        "task": {
            "kind": "tabular",
            "label": "default",
            "classes": ["0", "1"],
            "numeric": NUMERIC,
            "categorical": CATEGORICAL,
        },
        "model": {"kind": "linear"},
        "training": {"rounds": 40, "steps": 1, "sample_rate": 1.0, "learning_rate": 8.0},
        "strategy": {
            "kind": "fedavgm",
            "options": {"server_momentum": 0.9},
            "average_last": 10,
        },
        "privacy": {"epsilon": 3.0, "delta": 1e-5, "unit": "record", "clip": 0.5},
        "metrics": {"source": "public"},
        "split": {"test": 0.2, "validation": 0.1},
        "sites": [
            {"name": name, "nominal_size": size} for name, size in [*BANKS.values(), _OTHERS]
        ],
    },
    models={
        "ft-transformer": {
            "model": {"kind": "ft-transformer", "options": {"width": 32, "layers": 1}},
        },
        "dense": {"model": {"kind": "dense", "options": {"width": 64}}},
    },
    load=load,
    probe=probe,
    attested={"H21": "a loan has one lender"},
    strata=("site", "default"),
    note="The unit is a loan: a business with several loans is protected less.",
)
