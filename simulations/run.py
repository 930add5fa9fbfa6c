"""Simulate a federation on one machine, by the same apps that run on a real one.

::

    simulate ── resolve (noise calibrated) ── ServerApp ─ Grid ─ ClientApp ─ Site
        │                                       rounds    in process   admit, reserve,
        └── Result: result.json, model/, plots/,          or on Ray    train, commit
            plan.json, sites/NAME/events.jsonl
"""

from __future__ import annotations

import functools
import os
import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from flwr.app import Context, RecordDict, UserConfig
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

from privet.client.app import create_app as create_client_app
from privet.client.site import Site, budget_of
from privet.common.canonical import write_json
from privet.common.errors import InputError, PrivetError, RunError
from privet.common.models import trainable
from privet.common.order import Order
from privet.common.plan import Plan
from privet.common.release import Arrays
from privet.privacy import gate, honesty
from privet.privacy.dpsgd import DpSgd
from privet.privacy.ledger import RunHistory
from privet.privacy.noise import Stream
from privet.privacy.units import PrivacyLoss, Relation, Unit
from privet.server.app import create_app as create_server_app
from privet.server.rounds import Outcome, Progress
from privet.server.snapshot import Snapshots, save_model
from privet.simulations import scenarios
from privet.simulations.evaluate import PublicTest, pooled_gate
from privet.simulations.grid import InProcessGrid
from privet.simulations.records import Records

Engine = Literal["auto", "inline", "ray"]
Observer = Callable[[Progress], None]


@dataclass(frozen=True)
class Setting:
    """How a plan is run: everything that is not in the plan.

    Attributes:
        engine: ``inline`` (this process), ``ray`` (Flower's Ray engine); ``auto`` is inline.
        ray_address: an existing Ray cluster, or None to start one.
        noise_seed: makes noise reproducible. The claim becomes ``none``.
        data_dir: folder of the records, or None.
        base: folder that the plan's relative paths start from.
    """

    engine: Engine = "auto"
    ray_address: str | None = None
    noise_seed: int | None = None
    data_dir: Path | None = None
    base: Path = Path()


@dataclass(frozen=True)
class SiteResult:
    """What a site did and spent; ``loss`` is None in a run without privacy."""

    name: str
    loss: PrivacyLoss | None
    status: str
    metrics: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        epsilon = self.loss.to_dict()["epsilon"] if self.loss else None
        return {
            "name": self.name,
            "epsilon": epsilon,
            "status": self.status,
            "metrics": self.metrics,
        }


@dataclass(frozen=True)
class Result:
    """The outcome of a simulated run. ``model`` holds the trained parameters by name."""

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
            "metrics_source": self.plan.metrics.source,
            "noise_multiplier": privacy.noise_multiplier if privacy else None,
            "seconds": round(self.seconds, 3),
            "honesty": [
                {"id": row.id, "name": row.name, "state": row.state, "why": row.why}
                for row in self.honesty
            ],
            "history": [
                {
                    "round": step.round,
                    "statuses": {site: str(status) for site, status in step.statuses.items()},
                    "spent": {site: loss["epsilon"] for site, loss in step.spent.items()},
                    "metrics": step.metrics,
                }
                for step in self.progress
            ],
        }


def simulate(
    plan: Plan | str | Path,
    *,
    epsilon: float | None = None,
    rounds: int | None = None,
    out: str | Path | None = None,
    data: str | Path | None = None,
    seed: int | None = None,
    dp: bool = True,
    observe: Observer = lambda progress: None,
    noise_seed: int | None = None,
    engine: Engine = "auto",
) -> Result:
    """Run a scenario, a plan file, or a :class:`Plan`, and return the result.

    Args:
        plan: a scenario's name, the path of a plan (``*.toml``), or a plan.
        epsilon: another ε to calibrate to.
        rounds: another number of rounds; noise is calibrated for it.
        out: folder for the run, new or empty; default ``runs/NAME-TIME``.
        data: folder of the records; default the environment variable ``PRIVET_DATA``.
        seed: split and initial weights.
        dp: False trains without any guarantee.
        observe: called after each round.
        noise_seed: reproducible noise, for tests; the claim becomes ``none``.
        engine: ``inline`` or ``ray``.

    Raises:
        InputError: if the plan or the data is wrong.
        RunError: if the federation did not work out.

    Example::

        import privet

        result = privet.simulate("lending", epsilon=3, rounds=5)
        print(result.metrics["accuracy"], result.loss)
    """
    base = Path()
    if isinstance(plan, str | Path):
        plan, base = find_plan(str(plan))
    plan = adjusted(plan, epsilon=epsilon, rounds=rounds, seed=seed, dp=dp)
    setting = Setting(
        engine=engine,
        noise_seed=noise_seed,
        data_dir=Path(data) if data is not None else None,
        base=base,
    )
    return run_plan(plan, setting, Path(out) if out else None, observe)


def find_plan(reference: str, model: str | None = None) -> tuple[Plan, Path]:
    """Return the plan of a scenario or a file, and the folder its paths start from.

    Raises:
        InputError: if there is no such scenario, file or model.
    """
    if reference.endswith(".toml") or "/" in reference:
        path = Path(reference)
        plan = Plan.load(path)
        return (plan.changed(model={"kind": model}) if model else plan), path.parent
    return scenarios.get(reference).make_plan(model), Path()


def adjusted(
    plan: Plan,
    *,
    epsilon: float | None = None,
    rounds: int | None = None,
    seed: int | None = None,
    sites: int | None = None,
    clipping: str | None = None,
    dp: bool = True,
) -> Plan:
    """Return the plan with the changes of a command line.

    Raises:
        PlanError: if a change makes the plan impossible.
    """
    changes: dict[str, Any] = {}
    if not dp:
        plan = without_privacy(plan)
    elif epsilon is not None:
        if plan.privacy is None:
            raise InputError("this plan has no [privacy] section to set ε in")
        changes["privacy"] = {"epsilon": epsilon, "noise_multiplier": None}
    if rounds is not None:
        changes["training"] = {"rounds": rounds}
        changes["strategy"] = {"average_last": max(1, min(plan.strategy.average_last, rounds))}
    if clipping is not None:
        changes.setdefault("training", {})["clipping"] = clipping
    if seed is not None:
        changes["seed"] = seed
    if sites is not None:
        if not 1 <= sites <= len(plan.sites):
            raise InputError(f"--sites must lie between 1 and {len(plan.sites)}, not {sites}")
        changes["sites"] = [site.model_dump(mode="json") for site in plan.sites[:sites]]
    return plan.changed(**changes) if changes else plan


def without_privacy(plan: Plan) -> Plan:
    """Return the same plan without noise; each unit's gradient keeps its bound.

    A scenario may declare other settings for this case, chosen on the same public split.
    """
    changes: dict[str, Any] = {"privacy": None}
    if plan.privacy is not None:
        changes["training"] = {"clip": plan.privacy.clip}
    if plan.metrics.source == "gate":
        changes["metrics"] = {"source": "public"}
    if plan.scenario:
        for key, change in scenarios.get(plan.scenario).plain.get(plan.model.kind, {}).items():
            changes[key] = {**changes.get(key, {}), **change}
    return plan.changed(**changes)


def resolve(plan: Plan) -> Plan:
    """Return the plan with its noise calibrated to ε over all its rounds and evaluations.

    Raises:
        InputError: if no noise reaches the ε.
    """
    privacy = plan.privacy
    if privacy is None or privacy.noise_multiplier is not None:
        return plan
    training = plan.training
    start = DpSgd(
        training.sample_rate,
        clip=privacy.clip,
        steps=training.steps,
        unit=Unit(privacy.unit),
        relation=Relation(privacy.relation),
    )
    extra = [gate.event(plan.metrics.noise_multiplier)] * gate_releases(plan)
    fitted = start.calibrated(privacy.epsilon, privacy.delta, releases=training.rounds, extra=extra)
    return plan.changed(privacy={"noise_multiplier": fitted.noise_multiplier})


def gate_releases(plan: Plan) -> int:
    """Return how many times each site releases metrics through the gate."""
    if plan.metrics.source != "gate":
        return 0
    rounds, every = plan.training.rounds, plan.metrics.every
    return rounds // every + (1 if rounds % every else 0)


@dataclass(frozen=True)
class SiteMaker:
    """Makes the site behind a Flower context; picklable, for Ray's processes."""

    plan: Plan
    records: Records
    folder: Path
    noise_seed: int | None

    def __call__(self, context: Context) -> Site:
        number = int(str(context.node_config["partition-id"]))
        return _site(self, self.plan.sites[number].name)


@functools.lru_cache(maxsize=4096)
def _site(maker: SiteMaker, name: str) -> Site:
    plan = maker.plan
    folder = maker.folder / "sites" / name
    return Site(
        name,
        plan,
        folder,
        RunHistory(folder / "events.jsonl", budget_of(plan)),
        functools.partial(maker.records.site, name),
        functools.partial(_stream, maker),
    )


def _stream(maker: SiteMaker, order: Order) -> Stream | None:
    """Return a seeded stream where the plan has no privacy to lose, or the caller asks for it."""
    if maker.noise_seed is not None:
        seed: tuple[int | str, ...] = ("noise", maker.noise_seed)
    elif maker.plan.privacy is None:
        seed = ("plain", maker.plan.seed)
    else:
        return None
    return Stream.seeded(*seed, order.site, order.purpose, order.round, order.attempt)


def run_plan(
    plan: Plan, setting: Setting, out: Path | None = None, observe: Observer = lambda _: None
) -> Result:
    """Run one plan and write its run folder.

    Raises:
        PrivetError: as :func:`simulate`.
    """
    started = time.monotonic()
    records = Records(plan, setting.data_dir, setting.base)
    parts = records.parts()
    resolved = resolve(plan)
    run_id, folder = _new_folder(plan, out)
    write_json(folder / "plan.json", resolved.to_dict())
    maker = SiteMaker(resolved, records, folder, setting.noise_seed)
    public = PublicTest(resolved, parts["test"]) if plan.metrics.source == "public" else None
    try:
        outcome = _train(run_id, maker, public, setting, observe)
    except RunError as error:
        raise type(error)(f"{error}{_operators(folder, plan)}") from error
    result = _result(run_id, maker, outcome, setting, time.monotonic() - started)
    _write(result)
    return result


def train_once(
    plan: Plan, records: Records, folder: Path, public: PublicTest | None = None
) -> dict[str, Any]:
    """Train in this process without a run folder's ceremony; return the last round's figures.

    Args:
        plan: resolved or not.
        records: what the sites open.
        folder: for ledgers, snapshot and model; must not hold an earlier run.
        public: what to measure on; default the test split of ``records``.
    """
    resolved = resolve(plan).changed(metrics={"every": plan.training.rounds})
    measure = public or PublicTest(resolved, records.parts()["test"])
    maker = SiteMaker(resolved, records, folder, None)
    outcome = _train(folder.name.replace(" ", "-"), maker, measure, Setting(), lambda _: None)
    facts = {"plan": resolved.digest, "private": str(plan.privacy is not None).lower()}
    save_model(folder / "model" / "model.safetensors", outcome.model, facts)
    return outcome.progress[-1].metrics


def _train(
    run_id: str,
    maker: SiteMaker,
    public: PublicTest | None,
    setting: Setting,
    observe: Observer,
) -> Outcome:
    """Run both apps on the chosen engine."""
    _quiet_flower()
    outcomes: list[Outcome] = []
    server = create_server_app(
        run_id,
        maker.plan,
        lambda: initial_model(maker.plan),
        Snapshots(maker.folder / "model"),
        evaluate=public.measure if public else None,
        observe=observe,
        finish=outcomes.append,
    )
    _run_apps(server, create_client_app(maker), len(maker.plan.sites), setting)
    if not outcomes:
        raise RunError("the run ended without an outcome")
    return outcomes[0]


def initial_model(plan: Plan) -> Arrays:
    """Return the public initial values of the trained parameters."""
    from privet.common.models import build_model

    model = build_model(plan)
    return {name: p.detach().cpu().numpy().copy() for name, p in trainable(model).items()}


def _run_apps(server: ServerApp, client: ClientApp, sites: int, setting: Setting) -> None:
    if setting.engine == "ray":
        from privet.simulations.ray import run_on_ray

        run_on_ray(server, client, sites, setting.ray_address)
        return
    context = Context(
        run_id=1, node_id=0, node_config=UserConfig(), state=RecordDict(), run_config=UserConfig()
    )
    server(InProcessGrid(client, sites), context)


def _quiet_flower() -> None:
    """No telemetry, no update check: nothing here opens a connection."""
    os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
    os.environ["FLWR_DISABLE_UPDATE_CHECK"] = "1"


def _new_folder(plan: Plan, out: Path | None) -> tuple[str, Path]:
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    run_id = f"{plan.name.replace(' ', '-')}-{stamp}-{secrets.token_hex(2)}"
    folder = out or Path("runs") / run_id
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(
            f"{folder} exists and is not an empty folder: a run's history is never overwritten. "
            "Name another --out"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: cannot be made: {error.strerror}") from error
    return run_id, folder


def _operators(folder: Path, plan: Plan) -> str:
    """Return what the sites' operators see, for the person who runs them all."""
    lines = []
    for site in plan.sites:
        with suppress(OSError):
            text = (folder / "sites" / site.name / "operator.log").read_text()
            said = [line for line in text.splitlines() if f" {site.name} " in line[:100]]
            lines.extend(said[-1:])
    if not lines:
        return ""
    more = f"\n  … and {len(lines) - 5} more" if len(lines) > 5 else ""
    return "\nwhat the operators of the sites see:\n  " + "\n  ".join(lines[:5]) + more


def _result(
    run_id: str, maker: SiteMaker, outcome: Outcome, setting: Setting, seconds: float
) -> Result:
    plan, folder = maker.plan, maker.folder
    last = outcome.progress[-1]
    metrics = dict(last.metrics)
    by_site: dict[str, Any] = metrics.pop("sites", {})
    if last.histograms:
        metrics, by_site = pooled_gate(last.histograms)
    sites, losses = [], []
    for spec in plan.sites:
        loss = None
        if plan.privacy is not None:
            path = folder / "sites" / spec.name / "events.jsonl"
            loss = RunHistory(path, budget_of(plan)).spent()
            losses.append(loss)
        status = str(last.statuses.get(spec.name, "no reply"))
        sites.append(SiteResult(spec.name, loss, status, by_site.get(spec.name, {})))
    worst = max(losses, key=lambda loss: loss.epsilon) if losses else None
    rows = honesty.assess(_facts(plan, maker.records))
    private = plan.privacy is not None and setting.noise_seed is None
    claim, conditional = honesty.claim(rows, private=private)
    return Result(
        run_id, plan, sites, metrics, worst, claim, conditional, rows, outcome.progress,
        outcome.model, seconds, folder,
    )  # fmt: skip


def _facts(plan: Plan, records: Records) -> honesty.Facts:
    scenario = records.scenario
    attested = dict(scenario.attested) if scenario else {}
    if scenario:
        attested.setdefault(
            "H12", "constants declared in the scenario; settings chosen on a public split"
        )
    return honesty.Facts(
        self_tests=("H6", "H7", "H16", "H17"),
        person=bool(plan.privacy and plan.privacy.unit == "person"),
        metrics=plan.metrics.source,
        attested=attested,
    )


def _write(result: Result) -> None:
    from privet.simulations import plots
    from privet.simulations.card import model_card

    folder = result.out
    facts = {"run": result.run, "plan": result.plan.digest, "claim": result.claim}
    save_model(folder / "model" / "model.safetensors", result.model, facts)
    (folder / "model" / "README.md").write_text(model_card(result), encoding="utf-8")
    plots.write(result, folder / "plots")
    write_json(folder / "result.json", result.to_dict())


__all__ = ["PrivetError", "Result", "Setting", "run_plan", "simulate"]
