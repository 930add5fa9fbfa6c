"""The report's content as plain values: what the page prints and the JSON holds."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from privet.privacy.audit.report import charts, phrases, signing, summary
from privet.privacy.audit.report.claims import (
    Claim,
    Held,
    Intervals,
    claim_of,
    facts,
    held,
    lines,
    of_run,
    standing_in,
)
from privet.privacy.audit.report.input import ReportCharge, ReportGroup, ReportInput, ReportRun, dig
from privet.privacy.audit.report.sentences import (
    claim_sentence,
    figures_sentence,
    is_witnessed,
    trust_sentence,
    witness_phrase,
)
from privet.privacy.audit.verify import LogRecord, SiteFinding, Verdict

MAX_FAULTS = 200


def view(case: ReportInput, verdict: Verdict, interval: Intervals) -> dict[str, Any]:
    """Return everything that the page's template needs.

    Args:
        case: what was read.
        verdict: of the verifier.
        interval: of an independent accountant, if it was asked.
    """
    top = standing_in(case, verdict)
    overall = top.claim
    blocks = _blocks(case, verdict, interval)
    refused = refusals(case)
    known = facts(case, case.ledgers)
    rows = list(top.rows)
    overlap = (known.attested or {}).get("H21")
    claims = [(ledger.site, claim_of(case, verdict, [ledger])) for ledger in case.ledgers]
    return {
        "verdict": verdict,
        "verified": verdict.ok,
        "faults": verdict.faults[:MAX_FAULTS],
        "more_faults": max(0, len(verdict.faults) - MAX_FAULTS),
        "simulation": case.simulated,
        "case": case,
        "titles": list(dict.fromkeys(case.title(run.plan) for run in case.runs)),
        "blocks": blocks,
        "overdrawn": any(
            f.epsilon is None or f.epsilon > (f.cap or f.epsilon) + 1e-6 for f in verdict.sites
        ),
        "capped": any(finding.cap is not None for finding in verdict.sites),
        "intervals": bool(interval),
        "holders": _holders(verdict),
        "pictures": _pictures(case, verdict) if verdict.ok else [],
        "runs": _runs(case, verdict, refused),
        "refusals": refused,
        "aborted": aborted(case),
        "rows": rows,
        "states": Counter(row.state for row in rows),
        "not_proved": phrases.not_proved(known.metrics == "public" and bool(case.runs), overlap),
        "claim": overall,
        "in_words": [figures_sentence(top), claim_sentence(top)],
        "trust": trust_sentence(top),
        "witnessed": is_witnessed(verdict),
        "witness": witness_phrase(verdict),
        "second": known.second,
        "sizes": signing.sizes(case),
        "watched": {found.site: found for found in signing.watched(case)},
        "answers": signing.answers(case),
        "policies": signing.policies(case),
        "labels": signing.labels(),
        "claims": claims,
        "whose": summary.whose(case),
        "protected": summary.protected(blocks, dict(claims)),
        "unpaid": [f.site for f in verdict.sites if f.epsilon is None],
        "unchecked": [] if case.journal else list(summary.UNCHECKED),
        "witnesses": [(log, held(case, log)) for log in case.record.logs],
        "changes": changes(case),
        "approvals": [
            (ledger.site, entry) for ledger in case.ledgers for entry in ledger.approvals
        ],
        "decided_how": signing.decided_how,
        "plans": [(name, plan, phrases.plan_of(plan)) for name, plan in sorted(case.plans.items())],
        "software": sorted({ledger.software for ledger in case.ledgers if ledger.software}),
        "codes": sorted({code for run in case.runs for code in run.codes}),
        "words": phrases,
        "own": summary.own,
    }


def _blocks(case: ReportInput, verdict: Verdict, interval: Intervals) -> list[dict[str, Any]]:
    """Return spent and left, one block for each δ, unit and relation."""
    groups = {(group.site, group.name): group for group in case.groups}
    blocks: dict[str, dict[str, Any]] = {}
    for finding in verdict.sites:
        terms = phrases.terms_of(finding.delta, finding.unit, finding.relation)
        group = groups.get((finding.site, finding.population))
        block = blocks.setdefault(terms, {"terms": terms, "rows": [], "worst": finding})
        block["rows"].append(_spent(finding, group, interval, claimed=not verdict.ok))
        if (finding.epsilon is None, finding.epsilon or 0) > (
            block["worst"].epsilon is None,
            block["worst"].epsilon or 0,
        ):
            block["worst"] = finding
    for block in blocks.values():
        worst: SiteFinding = block["worst"]
        most = max((g.max_records for g in groups.values() if g.unit == worst.unit), default=1)
        block["unit"] = phrases.unit_of(worst.unit, most)
        block["question"] = phrases.question_of(worst.unit, worst.relation)
        block["relation"] = phrases.relation_of(worst.unit, worst.relation)
        block["where"] = summary.worst_at(block)
        block["bare"] = [r["finding"].site for r in block["rows"] if r["finding"].epsilon is None]
        if worst.epsilon is not None:
            block["odds"] = phrases.odds(worst.epsilon, worst.delta)
            block["weak"] = phrases.weak(worst.epsilon)
    return list(blocks.values())


def _spent(
    finding: SiteFinding, group: ReportGroup | None, interval: Intervals, *, claimed: bool
) -> dict[str, Any]:
    share = None
    if finding.cap:
        share = 9.0 if finding.epsilon is None else finding.epsilon / finding.cap
    figure, left = phrases.figure_of(finding.epsilon), phrases.left_of(finding.epsilon, finding.cap)
    cap = "no cap" if finding.cap is None else f"{finding.cap:g}"
    label = f"{finding.site}, population {finding.population}: ε {figure} spent of {cap}"
    return {
        "finding": finding,
        "group": group,
        "figure": figure,
        "left": left,
        "cap": cap,
        "bar": charts.bar(share, label, claimed=claimed),
        "ceiling": phrases.figure_of(finding.rdp_epsilon),
        "interval": interval.get((finding.site, finding.population)),
        "data_sets": group.data_sets if group else [],
    }


def _holders(verdict: Verdict) -> list[tuple[str, list[str]]]:
    found: dict[str, list[str]] = defaultdict(list)
    for finding in verdict.sites:
        found[phrases.HOLDERS[finding.enforced_by]].append(finding.site)
    return [(holder, list(dict.fromkeys(sites))) for holder, sites in found.items()]


def _pictures(case: ReportInput, verdict: Verdict) -> list[tuple[str, charts.Picture]]:
    by_terms: dict[str, list[Any]] = defaultdict(list)
    for line in lines(case, verdict):
        group = line.group
        by_terms[phrases.terms_of(group.delta, group.unit, group.relation)].append(line)
    return [
        (terms, charts.over_time(found, terms, f"time{number}"))
        for number, (terms, found) in enumerate(by_terms.items())
    ]


def _runs(
    case: ReportInput, verdict: Verdict, refused: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    spent = {(f.site, f.population): f.epsilon for f in verdict.sites}
    return [_run(case, run, refused, spent) for run in case.runs]


def _run(
    case: ReportInput,
    run: ReportRun,
    refused: list[dict[str, Any]],
    spent: Mapping[tuple[str, str], float | None],
) -> dict[str, Any]:
    charges = [c for ledger in case.ledgers for c in ledger.charges if c.run == run.name]
    costs: list[tuple[float, str]] = []
    private = True
    for group in case.groups:
        if run.name in group.runs:
            cost = of_run(group, run.name, spent.get((group.site, group.name)))
            private = private and cost is not None
            if cost is not None:
                terms = phrases.terms_of(group.delta, group.unit, group.relation)
                costs.append((cost, f"ε {phrases.figure_of(cost)} ({terms})"))
    released = [charge for charge in charges if charge.state == "released"]
    measured = sum(charge.purpose == "evaluate" for charge in released)
    clear = summary.in_the_clear(case, run.plan) and not measured
    price = "nothing"
    if charges:
        price = "no guarantee"
    if costs and private:
        price = max(costs)[1]
    return {
        "run": run,
        "title": case.title(run.plan),
        "trained": sum(charge.purpose == "train" for charge in released),
        "measured": measured,
        "figures": "in the clear, not charged" if clear else measured,
        "kept": sum(charge.state in ("kept", "open") for charge in charges),
        "returned": sum(charge.state == "returned" for charge in charges),
        "refused": sum(row["count"] for row in refused if row["run"] == run.name),
        "cost": price,
    }


def refusals(case: ReportInput) -> list[dict[str, Any]]:
    """Return how often each site refused each run, and why."""
    counts: Counter[tuple[str, str, str, str]] = Counter()
    for ledger in case.ledgers:
        for entry in ledger.refusals:
            value = entry.predicate
            counts[value["run"], ledger.site, value["status"], value["purpose"]] += 1
    for run in case.runs:
        for (site, answer), count in run.answers.items():
            counts[run.name, site, answer, ""] += count
    return [
        {
            "run": run,
            "site": site,
            "status": status,
            "purpose": purpose,
            "count": count,
            "why": phrases.STATUSES.get(status, "a status this report does not know"),
        }
        for (run, site, status, purpose), count in sorted(counts.items())
    ]


def aborted(case: ReportInput) -> list[tuple[str, ReportCharge]]:
    """Return charges that led to no release, with their sites."""
    return [
        (ledger.site, charge)
        for ledger in case.ledgers
        for charge in ledger.charges
        if charge.state != "released"
    ]


def changes(case: ReportInput) -> list[tuple[str, str, str]]:
    """Return key rotations, pauses, withdrawals and closed budgets: (time, who, what)."""
    found: list[tuple[str, str, str]] = []
    logs = [(ledger.log, [*ledger.rotations, *ledger.stops]) for ledger in case.ledgers]
    if case.journal is not None:
        rotated = [entry for entry in case.journal.entries if entry.kind == "key-rotated"]
        logs.append((case.journal, rotated))
    for log, entries in logs:
        for entry in entries:
            value = entry.predicate
            if entry.kind == "key-rotated":
                what = {
                    "rotation": "changed its key; the old one signs nothing any more",
                    "recovery": "replaced a lost key by means of its recovery key",
                }.get(value["why"], "changed its key")
            elif entry.kind == "budget-closed":
                what = f"closed the budget of population {value['population']} permanently"
            else:
                by = value["by"]
                people = ", ".join(by) if isinstance(by, list) else str(by)
                what = f"{entry.kind} (by {people})"
            found.append((entry.time, log.name, what))
    return sorted(found)


def as_json(
    case: ReportInput, verdict: Verdict, content: Mapping[str, Any], made: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the report as JSON values. Each ε stands with its δ, unit and relation.

    Args:
        case: what was read.
        verdict: of the verifier.
        content: of :func:`view`.
        made: when, from which bundle and by what it was made.
    """
    claim: Claim = content["claim"]
    by_site = dict(content["claims"])
    return {
        "format": "privet/report/v1",
        "made": dict(made),
        "verified": verdict.ok,
        "roster": verdict.roster,
        "witnessed": verdict.to_dict()["witnessed"],
        "unfinished": verdict.to_dict()["unfinished"],
        "faults": [asdict(fault) for fault in verdict.faults],
        "notes": verdict.notes,
        "simulation": content["simulation"],
        "unchecked": content["unchecked"],
        "coordinator": case.coordinator,
        "period": list(case.period),
        "claim": claim.word,
        "conditional_on": claim.conditional,
        "in_words": " ".join(content["in_words"]),
        "sites": [
            _site(row, by_site.get(row["finding"].site, claim))
            for block in content["blocks"]
            for row in block["rows"]
        ],
        "signing": signing.as_json(case),
        "runs": [_run_json(row) for row in content["runs"]],
        "refusals": content["refusals"],
        "aborted": [
            {
                "site": site,
                "entry": charge.entry.sequence,
                "run": charge.run,
                "round": charge.round,
                "attempt": charge.attempt,
                "purpose": charge.purpose,
                "state": charge.state,
                "reason": charge.reason,
            }
            for site, charge in content["aborted"]
        ],
        "honesty": [
            {"id": row.id, "name": row.name, "state": row.state, "why": row.why}
            for row in content["rows"]
        ],
        "witnesses": [_held(case, log, found) for log, found in content["witnesses"]],
        "changes": [dict(zip(("time", "who", "what"), row, strict=True))
                    for row in content["changes"]],
        "approvals": [
            {
                "site": site,
                "time": entry.time,
                "plan": entry.predicate["plan"],
                "approved": entry.kind == "plan-approved",
                "by": entry.predicate["by"],
                "how": entry.predicate["how"],
                "signed_by": dig(entry.predicate, "signature", "name"),
            }
            for site, entry in content["approvals"]
        ],
        "plans": {
            name: {"title": case.title(name), "words": dict(pairs)}
            for name, _, pairs in content["plans"]
        },
        "code": content["codes"],
        "code_pinned": bool(verdict.code.pinned),
        "programs": content["software"],
        "not_proved": [title for title, _ in content["not_proved"]],
    }  # fmt: skip


def _site(row: Mapping[str, Any], claim: Claim) -> dict[str, Any]:
    finding: SiteFinding = row["finding"]
    between = row["interval"]
    left = None
    if finding.cap is not None and finding.epsilon is not None:
        left = max(0.0, finding.cap - finding.epsilon)
    return {
        "site": finding.site,
        "population": finding.population,
        "data_sets": [name for name, _ in row["data_sets"]],
        "epsilon": finding.epsilon,
        "cap": finding.cap,
        "left": left,
        "delta": finding.delta,
        "unit": finding.unit,
        "relation": finding.relation,
        "rdp_epsilon": finding.rdp_epsilon,
        "interval": [between.low, between.high] if between else None,
        "enforced_by": finding.enforced_by,
        "claim": claim.word,
        "conditional_on": claim.conditional,
        "charges": finding.charges,
        "runs": finding.runs,
        "entries": finding.entries,
    }


def _run_json(row: Mapping[str, Any]) -> dict[str, Any]:
    run: ReportRun = row["run"]
    return {
        "run": run.name,
        "plan": run.plan,
        "title": row["title"],
        "sites": run.sites,
        "opened": run.opened,
        "closed": run.closed,
        "how": run.how,
        "rounds": run.rounds,
        "model": run.model,
        "releases": row["trained"],
        "metric_releases": row["measured"],
        "figures": row["figures"],
        "charged_without_release": row["kept"],
        "given_back": row["returned"],
        "refused": row["refused"],
        "largest_cost": row["cost"],
    }


def _held(case: ReportInput, log: LogRecord, found: Held) -> dict[str, Any]:
    return {
        "log": log.origin,
        "name": log.name,
        "heads": found.heads,
        "with_quorum": found.enough,
        "quorum": case.quorum,
        "unwitnessed_entries": found.tail,
        "cosigned": dict(sorted(found.by.items())),
    }
