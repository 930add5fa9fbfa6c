"""Check a site's records against a plan, for the operator's eyes alone.

``privet client check`` encodes the site's own records as a run would. It reports which records are
left out, which cells fall outside the plan's constants, and whether the model treats the real
records as it treats generated ones. Nothing leaves the site, nothing is spent. Every check that
reads records belongs here: at the start of a run none may change what leaves a site, or whether
anything does (H30).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch

from privet.client.data.columns import column_fits
from privet.client.data.records import SiteData
from privet.client.data.split import PERSON
from privet.client.training.model_runtime import ModelRuntime, model_runtime
from privet.client.training.trainer import UsableRecords, usable_records
from privet.common.cells import Codes
from privet.common.errors import PrivetError
from privet.common.person_id import PersonId
from privet.common.plan import Plan
from privet.common.printable import counted
from privet.common.sections.sequence_task import TokenClassificationTaskSpec
from privet.common.tasks import Batch, build_task
from privet.common.tasks.encoding import encode_records
from privet.common.tasks.words import items_of
from privet.privacy.mechanism import selftest

MAX_NAMED = 20
"""Places and values that one finding names."""
MAX_ALONE = 64
"""Records that are encoded again from a table of one row."""
LONG_RECORD_LINES = 100
"""A record of a text file over more lines is pointed out: a quote may not be closed."""

Level = Literal["fault", "warning"]


@dataclass(frozen=True)
class CheckFinding:
    """One finding for the operator.

    Attributes:
        level: ``fault``: these records cannot be used; ``warning``: they can, but serve less well.
        kind: a word for programs, such as ``left-out``.
        message: in words. It may quote records.
        places: in the source, at most 20.
        count: number of records, cells or people concerned.
        beyond: number of further places.
    """

    level: Level
    kind: str
    message: str
    places: tuple[int, ...] = ()
    count: int = 0
    beyond: int = 0


@dataclass
class DataCheck:
    """The findings about one data set.

    Attributes:
        source: the file or database.
        plan: digest of the plan.
        records: number that could be read.
        usable: number that a run would use, to train on and held out.
        units: number to train on.
        counted: unit of places, ``line`` or ``row``.
        left_out: every record that is left out, by its place, with the reason.
        columns: by column, shares of its cells in the readable records
            (:class:`~privet.client.data.columns.ColumnFit`).
        findings: the most important first.
    """

    source: str
    plan: str
    records: int = 0
    usable: int = 0
    units: int = 0
    counted: str = "row"
    left_out: dict[int, str] = field(default_factory=dict)
    columns: dict[str, dict[str, float]] = field(default_factory=dict)
    findings: list[CheckFinding] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether the records can be used."""
        return not any(finding.level == "fault" for finding in self.findings)

    def add(
        self, level: Level, kind: str, message: str, places: Any = (), count: int | None = None
    ) -> None:
        """Add a finding.

        Args:
            level: ``fault`` or ``warning``.
            kind: a word for programs.
            message: in words. It may quote records.
            places: of the records in the source; the first :data:`MAX_NAMED` are kept.
            count: number of records, cells or people concerned; None counts ``places``.
        """
        found = tuple(int(place) for place in places)
        total = len(found) if count is None else count
        beyond = max(0, len(found) - MAX_NAMED)
        self.findings.append(CheckFinding(level, kind, message, found[:MAX_NAMED], total, beyond))

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "ok": self.ok,
            "source": self.source,
            "plan": self.plan,
            "records": self.records,
            "usable": self.usable,
            "units": self.units,
            "counted": self.counted,
            "left_out": [{"place": k, "why": why} for k, why in sorted(self.left_out.items())],
            "columns": self.columns,
            "findings": [
                {
                    "level": one.level, "kind": one.kind, "message": one.message,
                    "places": list(one.places), "count": one.count,
                }
                for one in self.findings
            ],
        }  # fmt: skip


def check_records(
    data: SiteData,
    plan: Plan,
    site: str,
    *,
    max_rows: int | None = None,
    min_units: int | None = None,
    is_own_file: bool = True,
    tell: Callable[[str], None] = lambda stage: None,
) -> DataCheck:
    """Check a site's records against a plan.

    Args:
        data: as :func:`privet.client.data.records.read_records` returns them.
        plan: with its noise calibrated or not; nothing is drawn.
        site: name of the site in the plan.
        max_rows: more records than this are a fault (the policy's ``sql.max_rows``).
        min_units: fewer units to train on than this are a fault (the policy's ``min_units``).
        is_own_file: whether no other site's records lie between its own.
        tell: called with the name of each stage as it begins.

    Raises:
        DataError: if a column is missing that the plan reads.
        InputError: if the plan's task or model cannot be built.
    """
    found = DataCheck(data.source, plan.digest, counted=data.counted)
    tell("encoding")
    bench = model_runtime(plan)
    rest = data.validation if data.validation is not None else data.train.iloc[:0]
    frames = {"train": data.train, "held_out": data.held_out, "validation": rest}
    used = {part: usable_records(bench, frame) for part, frame in frames.items()}
    every = pd.concat(frames.values())
    found.records = len(every) + len(data.faults) + data.unnamed
    found.units = len(used["train"].units)
    found.left_out = {fault.place: fault.why for fault in data.faults}
    for part, frame in frames.items():
        found.left_out |= {int(frame.index[k]): why for k, why in used[part].faults.items()}
    found.usable = found.records - len(found.left_out) - data.unnamed
    _left_out(found, used["train"], data)
    _sizes(found, plan, site, max_rows, min_units)
    tell("columns")
    _columns(found, plan, every)
    _labels(found, plan, every)
    if plan.privacy is not None and plan.privacy.unit == "person" and PERSON in every:
        _people(found, plan, data.train, used["train"])
        _spellings(found, every)
    if data.counted == "line" and is_own_file:
        _long_records(found, every)
    tell("real records against generated ones")
    _encoding(found, plan, data.train, used["train"])
    _model(found, bench, used["train"].examples)
    found.findings.sort(key=lambda finding: finding.level != "fault")
    return found


def _left_out(found: DataCheck, train: UsableRecords, data: SiteData) -> None:
    if not len(train.units):
        found.add("fault", "none-usable", "no record to train on can be used")
    if found.left_out:
        count = found.records - found.usable
        said = f"{count} of {found.records} records are left out"
        found.add("warning", "left-out", said, sorted(found.left_out), count)
    odd = [fault.place for fault in data.faults if "quote" in fault.why]
    if odd and data.counted == "line":
        found.add(
            "warning",
            "quotes",
            "quotes are not closed within their line; where cells contain line breaks, set "
            "multiline = true",
            odd,
        )


def _sizes(
    found: DataCheck, plan: Plan, site: str, max_rows: int | None, min_units: int | None
) -> None:
    nominal = plan.site(site).nominal_size
    if found.units and not nominal / 2 <= found.units <= nominal * 2:
        found.add(
            "warning",
            "nominal-size",
            f"{found.units} units to train on, nominal_size is {nominal}: the plan takes steps "
            f"{'smaller' if found.units < nominal else 'larger'} than it means to",
            count=found.units,
        )
    if max_rows is not None and found.records > max_rows:
        found.add(
            "fault", "max-rows", f"{found.records} rows, sql.max_rows is {max_rows}",
            count=found.records,
        )  # fmt: skip
    if min_units is not None and found.units < min_units:
        found.add(
            "fault", "min-units", f"{found.units} units to train on, min_units is {min_units}",
            count=found.units,
        )  # fmt: skip


def _columns(found: DataCheck, plan: Plan, frame: pd.DataFrame) -> None:
    for fit in column_fits(plan.task, frame):
        found.columns[fit.name] = fit.shares
        for kind, message in fit.faults.items():
            found.add("warning", kind, message, count=fit.odd)


def _labels(found: DataCheck, plan: Plan, frame: pd.DataFrame) -> None:
    task = plan.task
    if not task.labels or task.answer_column not in frame:
        return
    cells = frame[task.answer_column].tolist()
    if isinstance(task, TokenClassificationTaskSpec):
        cells = [label for cell in cells for label in _listed(cell)]
    seen = set(Codes(task.labels).find_each(cells))
    never = [name for place, name in enumerate(task.labels) if place not in seen]
    if never and len(frame):
        said = ", ".join(f"'{name}'" for name in never[:8]) + (", …" if len(never) > 8 else "")
        found.add("warning", "labels", f"no record has the label {said}", count=len(never))


def _listed(cell: object) -> list[object]:
    try:
        return items_of(cell)
    except ValueError:  # that record is left out, with its reason
        return []


def _people(found: DataCheck, plan: Plan, frame: pd.DataFrame, train: UsableRecords) -> None:
    assert plan.privacy is not None
    rows = [row for row in range(len(frame)) if row not in train.faults]
    ids = [str(name) for name in frame[PERSON].iloc[rows]]
    most = plan.privacy.max_records
    over = {name: count for name, count in Counter(ids).items() if count > most}
    if over:
        seen: Counter[str] = Counter()
        places = []
        for row, name in zip(rows, ids, strict=True):
            seen[name] += 1
            if seen[name] > most:
                places.append(frame.index[row])
        found.add(
            "warning",
            "max-records",
            f"{len(over)} people have more than {counted(most, 'record')} to train on: of each "
            f"the first {most} count, {len(places)} records do not",
            places,
        )


def _spellings(found: DataCheck, frame: pd.DataFrame) -> None:
    ids = {str(name) for name in frame[PERSON] if name is not None}
    for key, folded in (
        ("person_ignore_case", PersonId(ignore_case=True)),
        ("person_numeric", PersonId(numeric=True)),
    ):
        spellings: dict[str | None, set[str]] = defaultdict(set)
        for name in ids:
            spellings[folded.of(name)].add(name)
        alike = sorted(sorted(group) for group in spellings.values() if len(group) > 1)
        if alike:
            said = "; ".join(" and ".join(group[:3]) for group in alike[:3])
            total = sum(map(len, alike))
            found.add(
                "warning",
                "person-spelling",
                f"{total} ids would be those of {len(alike)} people with {key} = true, such as "
                f"{said}: if they are, each of these people is several units now",
                count=len(alike),
            )


def _long_records(found: DataCheck, frame: pd.DataFrame) -> None:
    lines = np.sort(frame.index.to_numpy(dtype=np.int64))
    long = lines[:-1][np.diff(lines) > LONG_RECORD_LINES]
    taken = [int(line) for line in long if int(line) + 1 not in found.left_out]
    if taken:
        found.add(
            "warning",
            "long-records",
            f"records over more than {LONG_RECORD_LINES} lines: is a quote not closed?",
            taken,
        )


def _encoding(found: DataCheck, plan: Plan, frame: pd.DataFrame, train: UsableRecords) -> None:
    """Encode a few records again, each by a new task from a table of its own."""
    rows = [row for row in range(len(frame)) if row not in train.faults]
    chosen = sorted(set(np.linspace(0, len(rows) - 1, min(MAX_ALONE, len(rows)), dtype=int)))
    if plan.privacy is not None and plan.privacy.unit == "person":
        # Rows that name nobody are among the faults, so places in the tensors are those of `rows`.
        assert len(rows) == len(next(iter(train.examples.values())))
    differ = []
    for place in chosen:
        alone = encode_records(build_task(plan), frame.iloc[[rows[place]]])
        same = not alone.faults and all(
            _same(tensor[0], train.examples[name][place].cpu())
            for name, tensor in alone.batch.items()
        )
        if not same:
            differ.append(frame.index[rows[place]])
    if differ:
        found.add(
            "fault",
            "encoding",
            "a record encoded alone, by a new instance of the task, has other tensors than among "
            "the others: the task remembers what it has seen (H6)",
            differ,
        )


def _same(one: torch.Tensor, two: torch.Tensor) -> bool:
    """Whether two tensors hold the same numbers; NaN equals NaN."""
    if one.shape != two.shape or one.dtype != two.dtype:
        return False
    return bool(((one == two) | ((one != one) & (two != two))).all())


def _model(found: DataCheck, bench: ModelRuntime, examples: Batch) -> None:
    """Compare real records with single ones, as the start-up tests do with generated ones."""
    if bench.plan.privacy is None or not len(next(iter(examples.values()))):
        return
    try:
        assert bench.self_tests
        selftest.real_records(bench.engine, examples)
    except PrivetError as error:
        found.add("fault", "model", str(error))


def unreadable(source: str, plan: Plan, error: PrivetError) -> DataCheck:
    """Return the check of records that cannot be read at all.

    Args:
        source: the file or database, for the operator.
        plan: against which the records should have been checked.
        error: why they cannot be read.
    """
    found = DataCheck(source, plan.digest)
    found.add("fault", "file", str(error))
    return found
