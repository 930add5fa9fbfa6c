"""Write the plan that is drafted from a user's table."""

from __future__ import annotations

import contextlib
import math
import os
import re
import shlex
import tomllib
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from privet.client.data.detect import detected
from privet.client.data.suffix import is_parquet
from privet.client.data.tables import read_table
from privet.client.data.text_file import as_table, header_of
from privet.common.canonical import write_atomic
from privet.common.cells import is_missing, number_of, text_of
from privet.common.errors import DataError, InputError
from privet.common.plan_file import toml_key, toml_section, toml_value
from privet.common.printable import counted
from privet.common.schema import NAME, did_you_mean, parse
from privet.common.text_format import PLAIN, TextFormat
from privet.simulations.draft import from_dictionary, from_header, from_records
from privet.simulations.draft.columns import Columns
from privet.simulations.partition import PART, PERSON, SITE

TEST, VALIDATION = 0.2, 0.1
SIZE = 500
_MAX_NAME = 200
"""Characters of a column's name."""
"""Nominal size of a site, where nothing is known of it."""
_FEW = 20

_PLAN = """# A draft from {source}.
# {how}
# Everything that is not written here is chosen when the plan is read, and follows from what is:
# privet plan settings {plan} shows the values, and why.
#
# privet simulate {plan} --check     what each record is worth; nothing is trained
# privet simulate {plan}
name = "{name}"

{task}
{unknown}{privacy}
# Metrics of a public test split, which then counts as public. "gate" measures on each site's own
# records, noised and paid for.
[metrics]
source = "public"

# "validation" is what --tune chooses settings by.
[split]
test = {test:g}
validation = {validation:g}

{data}# The nominal size is declared, not counted: a round number near the number of {units}
# that a site trains on.
{sites}"""


@dataclass(frozen=True)
class DraftRequest:
    """What the user says of a table.

    Attributes:
        files: one for all sites, or one for each.
        is_public: whether the records may be read for the draft.
        dictionary: a data dictionary, or None.
        label, text, site, person: columns of these roles, or None.
        classes: of the label; empty: from the dictionary, or public records.
        sites: names of the sites in ``site``; empty: from public records.
        size: nominal size of each site; None: from public records, else 500.
        epsilon, delta: the budget.
        decimal, na: of numbers, and of missing cells, in text files; None and empty: from public
            records, else a point and none.
    """

    files: tuple[Path, ...]
    is_public: bool = False
    dictionary: Path | None = None
    label: str | None = None
    text: str | None = None
    site: str | None = None
    person: str | None = None
    classes: tuple[str, ...] = ()
    sites: tuple[str, ...] = ()
    size: int | None = None
    epsilon: float = 3.0
    delta: float = 1e-5
    decimal: str | None = None
    na: tuple[str, ...] = ()


@dataclass(frozen=True)
class PlanDraft:
    """A plan that was drafted.

    Attributes:
        columns: what it declares.
        text: of the file.
        to_fill: what is left for the author, in words.
    """

    columns: Columns
    text: str
    to_fill: tuple[str, ...]


def write_draft(folder: Path, request: DraftRequest) -> PlanDraft:
    """Write ``plan.toml`` into a folder.

    Args:
        folder: new or empty.
        request: of the user.

    Raises:
        InputError: if the folder is not empty, or the request does not fit the files.
        DataError: if a file cannot be read.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} exists and is not an empty folder; nothing was written")
    made = draft_of(folder, request)
    write_atomic(folder / "plan.toml", made.text.encode())
    return made


def draft_of(folder: Path, request: DraftRequest) -> PlanDraft:
    """Return the plan that is written into a folder.

    Args:
        folder: that the plan's paths start from.
        request: of the user.

    Raises:
        InputError: if the request does not fit the files.
        DataError: if a file cannot be read.
    """
    form = _format(request)
    names = _names(request.files, form)
    _require_names(request.files[0], names, is_public=request.is_public)
    found = Columns(
        form=form,
        label=request.label, text=request.text, site=request.site, person=request.person,
        classes=list(request.classes),
    )  # fmt: skip
    if request.dictionary is not None:
        from_dictionary.declare(found, request.dictionary, names)
    for role in ("label", "text", "site", "person"):
        name = getattr(found, role)
        if name is not None and name not in names:
            raise InputError(
                f"{request.files[0]}: there is no column '{name}'{did_you_mean(name, names)} "
                f"(columns: {', '.join(names[:_FEW])}{', …' if len(names) > _FEW else ''})"
            )
    if len(request.files) == 1 and found.site is None:
        raise InputError(
            "one file of all sites: say --site-column, the column that names the site; or name "
            "one file for each site with --from"
        )
    frame = _records(request.files, found) if request.is_public else None
    for name in names:
        if name in (SITE, PERSON, PART) and name not in (found.site, found.person):
            raise InputError(
                f"{request.files[0]}: the column name '{name}' is reserved; rename the column, or "
                "name it with --site-column or --person-column"
            )
    features = [name for name in names if name and name not in found.roles]
    if frame is not None and request.dictionary is None:
        from_records.declare(found, frame, features)
    elif request.dictionary is None:
        from_header.declare(found, features)
    _sizes(found, request, frame)
    for site in found.sizes:
        if not re.fullmatch(NAME, site):
            raise InputError(
                f"the site's name '{site}' cannot be that of a site: names have letters a to z, "
                "digits, spaces and . _ -, at most 64. Write it so in the file's column"
            )
    return _written(folder, request, found)


def _format(request: DraftRequest) -> TextFormat:
    """Return how the files write their cells: found out here, and declared in the plan.

    Of private records the first line alone is read.

    Raises:
        InputError: if they differ.
        DataError: if one cannot be read.
    """
    found = []
    for path in request.files:
        with as_table(path):
            found.append(detected(path, header_only=not request.is_public))
    for path, form in zip(request.files, found, strict=True):
        if form != found[0]:
            raise InputError(
                f"{path} and {request.files[0]} write their cells in different ways; make one form "
                "of them, or name one file and declare the other site's in its own policy"
            )
    said = {"decimal": request.decimal, "na": list(request.na)}
    value = {**found[0].model_dump(mode="json"), **{k: v for k, v in said.items() if v}}
    return parse(TextFormat, value, where="--decimal, --na", error=InputError)


def _names(files: Sequence[Path], form: TextFormat) -> list[str]:
    """Return the columns that all files have, in the order of the first."""
    every = []
    for path in files:
        with as_table(path):
            if is_parquet(path):
                import pyarrow.parquet as pq

                every.append([str(name) for name in pq.read_schema(path).names])
            else:
                every.append(header_of(path, form))
    first, *others = every
    for path, names in zip(files[1:], others, strict=True):
        if lacking := [name for name in first if name not in names]:
            raise DataError(f"{path}: there is no column '{lacking[0]}', which {files[0]} has")
    return first


def _require_names(path: Path, names: list[str], *, is_public: bool) -> None:
    """Check that a first line names columns, and is no record, which would be in the plan.

    Raises:
        DataError: quoting nothing.
    """
    for place, name in enumerate(names, 1):
        if not name and place == 1:
            continue  # of a table whose rows were numbered by pandas
        is_number = False
        with contextlib.suppress(ValueError):
            is_number = not is_public and not math.isnan(number_of(name))
        if is_number or is_missing(name) or not name.isprintable() or len(name) > _MAX_NAME:
            raise DataError(
                f"{path}: the first line does not look like names of columns: cell {place} is "
                "empty, a number, very long, or holds control characters. A file needs a first "
                "line with a name for each column"
            )
    if twice := [name for name in names if names.count(name) > 1]:
        raise DataError(f"{path}: the column '{twice[0]}' is there twice")


def _records(files: Sequence[Path], found: Columns) -> pd.DataFrame:
    """Return public records, and note those that cannot be read.

    Raises:
        DataError: if there is none.
    """
    tables = [read_table(path, form=found.form) for path in files]
    faults = [
        f"{counted(len(table.faults), 'record')} of {path} cannot be read, such as that of "
        f"{table.counted} {table.faults[0].place}: {table.faults[0].why}"
        for path, table in zip(files, tables, strict=True)
        if table.faults
    ]
    frame = pd.concat([table.frame for table in tables], ignore_index=True)
    if not len(frame):
        raise DataError(f"{files[0]}: there is no record that can be read. {'; '.join(faults)}")
    found.unread = "; ".join(faults)
    return frame


def _sizes(found: Columns, request: DraftRequest, frame: pd.DataFrame | None) -> None:
    """Say which sites there are, and how large."""
    share = 1 - TEST - VALIDATION
    if found.site is None:
        names = [_plan_name(path) for path in request.files]
        if len({name.casefold() for name in names}) < len(names):
            raise InputError("two files have the same name, which would be that of two sites")
        for name, path in zip(names, request.files, strict=True):
            found.sizes[name] = request.size or SIZE
            if frame is not None and request.size is None:
                own = read_table(path, form=found.form).frame
                found.sizes[name] = from_records.nominal(_units(found, own) * share)
        return
    if frame is not None:
        sites = pd.Series(
            [text_of(cell).strip() for cell in frame[found.site] if not is_missing(cell)]
        )
        there = frame[[not is_missing(cell) for cell in frame[found.site]]]
        counts = {
            str(name): _units(found, own)
            for name, own in there.groupby(sites.to_numpy(), sort=True)
        }
        for name, count in counts.items():
            if not request.sites or name in request.sites:
                found.sizes[name] = request.size or from_records.nominal(count * share)
        return
    found.sizes = dict.fromkeys(request.sites or found.site_values, request.size or SIZE)


def _units(found: Columns, frame: pd.DataFrame) -> int:
    """Return how many units some records are of: people, where a column names them."""
    return len(frame) if found.person is None else int(frame[found.person].nunique())


def _written(folder: Path, request: DraftRequest, found: Columns) -> PlanDraft:
    to_fill = []
    if found.label is None:
        to_fill.append("task.label, the column that is predicted")
    if not found.classes:
        to_fill.append("task.classes, every label that may occur")
    if not found.sizes:
        to_fill.append(f"[[sites]], the names in column '{found.site}'")
    if found.text is None and not (found.numeric or found.categorical):
        to_fill.append("[task.numeric] and [task.categorical], the columns that are read")
    how = "From the records, which are declared public: types, ranges, categories, sizes."
    if request.dictionary is not None:
        how = "Columns are those of the data dictionary; no record was read."
    elif not request.is_public:
        how = "From the names of columns alone: no record was read."
    relative = [os.path.relpath(path.resolve(), folder.resolve()) for path in request.files]
    person = f"person_column = {toml_value(found.person)}\n" if found.person else ""
    if found.form != PLAIN:
        person += (
            f"format = {toml_value(found.form.model_dump(mode='json', exclude_defaults=True))}\n"
        )
    data = f"[data]\n{person}\n" if person else ""
    sites = dict(found.sizes) or {"FILL IN": request.size or SIZE}
    paths: list[str | None] = [None] * len(sites)
    if found.site is None:
        paths = list(relative)
    else:
        data = (
            f"[data]\npath = {toml_value(relative[0])}\nsite_column = {toml_value(found.site)}\n"
            f"{person}\n"
        )
    text = _PLAN.format(
        source=", ".join(toml_value(path.name) for path in request.files[:_FEW]),
        how=how,
        plan=shlex.quote(str(folder / "plan.toml")).replace("\n", " ").replace("\r", " "),
        name=_plan_name(request.files[0]),
        task=_task(found),
        unknown=_unknown(found),
        privacy=_privacy(request, found),
        test=TEST,
        validation=VALIDATION,
        data=data,
        units="people" if found.person else "records",
        sites="\n".join(
            "\n".join([
                "[[sites]]", f"name = {toml_value(name)}", f"nominal_size = {size}",
                *([f"path = {toml_value(path)}"] if path else []), "",
            ])
            for (name, size), path in zip(sites.items(), paths, strict=True)
        ),
    )  # fmt: skip
    try:
        read = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise DataError(f"{request.files[0]}: a column's name cannot be written: {error}") from None
    # A name is data: it must not have become a part of the plan.
    declared = {"name", "task", "privacy", "metrics", "split", "data", "sites"}
    if set(read) - declared or set(read["task"].get("numeric", {})) != set(found.numeric):
        raise DataError(f"{request.files[0]}: the names of its columns cannot be written")
    return PlanDraft(found, text, tuple(to_fill))


def _plan_name(path: Path) -> str:
    plain = unicodedata.normalize("NFKD", path.name.split(".")[0])
    plain = "".join(c for c in plain if not unicodedata.combining(c))
    kept = "".join(c if (c.isalnum() or c in " _") and c.isascii() else "-" for c in plain)
    return kept.strip("-")[:60] or "plan"


def _task(found: Columns) -> str:
    task: dict[str, Any] = {
        "kind": "tabular" if found.text is None else "text",
        "label": found.label or "FILL IN",
        "classes": found.classes or ["FILL IN"],
    }
    if found.text is not None:
        return toml_section("task", {**task, "text": found.text})
    parts = [toml_section("task", task)]
    if found.numeric:
        lines = ["# The usual range of each number: what lies outside is held at twice the range."]
        lines.append("[task.numeric]")
        for name, one in found.numeric.items():
            note = f"  # {found.notes[name]}" if name in found.notes else ""
            lines.append(f"{toml_key(name)} = {toml_value(one)}{note}")
        parts.append("\n".join(lines) + "\n")
    if found.categorical:
        lines = ['# Any other value counts as "other".', "[task.categorical]"]
        lines += [f"{toml_key(n)} = {toml_value(one)}" for n, one in found.categorical.items()]
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def _unknown(found: Columns) -> str:
    lines = []
    if found.unknown and found.text is None:
        lines += [
            "# Nothing is known of these columns, and they are not read. Declare those that are to",
            "# be, above, from public knowledge and never from private records (H12):",
            "#   under [task.numeric]      name = { low = 0, high = 100 }",
            '#   under [task.categorical]  name = ["a", "b"]',
            *(f"#   {toml_value(name)}" for name in found.unknown),
        ]
    if found.left_out and found.text is None:
        lines.append("# Left out:")
        lines += [f"#   {toml_value(name)}: {why}" for name, why in found.left_out.items()]
    return "\n".join([*lines, "", ""]) if lines else ""


def _privacy(request: DraftRequest, found: Columns) -> str:
    unit = "person" if found.person else "record"
    private: dict[str, Any] = {
        "epsilon": float(request.epsilon), "delta": request.delta, "unit": unit,
    }  # fmt: skip
    if unit == "person":
        private["max_records"] = 4
    return toml_section(
        "privacy", private, "spent at each site; delta at most one over a site's number of units"
    )


def summary(made: PlanDraft) -> list[str]:
    """Return what the draft declares and what is left, in lines.

    Args:
        made: the draft.
    """
    found = made.columns
    if found.text is not None:
        lines = [f"reads the text in '{found.text}'"]
    else:
        lines = [
            f"reads {counted(len(found.numeric), 'numeric column')} and "
            f"{len(found.categorical)} categorical"
        ]
        if found.unknown:
            lines.append(
                f"does not read {counted(len(found.unknown), 'column')} that nothing is known of: "
                + ", ".join(found.unknown[:_FEW])
            )
        if found.left_out:
            shown = [f"{name} ({why})" for name, why in list(found.left_out.items())[:_FEW]]
            lines.append(f"leaves out {', '.join(shown)}")
    if found.unused:
        lines.append(
            "leaves out what the dictionary names and the file lacks: "
            + ", ".join(found.unused[:_FEW])
        )
    if found.unread:
        lines.append(f"was drafted without some records: {found.unread}")
    lines += [f"to fill in: {one}" for one in made.to_fill]
    return lines
