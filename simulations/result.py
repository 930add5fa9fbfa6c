"""The result of a simulated run, and its files."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from privet.client.training.model_runtime import model_runtime
from privet.common.compress import bytes_of
from privet.common.errors import LedgerError
from privet.common.flat import Arrays
from privet.common.plan import Plan, Privacy
from privet.common.printable import counted
from privet.common.tasks.measure import measure_of_kind, pooled
from privet.common.tasks.weakness import weakness_of_tables
from privet.privacy.accounting import assumptions
from privet.privacy.accounting.units import PrivacyLoss, Relation, Unit, finite
from privet.privacy.audit.report.claims import Claim
from privet.privacy.audit.summary import (
    ReportStanding,
    claim_sentence,
    figures_sentence,
    standing_of,
)
from privet.privacy.audit.verify import SiteFinding
from privet.server.rounds import Outcome, Progress
from privet.simulations import scenarios
from privet.simulations.federation import SimulatedFederation
from privet.simulations.model_use import metrics_of, predictions_of
from privet.simulations.notebook import Plot, html_of
from privet.simulations.planning import EvidenceLevel

if TYPE_CHECKING:
    import pandas as pd

_TERMS = ("delta", "unit", "relation", "trust")


@dataclass(frozen=True)
class SiteResult:
    """A site's part in a run, and its privacy loss.

    Attributes:
        loss, cap: privacy loss, and lifetime ε; None in a run without privacy.
        released: number of the ``rounds`` in which the site released an update, or its table if
            nothing is trained.
        log: its operator's log.
    """

    name: str
    loss: PrivacyLoss | None
    cap: float | None
    status: str
    metrics: dict[str, Any] = field(default_factory=dict)
    released: int = 0
    rounds: int = 0
    log: Path = Path()

    @property
    def reason(self) -> str:
        """The operator's line about the last failure, or ''. It may quote records."""
        if self.released == self.rounds:
            return ""
        lines = operator_lines(self.log.parent.parent.parent, self.name)
        failed = [line for line in lines if f" {self.name} ERROR " in line[:150]]
        return (failed or lines or [""])[-1]

    @property
    def sentence(self) -> str:
        """A sentence that says in how many rounds the site released."""
        return f"{self.name} released in {self.released} of {counted(self.rounds, 'round')}"

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "name": self.name,
            "epsilon": _epsilon(self.loss),
            "cap": self.cap,
            "status": self.status,
            "metrics": self.metrics,
            "released": self.released,
            "rounds": self.rounds,
            "log": str(self.log),
        }


@dataclass(frozen=True, repr=False)
class Result:
    """The outcome of a simulated run.

    Attributes:
        standing: the claim, derived from the sites' ledgers, earlier runs included.
        model: the trained parameters by name.
        clipping: the way gradients were clipped; it differs from the plan's if that is ``auto`` or
            fell back.
        engine: what trained the sites: ``cohort``, ``inline``, ``ray``, or Flower's own ``flower``.
        evidence: ``full``, ``light`` or ``off``, as :class:`privet.simulations.planning.Setting`.
        processes: that trained sites at once, at most.
        measured: split that public metrics are of: ``test``, or ``validation``.
    """

    run: str
    plan: Plan
    sites: list[SiteResult]
    metrics: dict[str, Any]
    loss: PrivacyLoss | None
    standing: ReportStanding
    progress: list[Progress]
    model: Arrays
    seconds: float
    out: Path
    clipping: str
    engine: str
    evidence: EvidenceLevel
    remarks: tuple[str, ...] = ()
    processes: int = 1
    measured: str = "test"

    def __repr__(self) -> str:
        terms = "no privacy" if self.loss is None else str(self.loss)
        name = measure_of_kind(self.plan.task.kind).headline
        value = self.metrics.get(name)
        measured = f"{name} {value:.3f}, " if isinstance(value, float) else ""
        sites = counted(len(self.sites), "site")
        return f"<Result of '{self.plan.name}': {measured}{terms}, {sites}, {self.out}>"

    def _repr_html_(self) -> str:
        return html_of(self)

    def plot(self) -> Plot:
        """Return the headline metric and ε by round, as a notebook displays it."""
        from privet.simulations import plots

        return Plot(plots.figure_of_rounds(self))

    def to_frame(self) -> pd.DataFrame:
        """Return a row for each round: its metrics, and the largest ε that a site spent."""
        import pandas as pd

        rows = [
            {
                "round": step.round,
                "epsilon": max((loss["epsilon"] for loss in step.spent.values()), default=None),
                **{
                    name: value
                    for name, value in _figures(step, self.plan.task.kind).items()
                    if name != "sites"
                },
            }
            for step in self.progress
        ]
        return pd.DataFrame(rows).set_index("round")

    def predict(self, frame: pd.DataFrame) -> pd.DataFrame:
        """Return the chance of each class, and the likeliest one as ``prediction``.

        Args:
            frame: records with the columns that the plan reads; they need no label.

        Raises:
            InputError: if the task has no classes.
            DataError: if a column is missing, or there is no record.
        """
        return predictions_of(self.plan, self.model, frame)

    def evaluate(self, frame: pd.DataFrame) -> dict[str, Any]:
        """Return the model's metrics on further records; they are not private.

        Args:
            frame: records with the columns that the plan reads, and its label.

        Raises:
            DataError: if a column is missing, or no record can be read.
        """
        return metrics_of(self.plan, self.model, frame)

    @property
    def claim(self) -> str:
        """``none``, ``conditional`` or ``proved-in-model``."""
        return self.standing.claim.word

    @property
    def conditional_on(self) -> list[str]:
        """The rows of the assumption register that are unknown."""
        return self.standing.claim.conditional

    @property
    def honesty(self) -> list[assumptions.Assumption]:
        """The assumption register, assessed over everything that the ledgers hold."""
        return list(self.standing.rows)

    @property
    def silent(self) -> list[SiteResult]:
        """The sites that never released."""
        return [site for site in self.sites if site.rounds and not site.released]

    @property
    def note(self) -> str:
        """A note for readers of the metrics, or ''."""
        return getattr(scenarios.of(self.plan), "note", "")

    @property
    def update_bytes(self) -> dict[str, int]:
        """Bytes of one site's update: as plain numbers, and as sent."""
        shapes = {name: array.shape for name, array in self.model.items()}
        return {"numbers": bytes_of(shapes, None), "sent": bytes_of(shapes, self.plan.compression)}

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON values; the keys are those of ``--json``."""
        privacy = self.plan.privacy
        return {
            "run": self.run,
            "scenario": self.plan.scenario or self.plan.name,
            "rounds": len(self.progress),
            "sites": [site.to_dict() for site in self.sites],
            "metrics": self.metrics,
            "epsilon": _epsilon(self.loss),
            **{name: getattr(privacy, name, None) for name in _TERMS},
            "claim": self.claim,
            "conditional_on": self.conditional_on,
            "why": self.standing.claim.why,
            "in_words": f"{figures_sentence(self.standing)} {claim_sentence(self.standing)}",
            "out": str(self.out),
            "plan": self.plan.digest,
            "model": self.plan.model.kind,
            "update_bytes": self.update_bytes,
            "clipping": self.clipping,
            "engine": self.engine,
            "processes": self.processes,
            "evidence": self.evidence,
            "metrics_source": self.plan.metrics.source,
            **({"measured": self.measured} if self.measured != "test" else {}),
            "noise_multiplier": getattr(privacy, "noise_multiplier", None),
            "seconds": round(self.seconds, 3),
            "note": self.note,
            "remarks": list(self.remarks),
            "honesty": [
                {"id": row.id, "name": row.name, "state": row.state, "why": row.why}
                for row in self.honesty
            ],
            "history": [
                {
                    "round": step.round,
                    "statuses": {site: str(status) for site, status in step.statuses.items()},
                    "spent": {site: loss["epsilon"] for site, loss in step.spent.items()},
                    "metrics": _figures(step, self.plan.task.kind),
                }
                for step in self.progress
            ],
        }


def _epsilon(loss: PrivacyLoss | None) -> Any:
    return None if loss is None else loss.to_dict()["epsilon"]


def _figures(step: Progress, kind: str) -> dict[str, Any]:
    """Return a round's metrics, read from noised tables if the metrics mechanism made them."""
    if not step.histograms:
        return step.metrics
    overall, sites = pooled(step.histograms, kind)
    return {**overall, "sites": sites}


def make_result(
    run_id: str,
    parties: SimulatedFederation,
    outcome: Outcome,
    *,
    seconds: float,
    engine: str,
    evidence: EvidenceLevel = "full",
) -> Result:
    """Return the result of a finished run: each site's loss by its own ledger, metrics, claim.

    Args:
        run_id: identifier of the run.
        parties: hold the ledgers.
        outcome: of the rounds.
        seconds: duration of the run.
        engine: what trained the sites.
        evidence: with ``off`` there are no ledgers: the losses are those that the sites counted.

    Raises:
        LedgerError: if a site released an update and its ledger does not say so.
    """
    plan = parties.plan
    last = outcome.progress[-1]
    metrics = dict(last.metrics)
    by_site: dict[str, Any] = metrics.pop("sites", {})
    remarks = [text for step in outcome.progress for text in step.remarks]
    remarks += [
        f"{spec.name}: {said}"
        for spec in plan.participants
        for said in dict.fromkeys(left_out(parties.folder, spec.name))
    ]
    if last.histograms:
        with remarked(remarks, "the metrics could not be read from the sites' tables"):
            metrics, by_site = pooled(last.histograms, plan.task.kind)
            if weakness := weakness_of_tables(last.histograms, plan):
                remarks.append(weakness)
    sites, losses = [], []
    answers = _answers(plan, outcome.progress)
    for spec in plan.participants:
        loss = cap = None
        own = answers[spec.name]
        count = own.count("released")
        if plan.privacy is not None:
            if evidence == "off":
                loss = _counted(plan.privacy, outcome.progress, spec.name)
            else:
                loss, cap = _in_ledger(plan.privacy, parties, spec.name, released=bool(count))
            losses.append(loss)
        status = own[-1] if own else "no reply"
        log = parties.folder / "sites" / spec.name / "operator.log"
        figures = by_site.get(spec.name, {})
        sites.append(
            SiteResult(
                spec.name, loss, cap, status, figures, count, len(own), log
            )
        )  # fmt: skip
    worst = max(losses, key=lambda loss: loss.epsilon, default=None)
    top = (
        _without_ledgers(plan, sites, seeded=plan.privacy is not None and outcome.reproducible)
        if evidence == "off"
        else standing_of([parties.ledger(spec.name) for spec in plan.participants])
    )
    return Result(
        run_id, plan, sites, metrics, worst, top, outcome.progress, outcome.model,
        seconds, parties.folder, model_runtime(plan).engine.mode, engine, evidence, tuple(remarks),
    )  # fmt: skip


def _answers(plan: Plan, progress: list[Progress]) -> defaultdict[str, list[str]]:
    """Return what each site answered in the rounds in which it takes part."""
    everybody = [site.name for site in plan.sites]
    found: defaultdict[str, list[str]] = defaultdict(list)
    for step in progress:
        turn = everybody if plan.schedule is None else plan.schedule.sites_in(step.round)
        for site in turn:
            found[site].append(str(step.statuses.get(site, "no reply")))
    return found


def _in_ledger(
    privacy: Privacy, parties: SimulatedFederation, site: str, *, released: bool
) -> tuple[PrivacyLoss, float | None]:
    """Return the loss of a ledger's only population, and its cap; no loss if none is registered.

    Raises:
        LedgerError: if the site released an update and its ledger does not say so.
    """
    ledger = parties.ledger(site)
    populations = ledger.state.populations
    if released and not any(map(ledger.history, populations)):
        raise LedgerError(
            f"{parties.home(site)}: site '{site}' released updates, and its "
            "ledger does not say so; no ε can be told. Do its workers share this folder?"
        )
    cap = next((one.budget.epsilon for one in populations.values()), None)
    return (ledger.spent() if populations else _nothing(privacy)), cap


def _counted(privacy: Privacy, progress: list[Progress], site: str) -> PrivacyLoss:
    """Return the loss that a site without a ledger counted up to its last release."""
    told = [step.spent[site]["epsilon"] for step in progress if site in step.spent]
    if not told:
        return _nothing(privacy)
    return replace(_nothing(privacy), epsilon=math.inf if told[-1] is None else float(told[-1]))


def _nothing(privacy: Privacy) -> PrivacyLoss:
    return PrivacyLoss(0.0, privacy.delta, Unit(privacy.unit), Relation(privacy.relation))


def _without_ledgers(plan: Plan, sites: list[SiteResult], *, seeded: bool) -> ReportStanding:
    """Return what may be said of a run of which nothing was written down: its claim is none."""
    privacy = plan.privacy
    why = "nothing was written down: --evidence off, the default above 1,000 sites"
    if privacy is None:
        return ReportStanding("simulation", Claim("none", [], "trained without noise", alarm=True))
    facts = assumptions.Facts(
        self_tests=assumptions.SELF_TESTS if any(site.released for site in sites) else (),
        person=privacy.unit == "person",
        metrics=plan.metrics.source,
        attested={str(row): why for row, why in plan.attested.items()},
        trust=privacy.trust,
        central=privacy.is_central,
        seeded=seeded,
    )
    if privacy.is_central:
        why = "a simulated coordinator added the noise: nothing is claimed about a deployment"
    if seeded:
        why += "; the noise came from a seed"
    findings = tuple(
        SiteFinding(
            site.name, "", privacy.unit, privacy.relation, privacy.delta,
            finite(site.loss.epsilon) if site.loss else None, None, 0, runs=1,
        )
        for site in sites
    )  # fmt: skip
    rows = tuple(assumptions.assess(facts))
    return ReportStanding("simulation", Claim("none", [], why), findings, privacy.trust, rows)


@contextmanager
def remarked(remarks: list[str], what: str) -> Iterator[None]:
    """Turn a failure into a remark, where no release depends on it; a full disk still raises.

    Args:
        remarks: extended by the failure.
        what: names the step, as the start of the remark.

    Raises:
        OSError: of the step.
    """
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        remarks.append(f"{what}: {error!r}")


def left_out(folder: Path, site: str) -> list[str]:
    """Return the lines of a simulated site's operator's log that count left-out records.

    Args:
        folder: of the run.
        site: its name.
    """
    said = [line.partition(" WARNING ")[2] for line in operator_lines(folder, site)]
    return [
        text.replace("`privet client check --json`", "`privet simulate PLAN --check --json`")
        for text in said
        if re.match(r"\d+ records? .*left out of ", text)
    ]


def operator_lines(folder: Path, site: str) -> list[str]:
    """Return the lines of a simulated site's operator's log, without continuation lines.

    Args:
        folder: of the run.
        site: its name.
    """
    try:
        text = (folder / "sites" / site / "operator.log").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return []
    return [line for line in text.splitlines() if f" {site} " in line[:150]]
