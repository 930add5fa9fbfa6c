"""The form of the public registry of differential-privacy deployments.

One record by ``schemas/deployments-schema.yaml`` of github.com/opendp/deployments-registry-data
as of July 2026 (commit 3e9c812), the registry that OpenDP keeps and NIST proposed to host.
What evidence cannot say (region, intended use) is left for the curator to fill in, so the
record is a draft.
"""

from __future__ import annotations

import re
from typing import Any

from privet.common.printable import counted
from privet.privacy.accounting.assumptions import Assumption
from privet.privacy.accounting.events import DiscreteGaussian
from privet.privacy.audit.report.input import ReportInput, dig
from privet.privacy.audit.report.phrases import NOT_PROVED, figure_of, figures_of, terms_of, unit_of
from privet.privacy.audit.verify import SiteFinding, Verdict

SCHEMA = "github.com/opendp/deployments-registry-data, schemas/deployments-schema.yaml, 3e9c812"
_FILL_IN = "To be filled in by the curator."


def record(
    case: ReportInput, verdict: Verdict, said: list[str], rows: list[Assumption]
) -> dict[str, Any]:
    """Return the registry's record of what the bundle shows, as JSON values.

    Args:
        case: what the bundle says.
        verdict: of the verifier.
        said: spent budgets and claim over all sites, in sentences.
        rows: the assumption register over all sites.
    """
    plans = [case.plans[name] for name in dict.fromkeys(run.plan for run in case.runs)
             if name in case.plans]  # fmt: skip
    titles = list(dict.fromkeys(case.title(run.plan) for run in case.runs)) or ["Nothing trained"]
    day = min((run.closed or run.opened for run in case.runs), default="")[:10]
    worst = _worst(verdict.sites)
    return {
        "url_slug": re.sub(r"[^a-z0-9]+", "-", f"{titles[0]} {day[:4]}".lower()).strip("-"),
        "status": "Draft",
        "tier": 3,
        "deployment": {
            "basic": {
                "name": "; ".join(titles),
                "data_curators": [ledger.site for ledger in case.ledgers] or ["unknown"],
                "intended_use": _FILL_IN,
                "data_product_type": "Machine learning model",
                "data_product_region": _FILL_IN,
                "description": f"A model trained by {counted(len(case.ledgers), 'site')} together. "
                "Records stay at the sites; what leaves a site is noised there.",
                "publication_date": day or "1900-01-01",
            },
            "dp_variant": {
                "variant_name": "Approximate DP",
                "data_domain": "The records that the sites registered as data sets: "
                + "; ".join(_groups(case)),
                "unprotected_quantities": "; ".join(
                    dict.fromkeys(
                        "Metrics of the model are computed " + figures_of(plan)
                        for plan in plans
                        if dig(plan, "metrics", "source") == "public"
                    )
                )
                or "None in the evidence.",
            },
            "privacy_loss": _loss(case, verdict, worst),
            "deployment_model": {
                "model_name": "Federated",
                "model_name_details": "Each site is the curator of its own records and adds noise "
                "before anything leaves it; the coordinator is not trusted with un-noised values.",
                "actors": f"Sites: {', '.join(ledger.site for ledger in case.ledgers)}. "
                f"Coordinator: {case.coordinator}.",
                "release_type": "Many releases",
                "release_type_details": "One noised update of each site in each round. The budget "
                "of a population is for its life and is never reset.",
                "data_source_type": "Static",
                "data_source_type_details": "A new extract about the same people spends the same "
                "budget.",
                "access_type": "Non-interactive",
            },
            "accounting": {
                "post_processing": "Updates are averaged into a joint model.",
                "composition": "Within a plan: privacy loss distributions (dp-accounting, grid "
                "1e-4, pessimistic). Across plans, chosen after seeing results: a Rényi filter "
                "(Feldman and Zrnic 2021).",
            },
            "implementation": {
                "preprocessing_and_hyperparameter_tuning": next(
                    row.why for row in rows if row.id == "H12"
                ),
                "mechanisms": "Poisson sampling, clipping per unit, Gaussian noise from a "
                "cryptographic generator"
                + (" (on metrics, discrete Gaussian noise)" if _is_discrete(case) else "")
                + "; ".join(_mechanisms(plans))
                + ". The guarantee is in real arithmetic; timing is outside it.",
                "justification": " ".join(said)
                + " Not proved: "
                + "; ".join(title.lower() for title, _ in NOT_PROVED)
                + ".",
            },
            "administrative": {
                "notes": _notes(case, verdict),
                "registry_authors": ["Generated by Privet; to be signed by the curator"],
            },
        },
    }


def _worst(findings: list[SiteFinding]) -> SiteFinding | None:
    return max(findings, key=lambda f: (f.epsilon is None, f.epsilon or 0.0, f.site), default=None)


def _loss(case: ReportInput, verdict: Verdict, worst: SiteFinding | None) -> dict[str, Any]:
    if worst is None:
        return {"privacy_unit": "unknown"}
    most = max((group.max_records for group in case.groups), default=1)
    found: dict[str, Any] = {
        "privacy_unit": unit_of(worst.unit, most),
        "privacy_unit_details": f"Neighbouring data sets: {worst.relation.replace('_', ' ')}, "
        "at one site.",
    }
    if worst.epsilon is not None:
        found["privacy_parameters"] = {"epsilon": worst.epsilon, "delta": worst.delta}
    spent = "; ".join(
        f"{f.site}, population {f.population}: ε {figure_of(f.epsilon)} "
        f"({terms_of(f.delta, f.unit, f.relation)}) of "
        + ("no cap" if f.cap is None else f"a lifetime cap of ε {f.cap:g}")
        for f in verdict.sites
    )
    kind = "The largest over the sites" if worst.epsilon is not None else "No guarantee"
    return {**found, "privacy_parameters_details": f"{kind}. {spent}."}


def _groups(case: ReportInput) -> list[str]:
    return [
        f"{group.site}, population {group.name} ({', '.join(name for name, _ in group.data_sets)})"
        for group in case.groups
    ]


def _is_discrete(case: ReportInput) -> bool:
    """Whether metrics were released with discrete noise; sites of older code had continuous."""
    charges = (charge for group in case.groups for charge in group.charges)
    return any(isinstance(charge.event, DiscreteGaussian) for charge in charges)


def _mechanisms(plans: list[dict[str, Any]]) -> list[str]:
    found = [f"plan {dig(plan, 'name')}: {_noise(plan)}" for plan in plans if dig(plan, "privacy")]
    return found or ["no plan with privacy"]


def _noise(plan: dict[str, Any]) -> str:
    if dig(plan, "training", "rounds") == 0:
        noise = dig(plan, "metrics", "noise_multiplier")
        return f"no training, one evaluation, noise multiplier {noise}"
    return (
        f"sampling rate {dig(plan, 'training', 'sample_rate')}, noise "
        f"multiplier {dig(plan, 'privacy', 'noise_multiplier')}, {dig(plan, 'training', 'steps')} "
        f"steps in each of {dig(plan, 'training', 'rounds')} rounds"
    )


def _notes(case: ReportInput, verdict: Verdict) -> str:
    found = [f"Form: {SCHEMA}."]
    if case.simulated:
        found.append("A simulation: all keys lay on one machine. This was no deployment.")
    if not verdict.ok:
        found.append(
            f"Verification found {counted(len(verdict.faults), 'fault')}: the numbers are "
            "claimed, not verified."
        )
    elif verdict.roster == "unpinned":
        found.append("Verified with an unpinned roster.")
    else:
        found.append("Verified with a pinned roster.")
    return " ".join(found)
