"""The records of a simulated federation: a scenario's, or a user's own files."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from privet.client.data.records import SiteData
from privet.client.data.split import with_person
from privet.client.data.tables import RecordFault, Table, read_table
from privet.common.cells import text_of
from privet.common.errors import DataError, PlanError
from privet.common.plan import Plan
from privet.common.text_format import PLAIN
from privet.simulations import scenarios
from privet.simulations.partition import PART, PERSON, SITE, split_by_unit, split_in_proportion


@dataclass(frozen=True)
class Loaded:
    """The records of a federation, and their sources.

    Attributes:
        frame: with the columns ``site`` and, if declared, ``person``. Its index is a record's place
            in its file.
        columns: of each site that has a file of its own.
        faults: records that could not be read, by site; those of a file for all sites under "".
        sources: the file of each site.
        counted: unit of the index at each site, ``line`` or ``row``; a missing site has rows.
    """

    frame: pd.DataFrame
    columns: dict[str, list[str]] = field(default_factory=dict)
    faults: dict[str, tuple[RecordFault, ...]] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)
    counted: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class SiteRecords:
    """The places of a plan's records. Small and picklable: each process reads them itself.

    Attributes:
        plan: names the scenario or the files.
        data_dir: folder given with ``--data``, or None.
        base: folder of the plan's relative paths.
    """

    plan: Plan
    data_dir: Path | None = None
    base: Path = Path()

    def table(self) -> pd.DataFrame:
        """Return all records with the columns ``site`` and, if declared, ``person``."""
        return self.loaded().frame

    def loaded(self) -> Loaded:
        """Return all records, with their sources."""
        return _loaded(self, self._stamp)

    def parts(self) -> dict[str, pd.DataFrame]:
        """Return the records to train on, for validation and for test."""
        return _parts(self, self._stamp)

    def measurable(self, part: str = "test") -> pd.DataFrame:
        """Return the records of a split, of the sites whose files have the columns of the plan.

        Args:
            part: ``test`` or ``validation``.
        """
        test, columns = self.parts()[part], self.loaded().columns
        lacking = [
            name for name, there in columns.items() if set(self.plan.task.columns) - set(there)
        ]
        return test[~test[SITE].isin(lacking).to_numpy()]

    def unnamed(self) -> dict[str, int]:
        """Return how many records are of sites that the plan does not name, by their name."""
        if self.scenario is not None or self.plan.data.path is None:
            return {}
        there = self.table()[SITE].value_counts()
        named = {site.name for site in self.plan.sites}
        return {str(name): int(count) for name, count in there.items() if name not in named}

    @functools.cached_property
    def _stamp(self) -> tuple[tuple[str, int, int], ...]:
        """A value that differs where one of the user's own files does."""
        found = [self.base / path for path in _paths(self.plan)]
        return tuple((str(p), p.stat().st_mtime_ns, p.stat().st_size) for p in found if p.is_file())

    def site(self, name: str) -> SiteData:
        """Return one site's records: train, and its share of the test split as held out."""
        parts, loaded = self.parts(), self.loaded()
        # A column that this site's own file lacks must not appear as one of empty cells.
        columns = loaded.columns.get(name, list(loaded.frame.columns))
        rows = _rows(self, self._stamp)
        mine = {
            part: frame.iloc[rows[part].get(name, [])][columns] for part, frame in parts.items()
        }
        return SiteData(
            mine["train"],
            mine["test"],
            loaded.faults.get(name, ()),
            loaded.sources.get(name, "the records"),
            loaded.counted.get(name, "row"),
            mine["validation"],
        )

    def require_columns(self, name: str) -> None:
        """Check that a site's records have the columns that the plan reads; use no record.

        Raises:
            DataError: naming a missing one.
        """
        loaded = self.loaded()
        there = loaded.columns.get(name, list(loaded.frame.columns))
        for column in self.plan.task.columns:
            if column not in there:
                source = loaded.sources.get(name, "the records")
                raise DataError(f"{source}: there is no column '{column}', which the plan reads")

    @property
    def scenario(self) -> scenarios.Scenario | None:
        """The scenario, unless the plan is a user's own."""
        return scenarios.of(self.plan)


def _paths(plan: Plan) -> list[str]:
    return [path for path in (plan.data.path, *(s.path for s in plan.participants)) if path]


@functools.lru_cache(maxsize=8)
def _rows(
    records: SiteRecords, stamp: tuple[tuple[str, int, int], ...]
) -> dict[str, dict[str, Any]]:
    """Return the places of each site's records in each part."""
    parts = _parts(records, stamp)
    return {
        part: {str(site): rows for site, rows in frame.groupby(SITE, sort=False).indices.items()}
        for part, frame in parts.items()
    }


@functools.lru_cache(maxsize=8)
def _loaded(records: SiteRecords, stamp: tuple[tuple[str, int, int], ...]) -> Loaded:
    del stamp
    scenario = records.scenario
    if scenario is not None:
        return Loaded(scenario.load(records.data_dir).reset_index(drop=True))
    plan, base = records.plan, records.base
    return _one_file(plan, base) if plan.data.path else _file_each(plan, base)


def _with_person(plan: Plan, path: Path, frame: pd.DataFrame) -> pd.DataFrame:
    column = plan.data.person_column
    if column is not None:
        if column not in frame.columns:
            raise DataError(f"{path}: there is no person column '{column}'")
        return with_person(frame, frame[column], plan.data.person)
    if plan.privacy is not None and plan.privacy.unit == "person":
        raise PlanError(f"{plan.name}: unit = 'person' needs data.person_column")
    return frame


def _read(path: Path, plan: Plan, declared: set[str | None]) -> Table:
    data = plan.data
    found = read_table(
        path, multiline=data.multiline, nested=plan.task.nested_columns,
        form=data.format or PLAIN, numbers=plan.task.number_columns,
    )  # fmt: skip
    for name in (SITE, PERSON, PART):
        if name in found.frame.columns and name not in declared:
            raise DataError(
                f"{path}: the column name '{name}' is reserved; rename it, or declare it as "
                "data.site_column or data.person_column"
            )
    return found


def _one_file(plan: Plan, base: Path) -> Loaded:
    data = plan.data
    if any(site.path for site in plan.sites):
        raise PlanError(f"{plan.name}: name data.path or a 'path' for each site, not both")
    if data.site_column is None:
        raise PlanError(f"{plan.name}: data.path needs data.site_column")
    path = base / str(data.path)
    found = _read(path, plan, {data.site_column, data.person_column})
    frame = found.frame
    if data.site_column not in frame.columns:
        raise DataError(f"{path}: there is no site column '{data.site_column}'")
    sites = pd.Series(
        [text_of(cell).strip() for cell in frame[data.site_column]], frame.index, dtype=object
    )
    frame = _with_person(plan, path, frame).assign(**{SITE: sites})
    sources = dict.fromkeys((site.name for site in plan.sites), str(path))
    counted = dict.fromkeys(sources, found.counted)
    return Loaded(frame, {}, {"": found.faults}, sources, counted)


def _file_each(plan: Plan, base: Path) -> Loaded:
    missing = [site.name for site in plan.sites if not site.path]
    if len(missing) == len(plan.sites):
        raise PlanError(
            f"{plan.name}: name the records: 'path' for each of the [[sites]], or [data] with "
            "'path' and 'site_column'"
        )
    if missing:
        raise PlanError(f"{plan.name}: site '{missing[0]}' has no 'path'")
    frames, faults, sources, counted = [], {}, {}, {}
    columns = {}
    for site in plan.participants:
        path = base / str(site.path)
        found = _read(path, plan, {plan.data.person_column})
        frame = _with_person(plan, path, found.frame).assign(**{SITE: site.name})
        frames.append(frame)
        columns[site.name] = list(frame.columns)
        faults[site.name], sources[site.name] = found.faults, str(path)
        counted[site.name] = found.counted
    return Loaded(pd.concat(frames), columns, faults, sources, counted)


@functools.lru_cache(maxsize=8)
def _parts(
    records: SiteRecords, stamp: tuple[tuple[str, int, int], ...]
) -> dict[str, pd.DataFrame]:
    del stamp
    table = records.table()
    names = [site.name for site in records.plan.sites]
    table = table[table[SITE].isin(names).to_numpy()]
    plan, scenario = records.plan, records.scenario
    if scenario is None:
        part = split_by_unit(table, plan.split, plan.seed)
    else:
        part = split_in_proportion(table, plan.split, plan.seed, strata=scenario.strata)
    return {name: table[(part == name).to_numpy()] for name in ("train", "validation", "test")}
