"""Heart disease at four hospitals: Cleveland, Hungary, Switzerland, Long Beach VA.

Source: UCI heart disease, original files, CC BY 4.0. Principal investigators: Andras
Janosi, M.D. (Budapest); William Steinbrunn, M.D. (Zurich); Matthias Pfisterer, M.D.
(Basel); Robert Detrano, M.D., Ph.D. (Long Beach and Cleveland). As in FLamby, the columns
slope, ca and thal are left out, then incomplete rows: 740 rows stay.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from privet.common.config import find_data
from privet.common.errors import DataError
from privet.simulations.scenarios import Scenario

_SOURCE = "the UCI Machine Learning Repository (heart disease, processed.*.data)"
_COLUMNS = ("age sex cp trestbps chol fbs restecg thalach exang oldpeak slope ca thal num").split()
_LEFT_OUT = ["slope", "ca", "thal"]


def probe(data_dir: Path | None) -> Path:
    """Return the folder of the four files."""
    return find_data("fed_heart", data_dir, source=_SOURCE)


def load(data_dir: Path | None) -> pd.DataFrame:
    """Return the complete records of the four hospitals.

    Raises:
        DataMissingError: if a file is missing.
        DataError: if a file has another shape than the original.
    """
    folder = probe(data_dir)
    tables = []
    for hospital in SCENARIO.sites:
        path = find_data(f"fed_heart/processed.{hospital}.data", folder.parent, source=_SOURCE)
        table = pd.read_csv(path, header=None, na_values="?")
        if table.shape[1] != len(_COLUMNS):
            raise DataError(f"{path}: {table.shape[1]} columns, expected {len(_COLUMNS)}")
        table.columns = pd.Index(_COLUMNS)
        tables.append(table.assign(site=hospital))
    joined = pd.concat(tables, ignore_index=True).drop(columns=_LEFT_OUT).dropna()
    # A cholesterol or blood pressure of 0 means "not measured" in these files.
    for name in ("chol", "trestbps"):
        joined[name] = joined[name].where(joined[name] > 0)
    return joined.assign(disease=(joined["num"] > 0).astype(int)).drop(columns="num")


SCENARIO = Scenario(
    name="fed-heart",
    title="Does a patient have heart disease? Four hospitals, 740 patients",
    data="fed_heart/ in the data folder (UCI heart disease)",
    models={
        "ft-transformer": {
            "model": {"kind": "ft-transformer", "options": {"width": 16, "layers": 1}},
        },
    },
    plain={"linear": {"training": {"clip": None, "rounds": 120}, "strategy": {"average_last": 10}}},
    load=load,
    probe=probe,
    attested={"H21": "each file lists the patients of one hospital; one record a patient"},
    strata=("site", "disease"),
)
