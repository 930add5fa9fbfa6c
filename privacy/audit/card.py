"""The card of a model: what it is, and what ledgers and a verifier say of it."""

from __future__ import annotations

import base64
import html
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from privet.common.errors import InputError, PrivetError
from privet.common.plan import Plan
from privet.common.printable import printable, printable_all
from privet.privacy.accounting.units import PrivacyLoss, Relation, Unit
from privet.privacy.audit.bundle import write_bundle
from privet.privacy.audit.summary import (
    ReportStanding,
    claim_sentence,
    figures_sentence,
    spent_of,
    standing,
    trust_sentence,
    witness_phrase,
)
from privet.privacy.audit.verify import Verdict, verify
from privet.privacy.evidence.signed_note import Checkpoint

_NAMED_SITES = 50
"""Sites that a card names."""


@dataclass(frozen=True)
class CardEvidence:
    """What files say about a model.

    Attributes:
        verdict: of the verifier.
        standing: the claim and the spent budget, by the rules of a report.
        run: name of the run that ended with this model; None if the journal names none.
        heads: by log, the size and the root of its last checkpoint.
    """

    verdict: Verdict
    standing: ReportStanding
    run: str | None
    heads: dict[str, tuple[int, str]]


def gather(source: Path, roster: Path | None, model: str) -> CardEvidence:
    """Verify a bundle, or a run's folder that is bundled for the purpose.

    Args:
        source: a bundle or a folder.
        roster: fingerprints that were had out of band, or None.
        model: digest of the model's arrays.

    Raises:
        InputError: if there is no evidence there.
    """
    if source.is_file():
        return _read(source, roster, model)
    with tempfile.TemporaryDirectory() as name:
        bundle = Path(name) / "run.bundle"
        try:
            write_bundle([source], bundle)
        except PrivetError as error:
            raise InputError(
                f"{source}: its evidence cannot be gathered ({error}); name a bundle: --bundle FILE"
            ) from error
        return _read(bundle, roster, model)


def _read(bundle: Path, roster: Path | None, model: str) -> CardEvidence:
    verdict = verify(bundle, roster, brief=True)
    run = None
    for log in verdict.record.logs if verdict.record else []:
        for entry in log.entries:
            said = entry.predicate
            if entry.kind == "run-closed" and said.get("model") == model:
                run = str(said.get("run"))
    heads: dict[str, tuple[int, str]] = {}
    with bundle.open(encoding="utf-8") as lines:
        for line in lines:
            if line.startswith('{"kind":"checkpoint"'):
                head = Checkpoint.parse(json.loads(line)["note"])
                heads[head.origin] = head.size, base64.b64encode(head.root).decode()
    return printable_all(CardEvidence(verdict, standing(verdict), run, heads))


def write_card(
    plan: Plan,
    figures: Mapping[str, Any],
    evidence: CardEvidence | ReportStanding | None,
    *,
    source: str,
    note: str = "",
    lighter: Mapping[str, Mapping[str, Any]] | None = None,
    provenance: Sequence[str] = (),
    folder: Sequence[str] = (),
    opening: Sequence[str] = (),
) -> str:
    """Return the card as Markdown, with a header that Hugging Face reads.

    Args:
        plan: of the run.
        figures: metrics of the model, by name.
        evidence: what was verified, or what the ledgers of a run say that just ended; None if none
            was at hand.
        source: where the metrics come from, in words.
        note: what a reader of the metrics should know.
        lighter: metrics of the pruned or quantised variants, by name.
        provenance: where vocabulary and normalisation come from, in sentences.
        folder: what was found when the exported folder was opened again, in sentences.
        opening: lines of Python that open it.
    """
    rows = "\n".join(
        f"| {name.replace('_', ' ')} | {value:.4g} |"
        for name, value in figures.items()
        if isinstance(value, int | float)
    )
    there = plan.participants
    sites = ", ".join(site.name for site in there[:_NAMED_SITES])
    if len(there) > _NAMED_SITES:
        sites += ", …"
    how = f"Trained by {len(there)} sites ({sites}) in {plan.training.rounds} rounds"
    if plan.schedule is not None:
        how += f", {plan.sites_in_a_round} in each by turns"
    start = f" It started from `{plan.model.start}`." if plan.model.start else ""
    if not plan.trains:
        how, start = (
            f"Weights `{plan.model.start}`, measured by {len(plan.sites)} sites ({sites})",
            "",
        )
    task, model = printable(plan.task.kind), printable(plan.model.kind)
    text = f"""---
license: other
library_name: privet
tags: [federated-learning, differential-privacy, privet]
---
# {html.escape(plan.title or plan.name, quote=False)}

{how} with Privet, for the
task `{task}`, with the model `{model}`.{start} Plan: `{plan.digest}`.

## Privacy

{_privacy(plan, evidence)}

## Metrics

Source: {source}.

| metric | value |
|---|---|
{rows}

{note}
{_variants(lighter or {})}
{_inputs(provenance)}{_folder(folder, opening)}
## Limits

The metrics apply to the records named above and to no others. Before the model decides about
people, check its metrics by group (`privet model evaluate --group`) and which parts of a record
decide its output (`privet model explain`). It was not validated for decisions about patients or
customers, and it repeats whatever bias its records hold.
"""
    return printable(text, lines=True)


def _inputs(provenance: Sequence[str]) -> str:
    """Return the section on what inputs are made with, or ''."""
    if not provenance:
        return ""
    lines = "\n".join(f"- {html.escape(printable(line), quote=False)}" for line in provenance)
    return f"## Vocabulary and normalisation (H12)\n\n{lines}\n"


def _folder(notes: Sequence[str], opening: Sequence[str]) -> str:
    """Return the section on the exported folder, or ''."""
    if not notes:
        return ""
    code = "\n".join(f"    {line}" for line in opening)
    said = html.escape(printable(" ".join(notes)), quote=False)
    return f"\n## The folder\n\n{said}\n" + (f"\n{code}\n" if opening else "")


def _variants(lighter: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the table that compares smaller variants with the whole model, or ''."""
    if not lighter:
        return ""
    names = list(dict.fromkeys(name for row in lighter.values() for name in row))
    what = "There were no public records to measure them on:"
    if any(set(row) - {"bytes", "packed"} for row in lighter.values()):
        what = "The metrics are exact, of public records:"
    lines = [
        f"Smaller variants, made after the training, at no cost of privacy. {what}",
        "",
        "| variant | " + " | ".join(names) + " |",
        "|---" * (len(names) + 1) + "|",
    ]
    for variant, row in lighter.items():
        cells = [_cell(row.get(name)) for name in names]
        lines.append(f"| {variant} | " + " | ".join(cells) + " |")
    lines += [
        "",
        "`packed` is the size after gzip: a weight of zero takes as many bytes until then.",
    ]
    return "\n".join(lines) + "\n"


def _cell(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _privacy(plan: Plan, evidence: CardEvidence | ReportStanding | None) -> str:
    privacy = plan.privacy
    if privacy is None:
        return "**None.** This model was trained without noise; treat it as if it were the data."
    asked = PrivacyLoss(
        privacy.epsilon, privacy.delta, Unit(privacy.unit), Relation(privacy.relation)
    )
    text = f"The plan allows each site **{asked}**. Trust: {privacy.trust}, by the plan.\n\n"
    if evidence is None:
        return text + "**Not verified:** no evidence was at hand when this card was written."
    if isinstance(evidence, ReportStanding) and not any(f.entries for f in evidence.findings):
        return text + (
            f"{_claimed(evidence)}\n\nThis is what the simulation counted. It kept no ledgers, so "
            "there is nothing to verify."
        )
    if isinstance(evidence, ReportStanding):
        return text + (
            f"{_claimed(evidence)}\n\nThis is what the sites' ledgers say, earlier runs included. "
            "`privet audit verify` checks them, and `privet model export` writes this card again."
        )
    return text + _verified(evidence)


def _claimed(top: ReportStanding) -> str:
    said = [figures_sentence(top), claim_sentence(top), trust_sentence(top)]
    if top.setting != "site":
        kept = any(finding.entries for finding in top.findings)
        said.append("This was a simulation" + (": all keys lay on one machine." if kept else "."))
    return " ".join(said)


def _verified(evidence: CardEvidence) -> str:
    verdict, top = evidence.verdict, evidence.standing
    pinned = "pinned" if verdict.roster == "pinned" else "not pinned: its keys came with it"
    if not verdict.ok:
        faults = "\n".join(f"- {fault.rule}: {fault.message}" for fault in verdict.faults[:10])
        return f"**Its evidence has faults**; rely on no number in it.\n\n{faults}"
    lines = [f"The evidence was verified: no rule is broken (roster {pinned})."]
    lines.append(f"It is {witness_phrase(verdict)}.")
    if evidence.run is None:
        lines.append("**The journal names no run that ended with this model.**")
    else:
        lines.append(f"The journal says that run `{evidence.run}` ended with this very model.")
    table = ["| site | population | spent in its life | cap |", "|---|---|---|---|"]
    for found in verdict.sites:
        cap = "none" if found.cap is None else f"ε {found.cap:g}"
        table.append(f"| {found.site} | {found.population} | {spent_of(found)} | {cap} |")
    heads = ["| log | entries | root |", "|---|---|---|"]
    heads += [f"| `{name}` | {size} | `{root}` |" for name, (size, root) in evidence.heads.items()]
    parts = [" ".join(lines), _claimed(top), "\n".join(table), "Checkpoints:", "\n".join(heads)]
    return "\n\n".join(parts)
