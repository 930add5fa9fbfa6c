"""CSV and Parquet files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

import numpy as np
import pandas as pd

from privet.client.data.suffix import is_parquet, separator_of
from privet.common.errors import DataError, DataMissing


def read_table(
    path: Path, columns: Sequence[str] | None = None, texts: Sequence[str] = ()
) -> pd.DataFrame:
    """Read a CSV (``.csv``, ``.csv.gz``, ``.tsv``) or Parquet file.

    Args:
        path: the file.
        columns: read these only, in this order; None: all.
        texts: columns whose cells are texts as they are written, also where they look like numbers.

    Raises:
        DataMissing: if there is no such file.
        DataError: if it cannot be read as a table, names a column twice, or lacks one.
    """
    if not path.is_file():
        raise DataMissing(f"{path}: there is no such file")
    try:
        table = _read(path, columns, texts)
    except DataError:
        raise
    except Exception as error:
        raise DataError(f"{path}: cannot be read as a table: {error}") from error
    if not table.columns.is_unique:
        twice = table.columns[table.columns.duplicated()][0]
        raise DataError(f"{path}: the column '{twice}' is there twice")
    for name in table.columns:
        if pd.api.types.is_object_dtype(table[name].dtype):
            # In a Parquet file None is missing among booleans: NaN, as in a CSV file.
            table[name] = table[name].where(table[name].notna(), np.nan)
    if columns is None:
        return table
    if missing := [name for name in columns if name not in table.columns]:
        raise DataError(f"{path}: there is no column '{missing[0]}'")
    return table[list(columns)]


def read_csv(
    source: Path | TextIO,
    columns: Sequence[str] | None = None,
    texts: Sequence[str] = (),
    *,
    sep: str = ",",
) -> pd.DataFrame:
    """Read a CSV file, or what would stand in one; see :func:`read_table`.

    Only an empty cell is read as missing: "None" or "NA" may be a category.
    """
    return pd.read_csv(
        source,
        sep=sep,
        keep_default_na=False,
        na_values=[""],
        low_memory=False,
        dtype=dict.fromkeys(texts, str),
        usecols=None if columns is None else lambda name: name in columns,
    )


def _read(path: Path, columns: Sequence[str] | None, texts: Sequence[str]) -> pd.DataFrame:
    if is_parquet(path):
        return _read_parquet(path, columns)
    return read_csv(path, columns, texts, sep=separator_of(path))


def _read_parquet(path: Path, columns: Sequence[str] | None) -> pd.DataFrame:
    import pyarrow.parquet as pq

    if columns is not None:
        names = pq.ParquetFile(path).schema_arrow.names
        columns = [name for name in names if name in columns]
    # A column is a column, also what pandas had kept as its index.
    table: pd.DataFrame = pq.read_table(path, columns=columns).to_pandas(ignore_metadata=True)
    return table
