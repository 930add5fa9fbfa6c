"""CSV and Parquet files."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from privet.common.errors import DataError, DataMissing


def read_table(path: Path) -> pd.DataFrame:
    """Read a CSV (``.csv``, ``.csv.gz``, ``.tsv``) or Parquet file.

    Raises:
        DataMissing: if there is no such file.
        DataError: if it cannot be read as a table, or names a column twice.
    """
    if not path.is_file():
        raise DataMissing(f"{path}: there is no such file")
    suffixes = "".join(path.suffixes[-2:]).lower()
    try:
        if path.suffix.lower() in (".parquet", ".pq"):
            table = pd.read_parquet(path)
        elif suffixes.endswith((".csv", ".csv.gz", ".tsv", ".tsv.gz")):
            # Only an empty cell is read as missing: "None" or "NA" may be a category.
            table = pd.read_csv(
                path,
                sep="\t" if ".tsv" in suffixes else ",",
                keep_default_na=False,
                na_values=[""],
                low_memory=False,
            )
        else:
            raise DataError(f"{path}: use a .csv, .csv.gz, .tsv or .parquet file")
    except DataError:
        raise
    except Exception as error:
        raise DataError(f"{path}: cannot be read as a table: {error}") from error
    if not table.columns.is_unique:
        twice = table.columns[table.columns.duplicated()][0]
        raise DataError(f"{path}: the column '{twice}' is there twice")
    return table
