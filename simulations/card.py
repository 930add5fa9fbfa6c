"""The model card in the folder of a model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from privet.common.printable import printable
from privet.privacy.audit.summary import claim_sentence, figures_sentence, trust_sentence

if TYPE_CHECKING:
    from privet.simulations.result import Result


def model_card(result: Result) -> str:
    """Return the card as Markdown: the model, its purpose, and whom its privacy protects."""
    plan = result.plan
    figures = "\n".join(
        f"| {name} | {value:.3f} |" for name, value in result.metrics.items() if value is not None
    )
    sites = ", ".join(site.name for site in plan.sites)
    how = f"Trained by {len(plan.sites)} sites ({sites}) in {len(result.progress)} rounds"
    if not plan.trains:
        how = f"Weights `{plan.model.start}`, measured by {len(plan.sites)} sites ({sites})"
    model = printable(plan.model.kind)
    text = f"""---
license: other
tags: [federated-learning, differential-privacy, privet]
---
# {plan.title or plan.name}

{how} with Privet.
Model: `{model}`, trained parameters in `model.safetensors` (the frozen rest, if
any, is public and named by the plan). Plan: `{plan.digest}`.

## Privacy

{_privacy(result)}

## Figures

Source: {_SOURCES[plan.metrics.source]}.

| figure | value |
|---|---|
{figures}

{result.note}

## Limits

A model trained in a simulation is for research. It was not validated for decisions about
patients or customers, and it repeats whatever bias its records hold.
"""
    return printable(text, lines=True)


_SOURCES = {
    "public": "a test split that counts as public",
    "gate": "the sites' held-out records, noised and paid for",
    "off": "none",
}


def _privacy(result: Result) -> str:
    if result.plan.privacy is None:
        return "**None.** This model was trained without noise; treat it as if it were the data."
    top = result.standing
    return f"{figures_sentence(top)} {claim_sentence(top)}\n\n{trust_sentence(top)}"
