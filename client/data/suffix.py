"""Tell a file's format by its name; needs neither pandas nor torch."""

from __future__ import annotations

from pathlib import Path

from privet.common.errors import DataError

_SEPARATORS = {".csv": ",", ".csv.gz": ",", ".tsv": "\t", ".tsv.gz": "\t"}


def is_parquet(path: Path) -> bool:
    """Whether the file is read as Parquet."""
    return path.suffix.lower() in (".parquet", ".pq")


def separator_of(path: Path) -> str:
    """Return the separator between two cells of a text file.

    Raises:
        DataError: if the name has none of the supported endings.
    """
    name = path.name.lower()
    for ending, separator in _SEPARATORS.items():
        if name.endswith(ending):
            return separator
    raise DataError(f"{path}: use a .csv, .csv.gz, .tsv, .tsv.gz, .parquet or .pq file")
