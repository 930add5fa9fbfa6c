"""What ``privet server status`` prints."""

from __future__ import annotations

import sys
from typing import Any

from rich.console import Console
from rich.table import Table

from privet.common.printable import printable_all

_out = Console(width=None if sys.stdout.isatty() else 100)


def status(value: dict[str, Any]) -> None:
    """Print a federation: its sites, then its runs."""
    value = printable_all(value)
    running = "listening" if value["listening"] else "not running"
    _out.print(f"{value['federation']}: {running}", highlight=False)
    sites = Table(title="Sites", title_justify="left")
    for name in ("site", "state", "connected"):
        sites.add_column(name)
    for site in value["sites"]:
        here = value["listening"] and site["connected"]
        sites.add_row(site["site"], site["state"], "yes" if here else "no")
    _out.print(sites)
    if not value["runs"]:
        _out.print("No run was submitted yet.")
    for run in value["runs"]:
        round_ = f", round {run['round']}" if "round" in run else ""
        line = f"{run['run']}: {run['state']}{round_} · {run['plan']}"
        _out.print(line, soft_wrap=True, markup=False)
        for site, said in run.get("sites", {}).items():
            spent = run.get("spent", {}).get(site)
            cost = f", ε {spent['epsilon']:.3f} spent" if spent and spent["epsilon"] else ""
            _out.print(f"  {site}: {said}{cost}", highlight=False)
        for sentence in run.get("told", ()):
            _out.print(f"  {sentence}", highlight=False, soft_wrap=True, markup=False)
        for remark in run.get("remarks", ()):
            _out.print(f"  note: {remark}", highlight=False, soft_wrap=True, markup=False)
        if said := _figures(run.get("metrics", {})):
            number = run.get("measured", 0)
            _out.print(f"  round {number}, measured by the sites, noised: {said}", highlight=False)
        if "fault" in run:
            _out.print(f"  {run['fault']}", highlight=False, soft_wrap=True, markup=False)


def _figures(found: dict[str, float | None]) -> str:
    return ", ".join(f"{name} {value:.3f}" for name, value in found.items() if value is not None)
