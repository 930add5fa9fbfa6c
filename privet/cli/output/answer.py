"""What a verifier's answer looks like: as JSON, and on the screen."""

from __future__ import annotations

from collections import Counter
from typing import Any

from rich.table import Table

from privet.cli.output.console import OUT, say
from privet.common.printable import counted, printable_all
from privet.privacy.audit.summary import (
    claim_sentence,
    figures_sentence,
    is_witnessed,
    spent_of,
    standing,
    witness_phrase,
)
from privet.privacy.audit.verify import CodeFinding, SiteFinding, Verdict

_SHOWN = 20
_SETTINGS = {
    "bundle": "This was a simulation by an app that came in a Flower bundle: nothing kept its code "
    "at the sites, and the signatures bind nobody.",
    "simulation": "This was a simulation: all keys lay on one machine, and the signatures bind "
    "nobody.",
    "site": "The ledgers say that they are those of real sites.",
}


def as_json(found: Verdict) -> dict[str, Any]:
    """Return the answer of ``verify(…, brief=True)`` with what a report puts on top of it."""
    found = printable_all(found)
    value, top = found.to_dict(), standing(found)
    for site, finding in zip(value["sites"], found.sites, strict=True):
        site["in_words"] = _in_words(finding)
    return {
        **value,
        "notes": found.notes,
        "setting": top.setting,
        "claim": top.claim.word,
        "conditional_on": top.claim.conditional,
        "why": top.claim.why,
        "in_words": f"{figures_sentence(top)} {claim_sentence(top)}",
    }


def show(found: Verdict) -> None:
    """Print the answer: the sentence first, then sites, claim, faults and notes."""
    found = printable_all(found)
    top = standing(found)
    if found.ok:
        word = "Verified" if is_witnessed(found) else "Consistent"
        OUT.print(f"[bold green]{word}[/], and {witness_phrase(found)}.", highlight=False)
    else:
        faults = counted(len(found.faults), "fault")
        OUT.print(
            f"[bold red]{faults}.[/] Do not rely on its numbers. By its own words: "
            f"{witness_phrase(found)}.",
            highlight=False,
        )
    if top.setting is not None:
        say(_SETTINGS[top.setting])
    if found.roster == "pinned":
        say("The roster is pinned: signatures count by the keys that you brought.")
    else:
        say(
            "The roster is not pinned: the bundle's author chose whose signatures count. "
            "Bring the fingerprints that the sites gave you: --roster FILE."
        )
    if found.code.runs:
        say(_code(found.code))
    if found.sites:
        OUT.print(_table(found.sites))
        if any(site.conditional for site in found.sites):
            say("* of several runs, so conditional (H29)")
        say(figures_sentence(top))
    say(claim_sentence(top))
    for fault in found.faults[:_SHOWN]:
        entry = "" if fault.entry is None else f", entry {fault.entry}"
        say(f"✗ {fault.site or 'the bundle'}{entry}: {fault.rule}: {fault.message}")
    if len(found.faults) > _SHOWN:
        say(f"… and {len(found.faults) - _SHOWN} more (--json shows all)")
    for note in found.notes:
        say(f"note: {note}")


def _table(findings: list[SiteFinding]) -> Table:
    table = Table()
    for name in ("site", "population", "ε spent", "ε cap", "δ, unit, relation", "entries"):
        figure = name in ("ε spent", "ε cap", "entries")
        table.add_column(name, justify="right" if name == "entries" else "left", no_wrap=figure)
    for site in findings:
        loss = spent_of(site)
        spent = loss.figure
        if site.conditional:
            spent += " *"
        cap = "no cap" if site.cap is None else f"{site.cap:g}"
        table.add_row(site.site, site.population, spent, cap, loss.terms, str(site.entries))
    return table


def _in_words(finding: SiteFinding) -> str:
    loss = spent_of(finding)
    cap = "no cap" if finding.cap is None else f"cap {finding.cap:g}"
    terms = "" if finding.epsilon is None else f" ({loss.terms})"
    return f"ε {loss.figure}, {cap}{terms}"


def _code(code: CodeFinding) -> str:
    """Say which code ran, and on whose word."""
    if code.pinned:
        held = sum(digests <= code.pinned for digests in code.runs.values())
        verb = "names" if held == len(code.runs) == 1 else "name"
        runs = counted(len(code.runs), "run")
        return f"The code is pinned: {held} of {runs} {verb} what you brought."
    named = Counter(digest for digests in code.runs.values() for digest in digests)
    found = [f"{digest} ({counted(count, 'run')})" for digest, count in named.most_common(_SHOWN)]
    more = f" and {len(named) - _SHOWN} more" if len(named) > _SHOWN else ""
    return (
        f"The code is not pinned; the sites' word is {', '.join(found)}{more}. "
        "Bring the digest that its release publishes: --code DIGEST."
    )
