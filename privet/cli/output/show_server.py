"""What ``privet server status`` prints."""

from __future__ import annotations

from typing import Any

from rich.markup import escape
from rich.table import Table

from privet.cli.output.console import OUT, say
from privet.common.printable import printable_all
from privet.privacy.accounting.units import rounded_up

_WORDS = {
    "present": "ready",
    "waits-for-approval": "waits for approval: its operator has not decided on the plan yet",
}
"""What is printed for answers to an offer; other statuses stand for themselves."""


def status(value: dict[str, Any]) -> None:
    """Print a federation: its sites, then its runs.

    Args:
        value: as ``privet server status --json`` has it. A researcher's has no ``address``.
    """
    value = printable_all(value)
    state = "listening" if value["listening"] else "not running"
    say(f"{value['federation']}: {state}")
    _sites(value)
    if "address" in value:
        _address(value)
    if people := value.get("researchers"):
        names = ", ".join(f"{one['researcher']} ({one['state']})" for one in people)
        say(f"Researchers: {names}")
    if not value["runs"]:
        say("No run was submitted yet.")
    for run in value["runs"]:
        _run(run)
    for lost in value.get("lost", ()):
        say(
            f"{lost['run']}: not here, and {lost['site']} keeps {lost['entries']} entries of its "
            f"journal · {lost['plan']}\n  This coordinator was restored from a copy that is older "
            f"than the run, or its folder was removed. `privet server resume FOLDER {lost['run']}` "
            "brings it back; under another name it would be paid for again."
        )


def _sites(value: dict[str, Any]) -> None:
    """Print the table of sites, and the certificates that two processes use."""
    table = Table("site", "state", "connected", title="Sites", title_justify="left")
    for site in value["sites"]:
        here = "yes" if value["listening"] and site["connected"] else "no"
        table.add_row(escape(site["site"]), site["state"], here)
    OUT.print(table)
    if not value["listening"]:
        return
    for site in value["sites"]:
        if peers := ", ".join(site.get("doubled", ())):
            say(f"Two processes attend as {site['site']} and end each other's streams: {peers}")


def _run(run: dict[str, Any]) -> None:
    """Print a run: its state, what each site answered and has spent, and what was reported."""
    round_ = f", round {run['round']}" if "round" in run else ""
    by = f" · submitted by {run['by']}" if run.get("by") else ""
    say(f"{run['run']}: {run['state']}{round_} · {run['plan']}{by}")
    for site, answer in run.get("sites", {}).items():
        spent = run.get("spent", {}).get(site)
        text = f"  {site}: {_WORDS.get(answer, answer)}"
        if spent and spent["epsilon"]:
            text += f", ε {rounded_up(spent['epsilon'])} spent"
        say(text)
    for sentence in run.get("told", ()):
        say(f"  {sentence}")
    for remark in run.get("remarks", ()):
        say(f"  note: {remark}")
    if metrics := _metrics(run.get("metrics", {})):
        say(f"  round {run.get('measured', 0)}, measured by the sites, noised: {metrics}")
    if run.get("fault"):
        say(f"  {run['fault']}")


def _address(value: dict[str, Any]) -> None:
    """Say where sites dial, and which of them do not know it, or the newest authority, yet."""
    enrolled = [site["site"] for site in value["sites"] if site["state"] == "enrolled"]
    unknown = [name for name in enrolled if name not in value["noticed"]]
    line = f"Sites dial {value['address']}"
    if value["listening"] and enrolled:
        line += f"; not yet known to {', '.join(unknown)}" if unknown else "; all sites know it"
    say(line)
    if value["authority"]["overlap"]:
        left = ", ".join(value["authority"]["left"]) or "none"
        say(f"A new authority follows the former one; sites without a certificate of it: {left}")


def _metrics(found: dict[str, float | None]) -> str:
    return ", ".join(f"{name} {value:.3f}" for name, value in found.items() if value is not None)
