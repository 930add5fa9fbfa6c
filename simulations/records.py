"""The records of a simulated federation: a scenario's, or a user's own files."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from privet.client.data.tables import read_table
from privet.client.trainer import SiteData
from privet.common.errors import DataError, PlanError
from privet.common.plan import Plan
from privet.simulations import scenarios
from privet.simulations.partition import (
    PART,
    PERSON,
    SITE,
    split_by_unit,
    split_in_proportion,
)


@dataclass(frozen=True)
class Records:
    """Where a plan's records are. Small and picklable: each process reads them itself.

    Attributes:
        plan: names the scenario or the files.
        data_dir: folder given with ``--data``, or None.
        base: folder that relative paths of the plan start from.
    """

    plan: Plan
    data_dir: Path | None = None
    base: Path = Path()

    def table(self) -> pd.DataFrame:
        """Return all records with the columns ``site`` and, if declared, ``person``."""
        return _table(self, self._stamp())

    def parts(self) -> dict[str, pd.DataFrame]:
        """Return the records to train on, for validation and for test."""
        return _parts(self, self._stamp())

    def _stamp(self) -> tuple[tuple[str, int, int], ...]:
        """Return what changes when one of the user's own files does."""
        paths = [self.plan.data.path, *(site.path for site in self.plan.sites)]
        found = [self.base / path for path in paths if path]
        return tuple((str(p), p.stat().st_mtime_ns, p.stat().st_size) for p in found if p.is_file())

    def site(self, name: str) -> SiteData:
        """Return one site's records: train, and its share of the test split as held out."""
        parts = self.parts()
        # A column that this site's own file lacks must not appear as one of empty cells.
        columns = self.table().attrs.get(COLUMNS, {}).get(name, self.table().columns)
        mine = {
            part: frame.loc[frame[SITE] == name, columns].reset_index(drop=True)
            for part, frame in parts.items()
        }
        return SiteData(mine["train"], mine["test"])

    @property
    def scenario(self) -> scenarios.Scenario | None:
        """The scenario, unless the plan is a user's own."""
        return scenarios.get(self.plan.scenario) if self.plan.scenario else None


@functools.lru_cache(maxsize=8)
def _table(records: Records, stamp: tuple[tuple[str, int, int], ...]) -> pd.DataFrame:
    del stamp
    scenario = records.scenario
    if scenario is not None:
        return scenario.load(records.data_dir).reset_index(drop=True)
    return _own_files(records.plan, records.base)


def _own_files(plan: Plan, base: Path) -> pd.DataFrame:
    table = _one_file(plan, base) if plan.data.path else _file_each(plan, base)
    person = plan.data.person_column
    if person is not None:
        if person not in table.columns:
            raise DataError(f"there is no person column '{person}'")
        table[PERSON] = table[person]
    elif plan.privacy is not None and plan.privacy.unit == "person":
        raise PlanError(f"{plan.name}: unit = 'person' needs data.person_column")
    return table


def _one_file(plan: Plan, base: Path) -> pd.DataFrame:
    data = plan.data
    if any(site.path for site in plan.sites):
        raise PlanError(f"{plan.name}: name data.path or a 'path' for each site, not both")
    if data.site_column is None:
        raise PlanError(f"{plan.name}: data.path needs data.site_column")
    path = base / str(data.path)
    table = read_table(path, texts=plan.task.texts)
    table = _unreserved(path, table, {data.site_column, data.person_column})
    if data.site_column not in table.columns:
        raise DataError(f"{path}: there is no site column '{data.site_column}'")
    return table.assign(**{SITE: table[data.site_column].astype(str)})


def _file_each(plan: Plan, base: Path) -> pd.DataFrame:
    missing = [site.name for site in plan.sites if not site.path]
    if len(missing) == len(plan.sites):
        raise PlanError(
            f"{plan.name}: name the records: 'path' for each of the [[sites]], or [data] with "
            "'path' and 'site_column'"
        )
    if missing:
        raise PlanError(f"{plan.name}: site '{missing[0]}' has no 'path'")
    tables = {}
    for site in plan.sites:
        path = base / str(site.path)
        table = read_table(path, texts=plan.task.texts)
        table = _unreserved(path, table, {plan.data.person_column})
        tables[site.name] = table.assign(**{SITE: site.name})
    joined = pd.concat(tables.values(), ignore_index=True)
    own = plan.data.person_column
    joined.attrs[COLUMNS] = {
        name: [*table.columns, *([PERSON] if own and own != PERSON else [])]
        for name, table in tables.items()
    }
    return joined


def _unreserved(path: Path, table: pd.DataFrame, declared: set[str | None]) -> pd.DataFrame:
    """Refuse columns whose names mean something here, unless the plan says it is that."""
    for name in (SITE, PERSON, PART):
        if name in table.columns and name not in declared:
            raise DataError(
                f"{path}: the column name '{name}' is reserved; rename it, or declare it as "
                "data.site_column or data.person_column"
            )
    return table


COLUMNS = "privet.columns"
"""Where a joined table remembers which columns each site's own file has."""


@functools.lru_cache(maxsize=8)
def _parts(records: Records, stamp: tuple[tuple[str, int, int], ...]) -> dict[str, pd.DataFrame]:
    del stamp
    table = records.table()
    names = [site.name for site in records.plan.sites]
    table = table[table[SITE].isin(names)].reset_index(drop=True)
    plan, scenario = records.plan, records.scenario
    part = (
        split_in_proportion(table, plan.split, plan.seed, strata=scenario.strata)
        if scenario
        else split_by_unit(table, plan.split, plan.seed)
    )
    return {
        name: table[part == name].reset_index(drop=True) for name in ("train", "validation", "test")
    }
