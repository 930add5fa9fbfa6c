"""Claim and spent budgets in sentences. Card, result, report and verifier's answer take them only
from here, so that none of them says more than another.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from privet.common.printable import counted
from privet.privacy.accounting import assumptions
from privet.privacy.audit.report.claims import ReportStanding
from privet.privacy.audit.report.phrases import figure_of, terms_of
from privet.privacy.audit.verify import SiteFinding, Verdict

_NAMED = 20
"""Sites that a sentence names."""
_NAMES = {row.id: f"{row.id} {row.name}" for row in assumptions.assess(assumptions.Facts())}


def claim_sentence(top: ReportStanding) -> str:
    """Return what is claimed, with every row of the register that it is conditional on."""
    claim = top.claim
    if claim.word == "conditional":
        points = counted(len(claim.conditional), "point")
        said = ", ".join(_NAMES.get(row, row) for row in claim.conditional)
        return f"Claim: conditional on {points} of the assumption register: {said}."
    if claim.word == "none":
        return f"Claim: none ({claim.why})."
    return "Claim: proved in the model; no point of the assumption register is unknown."


def figures_sentence(top: ReportStanding) -> str:
    """Return the largest ε, how many runs it is of, and what it is conditional on.

    There is a sentence for each δ, unit and relation; an ε never stands without them (H27).
    """
    blocks: dict[str, list[SiteFinding]] = defaultdict(list)
    for finding in top.findings:
        blocks[spent_of(finding).terms].append(finding)
    text = " ".join(_figures(found) for found in blocks.values()) or "Nothing was spent."
    return text if top.verified else f"Claimed, not verified: {text}"


def trust_sentence(top: ReportStanding) -> str:
    """Return who sees un-noised values, as the plans have it."""
    if top.trust == "local":
        return "Trust: local, nobody outside a site saw un-noised values."
    if top.trust == "central":
        return "Trust: central, the coordinator saw the updates of all sites without noise."
    return f"Trust: {top.trust or 'not stated by the plan'}."


def is_witnessed(found: Verdict) -> bool:
    """Return whether a quorum of others witnessed every entry of every ledger."""
    return bool(found.witnessed) and all(
        one.upto == one.entries > 0 for one in found.witnessed.values()
    )


def witness_phrase(found: Verdict) -> str:
    """Return who witnessed the ledgers, and how far; it follows "they are"."""
    alike: dict[str, list[str]] = {}
    for site, one in found.witnessed.items():
        by = f" by {', '.join(one.by)}" if len(found.witnessed) < 4 else ""
        if one.upto == 0:
            said = "self-asserted: nobody else signed it"
        elif one.upto == one.entries:
            said = f"witnessed to its end{by}"
        else:
            said = f"witnessed in its first {one.upto} of {one.entries} entries{by}"
        alike.setdefault(said, []).append(site)
    if not alike:
        return "self-asserted: it holds no ledger"
    if len(alike) == 1 and len(found.witnessed) > 1:
        said = next(iter(alike)).replace("its end", "the end at every site")
        return f"{said} (quorum {found.quorum})" if "witnessed" in said else said
    parts = [f"{', '.join(sites)} {said}" for said, sites in alike.items()]
    return f"{'; '.join(parts)} (quorum {found.quorum})"


@dataclass(frozen=True)
class Spent:
    """An ε as it is printed: the number, rounded up, with δ, unit and relation."""

    figure: str
    terms: str

    def __str__(self) -> str:
        return f"ε {self.figure} ({self.terms})"


def spent_of(finding: SiteFinding) -> Spent:
    """Return what a population spent in its life, with its terms; any unit has some."""
    terms = terms_of(finding.delta, finding.unit, finding.relation)
    return Spent(figure_of(finding.epsilon), terms)


def _figures(found: list[SiteFinding]) -> str:
    bare = list(dict.fromkeys(f.site for f in found if f.epsilon is None))
    if bare:
        bare[_NAMED:] = [f"{len(bare) - _NAMED} more sites"] if len(bare) > _NAMED else []
        return f"At {', '.join(bare)} something was let out without a privacy guarantee."
    worst = max(found, key=lambda f: (f.epsilon or 0.0, f.runs))
    runs = max(f.runs for f in found)
    who = "site" if len({f.site for f in found}) == len(found) else "population of a site"
    spent = f"spent at most {spent_of(worst)} in its life so far"
    text = f"Each {who} {spent}, on {counted(runs, 'run')}."
    if not any(f.conditional for f in found):
        return text
    caps = [f.cap for f in found]
    holds = "there is no cap that holds without condition"
    if None not in caps:
        cap = max(c for c in caps if c)
        holds = f"what holds without condition is the cap, ε {cap:g} of the same terms"
    return (
        f"{text} The runs were chosen one after the other, so that ε is conditional (H29); {holds}."
    )
