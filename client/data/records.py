"""Read a site's own records: the data that its policy names, and the columns that the plan needs.

::

    locate_records ─┬─ a file:      its path ─────────────────┬─ read_records
                    └─ a database:  take_snapshot ── a file ──┘

A loader, in a process of its own, takes the snapshot where the policy is. The records are read
where they are trained on, which needs only the file (:mod:`privet.client.training.worker`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from privet.client.data.loader import locate_records
from privet.client.data.split import split_by_unit, with_person
from privet.client.data.tables import RecordFault, Table, read_table
from privet.common.errors import DataError
from privet.common.plan import Plan
from privet.common.text_format import PLAIN
from privet.privacy.policy import DataSet, Policy


@dataclass(frozen=True)
class SiteData:
    """One site's records: to train on, and held out for its own evaluation.

    The index of both frames is a record's place in its source.

    Attributes:
        train, held_out: cells of dtype object; see :class:`~privet.client.data.tables.Table`.
        faults: records that could not be read, which are in neither frame.
        source: the file or database, as its operator knows it.
        counted: unit of the index, ``line`` or ``row``.
        validation: records that a site's run does not use; None if unknown.
        unnamed: number of further records that could not be read, beyond ``faults``.
    """

    train: pd.DataFrame
    held_out: pd.DataFrame
    faults: tuple[RecordFault, ...] = ()
    source: str = "the records"
    counted: str = "row"
    validation: pd.DataFrame | None = None
    unnamed: int = 0

    def where(self, place: object) -> str:
        """Return a record's place in words."""
        return f"{self.source}, {self.counted} {place}"


def open_records(policy: Policy, data_set: str, plan: Plan, home: Path) -> SiteData:
    """Read a data set of the policy for a plan: to train on, and held out.

    Args:
        policy: the site's own.
        data_set: name of one of its data sets.
        plan: of the run; it names the columns and the split.
        home: folder of the site, in which the snapshot of a database is kept.

    Raises:
        PolicyError: if the policy does not say where the records are.
        InputError: if a database's driver is not installed, or its password is missing.
        DataError: if they cannot be read, or lack a column. The message stays at the site.
    """
    path = locate_records(policy, data_set, home)
    return read_records(path, policy.data_set(data_set)[1], plan)


def read_records(path: Path, data: DataSet, plan: Plan) -> SiteData:
    """Read a file, the site's own or a snapshot, for a plan.

    It keeps only the columns that the plan's task names, and the person's. A task of the user's own
    gets every column that the policy gives, because it may read any.

    Args:
        path: the file.
        data: the data set, as in the policy.
        plan: of the run; it names the columns and the split.

    Raises:
        DataError: if the file cannot be read as a table, or lacks a column. The message stays at
            the site.
    """
    found = read_table(
        path, data.columns, multiline=data.multiline, nested=plan.task.nested_columns,
        form=data.format or PLAIN, numbers=plan.task.number_columns,
    )  # fmt: skip
    return site_data(found, data, plan, str(path))


def site_data(found: Table, data: DataSet, plan: Plan, source: str) -> SiteData:
    """Split a table's records as a plan uses them; see :func:`read_records`.

    Args:
        found: the table.
        data: the data set, as in the policy.
        plan: of the run; it names the columns and the split.
        source: the file or database, for messages.

    Raises:
        DataError: if a column is missing.
    """
    table, wanted = found.frame, plan.task.columns
    missing = [name for name in (*wanted, data.person_column) if name not in (*table, None)]
    if missing:
        raise DataError(f"{source}: there is no column '{missing[0]}'")
    kept = table[list(wanted)] if wanted else table
    if data.person_column is not None:
        kept = with_person(kept, table[data.person_column], data.person)
    part = split_by_unit(kept, plan.split, plan.seed)
    train, held_out, rest = (
        kept[(part == name).to_numpy()] for name in ("train", "test", "validation")
    )
    return SiteData(train, held_out, found.faults, source, found.counted, rest, found.unnamed)
