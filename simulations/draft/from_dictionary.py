"""Read a data dictionary: what a table's columns hold, written by those who keep it."""

from __future__ import annotations

import re
from pathlib import Path

from privet.client.data.detect import detected
from privet.client.data.tables import read_table
from privet.common.cells import is_missing, number_of, text_of
from privet.common.errors import DataError
from privet.simulations.draft.columns import Columns

_NAMES = {
    "column": ("column", "name", "variable", "field", "feature"),
    "type": ("type", "kind", "datatype"),
    "low": ("low", "min", "minimum", "lower"),
    "high": ("high", "max", "maximum", "upper"),
    "values": ("values", "categories", "levels", "codes", "choices"),
    "log": ("log", "logarithmic"),
    "role": ("role", "use"),
}
_ROLES = ("label", "text", "site", "person", "feature", "ignore")
_TRUE = ("true", "yes", "1", "x", "log")


def declare(found: Columns, dictionary: Path, names: list[str]) -> None:
    """Declare columns by a data dictionary; those that it does not name are unknown.

    A dictionary is a CSV file with a line for each column: ``column``; for a number ``low`` and
    ``high``, its usual range; for a category ``values``, with ``;`` or ``|`` between two. ``role``
    is ``label``, ``text``, ``site``, ``person`` or ``ignore``; ``log`` is ``true`` for a
    logarithmic column. Common other names of these headings are known, such as ``min``.

    Args:
        found: is extended.
        dictionary: the file.
        names: of the table's columns.

    Raises:
        DataError: if it is no such file, or a line of it cannot be used.
    """
    table = read_table(dictionary, multiline=True, form=detected(dictionary))
    for fault in table.faults:
        raise DataError(f"{dictionary}, line {fault.place}: {fault.why}")
    headings = _headings(dictionary, [str(name) for name in table.frame.columns])
    said = set()
    for line, cells in table.frame.iterrows():
        row = {
            key: "" if is_missing(cells[name]) else text_of(cells[name]).strip()
            for key, name in headings.items()
        }
        where = f"{dictionary}, line {line}"
        name = row["column"]
        if name not in names:
            found.unused.append(name)  # dictionaries describe more than one extract holds
            continue
        if name in said:
            raise DataError(f"{where}: column '{name}' is there twice")
        said.add(name)
        _declare(found, name, row, where)
    found.unknown += [name for name in names if name not in said and name not in found.roles]


def _headings(path: Path, there: list[str]) -> dict[str, str]:
    found = {
        key: name
        for key, names in _NAMES.items()
        for name in there
        if name.strip().lower() in names
    }
    if "column" not in found:
        raise DataError(
            f"{path}: no heading 'column'. A data dictionary has the headings column, low, high, "
            "values, and perhaps log and role"
        )
    return found


def _declare(found: Columns, name: str, row: dict[str, str], where: str) -> None:
    role = row.get("role", "").lower() or "feature"
    if role not in _ROLES:
        raise DataError(f"{where}: role '{role}' is none of {', '.join(_ROLES)}")
    values = [one.strip() for one in re.split(r"[;|]", row.get("values", "")) if one.strip()]
    if role == "ignore":
        found.left_out[name] = "the dictionary says so"
        return
    if role != "feature":
        if getattr(found, role) not in (None, name):
            raise DataError(f"{where}: '{name}' is a second {role}, after '{getattr(found, role)}'")
        setattr(found, role, name)
    if name == found.label:
        found.classes = found.classes or values
    if name == found.site:
        found.site_values = tuple(values)
    if name in found.roles:
        return
    low, high = row.get("low", ""), row.get("high", "")
    if values:
        found.categorical[name] = values
        return
    if not low or not high:
        found.unknown.append(name)
        return
    try:
        bounds = {"low": number_of(low), "high": number_of(high)}
    except ValueError:
        raise DataError(f"{where}: the range of '{name}' is not two numbers") from None
    if not bounds["low"] < bounds["high"]:
        raise DataError(f"{where}: the range of '{name}' must begin below its end")
    is_log = row.get("log", "").lower() in _TRUE
    found.numeric[name] = {**bounds, "log": True} if is_log else dict(bounds)
    found.notes[name] = "the data dictionary"
