"""Releases that no finished run accounts for: what was paid for, and is in no model."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable

from privet.privacy.audit.verify import accounting
from privet.privacy.audit.verify.events import Event
from privet.privacy.audit.verify.journal import Journal
from privet.privacy.audit.verify.result import Findings, Unfinished, count, show
from privet.privacy.audit.verify.site import Ledger


def unfinished(ledgers: Iterable[Ledger], journal: Journal, findings: Findings) -> list[Unfinished]:
    """Return the releases of runs that are not done, and those that no round of one used.

    Each is named in a note, with its ε. A coordinator that cuts a run short, or leaves releases
    out, has them all the same.
    """
    found = []
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
            found.append(_found(ledger, population, run, events))
    for one in found:
        cost = "not private" if one.epsilon is None else f"epsilon {one.epsilon:.3f}"
        findings.note(
            f"{one.site}: {count(one.releases, 'release')} of run {show(one.run)}, {cost}, that no"
            " finished run accounts for"
        )
    return found


def _found(ledger: Ledger, population: str, run: str, events: Counter[Event]) -> Unfinished:
    owner = ledger.populations.get(population)
    value = math.inf
    if owner is not None:
        charges = [Event(e.mechanism, e.count * n) for e, n in events.items()]
        value = accounting.epsilon(charges, owner.budget.delta, owner.budget.relation)[0]
    return Unfinished(
        ledger.name, population, run, sum(events.values()), None if math.isinf(value) else value
    )
