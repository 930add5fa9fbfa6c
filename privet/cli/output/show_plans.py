"""What a site's operator sees of the plans that were offered or decided."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from privet.cli.output.console import console, or_dash
from privet.cli.output.show_site import failures
from privet.common.printable import printable_all
from privet.privacy.accounting.units import rounded_down, rounded_up

_SHOWN_CHANGES = 20


def listed(found: list[dict[str, Any]], log: Path, *, stderr: bool = False) -> None:
    """Print plans: a table with what they cost, then each with its digest and its changes.

    Args:
        found: as ``privet client plans --json`` lists them.
        log: the operator's, which says what failed.
        stderr: print on standard error.
    """
    out = console(stderr=stderr)
    plans = printable_all(found)
    if not plans:
        out.print("No plan was offered, approved or refused yet.")
        return
    table = Table()
    for name in ("state", "plan", "coordinator", "data set"):
        table.add_column(name, overflow="fold")
    for name in ("ε of the plan", "spent", "left after"):
        table.add_column(name, justify="right")
    for plan in plans:
        by = ", ".join(filter(None, (plan["coordinator"], *plan["also"])))
        words = (plan["name"] or "not known", by or "–", plan["data_set"] or "–")
        table.add_row(
            plan["state"].replace("-", " "), *map(Text, words),
            or_dash(plan["epsilon"], rounded_up), or_dash(plan["spent"], rounded_up), _left(plan),
        )  # fmt: skip
    out.print(table)
    for plan in plans:
        for line in _lines(plan, log):
            out.print(line, markup=False, highlight=False, soft_wrap=True)


def _lines(plan: dict[str, Any], log: Path) -> list[str]:
    state = plan["state"].replace("-", " ")
    found = [f"{state:9} {plan['plan']}  {', '.join(plan['by'])}".rstrip()]
    if plan["offered"] is not None:
        when = datetime.fromtimestamp(plan["offered"], UTC).strftime("%Y-%m-%d %H:%M UTC")
        found.append(f"          last offered {when}")
    if plan["cost"] is not None:
        cost = plan["cost"]
        found.append(
            f"          population {plan['population']}: a run costs ε "
            f"{or_dash(cost['epsilon'], rounded_up)} at δ {cost['delta']:g}, per {cost['unit']}"
        )
    if plan["why"]:
        found.append(f"          {plan['why']}")
    if said := failures(plan, log):
        found.append(f"          {said}")
    if plan["against"]:
        shown, more = plan["changes"][:_SHOWN_CHANGES], plan["changes"][_SHOWN_CHANGES:]
        head = "changes" if shown else "changes nothing"
        found.append(f"          {head} against {plan['against']}, approved before")
        found += [f"            {one['key']}: {one['before']} → {one['after']}" for one in shown]
        if more:
            found.append(f"            … and {len(more)} more (--json shows them)")
    return found


def _left(plan: dict[str, Any]) -> str:
    if plan["cost"] is None or plan["left_after"] is None:
        return "–"
    if not plan["fits"]:
        return "not covered"
    return rounded_down(plan["left_after"])
