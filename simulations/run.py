"""Simulate a federation on one machine, with the apps of a real one.

::

    simulate ── resolve (noise calibrated) ── ServerApp ─ Grid ─ ClientApp ─ Site
        │                                       rounds    in process   admit, reserve,
        └── Result: result.json, model/, plots/,          or on Ray    train, commit
            plan.json, roster.json, coordinator/, sites/NAME/
"""

from __future__ import annotations

import functools
import logging
import os
import secrets
import tempfile
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from privet.client.app import AnsweringSite
from privet.client.app import create_app as create_client_app
from privet.client.site import Site
from privet.client.training.model_runtime import model_runtime
from privet.client.training.rehearsal import rehearse as rehearse_site
from privet.client.training.trainer import Trainer, usable_records
from privet.common.canonical import write_atomic, write_json
from privet.common.errors import DataError, InputError, RunError, SelfTestError
from privet.common.models import build_model, initial_model
from privet.common.models.start import offer
from privet.common.order import Order
from privet.common.plan import Plan
from privet.common.plan_file import plan_toml
from privet.common.printable import counted
from privet.common.tasks import build_task
from privet.privacy.mechanism.clipping.engine import AUTOMATIC
from privet.privacy.mechanism.noise import Stream
from privet.server.aggregate import Aggregator
from privet.server.app import FlowerLink, run_app
from privet.server.app import create_app as create_server_app
from privet.server.evidence.run_evidence import RunEvidence
from privet.server.rehearsal import rehearse as rehearse_coordinator
from privet.server.rounds import Outcome, Progress
from privet.server.snapshot import Snapshots, save_model
from privet.simulations.central import CentralLink, CentralSpending, sites_plan
from privet.simulations.cohort.cohort import Cohort
from privet.simulations.cohort.grid import CohortGrid
from privet.simulations.cohort.member import CohortMember
from privet.simulations.cohort.processes import TrainingProcesses
from privet.simulations.evaluate import PublicTest, rehearse_public
from privet.simulations.feature_cache import cached, use_cache
from privet.simulations.federation import SimulatedFederation
from privet.simulations.grid import InProcessGrid
from privet.simulations.memory_outbox import MemoryOutbox
from privet.simulations.planning import (
    LIGHT_UP_TO,
    Engine,
    EvidenceLevel,
    RunSpec,
    Setting,
    adjusted,
    attested,
    find_plan,
    resolve,
)
from privet.simulations.read_ahead import read_ahead
from privet.simulations.records import SiteRecords
from privet.simulations.result import Result, make_result, operator_lines
from privet.simulations.run_folder import write_result
from privet.simulations.unrecorded import NoEvidence, UnrecordedSite

BOOK_KEEPING = AUTOMATIC[0]
LARGE = 1 << 21
"""Trained numbers from which a step is arithmetic alone, and nothing is gained together."""
LIGHT_WITNESSES = 2
"""Sites that cosign each log, beside the coordinator, where evidence is light."""
_LOG = logging.getLogger("privet.simulations")
_WRITTEN = """# The plan of this run, and why it is trained so. Relative paths start from the
# folder of its own file.
"""
_TRIAL_RECORDS = 20
"""Records of a site that are tried first."""
Observer = Callable[[Progress], None]


class Teller(Protocol):
    """Takes what is done now."""

    def stage(self, text: str) -> None:
        """Take what is done now, before the first round.

        Args:
            text: such as "reading the records".
        """

    def step(self, text: str) -> None:
        """Take what is done now within a round.

        Args:
            text: such as "North trains, 2 of 9".
        """

    def folder(self, path: Path) -> None:
        """Take the run folder, once it is made."""


class Silent:
    """A :class:`Teller` that keeps it to itself."""

    def stage(self, text: str) -> None:
        """Say nothing.

        Args:
            text: dropped.
        """

    step = stage

    def folder(self, path: Path) -> None:
        """Say nothing."""


def simulate(
    plan: Plan | str | Path,
    *,
    epsilon: float | None = None,
    rounds: int | None = None,
    out: str | Path | None = None,
    data: str | Path | None = None,
    base: str | Path = ".",
    seed: int | None = None,
    dp: bool = True,
    observe: Observer = lambda progress: None,
    noise_seed: int | None = None,
    engine: Engine = "auto",
    evidence: EvidenceLevel | None = None,
    jobs: int | None = None,
    cache: str | Path | None = None,
    values: Mapping[str, Any] | None = None,
    model: str | None = None,
    sites: int | None = None,
    clipping: str | None = None,
    start: str | Path | None = None,
    ledgers: str | Path | None = None,
    cap: float | None = None,
    open_again: bool = False,
    ray_address: str | None = None,
) -> Result:
    """Run a scenario, a plan file, or a :class:`Plan`, and return the result.

    Args:
        plan: a scenario's name, the path of a plan (``*.toml``), or a plan.
        epsilon: another ε to which the noise is calibrated.
        rounds: another number of rounds; noise is calibrated for it.
        out: folder for the run, new or empty; default ``runs/NAME-TIME``.
        data: folder of the records; default the environment variable ``PRIVET_DATA``.
        base: folder of the relative paths of a :class:`Plan`; a plan file's paths start from its
            own folder.
        seed: of split and initial weights; None takes the plan's.
        dp: False trains without any privacy guarantee.
        observe: called with the progress of each round that is done.
        noise_seed: reproducible noise, for tests; the claim becomes ``none``.
        engine: ``auto``, ``inline`` or ``ray``.
        evidence: ``full``, ``light`` or ``off``; None takes ``full`` up to 20 sites, ``light`` up
            to 1,000, else ``off``.
        jobs: processes that train a round's sites; None: one, and as many as there are cores where
            much is left after the second round.
        cache: folder of what a frozen encoder reads out of texts, for later runs; ``none`` keeps it
            nowhere. None takes ``~/.cache/privet`` for a scenario, whose records are public, and
            keeps nothing of your own.
        values: of any keys of the plan, such as ``{"training.steps": 5}``.
        model: another model of the scenario, or another kind; of a plan's name or path alone.
        sites: number of sites, the first of the plan's.
        clipping: the way gradients are clipped.
        start: file of the weights to start from.
        ledgers: folder of ledgers that last over runs.
        cap: lifetime ε of each site's population where its ledger is new.
        open_again: let the plan run where its failures closed it, in ledgers that last.
        ray_address: an existing Ray cluster; with ``engine="ray"``.

    Raises:
        InputError: if the plan or the data is wrong.
        RunError: if the run fails, such as without a quorum.

    Example::

        import privet

        result = privet.simulate("lending", epsilon=3, rounds=5)
        print(result.metrics["accuracy"], result.loss)
    """
    base = Path(base)
    if isinstance(plan, str | Path):
        plan, base = find_plan(str(plan), model)
    elif model is not None:
        raise InputError("'model' goes with a plan's name or path; use plan.changed(model=…)")
    plan = adjusted(
        plan, epsilon=epsilon, rounds=rounds, seed=seed, sites=sites, clipping=clipping,
        start=offer(Path(start)) if start else None, dp=dp, values=dict(values or {}),
    )  # fmt: skip
    setting = Setting(
        engine=engine,
        evidence=evidence,
        noise_seed=noise_seed,
        jobs=jobs,
        cache="none" if cache == "none" else None if cache is None else Path(cache),
        data_dir=Path(data) if data is not None else None,
        base=base,
        ledgers=Path(ledgers) if ledgers is not None else None,
        cap=cap,
        open_again=open_again,
        ray_address=ray_address,
    )
    return run_plan(plan, setting, Path(out) if out else None, observe)


@dataclass(frozen=True)
class SiteMaker:
    """Make the site of a Flower context; picklable, for Ray's processes."""

    run_id: str
    parties: SimulatedFederation
    records: SiteRecords
    noise_seed: int | None
    evidence: EvidenceLevel = "full"
    cache: Path | None = None

    @property
    def plan(self) -> Plan:
        """The plan of the run."""
        return self.parties.plan

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self.parties.folder

    def __call__(self, context: Context) -> AnsweringSite:
        """Return the site of the context's partition number, kept for later messages."""
        return self.with_trainer(context)[0]

    def with_trainer(self, context: Context) -> tuple[AnsweringSite, Any]:
        """Return the same site, and its trainer."""
        number = int(str(context.node_config["partition-id"]))
        return _site(self, self.plan.participants[number].name)

    def trainer(self, site: str) -> CohortMember:
        """Return a new trainer of a site."""
        use_cache(self.cache)  # this may be a process of its own, or one with another run's
        return CohortMember(
            self.plan,
            site,
            functools.partial(self.records.site, site),
            functools.partial(_stream, self),
            functools.partial(self.records.require_columns, site),
        )

    def cohort(self) -> Cohort | None:
        """Return what trains the sites together; None if their model has no form for that."""
        return cohort_of(self.plan)


_KEPT_RUNS = 8
"""Runs whose sites stay in memory: a process may make several in turn, and one inside another."""
_sites_of: OrderedDict[SiteMaker, dict[str, tuple[AnsweringSite, Trainer]]] = OrderedDict()


def _site(maker: SiteMaker, name: str) -> tuple[AnsweringSite, Trainer]:
    """Return the site and its trainer. All of a run's stay: they hold what was spent so far."""
    kept = _sites_of.setdefault(maker, {})
    _sites_of.move_to_end(maker)
    if len(_sites_of) > _KEPT_RUNS:
        _sites_of.popitem(last=False)
    if name not in kept:
        kept[name] = _make_site(maker, name)
    return kept[name]


def _make_site(maker: SiteMaker, name: str) -> tuple[AnsweringSite, Trainer]:
    parties, trainer = maker.parties, maker.trainer(name)
    folder = parties.folder / "sites" / name
    if maker.evidence == "off":
        return UnrecordedSite(name, parties.plan, folder, trainer), trainer
    roster = parties.roster()
    site = Site(
        name,
        parties.plan,
        folder,
        parties.admission(name, roster),
        parties.witness(name),
        roster,
        trainer,
        outbox=MemoryOutbox() if maker.evidence == "light" else None,
    )
    return site, trainer


def _stream(maker: SiteMaker, order: Order) -> Stream | None:
    """Return a seeded stream if the plan has no privacy to lose, or the caller requests one."""
    if maker.noise_seed is not None:
        seed: tuple[int | str, ...] = ("noise", maker.noise_seed)
    elif maker.plan.privacy is None:
        seed = ("plain", maker.plan.seed)
    else:
        return None
    return Stream.seeded(*seed, order.site, order.purpose, order.round, order.attempt)


def run_plan(
    plan: Plan,
    setting: Setting,
    out: Path | None = None,
    observe: Observer = lambda _: None,
    teller: Teller = Silent(),  # noqa: B008 it holds nothing
) -> Result:
    """Run one plan and write its run folder.

    Args:
        plan: its noise is calibrated here if it is not yet.
        setting: of the simulation.
        out: folder for the run, new or empty; None takes ``runs/NAME-TIME``.
        observe: called with the progress of each round that is done.
        teller: takes what is done between.

    Raises:
        PrivetError: as :func:`simulate`.
    """
    started = time.monotonic()
    level = setting.evidence_of(plan)
    if level == "off" and setting.evidence is None and len(plan.sites) > LIGHT_UP_TO:
        teller.stage("keeping no evidence: above 1,000 sites only --evidence light does")
    # In the plan itself, so that the ledgers and the report say who vouches for what.
    spec = RunSpec(attested(plan), setting)
    with cached(setting.cache_of(plan), required=setting.cache is not None) as cache:
        return _run(spec, level, cache, out, observe, teller, started)


def _run(
    spec: RunSpec,
    level: EvidenceLevel,
    cache: Path | None,
    out: Path | None,
    observe: Observer,
    teller: Teller,
    started: float,
) -> Result:
    setting, records = spec.setting, spec.records
    records.parts()
    check(spec.plan)
    if spec.plan.privacy is not None:
        teller.stage("calibrating the noise")
    told = plan = spec.calibrated().plan
    link: Callable[[Grid], FlowerLink] | None = None
    spending: CentralSpending | None = None
    if told.privacy is not None and told.privacy.is_central:
        plan, spending = (
            sites_plan(told),
            CentralSpending(told, observe, seeded=setting.noise_seed is not None),
        )
        link = functools.partial(CentralLink, told, noise_seed=setting.noise_seed)
    teller.stage("testing the model, and a round on generated records")
    with tempfile.TemporaryDirectory(prefix="privet-") as scratch:
        rehearse(plan, Path(scratch))
    teller.stage("reading the records")
    require_usable(plan, records)
    run_id, folder = _new_folder(plan, out)
    read_ahead(plan, records, cache, stage=teller.stage, step=teller.step)
    teller.folder(folder)
    write_json(folder / "plan.json", told.to_dict())
    if told.chosen:
        write_atomic(folder / "plan.toml", (_WRITTEN + plan_toml(spec.plan)).encode())
    # Absolute: a worker of an existing Ray cluster has a current folder of its own.
    ledgers = setting.ledgers and setting.ledgers.resolve()
    parties = SimulatedFederation(
        plan,
        folder.resolve(),
        ledgers,
        setting.cap,
        witnesses=LIGHT_WITNESSES if level == "light" else None,
    )
    if level != "off":
        parties.found()
    if setting.open_again:
        parties.open_again()
    maker = SiteMaker(run_id, parties, records, setting.noise_seed, level, cache)
    try:
        seen = spending.see if spending else observe
        public = public_test(maker, setting.measured)
        outcome, engine, processes = _train(maker, public, setting, seen, teller, link)
    except RunError as error:
        raise type(error)(f"{error}{_operators(folder, plan)}") from error
    if spending is not None:
        outcome = spending.into(outcome)
    result = make_result(
        run_id,
        replace(parties, plan=told),
        outcome,
        seconds=time.monotonic() - started,
        engine=engine,
        evidence=level,
    )
    remarks = (*result.remarks, *_unnamed(records))
    return write_result(
        replace(result, processes=processes, remarks=remarks, measured=setting.measured)
    )


def _unnamed(records: SiteRecords) -> list[str]:
    """Return a remark on records of sites that the plan does not name: a name may be misspelt."""
    found = records.unnamed()
    if not found:
        return []
    some = ", ".join(f"'{name}' ({count})" for name, count in list(found.items())[:5])
    more = f" and {len(found) - 5} more" if len(found) > 5 else ""
    return [
        f"{counted(sum(found.values()), 'record')} of the file are of sites that the plan does not "
        f"name, and were not used: {some}{more}"
    ]


def require_usable(plan: Plan, records: SiteRecords) -> None:
    """Check that at least one site of a simulation has a usable record.

    A real site without one releases noise like any other, because no answer may tell. The user of a
    simulation is every site's operator, and learns it before anything is spent.

    Args:
        plan: resolved.
        records: of all sites.

    Raises:
        DataError: naming a record and its fault.
    """
    bench, first = model_runtime(plan), ""
    for spec in plan.participants:
        data = records.site(spec.name)
        few = np.unique(np.linspace(0, len(data.train) - 1, _TRIAL_RECORDS).astype(int))
        for frame in (data.train.iloc[few[few >= 0]], data.train):
            try:
                found = usable_records(bench, frame)
            except DataError:
                return  # a column is missing: the site refuses, and says so
            if len(found.units):
                return
            for row, why in sorted(found.faults.items())[:1]:
                first = first or f"{data.where(frame.index[row])}: {why}"
        for fault in data.faults[:1]:
            first = first or f"{data.where(fault.place)}: {fault.why}"
    raise DataError(
        f"no site has a record to train on that can be used. {first or 'There is none'}. "
        "`privet simulate PLAN --check` says more"
    )


def train_once(
    plan: Plan,
    records: SiteRecords,
    folder: Path,
    public: PublicTest | None = None,
    *,
    evidence: EvidenceLevel = "full",
    cache: Path | None = None,
) -> dict[str, Any]:
    """Train in this process without a complete run folder; return the last round's metrics.

    Args:
        plan: resolved or not.
        records: of the sites.
        folder: for ledgers, snapshot and model; it must not hold an earlier run.
        public: test split for the metrics; None takes that of ``records``.
        evidence: its level.
        cache: folder of what a frozen encoder reads out of texts, open already; or None.
    """
    resolved = resolve(plan).changed(metrics={"every": plan.last_round})
    measure = public or PublicTest(resolved, records.measurable())
    run_id = f"{plan.name.replace(' ', '-')}-{secrets.token_hex(2)}"
    parties = SimulatedFederation(resolved, folder.resolve())
    if evidence != "off":
        parties.found()
    maker = SiteMaker(run_id, parties, records, None, evidence, cache)
    setting = Setting(evidence=evidence, jobs=1 if evidence == "off" else None)
    outcome, *_ = _train(maker, measure, setting, lambda _: None, Silent())
    facts = {"plan": resolved.digest, "private": str(plan.privacy is not None).lower()}
    save_model(folder / "model" / "model.safetensors", outcome.model, facts)
    return outcome.progress[-1].metrics


def _train(
    maker: SiteMaker,
    public: PublicTest | None,
    setting: Setting,
    observe: Observer,
    teller: Teller,
    link: Callable[[Grid], FlowerLink] | None = None,
) -> tuple[Outcome, str, int]:
    """Run both apps on the chosen engine; return its name, too, and how many processes trained."""
    _quiet_flower()
    outcomes: list[Outcome] = []
    seen: dict[int, Progress] = {}

    def see(progress: Progress) -> None:
        seen[progress.round] = progress
        observe(progress)

    server = server_app(maker, public, outcomes.append, see, link)
    engine, processes = _run_apps(server, maker, setting, teller)
    if not outcomes:
        raise RunError("the run ended without an outcome")
    # Where a node of Ray died, the outcome has the rounds after that alone.
    made = {step.round: step for step in outcomes[0].progress}
    outcomes[0].progress = [made.get(number, step) for number, step in seen.items()]
    if public is not None:
        _add_written(outcomes[0], public)
        _remark(outcomes[0], public.weakness)
    return outcomes[0], engine, processes


def _add_written(outcome: Outcome, public: PublicTest) -> None:
    """Add metrics of the model's texts; if they fail, the run is paid for and continues."""
    last = outcome.progress[-1]
    try:
        last.metrics.update(public.written(outcome.model))
    except Exception as error:
        _remark(outcome, f"what the model writes could not be measured: {error!r}")


def _remark(outcome: Outcome, text: str) -> None:
    if text:
        last = outcome.progress[-1]
        outcome.progress[-1] = replace(last, remarks=(*last.remarks, text))


def check(plan: Plan) -> None:
    """Build model, task and strategy once, so that an impossible plan fails early.

    Raises:
        InputError: naming the fault.
    """
    build_model(plan)
    build_task(plan)
    Aggregator(plan)


def rehearse(plan: Plan, folder: Path) -> None:
    """Run all steps of a round once, on generated records, before anything is charged.

    Args:
        plan: with its noise calibrated.
        folder: for files of the rehearsal.

    Raises:
        PlanError: saying what is wrong and what to do.
    """
    bench = model_runtime(plan)
    try:
        _ = bench.self_tests
    except SelfTestError:
        return  # every site finds that by itself, and refuses at no cost
    rehearse_site(plan)
    if plan.metrics.source == "public":
        rehearse_public(plan)
    rehearse_coordinator(plan, initial_model(plan), folder)


def server_app(
    maker: SiteMaker,
    public: PublicTest | None,
    finish: Callable[[Outcome], None],
    observe: Observer = lambda progress: None,
    link: Callable[[Grid], FlowerLink] | None = None,
) -> ServerApp:
    """Return the ``ServerApp`` of one simulated run.

    Args:
        maker: knows the run, its plan and its parties.
        public: computes metrics on a public test split; None computes none.
        finish: called once with the outcome of the run.
        observe: called with the progress of each round that is done.
        link: makes what reaches the sites; default as over the link.
    """
    return create_server_app(
        maker.run_id,
        maker.plan,
        lambda: initial_model(maker.plan),
        Snapshots(maker.folder / "model"),
        lambda: _evidence_of(maker),
        evaluate=public.measure if public else None,
        observe=observe,
        finish=finish,
        link=link,
    )


def _evidence_of(maker: SiteMaker) -> RunEvidence:
    if maker.evidence == "off":
        return NoEvidence()
    return maker.parties.collector(maker.parties.roster())


def public_test(maker: SiteMaker, part: str = "test") -> PublicTest | None:
    """Return a public split, if the plan's metrics come from one; else None.

    Args:
        maker: knows the plan and its records.
        part: ``test`` or ``validation``.
    """
    if maker.plan.metrics.source != "public":
        return None
    return PublicTest(maker.plan, maker.records.measurable(part))


def _run_apps(
    server: ServerApp, maker: SiteMaker, setting: Setting, teller: Teller
) -> tuple[str, int]:
    sites = len(maker.plan.participants)
    count = counted(maker.plan.sites_in_a_round, "site")
    if setting.engine == "ray":
        from privet.simulations.ray import run_on_ray

        teller.stage(f"starting Ray for {count}")
        # A worker that answers for a site need not be the one before: releases are in files.
        worker = replace(maker, evidence="full")
        run_on_ray(server, create_client_app(worker), sites, setting.ray_address)
        return "ray", 1
    client = create_client_app(maker)
    cohort = None if setting.engine == "inline" else maker.cohort()
    processes = _processes_of(maker, setting, teller)
    if cohort is None and processes is None:
        teller.stage(f"training {count}, one after another")
        run_app(server, InProcessGrid(client, sites, tell=teller.step))
        return "inline", 1
    teller.stage(f"training {count}{' together' if cohort else ''}")
    grid = CohortGrid(client, sites, maker.with_trainer, cohort, processes, tell=teller.step)
    try:
        run_app(server, grid)
    finally:
        if processes is not None:
            processes.close()
    return grid.engine, grid.most_processes


def _processes_of(maker: SiteMaker, setting: Setting, teller: Teller) -> TrainingProcesses | None:
    """Return what shares the sites among processes; None where that cannot be, or is not wanted."""
    plan, asked = maker.plan, setting.jobs
    if setting.engine == "inline" or plan.sites_in_a_round < 2 or not plan.trains:
        return None
    # What a compressed update leaves for the next one stays with the trainer that made it.
    if asked == 1 or plan.device != "cpu" or plan.compression is not None:
        return None
    if asked is None and maker.noise_seed is not None:
        return None  # the same result each time, to the last bit
    if asked is None and plan.model.reads_features:
        return None  # training costs little beside what a frozen encoder reads once a process
    elsewhere = replace(maker, evidence="off")
    return TrainingProcesses(elsewhere, asked, tell=teller.stage)


def cohort_of(plan: Plan) -> Cohort | None:
    """Return what trains the sites of a plan together; None if its model has no form for that.

    Args:
        plan: with its noise calibrated.
    """
    asked = plan.training.clipping
    if not plan.trains or plan.sites_in_a_round < 2 or asked not in ("auto", BOOK_KEEPING):
        return None
    bench = model_runtime(plan)
    try:
        _ = bench.self_tests
        if bench.engine.mode != BOOK_KEEPING:
            return None  # what it does not know has no form for many sites either
        if sum(p.numel() for p in bench.engine.parameters) > LARGE:
            return None
        return Cohort(bench)
    except Exception as error:  # a model may do anything that has no form for many sites
        _LOG.info("sites are trained one after another: %r", error)
        return None


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
    for site in plan.participants:
        lines.extend(operator_lines(folder, site.name)[-1:])
    if not lines:
        return ""
    if len(lines) > 5:
        lines[5:] = [f"… and {len(lines) - 5} more"]
    return "\nwhat the operators of the sites see:\n  " + "\n  ".join(lines)
