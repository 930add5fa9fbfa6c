"""Claim and spent budgets, for those who state them: card, result, report, verifier's answer.

All of them take a :class:`ReportStanding` from here, and its words from the same sentences. A run
that has just ended has no verdict yet: :func:`standing_of` computes it from the ledgers
themselves, by the rules of a report.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from privet.privacy.accounting.units import finite
from privet.privacy.audit.report.claims import ReportStanding, standing
from privet.privacy.audit.report.sentences import (
    claim_sentence,
    figures_sentence,
    is_witnessed,
    spent_of,
    trust_sentence,
    witness_phrase,
)
from privet.privacy.audit.verify import AuditedEntry, AuditedRecord, LogRecord, SiteFinding, Verdict
from privet.privacy.audit.verify.rules.brief import Brief
from privet.privacy.evidence.ledger import Ledger
from privet.privacy.evidence.statement import Entry as Leaf

__all__ = [
    "ReportStanding", "claim_sentence", "figures_sentence", "is_witnessed", "spent_of", "standing",
    "standing_of", "trust_sentence", "witness_phrase",
]  # fmt: skip


def standing_of(ledgers: Sequence[Ledger]) -> ReportStanding:
    """Return claim and spent budgets of ledgers at hand, which nobody has verified yet.

    The rules are those that a report applies to a verdict.

    Raises:
        LedgerError: if a ledger cannot be read.
    """
    logs: list[LogRecord] = []
    plans: dict[str, dict[str, Any]] = {}
    found: list[SiteFinding] = []
    for ledger in ledgers:
        logs.append(_log_of(ledger))
        plans |= {name: json.loads(text) for name, text in ledger.log.store.papers("plan")}
        found += _findings_of(ledger)
    return standing(
        Verdict(True, "unpinned", [], [], found, AuditedRecord({}, plans, logs, brief=True))
    )


def _log_of(ledger: Ledger) -> LogRecord:
    """Return a site's log as a brief record has it."""
    record = LogRecord(ledger.state.site, "site", ledger.log.origin)
    kept = Brief(record.entries)
    for leaf in ledger.log.store.leaves():
        entry = Leaf.read(leaf)
        time = str(entry.predicate.get("time", ""))
        kept.take(AuditedEntry(entry.sequence, time, entry.kind, entry.predicate))
    kept.close()
    return record


def _findings_of(ledger: Ledger) -> list[SiteFinding]:
    found = []
    for name, population in sorted(ledger.state.populations.items()):
        loss, budget = ledger.spent(name), population.budget
        runs = len(ledger.state.charges(name))
        found.append(
            SiteFinding(
                ledger.state.site,
                name,
                str(budget.unit),
                str(budget.relation),
                budget.delta,
                finite(loss.epsilon),
                budget.epsilon,
                len(ledger.log),
                runs=runs,
                conditional=("H29",) * (runs > 1),
            )
        )
    return found
