"""The command ``privet``. Commands import what they need when they run, not before."""

from __future__ import annotations

import os
import sys

# Threads that wait must not keep a core busy: set before torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import typer

from privet import __version__
from privet.common.errors import PrivetError, reason_of
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
    "privet budget plan.toml site.toml     what it would cost, before anything is spent",
)


_TRAIN = frozenset(
    "captum fastapi flwr google grpc grpc_health onnx onnxruntime opacus pandas peft phonenumbers "
    "prometheus_client pyarrow sacrebleu safetensors sklearn torch transformers uvicorn".split()
)
"""What the core install leaves out, as it is imported (extra: train)."""


def _version(value: bool) -> None:
    if value:
        typer.echo(f"privet {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Show the version."
    ),
) -> None:
    pass


def main() -> None:
    """Run the command line. Exit codes: 0 done, 1 failed, 2 wrong use, 3 refused, 4 faults."""
    try:
        app()
    except PrivetError as error:
        typer.echo(f"privet: {printable(str(error), lines=True)}", err=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        typer.echo("privet: stopped", err=True)
        sys.exit(130)
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


from privet.cli import audit, budget, check, client, init, model, server, simulate  # noqa: E402, F401  (they register)
