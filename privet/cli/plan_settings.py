"""``privet plan settings`` and ``privet plan noise``: how a plan is trained, and why so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from privet.cli.output.done import AsJson
from privet.cli.plan_schema import plan as group

_PLAN = typer.Argument(help="A scenario or a plan file (*.toml).", metavar="PLAN")
_SETTINGS = """[bold]Examples[/bold]

privet plan settings plan.toml

privet plan settings plan.toml --out whole-plan.toml     every value written, with its reason
"""
_NOISE = """[bold]Examples[/bold]

privet plan noise plan.toml

privet plan noise plan.toml --epsilon 8 --json
"""


@group.command(epilog=_SETTINGS)
def settings(
    plan: Annotated[str, _PLAN],
    epsilon: Annotated[float | None, typer.Option(help="As if the plan had this ε.")] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Write the whole plan to this new file.", metavar="FILE"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show the settings that a plan leaves out, the values that are taken, and why.

    They follow from what is public: the kind of model and task, the number of sites, their nominal
    sizes, the columns, ε and δ. No record is read. What the plan says itself stays as it is.
    Sites approve a plan by its digest, so give them the file that --out writes: another version of
    Privet may choose other values.
    """
    from privet.cli.output import show_settings
    from privet.common.errors import InputError
    from privet.common.plan_file import plan_toml, relocated
    from privet.simulations.planning import adjusted, find_plan

    found, base = find_plan(plan)
    found = adjusted(found, epsilon=epsilon)
    if out is not None:
        from privet.common.canonical import write_atomic

        if out.exists():
            raise InputError(f"{out} exists; name a new file")
        write_atomic(out, plan_toml(relocated(found, base, out.parent)).encode())
    if as_json:
        value = {"plan": found.name, "settings": show_settings.as_json(found)}
        typer.echo(json.dumps(value, ensure_ascii=False))
        return
    show_settings.settings(found)
    if out is not None:
        typer.echo(f"{out}: written", err=True)


@group.command(epilog=_NOISE)
def noise(
    plan: Annotated[str, _PLAN],
    epsilon: Annotated[float | None, typer.Option(help="As if the plan had this ε.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show the noise that a plan's budget asks for, by steps and sample rate.

    More steps need more noise in each, and so does a higher sample rate; what counts is the noise
    that all of them add to the model. No record is read, and nothing is spent.
    """
    from privet.cli.output import show, show_settings
    from privet.privacy.accounting.noise_table import planned_noise
    from privet.simulations.planning import adjusted, find_plan

    found = adjusted(find_plan(plan)[0], epsilon=epsilon)
    rows = []
    with show.stage("calibrating the noise") as tell:
        for row in planned_noise(found):
            tell(f"{row.steps} steps, sample rate {row.sample_rate:g}")
            rows.append(row)
    if as_json:
        value = [
            {
                "steps": row.steps,
                "sample_rate": row.sample_rate,
                "noise_multiplier": row.noise_multiplier,
                "total_noise": row.total,
            }
            for row in rows
        ]
        typer.echo(json.dumps({"plan": found.name, "rows": value}))
        return
    show_settings.noise(found, rows)
