"""The result of a simulated run, and the files it leaves."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from privet.client.workbench import workbench
from privet.common.canonical import write_json
from privet.common.compress import bytes_of
from privet.common.errors import LedgerError
from privet.common.flat import Arrays
from privet.common.plan import Plan, Privacy
from privet.common.tasks.measure import pooled
from privet.privacy import honesty
from privet.privacy.ledger import Ledger
from privet.privacy.units import PrivacyLoss, Relation, Unit
from privet.server.rounds import Outcome, Progress
from privet.server.snapshot import save_model
from privet.simulations import plots, scenarios
from privet.simulations.card import model_card
from privet.simulations.parties import Parties
from privet.simulations.planning import attestations


@dataclass(frozen=True)
class SiteResult:
    """What a site did and spent; ``loss`` and ``cap`` are None in a run without privacy."""

    name: str
    loss: PrivacyLoss | None
    cap: float | None
    status: str
    metrics: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        epsilon = self.loss.to_dict()["epsilon"] if self.loss else None
        return {
            "name": self.name,
            "epsilon": epsilon,
            "cap": self.cap,
            "status": self.status,
            "metrics": self.metrics,
        }


@dataclass(frozen=True)
class Result:
    """The outcome of a simulated run.

    ``model`` holds the trained parameters by name; ``clipping`` is the way gradients were clipped,
    which is not the plan's where that is ``auto`` or fell back.
    """

    run: str
    plan: Plan
    sites: list[SiteResult]
    metrics: dict[str, Any]
    loss: PrivacyLoss | None
    claim: str
    conditional_on: list[str]
    honesty: list[honesty.Row]
    progress: list[Progress]
    model: Arrays
    seconds: float
    out: Path
    clipping: str

    @property
    def note(self) -> str:
        """What a reader of the figures should know, or ''."""
        return scenarios.get(self.plan.scenario).note if self.plan.scenario else ""

    @property
    def update_bytes(self) -> dict[str, int]:
        """Bytes of one site's update: its numbers as they are, and as they travel."""
        shapes = {name: array.shape for name, array in self.model.items()}
        return {
            "numbers": bytes_of(shapes, None),
            "sent": bytes_of(shapes, self.plan.compression),
        }

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON values; the keys are those of ``--json``."""
        privacy = self.plan.privacy
        return {
            "run": self.run,
            "scenario": self.plan.scenario or self.plan.name,
            "rounds": len(self.progress),
            "sites": [site.to_dict() for site in self.sites],
            "metrics": self.metrics,
            "epsilon": self.loss.to_dict()["epsilon"] if self.loss else None,
            "delta": privacy.delta if privacy else None,
            "unit": privacy.unit if privacy else None,
            "relation": privacy.relation if privacy else None,
            "trust": privacy.trust if privacy else None,
            "claim": self.claim,
            "conditional_on": self.conditional_on,
            "out": str(self.out),
            "plan": self.plan.digest,
            "model": self.plan.model.kind,
            "update_bytes": self.update_bytes,
            "clipping": self.clipping,
            "metrics_source": self.plan.metrics.source,
            "noise_multiplier": privacy.noise_multiplier if privacy else None,
            "seconds": round(self.seconds, 3),
            "note": self.note,
            "honesty": [
                {"id": row.id, "name": row.name, "state": row.state, "why": row.why}
                for row in self.honesty
            ],
            "history": [
                {
                    "round": step.round,
                    "statuses": {site: str(status) for site, status in step.statuses.items()},
                    "spent": {site: loss["epsilon"] for site, loss in step.spent.items()},
                    "metrics": _figures(step),
                }
                for step in self.progress
            ],
        }


def _figures(step: Progress) -> dict[str, Any]:
    """Return a round's figures, read from the noised tables where they came by the gate."""
    if not step.histograms:
        return step.metrics
    overall, sites = pooled(step.histograms)
    return {**overall, "sites": sites}


def make_result(run_id: str, parties: Parties, outcome: Outcome, *, seconds: float) -> Result:
    """Gather a finished run: what each site spent by its own ledger, figures, claim.

    Args:
        run_id: identifier of the run.
        parties: whose ledgers say what was spent.
        outcome: of the rounds.
        seconds: how long the run took.

    Raises:
        LedgerError: if a site released an update and its ledger does not say so.
    """
    plan = parties.plan
    last = outcome.progress[-1]
    metrics = dict(last.metrics)
    by_site: dict[str, Any] = metrics.pop("sites", {})
    if last.histograms:
        metrics, by_site = pooled(last.histograms)
    sites, losses = [], []
    for spec in plan.sites:
        loss = cap = None
        if plan.privacy is not None:
            ledger = parties.ledger(spec.name)
            released = any(step.statuses.get(spec.name) == "released" for step in outcome.progress)
            if released and not any(map(ledger.history, ledger.book.populations)):
                raise LedgerError(
                    f"{parties.home(spec.name)}: site '{spec.name}' released updates, and its "
                    "ledger does not say so; no ε can be told. Do its workers share this folder?"
                )
            loss = _spent(plan.privacy, ledger)
            cap = next((one.budget.epsilon for one in ledger.book.populations.values()), None)
            losses.append(loss)
        status = str(last.statuses.get(spec.name, "no reply"))
        sites.append(SiteResult(spec.name, loss, cap, status, by_site.get(spec.name, {})))
    worst = max(losses, key=lambda loss: loss.epsilon) if losses else None
    rows = honesty.assess(_facts(plan))
    private = worst is not None and math.isfinite(worst.epsilon) and not outcome.reproducible
    private = private and parties.setting != "bundle"
    claim, conditional = honesty.claim(rows, private=private)
    return Result(
        run_id, plan, sites, metrics, worst, claim, conditional, rows, outcome.progress,
        outcome.model, seconds, parties.folder, workbench(plan).engine.mode,
    )  # fmt: skip


def _spent(privacy: Privacy, ledger: Ledger) -> PrivacyLoss:
    """Return what a ledger's one population spent; nothing where none is registered yet."""
    if ledger.book.populations:
        return ledger.spent()
    return PrivacyLoss(0.0, privacy.delta, Unit(privacy.unit), Relation(privacy.relation))


def _facts(plan: Plan) -> honesty.Facts:
    tested, attested = workbench(plan).self_tests, attestations(plan)
    own_files = plan.scenario is None and (plan.data.path or any(s.path for s in plan.sites))
    if plan.data.multiline and own_files:
        # Records are not read one by one: whoever keeps the files vouches for their quotes.
        tested = tuple(row for row in tested if row != "H6")
        attested["H6"] = "data.multiline: the quotes of the files are closed"
    return honesty.Facts(
        self_tests=tested,
        person=bool(plan.privacy and plan.privacy.unit == "person"),
        metrics=plan.metrics.source,
        attested=attested,
    )


def write_result(result: Result) -> None:
    """Write model, card, plots and ``result.json`` into the run folder."""
    folder = result.out
    facts = {"run": result.run, "plan": result.plan.digest, "claim": result.claim}
    save_model(folder / "model" / "model.safetensors", result.model, facts)
    (folder / "model" / "README.md").write_text(model_card(result), encoding="utf-8")
    plots.write(result, folder / "plots")
    write_json(folder / "result.json", result.to_dict())
