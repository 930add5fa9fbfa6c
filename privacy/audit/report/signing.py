"""For those who sign: sizes, δ and witnesses by site, and each site's policy in rows.

A policy may be anything that its site signed, so it is read with care; what it does not say is
"not stated". Nobody checks what a site says of itself: the page labels it as its word.
"""

from __future__ import annotations

import base64
import hashlib
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from privet.privacy.accounting.units import cap_in_words
from privet.privacy.audit.report import phrases
from privet.privacy.audit.report.claims import held
from privet.privacy.audit.report.input import ReportGroup, ReportInput, ReportLedger, dig, number
from privet.privacy.audit.report.summary import own, together
from privet.privacy.audit.verify import AuditedEntry
from privet.privacy.policy import GOVERNANCE

NOT_STATED = "not stated"
SELF_ASSERTED = "self-asserted"
_MAX_ROUNDS = 10**9  # as a plan allows
_LABELS = {
    "controller": "Controller",
    "purpose": "Purpose",
    "retention": "Retention",
    "contact": "Contact",
    "next_review": "Next review",
}
_ROWS = {
    "tasks": "Tasks",
    "models": "Models",
    "max_rounds": "Rounds of a plan, at most",
    "max_parameters": "Trained parameters, at most",
    "metrics": "Metrics of the model",
    "coordinators": "Coordinators that may ask",
    "plans": "Plans approved beforehand",
    "approval": "Approval",
    "approvers": "People who must approve",
}
_APPROVAL = {
    "manual": "by hand, or approved beforehand",
    "listed": "plans approved beforehand alone",
}


_HOW = {
    "listed": "listed in the site's policy",
    "manual": "by hand",
    "simulation": "by the simulation itself; no person decided",
}


@dataclass(frozen=True)
class Size:
    """A population by its public nominal size, and δ beside 1/nominal.

    ``nominal`` is the largest that a plan names for the site; None where no plan ran.
    """

    site: str
    population: str
    unit: str
    delta: float
    nominal: int | None

    @property
    def too_large(self) -> bool:
        """Whether δ is above 1/nominal: it could let out one whole unit and hold."""
        return self.nominal is not None and self.delta * self.nominal > 1 + 1e-9

    @property
    def one_by(self) -> str:
        """1/nominal, in words."""
        return "–" if self.nominal is None else f"{1 / self.nominal:.2g}"

    @property
    def in_words(self) -> str:
        """The nominal size with its unit."""
        if self.nominal is None:
            return "no plan ran"
        return f"{self.nominal:,} {self.unit}{'' if self.nominal == 1 else 's'}"


@dataclass(frozen=True)
class SignedWatch:
    """How far one site's ledger was witnessed: the first ``upto`` of its entries, by whom."""

    site: str
    upto: int
    entries: int
    by: tuple[str, ...]

    @property
    def in_words(self) -> str:
        """By whom and up to where; or that only the site says so."""
        if not self.upto:
            return SELF_ASSERTED
        who, entries = ", ".join(self.by), f"{self.entries} entries"
        if self.upto == self.entries:
            return f"{who}: all {entries}"
        return f"{who}: the first {self.upto} of {entries}; the rest is {SELF_ASSERTED}"


def sizes(case: ReportInput) -> list[Size]:
    """Return each population with its nominal size, in the order of the roster."""
    return [
        Size(group.site, group.name, group.unit, group.delta, _nominal(case, group))
        for group in case.groups
    ]


def _nominal(case: ReportInput, group: ReportGroup) -> int | None:
    found = []
    for name in dict.fromkeys(charge.plan for charge in group.charges):
        sites = dig(case.plans.get(name), "sites")
        for site in sites if isinstance(sites, list) else []:
            size = dig(site, "nominal_size")
            if dig(site, "name") == group.site and type(size) is int and 0 < size <= _MAX_ROUNDS:
                found.append(size)
    return max(found, default=None)


def watched(case: ReportInput) -> list[SignedWatch]:
    """Return how far each site's ledger was witnessed."""
    found = []
    for ledger in case.ledgers:
        seen, entries = held(case, ledger.log), len(ledger.log.entries) + ledger.log.passed
        found.append(SignedWatch(ledger.site, entries - seen.tail, entries, seen.last))
    return found


def answers(case: ReportInput) -> list[tuple[str, dict[str, str]]]:
    """Return who answers for the data of each site, in its own words; alike sites together."""
    alike: dict[tuple[tuple[str, str], ...], list[str]] = defaultdict(list)
    for ledger in case.ledgers:
        said = _governance(ledger)
        if said["next_review"] != NOT_STATED and said["next_review"] < case.period[1][:10]:
            said["next_review"] += " (has passed)"
        alike[tuple(said.items())].append(ledger.site)
    of = len(case.ledgers)
    return [(together(sites, of), dict(said)) for said, sites in alike.items()]


def policies(case: ReportInput) -> list[tuple[str, list[tuple[str, str]]]]:
    """Return what each site's newest policy allows, in rows; alike sites together."""
    alike: dict[tuple[tuple[str, str], ...], list[str]] = defaultdict(list)
    for ledger in case.ledgers:
        alike[tuple(_rows(case, ledger))].append(ledger.site)
    of = len(case.ledgers)
    return [(together(sites, of), list(rows)) for rows, sites in alike.items()]


def labels() -> list[str]:
    """Return the headings of :func:`answers`."""
    return list(_LABELS.values())


def as_json(case: ReportInput) -> list[dict[str, Any]]:
    """Return the same as JSON values, by site."""
    seen = {found.site: found for found in watched(case)}
    return [
        {
            "site": ledger.site,
            "populations": [
                {
                    "population": size.population,
                    "unit": size.unit,
                    "nominal_size": size.nominal,
                    "delta": size.delta,
                    "delta_above_one_by_nominal": size.too_large,
                }
                for size in sizes(case)
                if size.site == ledger.site
            ],
            "witnessed": {
                "upto": seen[ledger.site].upto,
                "entries": seen[ledger.site].entries,
                "by": list(seen[ledger.site].by),
                "self_asserted": not seen[ledger.site].upto,
            },
            "own_words": _governance(ledger),
            "policy": dict(_rows(case, ledger)),
        }
        for ledger in case.ledgers
    ]


def _governance(ledger: ReportLedger) -> dict[str, str]:
    return {key: str(dig(ledger.policy, key) or NOT_STATED) for key in GOVERNANCE}


def _rows(case: ReportInput, ledger: ReportLedger) -> list[tuple[str, str]]:
    policy = ledger.policy
    if not policy:
        return [("Policy", "none is in the ledger")]
    allow = dig(policy, "allow")
    rows = [(label, _allowed(case, key, dig(allow, key))) for key, label in _ROWS.items()]
    rows.append(("Officers, who sign by keys of their own", _officers(dig(policy, "officers"))))
    found = dig(policy, "populations")
    kept = found.items() if isinstance(found, dict) else ()
    said = "; ".join(_population(ledger.site, str(name), value) for name, value in kept)
    rows.append(("Populations, with their lifetime caps", said or NOT_STATED))
    return [*_changed(ledger), *rows]


def _officers(value: Any) -> str:
    if not isinstance(value, dict) or not value:
        return "none: names of approvers are as they were typed"
    return ", ".join(map(str, value))


def decided_how(entry: AuditedEntry) -> str:
    """Say how a plan was approved or refused, and whether by an officer's own key."""
    how = _HOW.get(str(entry.predicate["how"]), str(entry.predicate["how"]))
    signed = dig(entry.predicate, "signature", "name")
    if signed is not None:
        return f"{how}; signed by {signed} by a key of their own"
    return how


def _changed(ledger: ReportLedger) -> list[tuple[str, str]]:
    """Say where the newest policy is not the one under which everything was charged."""
    newest = ledger.policies[-1]
    before = sum(charge.entry.sequence < newest.sequence for charge in ledger.charges)
    if not before:
        return []
    what = "all" if before == len(ledger.charges) else f"{before} of {len(ledger.charges)}"
    return [("Changed", f"{newest.time[:10]}; {what} charges are from before, under earlier ones")]


def _allowed(case: ReportInput, key: str, value: Any) -> str:
    if value is None:
        return NOT_STATED
    if key == "approval":
        return _APPROVAL.get(str(value), str(value))
    if isinstance(value, list):
        if value == ["*"]:
            return "any"
        return ", ".join(_named(case, key, value)) or "none"
    if isinstance(value, int):
        return f"{value:,}"
    return str(value)


def _named(case: ReportInput, key: str, values: list[Any]) -> Iterable[str]:
    chief = _fingerprint(dig(case.record.roster, "coordinator", "orders"))
    for value in map(str, values):
        if key == "coordinators" and value == chief:
            yield f"“{case.coordinator}” ({value[:19]}…)"
        elif key == "plans" and value in case.plans:
            yield f"“{case.title(value)}” ({value[:19]}…)"
        elif key in ("coordinators", "plans"):
            yield f"{value[:19]}…"
        else:
            yield value


def _fingerprint(key: Any) -> str:
    """Return the fingerprint of a key as a roster writes it, or ''."""
    try:
        raw = base64.b64decode(str(key).split("+", 2)[2], validate=True)[1:]
    except (IndexError, ValueError):
        return ""
    return "sha256:" + hashlib.sha256(raw).hexdigest()


def _population(site: str, name: str, value: Any) -> str:
    cap, delta = number(dig(value, "epsilon")), number(dig(value, "delta"))
    unit, relation = str(dig(value, "unit")), str(dig(value, "relation"))
    shown = "named after the site" if own(name, site) else f"“{name}”"
    terms = phrases.terms_of(delta or 0.0, unit, relation)
    return f"{shown}: {cap_in_words(cap)} ({terms})"
