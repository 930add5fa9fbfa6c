"""22,304 small-business loans guaranteed by the US SBA; 18 banks and all others as one.

Source: US federal data, ``sba_loans/sba_loans_by_bank.csv``. ``Term`` is left out: it partly
reveals the outcome (with it, accuracy rises from .81 to .86).
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from privet.common.config import find_data
from privet.simulations.scenarios import Scenario

_FILE = "sba_loans/sba_loans_by_bank.csv"
_SOURCE = "the US Small Business Administration (loans by bank)"

BANKS = {
    "BANK OF AMERICA NATL ASSOC": "Bank of America",
    "CAPITAL ONE NATL ASSOC": "Capital One",
    "WELLS FARGO BANK NATL ASSOC": "Wells Fargo",
    "PNC BANK, NATIONAL ASSOCIATION": "PNC",
    "CITIZENS BANK NATL ASSOC": "Citizens",
    "JPMORGAN CHASE BANK NATL ASSOC": "JPMorgan Chase",
    "ZIONS FIRST NATIONAL BANK": "Zions First",
    "TD BANK, NATIONAL ASSOCIATION": "TD Bank",
    "MANUFACTURERS & TRADERS TR CO": "Manufacturers and Traders",
    "CALIFORNIA BANK & TRUST": "California Bank and Trust",
    "KEYBANK NATIONAL ASSOCIATION": "KeyBank",
    "U.S. BANK NATIONAL ASSOCIATION": "U.S. Bank",
    "BMO HARRIS BK NATL ASSOC": "BMO Harris",
    "BBCN BANK": "BBCN",
    "READYCAP LENDING, LLC": "ReadyCap",
    "BRANCH BK. & TR CO": "Branch Banking and Trust",
    "ASSOCIATED BANK NATL ASSOC": "Associated Bank",
    "TRUSTMARK NATIONAL BANK": "Trustmark",
}
"""Bank as written in the file, and its short name."""
_OTHERS = "All other banks"


def probe(data_dir: Path | None) -> Path:
    """Return the path of the file."""
    return find_data(_FILE, data_dir, source=_SOURCE)


def load(data_dir: Path | None) -> pd.DataFrame:
    """Return the loans with their bank and the declared features."""
    table = pd.read_csv(probe(data_dir), dtype={"RevLineCr": str, "LowDoc": str})
    table = table.assign(
        site=table["Bank"].map(BANKS).fillna(_OTHERS),
        guaranteed_share=table["SBA_Appv"] / table["GrAppv"],
        franchise=(table["FranchiseCode"] > 1).astype(int),
        same_state=(table["State"] == table["BankState"]).astype(int),
        sector=(table["NAICS"] // 10_000).astype(str),
    )
    return table[[*SCENARIO.features, "default", "site"]]


SCENARIO = Scenario(
    name="sba-loans",
    title="Will a small business default? 18 banks and all others, 22,304 loans",
    data="sba_loans/ in the data folder (US federal data)",
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
