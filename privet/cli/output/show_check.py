"""What ``privet client check`` and ``privet simulate --check`` show."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table

from privet.cli.output.console import OUT, say

if TYPE_CHECKING:
    from privet.client.operator.check import DataCheck

_SHARES = ("missing", "unreadable", "outside", "clipped", "unmatched")
MAX_LINES = 20
"""Records that are named on the screen; --json names all."""


def data_check(found: DataCheck, name: str) -> None:
    """Print what was found of one data set, or of one site of a simulation."""
    say(f"{name}: {found.source}")
    if found.records:
        count = f"{found.records} records, {found.usable} of them usable"
        say(f"  {count}; {found.units} units to train on")
    if found.columns:
        OUT.print(_columns(found))
    for finding in found.findings:
        mark = "✗" if finding.level == "fault" else "!"
        where = ""
        if finding.places and finding.kind != "left-out":
            shown = ", ".join(map(str, finding.places))
            if finding.beyond > 0:
                shown += f" and {finding.beyond} more"
            where = f" ({found.counted} {shown})"
        say(f"  {mark} {finding.message}{where}")
    places = sorted(found.left_out)
    for place in places[:MAX_LINES]:
        say(f"    {found.counted} {place}: {found.left_out[place]}")
    if len(places) > MAX_LINES:
        say(f"    and {len(places) - MAX_LINES} more (--json names all)")
    if not found.findings:
        say("  Nothing to correct.")
    elif found.ok:
        say("  These records can be used.")
    else:
        say("  These records cannot be used with this plan.")


def _columns(found: DataCheck) -> Table:
    table = Table("column", title="shares of cells", title_justify="left")
    for name in _SHARES:
        table.add_column(name, justify="right")
    for column, shares in found.columns.items():
        cells = [f"{shares[name]:.1%}" if name in shares else "" for name in _SHARES]
        table.add_row(column, *cells)
    return table
