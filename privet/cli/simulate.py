"""``privet simulate``: a whole federation on one machine."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from privet.cli import app
from privet.cli.output.done import AsJson
from privet.common.errors import DataError, DataMissingError, InputError


class Engine(StrEnum):
    """Where the sites run."""

    auto = "auto"
    inline = "inline"
    ray = "ray"


class EvidenceLevel(StrEnum):
    """How much is written down of a run."""

    full = "full"
    light = "light"
    off = "off"


class Clipping(StrEnum):
    """How per-unit gradients are computed; no effect on the guarantee."""

    auto = "auto"
    bookkeeping = "bookkeeping"
    opacus_hooks = "opacus-hooks"
    functorch = "functorch"
    vmap = "vmap"
    one_by_one = "one-by-one"


_EPILOG = """[bold]Examples[/bold]

privet simulate lending     nine lenders, a tabular Transformer, ε 3

privet simulate fed-heart --data DIR --epsilon 5 --compare

privet simulate lending --model linear --sweep 1,3,8     once for each ε

privet simulate plan.toml --sweep training.learning_rate=0.1,0.3 --sweep seed=1,2,3 --out tries

privet simulate plan.toml --evidence off     quicker: nothing is written down, the claim is none

privet simulate plan.toml --set training.steps=5 --set model.options.width=16

privet simulate plan.toml --check     what each site's records are worth; nothing is trained

privet simulate plan.toml --json > result.json

privet simulate fed-heart --tune 20 --out tuned     settings near its own, by the validation split

privet simulate lending --ledgers banks --cap 6     run it again: the second run counts, too

privet simulate eicu-text --model text-encoder --start runs/FIRST/model/model.safetensors
"""


@app.command(epilog=_EPILOG)
def simulate(
    plan: Annotated[
        str | None,
        typer.Argument(help="A scenario (see --list) or a plan file (*.toml).", metavar="PLAN"),
    ] = None,
    list_: Annotated[bool, typer.Option("--list", help="List the scenarios and stop.")] = False,
    model: Annotated[
        str | None, typer.Option(help="Another model for the same task, e.g. linear.")
    ] = None,
    epsilon: Annotated[
        float | None, typer.Option(help="Calibrate the noise to this ε (δ is the plan's).")
    ] = None,
    no_dp: Annotated[
        bool, typer.Option("--no-dp", help="Train without any guarantee; the claim is none.")
    ] = False,
    compare: Annotated[
        bool,
        typer.Option(
            "--compare",
            help="Also train without privacy: together, each site alone, all data pooled. "
            "Kept apart under non-private/.",
        ),
    ] = False,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="Set any key of the plan, e.g. training.steps=5. May be repeated.",
            metavar="KEY=VALUE",
        ),
    ] = None,
    sweep: Annotated[
        list[str] | None,
        typer.Option(
            help="Run once for each value of a key of the plan, e.g. training.steps=2,5; numbers "
            "alone are values of ε. May be repeated: every combination is run.",
            metavar="KEY=A,B",
        ),
    ] = None,
    tune: Annotated[
        int | None,
        typer.Option(
            help="Run N times with settings near the plan's, and write the plan with those that "
            "are best on its validation split. Private records pay for all runs.",
            metavar="N",
        ),
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option(
            help="Processes at once: runs of a --sweep or --tune (default one for each core), or "
            " those that train the sites of a run (default 1, and one for each core where much "
            "is left after the second round)."
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="With --sweep or --tune: continue the runs of --out.")
    ] = False,
    rounds: Annotated[int | None, typer.Option(help="Number of rounds.")] = None,
    sites: Annotated[int | None, typer.Option(help="Only the first N sites of the plan.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of split and initial weights.")] = None,
    noise_seed: Annotated[
        int | None,
        typer.Option(help="Reproducible noise, for tests. It protects nobody: claim none."),
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Folder of the records; default $PRIVET_DATA.")
    ] = None,
    engine: Annotated[
        Engine,
        typer.Option(
            help="auto: sites train together where the model allows it; inline: one after another; "
            "ray: Flower's Ray engine."
        ),
    ] = Engine.auto,
    ray_address: Annotated[
        str | None, typer.Option(help="Use the Ray cluster at this address.")
    ] = None,
    evidence: Annotated[
        EvidenceLevel | None,
        typer.Option(
            help="full: every site cosigns every other ledger; light: a few do, which is "
            "quicker with many sites; off: nothing is written down, the claim is none. "
            "Default: full up to 20 sites, else light."
        ),
    ] = None,
    clipping: Annotated[
        Clipping | None, typer.Option(help="How per-unit gradients are computed.")
    ] = None,
    start: Annotated[
        Path | None,
        typer.Option(
            help="Start from the weights of an earlier run, as far as names and shapes agree.",
            metavar="FILE",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Run folder, new or empty; default runs/NAME-TIME.")
    ] = None,
    ledgers: Annotated[
        Path | None,
        typer.Option(
            help="Folder of ledgers that last: what earlier runs spent counts in this one.",
            metavar="DIR",
        ),
    ] = None,
    cap: Annotated[
        float | None,
        typer.Option(help="Lifetime ε of each site's population, where its ledger is new."),
    ] = None,
    check: Annotated[
        bool,
        typer.Option(
            "--check",
            help="Only try the sites' records with the plan, as `privet client check` does.",
        ),
    ] = False,
    open_again: Annotated[
        bool,
        typer.Option(
            "--open-again",
            help="With --ledgers: run the plan also at sites where its failures closed it.",
        ),
    ] = False,
    cache: Annotated[
        Path | None,
        typer.Option(
            help="Keep here what a frozen encoder reads out of texts, for later runs. Default: "
            "~/.cache/privet for a scenario; nothing of your own records is kept.",
            metavar="DIR",
        ),
    ] = None,
    no_cache: Annotated[
        bool, typer.Option("--no-cache", help="Keep it nowhere, and read all texts again.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Simulate a federation on one machine, on real records.

    PLAN is the name of a scenario (see --list) or the path of a plan file (*.toml).

    Several institutions train one model together; each site's ε is computed from what its
    mechanism did. The run folder holds result.json, the model with its card, plots, the
    plan, the roster, and each site's ledger: `privet audit bundle` gathers them.
    The end says which site released in how many rounds; where one never did, the exit code is 1.
    """
    if list_:
        _list(data, as_json)
        return
    if plan is None:
        raise InputError("name a scenario or a plan file; `privet simulate --list` shows them")
    if ray_address is not None and engine is not Engine.ray:
        raise InputError("--ray-address goes with --engine ray")
    if sweep and (compare or epsilon is not None):
        raise InputError("--sweep goes without --compare and --epsilon")
    if tune is not None and (sweep or compare or ledgers is not None):
        raise InputError("--tune goes without --sweep, --compare and --ledgers")
    if resume and not sweep and tune is None:
        raise InputError("--resume goes with --sweep and --tune")
    if jobs is not None and not sweep and tune is None and engine is not Engine.auto:
        raise InputError("--jobs goes with --sweep or --engine auto")
    _within("--jobs", jobs, 1000, least=1)
    if cache is not None and no_cache:
        raise InputError("--cache goes without --no-cache")
    if cap is not None and no_dp:
        raise InputError("--cap goes without --no-dp")
    if no_dp and epsilon is not None:
        raise InputError("--no-dp goes without --epsilon")
    _within("--epsilon", epsilon, 1000)
    _within("--cap", cap, 1000)
    _within("--rounds", rounds, 10**9, least=1)
    _within("--seed", seed, 2**53 - 1, least=0)
    from privet.cli.output import show, show_settings
    from privet.cli.output.console import console
    from privet.common.models.start import offer
    from privet.simulations import planning, run
    from privet.simulations.compare import compare as run_compare
    from privet.simulations.plan_values import values_of

    chosen, base = planning.find_plan(plan, model)
    chosen = planning.adjusted(
        chosen,
        epsilon=epsilon,
        rounds=rounds,
        seed=seed,
        sites=sites,
        clipping=clipping and clipping.value,
        start=offer(start) if start else None,
        dp=not no_dp,
        values=values_of(set_ or []),
    )
    if not chosen.trains and (compare or sweep):
        raise InputError(f"{plan}: it trains nothing: it goes without --compare and --sweep")
    setting = planning.Setting(
        engine=engine.value,
        ray_address=ray_address,
        noise_seed=noise_seed,
        data_dir=data,
        base=base,
        ledgers=ledgers,
        cap=cap,
        open_again=open_again,
        evidence=None if evidence is None else evidence.value,
        jobs=None if sweep or tune is not None else jobs,
        cache="none" if no_cache else cache and cache.resolve(),
    )
    setting.evidence_of(chosen)
    if check:
        _check(chosen, setting, as_json)
        return
    if sweep:
        _sweep(chosen, setting, sweep, _Sweeping(out, jobs, resume), as_json)
        return
    if tune is not None:
        _tune(chosen, setting, tune, _Sweeping(out, jobs, resume), as_json)
        return
    if chosen.chosen and not as_json:
        show_settings.settings(chosen, console(stderr=True))
    with show.RunDisplay(chosen) as display:
        try:
            result = run.run_plan(chosen, setting, out, display.update, display)
        except KeyboardInterrupt:
            if display.out is not None:
                kept = setting.evidence_of(chosen) != "off"
                typer.echo(_stopped(display.out, kept=kept), err=True)
            raise
    rows, failed = None, bool(result.silent)
    if compare:
        with show.stage("training without privacy, for comparison") as tell:
            try:
                rows = run_compare(result, setting, tell)
            except Exception as error:
                # The run itself is paid for, and is printed.
                failed = True
                text = f"the comparison could not be made: {error!r}"
                result = replace(result, remarks=(*result.remarks, text))
    if as_json:
        _print_json(result.to_dict())
        show.releases(result)
    else:
        show.result(result, rows, ledgers)
    if failed:
        raise typer.Exit(1)


def _check(plan: Any, setting: Any, as_json: bool) -> None:
    from privet.cli.output import show, show_check
    from privet.simulations.check import check_sites

    try:
        with show.stage("checking the records") as tell:
            found = dict(check_sites(plan, setting, tell))
    except (DataError, DataMissingError) as error:
        typer.echo(f"privet: {error}", err=True)
        raise typer.Exit(1) from None
    if as_json:
        _print_json({"sites": [{"name": name, **one.to_dict()} for name, one in found.items()]})
    else:
        for name, one in found.items():
            show_check.data_check(one, name)
    if not all(one.ok for one in found.values()):
        raise typer.Exit(1)


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value, ensure_ascii=False))


def _within(what: str, value: float | None, most: float, *, least: float | None = None) -> None:
    """Check an option where it was given, so that the plan is not blamed for it."""
    if value is None:
        return
    low, enough = "above 0", value > 0
    if least is not None:
        low, enough = f"at least {least:g}", value >= least
    if not (enough and value <= most):
        raise InputError(f"{what} must be {low} and at most {most:,}, not {value:g}")


@dataclass(frozen=True)
class _Sweeping:
    """The options that only a sweep has."""

    out: Path | None
    jobs: int | None
    resume: bool


def _sweep(plan: Any, setting: Any, words: list[str], how: _Sweeping, as_json: bool) -> None:
    from privet.cli.output import show
    from privet.simulations import sweep

    axes = sweep.axes_of(words)
    for axis in axes:
        if axis.key == sweep.EPSILON:
            if plan.privacy is None:
                raise InputError("--sweep of ε needs a plan with privacy, and goes without --no-dp")
            for value in axis.values:
                if isinstance(value, bool) or not isinstance(value, int | float):
                    raise InputError(f"--sweep of ε takes numbers, not '{value}'")
                _within("each ε of --sweep", value, 1000)
    if how.resume and how.out is None:
        raise InputError("--resume goes with --out, the folder of the sweep")
    points = sweep.points_of(plan, axes)
    jobs = how.jobs or sweep.default_jobs(plan)
    folder = how.out or Path("runs") / f"{plan.name.replace(' ', '-')}-sweep-{_stamp()}"
    at_once = 1 if setting.ledgers is not None else min(jobs, len(points))
    with show.stage(f"{len(points)} runs, {at_once} at once") as tell:
        made = sweep.run_sweep(
            axes, points, setting, folder, jobs=jobs, resume=how.resume, tell=tell
        )
    if as_json:
        _print_json({"runs": made.rows, "table": str(folder / "sweep.parquet")})
    else:
        show.sweep(made)
    for row in made.failed:
        typer.echo(f"privet: {row['sweep']}: {row['error']}", err=True)
    silent = [site for row in made.rows for site in row.get("sites", ()) if not site["released"]]
    if silent or made.failed:
        for site in silent:
            typer.echo(f"privet: {site['name']} never released; {site['log']} says why", err=True)
        raise typer.Exit(1)


def _tune(plan: Any, setting: Any, runs: int, how: _Sweeping, as_json: bool) -> None:
    from privet.cli.output import show, show_settings
    from privet.simulations import sweep
    from privet.simulations.tune import tune

    if how.resume and how.out is None:
        raise InputError("--resume goes with --out, the folder of the runs")
    jobs = min(how.jobs or sweep.default_jobs(plan), runs)
    folder = how.out or Path("runs") / f"{plan.name.replace(' ', '-')}-tune-{_stamp()}"
    with show.stage(f"{runs} runs, {jobs} at once") as tell:
        made = tune(plan, setting, folder, runs, jobs=jobs, resume=how.resume, tell=tell)
    if as_json:
        _print_json(made.to_dict())
    else:
        show_settings.tuned(made)


def _stopped(folder: Path, *, kept: bool) -> str:
    if not kept:
        return f"privet: {folder} is of a run that was stopped, and kept no evidence"
    return (
        f"privet: the ledgers in {folder} keep what was charged until now; `privet audit bundle "
        f"{shlex.quote(str(folder))} --out FILE` gathers them"
    )


def _stamp() -> str:
    return datetime.now(UTC).strftime("%Y%m%d-%H%M%S")


def _list(data: Path | None, as_json: bool) -> None:
    from privet.simulations import scenarios

    rows = []
    for name in scenarios.names():
        scenario = scenarios.get(name)
        plan = scenario.own_plan
        rows.append(
            {
                "name": name,
                "task": plan.task.kind,
                "model": plan.model.kind,
                "sites": len(plan.sites),
                "unit": getattr(plan.privacy, "unit", ""),
                "data": scenario.data,
                "available": scenario.available(data),
                "title": scenario.title,
                "models": [plan.model.kind, *scenario.models],
            }
        )
    if as_json:
        _print_json({"scenarios": rows})
        return
    from privet.cli.output import show

    show.scenarios(rows, folder=scenarios.get("lending").path.parent)
