"""``privet init``: a plan and real records to start from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from privet.cli import app
from privet.cli.output.done import AsJson, done
from privet.common.errors import InputError


@app.command(
    epilog="[bold]Examples[/bold]\n\nprivet init mine && privet simulate mine/plan.toml\n\n"
    "privet init texts --like banking77     its settings, for texts of your own"
)
def init(
    folder: Annotated[Path, typer.Argument(help="A new or empty folder.", metavar="DIR")],
    like: Annotated[
        str | None,
        typer.Option(
            help="Write a plan with this scenario's settings, for records of your own. "
            "`privet simulate --list` shows the scenarios.",
            metavar="SCENARIO",
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="With --like: another model of the scenario.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make a folder with a plan, three hospitals' records, and a model of one's own.

    DIR is a new or empty folder.

    The records are 569 real diagnoses (scikit-learn's breast cancer set). Put your own
    files in their place and change the plan; every line of it is explained.

    With --like it holds a plan alone: model, training, strategy and privacy are the
    scenario's, columns and files are for you to write.
    """
    from privet.simulations.starter import write_like, write_starter

    if model is not None and like is None:
        raise InputError("--model goes with --like")
    files = write_starter(folder) if like is None else write_like(folder, like, model)
    text = "\n  ".join((f"Made {folder}:", *files))
    if like is None:
        text += f"\nNext: privet simulate {folder}/plan.toml"
    else:
        text += (
            f"\nNext: put your columns and files into {folder}/plan.toml, then\n"
            f"privet simulate {folder}/plan.toml --check"
        )
    done({"folder": str(folder), "files": files}, text, as_json)
