"""What ``privet server status`` prints."""

from __future__ import annotations

import sys
from typing import Any

from rich.console import Console
from rich.table import Table

from privet.common.printable import printable_all
from privet.privacy.accounting.units import rounded_up

_out = Console(width=None if sys.stdout.isatty() else 100)


_WORDS = {
    "present": "ready",
    "waits-for-approval": "waits for approval: its operator has not decided on the plan yet",
}
"""What is printed for answers to an offer; other statuses stand for themselves."""


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
    for site in value["sites"] if value["listening"] else ():
        if peers := ", ".join(site.get("doubled", ())):
            text = f"Two processes attend as {site['site']} and end each other's streams: {peers}"
            _out.print(text, highlight=False, soft_wrap=True, markup=False)
    if "address" in value:  # a researcher is not told
        _address(value)
    if people := value.get("researchers"):
        said = ", ".join(f"{one['researcher']} ({one['state']})" for one in people)
        _out.print(f"Researchers: {said}", highlight=False, soft_wrap=True, markup=False)
    if not value["runs"]:
        _out.print("No run was submitted yet.")
    for run in value["runs"]:
        round_ = f", round {run['round']}" if "round" in run else ""
        by = f" · submitted by {run['by']}" if run.get("by") else ""
        line = f"{run['run']}: {run['state']}{round_} · {run['plan']}{by}"
        _out.print(line, soft_wrap=True, markup=False)
        for site, said in run.get("sites", {}).items():
            spent = run.get("spent", {}).get(site)
            cost = f", ε {rounded_up(spent['epsilon'])} spent" if spent and spent["epsilon"] else ""
            _out.print(f"  {site}: {_WORDS.get(said, said)}{cost}", highlight=False)
        for sentence in run.get("told", ()):
            _out.print(f"  {sentence}", highlight=False, soft_wrap=True, markup=False)
        for remark in run.get("remarks", ()):
            _out.print(f"  note: {remark}", highlight=False, soft_wrap=True, markup=False)
        if said := _figures(run.get("metrics", {})):
            number = run.get("measured", 0)
            _out.print(f"  round {number}, measured by the sites, noised: {said}", highlight=False)
        if run.get("fault"):
            _out.print(f"  {run['fault']}", highlight=False, soft_wrap=True, markup=False)
    for lost in value.get("lost", ()):
        text = (
            f"{lost['run']}: not here, and {lost['site']} keeps {lost['entries']} entries of its "
            f"journal · {lost['plan']}\n  This coordinator was restored from a copy that is older "
            f"than the run, or its folder was removed. `privet server resume FOLDER {lost['run']}` "
            "brings it back; under another name it would be paid for anew."
        )
        _out.print(text, highlight=False, soft_wrap=True, markup=False)


def _address(value: dict[str, Any]) -> None:
    """Say where sites dial, and which of them do not know it, or the newest authority, yet."""
    enrolled = [site["site"] for site in value["sites"] if site["state"] == "enrolled"]
    unknown = [name for name in enrolled if name not in value["noticed"]]
    line = f"Sites dial {value['address']}"
    if value["listening"] and enrolled:
        line += f"; not told yet: {', '.join(unknown)}" if unknown else "; all were told"
    _out.print(line, highlight=False, soft_wrap=True, markup=False)
    if value["authority"]["overlap"]:
        left = ", ".join(value["authority"]["left"]) or "none"
        text = f"A new authority follows the former one; sites without a certificate of it: {left}"
        _out.print(text, highlight=False, soft_wrap=True, markup=False)


def _figures(found: dict[str, float | None]) -> str:
    return ", ".join(f"{name} {value:.3f}" for name, value in found.items() if value is not None)
