"""The first page in short sentences: whose data, who is protected, what is claimed, what is not.

Sites that are alike are named together, so that nine of them take one line.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from privet.privacy.audit.report.claims import Claim
from privet.privacy.audit.report.input import ReportGroup, ReportInput, dig
from privet.privacy.audit.verify import SiteFinding

UNCHECKED = ("order", "round", "model", "receipt")
"""The rules that only a coordinator's journal lets anyone check."""


def own(name: str, site: str) -> bool:
    """Whether a population or a data set is called as its site.

    Args:
        name: of a population or a data set.
        site: of its site.
    """
    return name in (site, site.replace(" ", "_"))


def together(names: Sequence[str], of: int) -> str:
    """Return the names of some sites of ``of``, shortly where they are all of several.

    Args:
        names: of the sites that are meant.
        of: how many sites there are.
    """
    if len(names) == of > 2:
        return f"all {of} sites"
    return ", ".join(names[:-1]) + " and " + names[-1] if len(names) > 1 else "".join(names)


def whose(case: ReportInput) -> str:
    """Return whose data the budgets are of: data sets and populations, by site."""
    alike: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for group in case.groups:
        alike[_described(group)].append(group.site)
    of = len(case.ledgers)
    return "; ".join(
        f"{together(list(dict.fromkeys(sites)), of)}: {''.join(said)}"
        for said, sites in alike.items()
    )


def _described(group: ReportGroup) -> tuple[str, ...]:
    names = [name for name, _ in group.data_sets]
    shown = ["named after the site" if own(name, group.site) else f"“{name}”" for name in names]
    listed = ", ".join(shown)
    sets = {0: "no data set", 1: f"data set {listed}"}.get(len(names), f"data sets {listed}")
    known = own(group.name, group.site) or [group.name] == names
    of = "" if known else f" of population “{group.name}”"
    return (sets, of)


def worst_at(block: Mapping[str, Any]) -> str:
    """Return the site or sites with the largest ε of a block."""
    worst: SiteFinding = block["worst"]
    rows: list[SiteFinding] = [row["finding"] for row in block["rows"]]
    figures = {row["figure"] for row in block["rows"]}
    sites = list(dict.fromkeys(f.site for f in rows))
    if len(figures) == 1 and len(sites) == 2:
        return "at both sites"
    if len(figures) == 1 and len(sites) > 2:
        return f"at all {len(sites)} sites"
    return f"at {worst.site}"


def protected(blocks: Sequence[Mapping[str, Any]], claims: Mapping[str, Claim]) -> str:
    """Return who is protected; a site that let out something without a guarantee protects nobody.

    Args:
        blocks: spent and left, by δ, unit and relation.
        claims: what the software claims, by site.
    """
    said = []
    for block in blocks:
        sites = list(dict.fromkeys(row["finding"].site for row in block["rows"]))
        bare = [site for site in sites if site in claims and claims[site].alarm]
        if len(bare) == len(sites):
            continue
        unit = block["unit"]
        if block["worst"].unit == "record":
            unit += " (a person with several records is protected less)"
        if bare:
            unit += f", but nobody at {together(bare, 0)}"
        said.append(unit)
    return "; ".join(said) or "nobody"


def in_the_clear(case: ReportInput, plan: str) -> bool:
    """Whether a plan's metrics are computed without noise, on a test split.

    Args:
        case: what was read.
        plan: its digest.
    """
    return bool(dig(case.plans.get(plan), "metrics", "source") == "public")
