"""``privet plan schema``: what a plan and a policy may say, for editors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from privet.cli import app

plan = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="What a plan may say, and what is chosen where it says nothing.",
    epilog="[bold]Example[/bold]\n\nprivet plan settings plan.toml",
)
app.add_typer(plan, name="plan")

_EPILOG = """[bold]Examples[/bold]

privet plan schema --out plan.schema.json

privet plan schema --policy > policy.schema.json
"""


@plan.command(epilog=_EPILOG)
def schema(
    policy: Annotated[bool, typer.Option("--policy", help="Of a site's policy.")] = False,
    out: Annotated[Path | None, typer.Option(help="Write it to this file.", metavar="FILE")] = None,
) -> None:
    """Print the JSON Schema of a plan's file, or of a policy's.

    An editor that knows JSON Schema completes keys with it, shows what they may be and marks what
    is wrong while you write. With the TOML extension of VS Code and others (taplo), a first line
    `#:schema plan.schema.json` names the file.
    """
    text = json.dumps(_schema(policy=policy), indent=2, ensure_ascii=False)
    if out is None:
        typer.echo(text)
        return
    from privet.common.canonical import write_atomic

    write_atomic(out, (text + "\n").encode())
    typer.echo(f"{out}: written", err=True)


def _schema(*, policy: bool) -> dict[str, Any]:
    from privet.common.schema import json_schema

    if policy:
        from privet.privacy.policy import Policy

        return json_schema(Policy, "Policy of a Privet site")
    from privet.common.plan import Plan

    # A file's name is the plan's where it says none.
    return json_schema(Plan, "Privet plan", optional=("name",))
