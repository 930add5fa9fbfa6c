"""Write the plan that is drafted from a user's table."""

from __future__ import annotations

import os
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
from privet.common.cells import is_missing, text_of
from privet.common.errors import DataError, InputError
from privet.common.plan import Split
from privet.common.plan_file import toml_key, toml_section, toml_value
from privet.common.printable import counted
from privet.common.schema import did_you_mean
from privet.common.text_format import PLAIN, TextFormat
from privet.simulations.draft import from_dictionary, from_header, from_records
from privet.simulations.draft.columns import Columns

SIZE = 500
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

[split]
test = {test:g}

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
                f"{request.files[0]}: there is no column '{name}'{did_you_mean(name, names)}. It "
                f"has {', '.join(names[:_FEW])}{', …' if len(names) > _FEW else ''}"
            )
    if len(request.files) == 1 and found.site is None:
        raise InputError(
            "one file of all sites: say --site-column, the column that names the site; or name "
            "one file for each site with --from"
        )
    frame = _records(request.files, form) if request.is_public else None
    features = [name for name in names if name not in found.roles]
    if frame is not None and request.dictionary is None:
        from_records.declare(found, frame, features)
    elif request.dictionary is None:
        from_header.declare(found, features)
    _sizes(found, request, frame)
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
    return found[0]


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
    twice = [name for name in first if first.count(name) > 1]
    if twice:
        raise DataError(f"{files[0]}: the column '{twice[0]}' is there twice")
    return first


def _records(files: Sequence[Path], form: TextFormat) -> pd.DataFrame:
    return pd.concat([read_table(path, form=form).frame for path in files], ignore_index=True)


def _sizes(found: Columns, request: DraftRequest, frame: pd.DataFrame | None) -> None:
    """Say which sites there are, and how large."""
    share = 1 - Split().test
    if found.site is None:
        names = [path.name.split(".")[0] for path in request.files]
        if len({name.casefold() for name in names}) < len(names):
            raise InputError("two files have the same name, which would be that of two sites")
        for name, path in zip(names, request.files, strict=True):
            found.sizes[name] = request.size or SIZE
            if frame is not None and request.size is None:
                units = len(read_table(path, form=found.form).frame) * share
                found.sizes[name] = from_records.nominal(units)
        return
    if frame is not None:
        sites = pd.Series(
            [text_of(cell).strip() for cell in frame[found.site] if not is_missing(cell)]
        )
        counts = {str(name): int(count) for name, count in sites.value_counts().items()}
        for name, count in sorted(counts.items()):
            if not request.sites or name in request.sites:
                found.sizes[name] = request.size or from_records.nominal(count * share)
        return
    found.sizes = dict.fromkeys(request.sites, request.size or SIZE)


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
        source=", ".join(path.name for path in request.files[:_FEW]),
        how=how,
        plan=folder / "plan.toml",
        name=_plan_name(request.files[0]),
        task=_task(found),
        unknown=_unknown(found),
        privacy=_privacy(request, found),
        test=Split().test,
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
    return PlanDraft(found, text, tuple(to_fill))


def _plan_name(path: Path) -> str:
    kept = "".join(c if c.isalnum() and c.isascii() else "-" for c in path.name.split(".")[0])
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
            *(f"#   {name}" for name in found.unknown),
        ]
    if found.left_out and found.text is None:
        lines += ["# Left out:", *(f"#   {name}: {why}" for name, why in found.left_out.items())]
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
    lines += [f"to fill in: {one}" for one in made.to_fill]
    return lines
