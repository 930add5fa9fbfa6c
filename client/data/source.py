"""Whether a site's file is there and has the plan's columns: asked before anything is paid for.

No record is used, and neither pandas nor torch is needed.
"""

from __future__ import annotations

import csv
import gzip
import io
from pathlib import Path

from privet.client.data.suffix import is_parquet, separator_of
from privet.common.errors import DataError, DataMissing
from privet.common.plan import Plan
from privet.privacy.policy import Policy

_MOST = 1 << 20
"""Characters of a file in which its columns are named."""


def require_source(policy: Policy, data_set: str, plan: Plan) -> None:
    """Check the file of a data set; a database is asked when its records are.

    Raises:
        DataMissing: if there is no such file.
        DataError: if it cannot be read, or lacks a column. It speaks of paths and columns alone.
    """
    data = policy.data_set(data_set)[1]
    path = policy.path_of(data)
    if path is None:
        return
    there = columns_of(path)
    for name in (*plan.task.columns, data.person_column):
        if name is None:
            continue
        if there.count(name) > 1:
            raise DataError(f"{path}: the column '{name}' is there twice")
        if name not in there:
            raise DataError(f"{path}: there is no column '{name}', which the plan reads")
        if data.columns is not None and name not in data.columns:
            raise DataError(f"the policy does not give the column '{name}', which the plan reads")


def columns_of(path: Path) -> list[str]:
    """Return the names of a file's columns.

    Raises:
        DataMissing: if there is no such file.
        DataError: if it cannot be read as a table.
    """
    try:
        if not path.is_file():
            raise DataMissing(f"{path}: there is no such file")
        if is_parquet(path):
            import pyarrow.parquet as pq

            return list(pq.ParquetFile(path).schema_arrow.names)
        separator = separator_of(path)
        opened = gzip.open if path.suffix.lower() == ".gz" else open
        with (
            opened(path, "rb") as raw,
            io.TextIOWrapper(raw, encoding="utf-8-sig", newline="") as stream,
        ):
            # Empty lines above the names are passed over, as pandas does.
            rows = csv.reader(io.StringIO(stream.read(_MOST)), delimiter=separator)
            return next((row for row in rows if row), [])
    except (DataError, DataMissing):
        raise
    except Exception as error:  # what it says may quote the file
        raise DataError(f"{path}: cannot be read as a table ({type(error).__name__})") from error
