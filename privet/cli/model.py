"""``privet model``: check what is to be trained; evaluate, explain, export and serve it after."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from privet.cli import app
from privet.cli.output.done import AsJson, done
from privet.common.errors import DataError, DataMissingError, InputError

if TYPE_CHECKING:
    import socket

    import pandas as pd
    from fastapi import FastAPI

    from privet.common.plan import Plan
    from privet.delivery.trained import Trained
    from privet.privacy.audit.card import CardEvidence

model = typer.Typer(
    no_args_is_help=True,
    help="Check a plan's model; evaluate, explain, export and serve a trained one.",
    epilog="[bold]Examples[/bold]\n\n"
    "privet model check plan.toml\n\n"
    "privet model evaluate runs/RUN --group sex --group age:40,65\n\n"
    "privet model explain runs/RUN --records 3 --out why.html\n\n"
    "privet model export runs/RUN --out model --onnx\n\n"
    "privet model serve runs/RUN",
)
app.add_typer(model, name="model")

Run = Annotated[Path, typer.Argument(help="The folder of a finished run.", metavar="RUN")]
Data = Annotated[Path | None, typer.Option(help="Folder of the records; default $PRIVET_DATA.")]
From = Annotated[
    Path | None,
    typer.Option(
        "--from", help="Records of your own: a CSV or Parquet file with the plan's columns.",
        metavar="FILE",
    ),
]  # fmt: skip


@model.command(
    epilog="[bold]Examples[/bold]\n\n"
    "privet model check plan.toml\n\n"
    "privet model check lending --model linear --json\n\n"
    "privet model check plan.toml --write"
)
def check(
    plan: Annotated[
        str, typer.Argument(help="A scenario, or a plan file (*.toml).", metavar="PLAN")
    ],
    kind: Annotated[
        str | None, typer.Option("--model", help="Another model than the plan's.")
    ] = None,
    write: Annotated[
        bool,
        typer.Option(
            "--write",
            help="Measure every exact method, and write the quickest into the plan's file, so that "
            "all sites take the same.",
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Check without data whether a plan's model trains under privacy, how, and at what cost.

    Runs the start-up test that each site runs, on generated records, and measures a step with and
    without privacy on this machine. Reports which parameters are trained. If the model is refused,
    the message says whether its records depend on each other, or that no exact way was found.
    """
    from privet.cli.output import show, show_model
    from privet.simulations.model_check import check_model
    from privet.simulations.planning import find_plan
    from privet.simulations.written_choice import write_clipping

    found, _ = find_plan(plan, kind)
    if write and (kind is not None or not Path(plan).is_file()):
        raise InputError("--write changes a plan's file: name the file, and no other --model")
    with show.stage("checking the model") as tell:
        outcome = check_model(found, tell, every=write)
    digest = write_clipping(Path(plan), outcome.way).digest if write else found.digest
    if as_json:
        value = {"plan": found.name, "digest": digest, **outcome.to_dict()}
        typer.echo(json.dumps(value, ensure_ascii=False))
        return
    show_model.check(found.name, outcome)
    if write:
        show_model.written(plan, outcome.way, is_new=digest != found.digest)


@model.command(
    epilog="[bold]Examples[/bold]\n\n"
    "privet model evaluate runs/RUN --group sex --group age:40,65\n\n"
    "privet model evaluate runs/RUN --from cases.csv --json\n\n"
    "privet model evaluate runs/RUN --gate --epsilon 1 --ledgers regions"
)
def evaluate(
    run: Run,
    data: Data = None,
    own: From = None,
    group: Annotated[
        list[str] | None,
        typer.Option(
            help="Tell records apart by a column, or by bands of one: age:40,65. Repeatable.",
            metavar="COLUMN[:BOUNDS]",
        ),
    ] = None,
    gate: Annotated[
        bool,
        typer.Option(
            "--gate", help="Measure at the sites: metrics are noised, and paid for at each site."
        ),
    ] = False,
    epsilon: Annotated[
        float | None, typer.Option(help="With --gate: what the metrics may cost; default 1.")
    ] = None,
    ledgers: Annotated[
        Path | None,
        typer.Option(
            help="With --gate: the folder of ledgers that the training wrote to.", metavar="DIR"
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="With --gate: run folder, new or empty; default runs/NAME-TIME."),
    ] = None,
    plan: Annotated[
        Path | None,
        typer.Option(
            help="With --gate: only write the plan to this file, to be submitted to a coordinator.",
            metavar="FILE",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Measure a model: over all records, by site, by group, with calibration and gaps.

    The records are the test split of the run's scenario, or a file of your own. The metrics are
    exact: of private records they are private, and must stay where the records are.

    With --gate each site measures on its own held-out records. What leaves it is one noised table,
    and its ledger is charged.
    """
    from privet.cli.output import show, show_model
    from privet.delivery.evaluate import FigureGroup
    from privet.delivery.evaluate import evaluate as measure

    trained = _load(run)
    if gate:
        if own is not None or group:
            raise InputError("--gate measures what the sites hold: it goes without --from, --group")
        if epsilon is None:
            epsilon = 1.0
        if not 0 < epsilon <= 1000:
            raise InputError(f"--epsilon must be above 0 and at most 1,000, not {epsilon:g}")
        if plan is not None and not (ledgers is None and out is None):
            raise InputError("--plan only writes a plan: it goes without --ledgers and --out")
        _through_gate(trained, epsilon, ledgers, data, out, plan, as_json)
        return
    if not (epsilon is None and ledgers is None and out is None and plan is None):
        raise InputError("--epsilon, --ledgers, --out and --plan go with --gate")
    groups = [FigureGroup.parse(text) for text in group or []]
    with show.stage("evaluating") as tell:
        frame = _records(trained, data, own)
        tell(f"{len(frame)} records")
        found = measure(trained, frame, groups)
    value = {"run": str(run), "source": _source(own), **found}
    if as_json:
        typer.echo(json.dumps(value, ensure_ascii=False))
    else:
        show_model.evaluation(value)


@model.command(
    epilog="[bold]Examples[/bold]\n\n"
    "privet model explain runs/RUN --records 3 --out why.html\n\n"
    "privet model explain runs/RUN --from one-case.csv --class 1 --out why.html"
)
def explain(
    run: Run,
    out: Annotated[Path, typer.Option(help="The page to write (HTML).")],
    data: Data = None,
    own: From = None,
    records: Annotated[int, typer.Option(help="Explain the first N records.", min=1, max=100)] = 1,
    overall: Annotated[
        int, typer.Option(help="Show what counts over the first N records; 0 for none.", min=0)
    ] = 0,
    target: Annotated[
        str | None,
        typer.Option("--class", help="The class to explain; default the predicted one."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show which words, cells or pixels decided, as a self-contained page.

    Texts and images by integrated gradients, tables by Shapley values. An explanation holds the
    record that it explains.
    """
    from privet.cli.output import show
    from privet.delivery import explain as why

    trained = _load(run)
    public = own is None and trained.plan.metrics.source == "public"
    if overall and own is not None:
        raise InputError("--overall is for public records; it goes without --from")
    if overall and not public:
        raise InputError(
            "--overall is for public records, and the test split of this plan is private "
            f'(metrics.source = "{trained.plan.metrics.source}")'
        )
    with show.stage("explaining") as tell:
        frame = _records(trained, data, own)
        tell(f"{records} records")
        found = why.explain(trained, frame.head(records), target)
        parts = []
        if overall:
            tell(f"over {overall} records")
            parts = why.whole(why.explain(trained, frame.head(overall), target))
    plan = trained.plan
    terms = "These are private records: this page holds them."
    if public:
        terms = "The records are of the test split, which the plan calls public."
    why.write_page(out, f"Why? {plan.title or plan.name}", found, parts, terms)
    if as_json:
        value = {
            "run": str(run),
            "out": str(out),
            "records": [one.to_dict() for one in found],
            "overall": [{"name": part.name, "weight": part.weight} for part in parts],
        }
        typer.echo(json.dumps(value, ensure_ascii=False))
    else:
        typer.echo(f"{out}: {len(found)} explained")


@model.command(
    epilog="[bold]Examples[/bold]\n\n"
    "privet model export runs/RUN --out model --onnx\n\n"
    "privet model export runs/RUN --out model --bundle run.bundle --roster fingerprints.json"
)
def export(
    run: Run,
    out: Annotated[Path, typer.Option(help="The folder to write, new or empty.", metavar="DIR")],
    onnx: Annotated[bool, typer.Option("--onnx", help="Also write ONNX, and compare it.")] = False,
    int8: Annotated[
        bool, typer.Option("--int8", help="Also write ONNX with weights as 8-bit integers.")
    ] = False,
    prune: Annotated[
        float, typer.Option(help="Set this share of the weights to zero, the smallest.", min=0)
    ] = 0.0,
    data: Data = None,
    own: Annotated[
        Path | None,
        typer.Option(
            "--from",
            metavar="FILE",
            help="Public records to measure smaller variants on; default the plan's test split, "
            "if it is public.",
        ),
    ] = None,
    bundle: Annotated[
        Path | None,
        typer.Option(help="Evidence of the run; default: what lies in RUN.", metavar="FILE"),
    ] = None,
    roster: Annotated[
        Path | None,
        typer.Option(help="Roster of fingerprints that reached you another way.", metavar="FILE"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write a folder that others can load, with a card that says what protects whose data.

    The card carries ε with δ, unit and relation, the claim, the ledgers' checkpoints, and what the
    verifier found.
    """
    from privet.cli.output import show
    from privet.delivery.export import Figures, Form
    from privet.delivery.export import export as write
    from privet.delivery.folder_check import FolderCheck
    from privet.delivery.provenance import provenance
    from privet.privacy.audit import card

    trained = _load(run)
    if number := trained.facts.get("round"):
        last = trained.plan.last_round
        typer.echo(f"The run failed: this is its model after round {number} of {last}", err=True)
    with show.stage("exporting") as tell:
        evidence, unverified = None, ""
        if bundle is not None or trained.plan.privacy is not None:
            tell("verifying the evidence")
            evidence, unverified = _evidence(trained, run, bundle, roster)
        result = trained.result

        def text(lighter: Figures, checked: FolderCheck) -> str:
            return card.write_card(
                trained.plan,
                result.get("metrics", {}),
                evidence,
                source="the run's own (" + str(result.get("metrics_source", "none")) + ")",
                note=str(result.get("note", "")),
                lighter=lighter,
                provenance=provenance(trained.plan),
                folder=checked.notes,
                opening=checked.opening,
            )

        records = _public_records(trained, data, own) if int8 or prune else None
        tell("writing")
        value = write(trained, out, text, Form(onnx, prune, int8, records))
    # Evidence of another run or model says nothing of this one.
    verified, named, words = None, None, "no evidence at hand"
    if evidence is not None:
        named, words = evidence.run, "the evidence knows NO SUCH MODEL"
        if not evidence.verdict.ok:
            verified, words = False, "evidence has FAULTS"
        elif named is not None:
            verified, words = True, "evidence verified"
    if as_json:
        typer.echo(json.dumps({**value, "verified": verified, "run": named}))
    else:
        typer.echo(f"{out}: {', '.join(value['files'])}")
        typer.echo(f"The folder agrees with the run's network to {value['folder_off']:.1e}")
        if onnx:
            typer.echo(f"ONNX agrees with the network to {value['onnx_off']:.1e}")
        _say_variants(trained.plan.task.kind, value["lighter"], measured=records is not None)
        if unverified:
            typer.echo(f"The evidence was not verified: {unverified}", err=True)
        typer.echo(f"Card: {words}")
    if verified is False:
        raise typer.Exit(4)


def _evidence(
    trained: Trained, run: Path, bundle: Path | None, roster: Path | None
) -> tuple[CardEvidence | None, str]:
    """Return what the verifier found of a model, or why it found nothing.

    Args:
        trained: the model.
        run: its folder, whose evidence is taken where no bundle is named.
        bundle: that was named, or None.
        roster: of fingerprints, that was named, or None.

    Raises:
        InputError: if a bundle or a roster was named and cannot be read.
    """
    from privet.common.flat import digest_arrays
    from privet.privacy.audit import card

    try:
        return card.gather(bundle or run, roster, digest_arrays(trained.arrays)), ""
    except InputError as error:
        if bundle is not None or roster is not None:
            raise  # what was asked for cannot be done
        return None, str(error)


def _say_variants(task: str, variants: dict[str, dict[str, Any]], *, measured: bool) -> None:
    """Print the smaller variants of a model, with their measure and their size in bytes."""
    from privet.common.tasks.measure import measure_of_kind

    headline = measure_of_kind(task).headline
    for variant, found in variants.items():
        parts = []
        if found.get(headline) is not None:
            parts.append(f"{headline} {found[headline]:.3f}")
        if "packed" in found:
            parts.append(f"{found['bytes']:,} bytes, {found['packed']:,} packed")
        typer.echo(f"{variant}: {', '.join(parts)}")
    if variants and not measured:
        typer.echo(
            "The variants were not measured: there are no public records here (--from FILE)",
            err=True,
        )


@model.command(
    epilog="[bold]Examples[/bold]\n\n"
    "privet model serve runs/RUN\n\n"
    "privet model serve runs/RUN --feedback feedback.csv --policy site.toml"
)
def serve(
    run: Run,
    host: Annotated[
        str, typer.Option(help="Address to listen at; others than this machine's need --open.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port.", min=0, max=65535)] = 8080,
    open_: Annotated[
        bool,
        typer.Option(
            "--open", help="Listen where other machines can reach it. There is no authentication."
        ),
    ] = False,
    name: Annotated[
        list[str] | None,
        typer.Option(help="A name of this machine by which it may be asked. Repeatable."),
    ] = None,
    feedback: Annotated[
        Path | None,
        typer.Option(help="Keep feedback records in this CSV file of the site.", metavar="FILE"),
    ] = None,
    policy: Annotated[
        Path | None,
        typer.Option(help="The site's policy: says whether a record names a person."),
    ] = None,
) -> None:
    """Serve predictions over HTTP on this machine, with OpenAPI at /docs.

    Feedback records stay in FILE. Name it as a data set of the same population in site.toml, and
    a later run trains on it through the same ledger.
    """
    import ipaddress
    import socket

    from privet.common.link.address import bracketed
    from privet.delivery.http_service import make_service, open_feedback

    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    try:
        here = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        raise InputError(f"--host {host}: not an address of a machine") from None
    if not here and not open_:
        raise InputError(
            f"--host {host}: other machines could ask, and there is no authentication. Put a proxy "
            "that asks who is calling before it, or say --open"
        )
    if policy is not None and feedback is None:
        raise InputError("--policy goes with --feedback: it says whether a record names a person")
    trained = _load(run)
    kept = None
    if feedback is not None:
        from privet.privacy.policy import Policy

        site = Policy.load(policy) if policy else None
        kept = open_feedback(feedback, trained, site)
    service = make_service(trained, kept, name or ())
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listening = socket.create_server((host, port), family=family)
    except OSError as error:
        raise InputError(
            f"--host {host} --port {port}: cannot listen there: {error.strerror}; name another"
        ) from error
    typer.echo(f"http://{bracketed(host)}:{listening.getsockname()[1]}/docs", err=True)
    with listening:
        answer_at(listening, service)


def answer_at(listening: socket.socket, service: FastAPI) -> None:
    """Answer requests until stopped; what goes wrong is named by its type and place alone.

    Args:
        listening: a socket that listens.
        service: what answers; what it is asked is a record.
    """
    import uvicorn

    from privet.common.output.logs import Level, Style, set_up
    from privet.common.output.process_output import protect_process

    set_up(Style.TEXT, Level.WARNING, texts=False)
    protect_process()
    config = uvicorn.Config(service, log_level="warning", log_config=None)
    uvicorn.Server(config).run(sockets=[listening])


def _through_gate(
    trained: Trained, epsilon: float, ledgers: Path | None, data: Path | None, out: Path | None,
    file: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """Measure at the sites of a simulation, or write the plan that has it done."""
    from privet.cli.output import show
    from privet.common.config import dump_toml
    from privet.common.models.start import offer
    from privet.privacy.accounting.noise_calibration import measuring
    from privet.simulations.planning import Setting
    from privet.simulations.run import run_plan

    weights = trained.weights
    plan = measuring(trained.plan, offer(weights), epsilon)
    if file is not None:
        _write_new(file, dump_toml(plan.to_dict()))
        value = {"file": str(file), "plan": plan.digest, "weights": str(weights)}
        then = f"Coordinator and sites find {weights} in a folder that PRIVET_MODELS names."
        done(value, f"{file}: plan {plan.digest}\n{then}", as_json)
        return
    setting = Setting(data_dir=data, ledgers=ledgers)
    with show.RunDisplay(plan) as display:
        result = run_plan(plan, setting, out, display.update)
    if as_json:
        typer.echo(json.dumps(result.to_dict(), ensure_ascii=False))
    else:
        show.result(result, None, ledgers)


def _write_new(path: Path, text: str) -> None:
    from privet.common.canonical import write_atomic

    if path.exists():
        raise InputError(f"{path} exists: name another file")
    if not path.parent.is_dir():
        raise InputError(f"{path}: cannot be written: there is no such folder")
    try:
        write_atomic(path, text.encode())
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror}") from error


def _load(run: Path) -> Trained:
    from privet.delivery.trained import load

    return load(run)


def _records(trained: Trained, data: Path | None, own: Path | None) -> pd.DataFrame:
    """Return a file's records, or the run's test split."""
    if own is not None:
        from privet.client.data.tables import read_table
        from privet.common.text_format import PLAIN

        plan = trained.plan
        found = read_table(
            own, multiline=True, nested=plan.task.nested_columns,
            form=plan.data.format or PLAIN, numbers=plan.task.number_columns,
        )  # fmt: skip
        if found.faults:
            first = found.faults[0]
            raise DataError(f"{own}, {found.counted} {first.place}: {first.why}")
        return found.frame
    from privet.common.config import data_folder
    from privet.simulations.records import SiteRecords

    if not _names_records(trained.plan):
        raise InputError("the plan names no records: bring a file, --from FILE")
    try:
        frame = SiteRecords(trained.plan, data_folder(data)).parts()["test"]
    except DataMissingError as error:
        if trained.plan.scenario is not None:
            raise
        raise DataMissingError(
            f"{error}\nThe plan's paths start from this folder; or bring a file, --from FILE"
        ) from error
    if not len(frame):
        raise InputError("the plan's test split is empty: bring a file, --from FILE")
    return frame


def _public_records(trained: Trained, data: Path | None, own: Path | None) -> pd.DataFrame | None:
    """Return records whose exact metrics a card may contain, or None.

    A test split that the plan does not call public is as private as what was trained on (H13).
    """
    if own is not None:
        return _records(trained, data, own)
    plan = trained.plan
    if plan.metrics.source != "public" or not plan.split.test or not _names_records(plan):
        return None
    try:
        return _records(trained, data, None)
    except DataMissingError:
        return None


def _names_records(plan: Plan) -> bool:
    return bool(plan.scenario or plan.data.path or any(site.path for site in plan.sites))


def _source(own: Path | None) -> Any:
    return str(own or "test split")
