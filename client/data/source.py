"""Check a site's file and its columns before anything is spent.

This reads no record, and needs neither pandas nor torch.
:func:`privet.client.data.loader.probe_database` connects to a database.
"""

from __future__ import annotations

from pathlib import Path

from privet.client.data.loader import require_database
from privet.client.data.suffix import is_parquet
from privet.client.data.text_file import as_table, header_of
from privet.common.errors import DataError, DataMissingError, PolicyError, PrivetError
from privet.common.plan import Plan
from privet.common.text_format import PLAIN, TextFormat
from privet.privacy.policy import Policy


def require_source(policy: Policy, data_set: str, plan: Plan) -> None:
    """Check the file of a data set; of a database its driver and password, without connecting.

    Args:
        policy: the site's own.
        data_set: name of one of its data sets.
        plan: of the run; it names the columns.

    Raises:
        PolicyError: if the policy names no place, or the password is missing.
        DataMissingError: if there is no such file.
        InputError: if the database's driver is not installed.
        DataError: if it cannot be read, or lacks a column. The message names paths and columns
            only.
    """
    data = policy.data_set(data_set)[1]
    path = policy.path_of(data)
    if data.sql is not None:
        require_database(data.sql, policy.folder)
        return
    if path is None:
        raise PolicyError(f"data set '{data_set}' of site '{policy.site}' has no 'path' or 'sql'")
    there = columns_of(path, data.format or PLAIN)
    for name in (*plan.task.columns, data.person_column):
        if name is None:
            continue
        if there.count(name) > 1:
            raise DataError(f"{path}: the column '{name}' is there twice")
        if name not in there:
            raise DataError(f"{path}: there is no column '{name}', which the plan reads")
        if data.columns is not None and name not in data.columns:
            raise DataError(f"the policy does not give the column '{name}', which the plan reads")


def misfit(policy: Policy, plan: Plan) -> str:
    """Return why a site's file does not fit a plan, as far as its header says it, or "".

    A database is not asked, since to connect is an event in its own log and needs the password. Its
    columns are in the policy, which refuses a plan that names others.

    Args:
        policy: of the site.
        plan: that was offered.
    """
    try:
        data_set = policy.data_set_for(plan)
        data = policy.data_set(data_set)[1]
        if data.sql is None and policy.path_of(data) is not None:
            require_source(policy, data_set, plan)
    except (DataError, DataMissingError) as error:
        return f"the records here do not fit it: {error}"
    except PrivetError:
        pass  # what else is wrong is reported elsewhere
    return ""


def columns_of(path: Path, form: TextFormat = PLAIN) -> list[str]:
    """Return the names of a file's columns.

    Args:
        path: the file.
        form: how a text file writes its cells.

    Raises:
        DataMissingError: if there is no such file.
        DataError: if it cannot be read as a table.
    """
    with as_table(path):
        if not is_parquet(path):
            names = header_of(path, form)
        else:
            import pyarrow.parquet as pq

            names = list(pq.ParquetFile(path).schema_arrow.names)
    return names
