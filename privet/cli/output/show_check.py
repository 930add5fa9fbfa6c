"""What ``privet client check`` and ``privet simulate --check`` show."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from privet.client.operator.check import DataCheck

_out = Console(width=None if sys.stdout.isatty() else 100)
_SHARES = ("missing", "unreadable", "outside", "clipped", "unmatched")
MAX_LINES = 20
"""Records that are named on the screen; --json names all."""


def data_check(found: DataCheck, name: str) -> None:
    """Print what was found of one data set, or of one site of a simulation."""
    _say(f"{name}: {found.source}")
    if found.records:
        count = f"{found.records} records, {found.usable} of them usable"
        _say(f"  {count}; {found.units} units to train on")
    if found.columns:
        _out.print(_columns(found))
    for finding in found.findings:
        mark = "✗" if finding.level == "fault" else "!"
        where = ""
        if finding.places and finding.kind != "left-out":
            more = finding.beyond
            shown = ", ".join(map(str, finding.places))
            where = f" ({found.counted} {shown}{f' and {more} more' if more > 0 else ''})"
        _say(f"  {mark} {finding.message}{where}")
    places = sorted(found.left_out)
    for place in places[:MAX_LINES]:
        _say(f"    {found.counted} {place}: {found.left_out[place]}")
    if len(places) > MAX_LINES:
        _say(f"    and {len(places) - MAX_LINES} more (--json names all)")
    if not found.findings:
        _say("  Nothing to correct.")
    elif found.ok:
        _say("  These records can be used.")
    else:
        _say("  These records cannot be used with this plan.")


def _columns(found: DataCheck) -> Table:
    table = Table(title="shares of cells", title_justify="left")
    table.add_column("column")
    for name in _SHARES:
        table.add_column(name, justify="right")
    for column, shares in found.columns.items():
        cells = [f"{shares[name]:.1%}" if name in shares else "" for name in _SHARES]
        table.add_row(column, *cells)
    return table


def _say(text: str) -> None:
    _out.print(text, soft_wrap=True, markup=False, highlight=False)
