"""A site's own records: what its policy names, the columns that the plan needs, nothing else."""

from __future__ import annotations

import pandas as pd

from privet.client.data.split import PERSON, split_by_unit
from privet.client.data.tables import read_table
from privet.client.trainer import SiteData
from privet.common.errors import DataError, PolicyError
from privet.common.plan import Plan
from privet.privacy.policy import Policy


def open_records(policy: Policy, data_set: str, plan: Plan) -> SiteData:
    """Read a data set of the policy for a plan: to train on, and held out.

    Of the file's columns only those are kept that the plan's task names, and the person's. A
    user's own task may read any column, so it gets them all.

    Raises:
        PolicyError: if the policy does not say where the records are.
        DataError: if a column is not there. The message stays at the site.
    """
    data = policy.data_set(data_set)[1]
    path = policy.path_of(data)
    if path is None:
        raise PolicyError(f"data set '{data_set}' of site '{policy.site}' has no 'path'")
    table = read_table(path)
    wanted = _columns(plan)
    missing = [name for name in (*(wanted or ()), data.person_column) if name not in (*table, None)]
    if missing:
        raise DataError(f"{path}: there is no column '{missing[0]}'")
    kept = table if wanted is None else table[list(wanted)]
    if data.person_column is not None:
        kept = kept.assign(**{PERSON: table[data.person_column]})
    part = split_by_unit(kept, plan.split, plan.seed)
    return SiteData(_rows(kept, part == "train"), _rows(kept, part == "test"))


def _columns(plan: Plan) -> list[str] | None:
    """Return the columns of the plan's task, or None where only the task itself knows."""
    task = plan.task
    if task.kind == "tabular":
        return [*task.numeric, *task.categorical, task.label]
    return [task.text, task.label] if task.kind == "text" else None


def _rows(table: pd.DataFrame, chosen: pd.Series) -> pd.DataFrame:
    return table[chosen].reset_index(drop=True)
