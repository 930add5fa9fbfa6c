"""``privet init``: a plan and real records to start from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from privet.cli import app
from privet.cli.output.done import AsJson, done


@app.command(epilog="[bold]Example[/bold]\n\nprivet init mine && privet simulate mine/plan.toml")
def init(
    folder: Annotated[Path, typer.Argument(help="A new or empty folder.", metavar="DIR")],
    as_json: AsJson = False,
) -> None:
    """Make a folder with a plan, three hospitals' records, and a model of one's own.

    DIR is a new or empty folder.

    The records are 569 real diagnoses (scikit-learn's breast cancer set). Put your own
    files in their place and change the plan; every line of it is explained.
    """
    from privet.simulations.starter import write_starter

    files = write_starter(folder)
    text = "\n  ".join((f"Made {folder}:", *files))
    text += f"\nNext: privet simulate {folder}/plan.toml"
    done({"folder": str(folder), "files": files}, text, as_json)
