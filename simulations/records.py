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
from privet.simulations.partition import PERSON, SITE, split


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
        return _table(
            self.plan.scenario, self.plan.model_dump_json(include=_WHERE), self.data_dir, self.base
        )

    def parts(self) -> dict[str, pd.DataFrame]:
        """Return the records to train on, for validation and for test."""
        return _parts(self)

    def site(self, name: str) -> SiteData:
        """Return one site's records: train, and its share of the test split as held out."""
        parts = self.parts()
        train, test = parts["train"], parts["test"]
        return SiteData(
            train[train[SITE] == name].reset_index(drop=True),
            test[test[SITE] == name].reset_index(drop=True),
        )

    @property
    def scenario(self) -> scenarios.Scenario | None:
        """The scenario, unless the plan is a user's own."""
        return scenarios.get(self.plan.scenario) if self.plan.scenario else None


_WHERE = {"name", "sites", "data", "task", "privacy"}


@functools.lru_cache(maxsize=8)
def _table(scenario: str | None, where: str, data_dir: Path | None, base: Path) -> pd.DataFrame:
    if scenario is not None:
        return scenarios.get(scenario).load(data_dir).reset_index(drop=True)
    return _own_files(where, base).reset_index(drop=True)


def _own_files(where: str, base: Path) -> pd.DataFrame:
    part = Plan.model_validate_json(where)
    data, own = part.data, [site for site in part.sites if site.path]
    if data.path is None and not own:
        raise PlanError(
            f"{part.name}: name the records: 'path' for each of the [[sites]], or [data] with "
            "'path' and 'site_column'"
        )
    if data.path is not None:
        if data.site_column is None:
            raise PlanError(f"{part.name}: data.path needs data.site_column")
        table = read_table(base / data.path)
        if data.site_column not in table.columns:
            raise DataError(f"{data.path}: there is no site column '{data.site_column}'")
        table = table.assign(**{SITE: table[data.site_column].astype(str)})
    else:
        if missing := [site.name for site in part.sites if not site.path]:
            raise PlanError(f"{part.name}: site '{missing[0]}' has no 'path'")
        tables = [read_table(base / str(site.path)).assign(**{SITE: site.name}) for site in own]
        table = pd.concat(tables, ignore_index=True)
    if data.person_column is not None:
        if data.person_column not in table.columns:
            raise DataError(f"there is no person column '{data.person_column}'")
        table = table.assign(**{PERSON: table[data.person_column]})
    elif part.privacy is not None and part.privacy.unit == "person":
        raise PlanError(f"{part.name}: unit = 'person' needs data.person_column")
    return table


@functools.lru_cache(maxsize=8)
def _parts(records: Records) -> dict[str, pd.DataFrame]:
    table = records.table()
    names = [site.name for site in records.plan.sites]
    table = table[table[SITE].isin(names)].reset_index(drop=True)
    scenario = records.scenario
    strata = scenario.strata if scenario else (SITE,)
    part = split(table, records.plan.split, records.plan.seed, strata=strata)
    return {
        name: table[part == name].reset_index(drop=True) for name in ("train", "validation", "test")
    }
