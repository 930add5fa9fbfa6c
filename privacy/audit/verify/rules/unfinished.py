"""Releases that no finished run accounts for: what was paid for, and is in no model."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable

from privet.privacy.audit.verify.cost.compositions import Compositions
from privet.privacy.audit.verify.formats.events import Event
from privet.privacy.audit.verify.result import Findings, Unfinished, count, finite, show
from privet.privacy.audit.verify.rules.journal import AuditedJournal
from privet.privacy.audit.verify.rules.site import AuditedLedger


def unfinished(
    ledgers: Iterable[AuditedLedger],
    journal: AuditedJournal,
    findings: Findings,
    compositions: Compositions,
) -> list[Unfinished]:
    """Return the releases of runs that are not done, and those that no round of one used.

    Each is named in a note, with its ε. A coordinator that cuts a run short, or leaves releases
    out, has them all the same.

    Args:
        ledgers: of the bundle.
        journal: of the bundle.
        findings: notes go there.
        compositions: that count their time.
    """
    found: list[Unfinished] = []
    said: list[str] = []
    for ledger in ledgers:
        by_run: dict[tuple[str, str], Counter[Event]] = {}
        elsewhere = 0
        for (population, run, purpose, event), number in ledger.released.items():
            if run is None:
                elsewhere += number
                continue
            opened = journal.runs.get(run)
            if opened is not None and opened.how == "done":
                number = min(number, journal.unused[ledger.name, run, purpose])
            if number:
                by_run.setdefault((population, run), Counter())[event] += number
        if elsewhere:
            findings.note(
                f"{ledger.name}: {count(elsewhere, 'release')} of runs whose journal is not here:"
                " what became of them is not checked; their epsilon is part of what was spent"
            )
        for (population, run), events in by_run.items():
            one, remark = _found(ledger, population, run, events, compositions)
            found.append(one)
            said.append(_words(one, remark))
    for text in said:
        findings.note(text)
    return found


def _words(one: Unfinished, remark: str) -> str:
    cost = "not private"
    if one.epsilon is not None:
        cost = f"epsilon {_rounded_up(one.epsilon)}"
        if remark:
            cost += f" ({remark})"
    return (
        f"{one.site}: {count(one.releases, 'release')} of run {show(one.run)}, {cost}, that no"
        " finished run accounts for"
    )


def _rounded_up(epsilon: float) -> str:
    return f"{math.ceil(epsilon * 1000 - 1e-6) / 1000:.3f}"


def _found(
    ledger: AuditedLedger,
    population: str,
    run: str,
    events: Counter[Event],
    compositions: Compositions,
) -> tuple[Unfinished, str]:
    """Return the releases of one run with their ε, and a remark on it."""
    owner = ledger.populations.get(population)
    value, remark = math.inf, ""
    if owner is not None:
        charges = [Event(e.mechanism, e.count * n) for e, n in events.items()]
        value, _, remark = compositions.epsilon(charges, owner.budget.delta, owner.budget.relation)
    releases = sum(events.values())
    return Unfinished(ledger.name, population, run, releases, finite(value)), remark
