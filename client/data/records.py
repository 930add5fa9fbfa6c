"""A site's own records: what its policy names, the columns that the plan needs, nothing else.

::

    locate_records ─┬─ a file:      its path ─────────────────┬─ read_records
                    └─ a database:  take_snapshot ── a file ──┘

A snapshot is taken where the policy is (by a loader, a process apart); the records are read
where they are trained on, which needs the file alone (:mod:`privet.client.training.worker`).
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
from privet.privacy.policy import DataSet, Policy


@dataclass(frozen=True)
class SiteData:
    """One site's records: to train on, and held out for its own evaluation.

    The index of both frames says where a record stands in its source.

    Attributes:
        train, held_out: cells of dtype object; see :class:`~privet.client.data.tables.Table`.
        faults: records that could not be read, which are in neither.
        source: the file, as its operator knows it.
        counted: what the index counts, ``line`` or ``row``.
        validation: the records that a run of the site's uses for nothing; None if unknown.
        unnamed: how many more records could not be read than ``faults`` names.
    """

    train: pd.DataFrame
    held_out: pd.DataFrame
    faults: tuple[RecordFault, ...] = ()
    source: str = "the records"
    counted: str = "row"
    validation: pd.DataFrame | None = None
    unnamed: int = 0

    def where(self, place: object) -> str:
        """Return where a record stands, in words."""
        return f"{self.source}, {self.counted} {place}"


def open_records(policy: Policy, data_set: str, plan: Plan, home: Path) -> SiteData:
    """Read a data set of the policy for a plan: to train on, and held out.

    Args:
        policy: the site's own.
        data_set: name of one of its data sets.
        plan: what the records are for.
        home: folder of the site, in which the snapshot of a database is kept.

    Raises:
        PolicyError: if the policy does not say where the records are.
        InputError: if a database's driver is not installed, or its password is not there.
        DataError: if they cannot be read, or lack a column. The message stays at the site.
    """
    path = locate_records(policy, data_set, home)
    return read_records(path, policy.data_set(data_set)[1], plan)


def read_records(path: Path, data: DataSet, plan: Plan) -> SiteData:
    """Read a file, the site's own or a snapshot, for a plan.

    Of its columns only those are kept that the plan's task names, and the person's. A user's
    own task may read any column that the policy gives, so it gets them all.

    Raises:
        DataError: if a column is not there. The message stays at the site.
    """
    found = read_table(path, data.columns, multiline=data.multiline)
    return site_data(found, data, plan, str(path))


def site_data(found: Table, data: DataSet, plan: Plan, source: str) -> SiteData:
    """Return the records of a table as a plan uses them; see :func:`read_records`."""
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
