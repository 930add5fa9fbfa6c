"""Versions of stored formats: older values are upgraded, newer ones are left alone.

A number goes up by one when an earlier version of Privet would misread the present format. The step
from each number to the next is a function; the steps run in order, inside the transaction of the
first write, so that a command that only reads changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

from privet import __version__

T = TypeVar("T")
Step = Callable[[T], None]


def newer_fault(where: object, found: int, newest: int, *, software: str = "") -> str | None:
    """Return in words why a file of a newer version cannot be opened; None if it can.

    Args:
        where: names the file.
        found: number of the file's format.
        newest: number that this version of Privet writes.
        software: version of Privet that wrote it, or "".
    """
    if found <= newest:
        return None
    by = f" ({software})" if software else ""
    return (
        f"{where}: is of format {found}, written by a later version of Privet{by}; this one, "
        f"{__version__}, reads formats up to {newest}. Nothing was changed. Use the version that "
        "wrote it, or a later one (docs/how-to/upgrade.md)"
    )


def bring_up(kept: T, found: int, steps: Mapping[int, Step[T]]) -> int:
    """Run the steps that a stored value lacks; return the number that it has then.

    Args:
        kept: the value, which the steps change in place.
        found: number of its format.
        steps: by a format's number, the step that converts it to the next one.
    """
    while found in steps:
        steps[found](kept)
        found += 1
    return found


def number_of(text: object, kind: str) -> int | None:
    """Return the number in a format's name, as 2 in ``privet/federation/v2``; None if it is none.

    Args:
        text: the name.
        kind: the text between ``privet/`` and ``/v``.
    """
    number = str(text).removeprefix(f"privet/{kind}/v")
    if number == str(text) or not (number.isascii() and number.isdigit()):
        return None
    return int(number)
