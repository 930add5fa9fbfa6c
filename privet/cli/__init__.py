"""The command ``privet``. Commands import what they need when they run, not before."""

from __future__ import annotations

import json
import os
import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from privet import __version__
from privet.common.errors import InputError, PrivetError, reason_of

if TYPE_CHECKING:
    from privet.common.plan import Plan
from privet.common.printable import printable

app = typer.Typer(
    name="privet",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Federated training of Transformers whose privacy budget anyone can verify.\n\n"
    "Start with: privet simulate --list, then privet simulate lending.",
    epilog="[bold]Examples[/bold]\n\nprivet simulate lending\n\n"
    "privet budget plan.toml site.toml     what it would cost, before anything is spent\n\n"
    "privet --version --json               which code runs here, as a digest",
)


_TRAIN = frozenset(
    "captum fastapi flwr google grpc grpc_health onnx onnxruntime opacus pandas peft phonenumbers "
    "prometheus_client pyarrow sacrebleu safetensors sklearn torch transformers uvicorn".split()
)
"""What the core install leaves out, as it is imported (extra: train)."""


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Show the version and the digest of the code that runs at a site."
        ),
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="With --version: also what the digest is of, as JSON.")
    ] = False,
    plan: Annotated[
        str | None,
        typer.Option(
            help="With --version: a scenario or a plan's file, whose own modules are covered, too.",
            metavar="PLAN",
        ),
    ] = None,
) -> None:
    if version:
        _show_version(plan, as_json)
        raise typer.Exit
    if as_json or plan is not None:
        raise typer.BadParameter("--json and --plan stand here only with --version")
    if context.invoked_subcommand is None:
        raise typer.BadParameter("no command; `privet --help` names them")


def _show_version(reference: str | None, as_json: bool) -> None:
    from privet.common import code
    from privet.common.canonical import digest_json

    plan = None if reference is None else _plan(reference)
    manifest = code.manifest(plan)
    digest = digest_json(manifest)
    if as_json:
        typer.echo(json.dumps({"privet": __version__, "code": digest, "manifest": manifest}))
    else:
        typer.echo(f"privet {__version__}\ncode {digest}")


def _plan(reference: str) -> Plan:
    """Return the plan of a scenario or a file: people write TOML, a site keeps JSON."""
    if not reference.endswith(".json"):
        from privet.simulations.planning import find_plan

        return find_plan(reference)[0]
    return plan_of_json(reference)


def plan_of_json(path: str) -> Plan:
    """Return a plan that is kept as JSON, such as in a run's folder or at a site.

    Raises:
        InputError: if it cannot be read, or is no plan.
    """
    from privet.common.plan import Plan

    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read: {reason_of(error)}") from error
    return Plan.parse(value, where=path)


@cache
def _command() -> Any:
    """Return what typer makes of all commands: read once in a process, however often it is used."""
    return typer.main.get_command(app)


def main() -> None:
    """Run the command line. Exit codes: 0 done, 1 failed, 2 wrong use, 3 refused, 4 faults."""
    try:
        _command()()
    except PrivetError as error:
        typer.echo(f"privet: {printable(str(error), lines=True)}", err=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        typer.echo("privet: stopped", err=True)
        sys.exit(130)
    except SystemExit as error:
        if error.code == 130:  # typer makes this of an interrupt
            typer.echo("privet: stopped", err=True)
        raise
    except BrokenPipeError:
        sys.exit(1)
    except Exception as error:
        if isinstance(error, OSError):
            where = f"{error.filename}: " if error.filename else ""
            typer.echo(f"privet: {where}{reason_of(error)}", err=True)
            sys.exit(1)
        if os.environ.get("PRIVET_DEBUG"):
            raise
        if isinstance(error, ModuleNotFoundError) and (error.name or "").split(".")[0] in _TRAIN:
            typer.echo(
                f"privet: this command needs {error.name}, which the core install leaves out: "
                "install Privet with the extra [train]",
                err=True,
            )
            sys.exit(2)
        typer.echo(
            f"privet: this should not have happened: {error!r}. Run it again with PRIVET_DEBUG=1 "
            "to see where, and report it.",
            err=True,
        )
        sys.exit(1)


from privet.cli import (  # noqa: E402, F401  (they register)
    audit,
    backup,
    budget,
    changes,
    check,
    client,
    copies,
    init,
    model,
    plan_schema,
    plan_settings,
    plans,
    researcher,
    server,
    simulate,
)
