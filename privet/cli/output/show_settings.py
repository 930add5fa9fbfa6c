"""Print the settings that rules chose for a plan, and the noise that its budget asks for."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from privet.cli.output.console import OUT
from privet.common.plan import Plan
from privet.common.plan_file import toml_value
from privet.privacy.accounting.noise_table import PlannedNoise

if TYPE_CHECKING:
    from privet.simulations.tune import Tuned

_BEST = 8
"""Runs that are printed."""


def as_json(plan: Plan) -> list[dict[str, Any]]:
    """Return each chosen setting with its value and reason."""
    return [
        {"key": key, "value": _value(plan, key), "reason": why} for key, why in plan.chosen.items()
    ]


def settings(plan: Plan, console: Console = OUT) -> None:
    """Print the settings that the plan leaves out.

    Args:
        plan: as it was read.
        console: where it is printed.
    """
    if not plan.chosen:
        console.print(f"{plan.name}: the plan says all of its settings", highlight=False)
        return
    table = Table("setting", "value", "why", title_justify="left", highlight=False)
    table.title = f"{plan.name}: settings that the plan leaves out"
    for item in as_json(plan):
        table.add_row(item["key"], toml_value(item["value"]), item["reason"])
    console.print(table)


def noise(plan: Plan, rows: list[PlannedNoise]) -> None:
    """Print the noise multiplier and the total noise, by steps and sample rate.

    Args:
        plan: whose budget it is.
        rows: the noise of each.
    """
    privacy = plan.privacy
    assert privacy is not None
    rates = sorted({row.sample_rate for row in rows})
    table = Table(
        "steps in all", *(f"q = {rate:g}" for rate in rates), title_justify="left", highlight=False
    )
    table.title = (
        f"{plan.name}: noise multiplier σ · noise of the whole run, at ε {privacy.epsilon:g}"
    )
    for count in sorted({row.steps for row in rows}):
        mine = {row.sample_rate: row for row in rows if row.steps == count}
        cells = (f"{mine[rate].noise_multiplier:.2f} · {mine[rate].total:.2f}" for rate in rates)
        table.add_row(f"{count:,}", *cells)
    OUT.print(table)
    OUT.print(
        "The noise of the whole run, divided by a site's number of units, is that site's noise in "
        "the mean gradient, in clip bounds: the smaller, the better. q is the sample rate.",
        style="dim", highlight=False,
    )  # fmt: skip


def tuned(made: Tuned) -> None:
    """Print the best runs of ``--tune``, what choosing costs, and where the plan is.

    Args:
        made: the outcome.
    """
    name = made.headline.replace("_", " ")
    table = Table("run", name, "settings in place of the plan's", title_justify="left")
    table.title = f"The best of {len(made.rows)} runs, on the validation split"
    for row in made.rows[:_BEST]:
        said = ", ".join(f"{key} = {toml_value(value)}" for key, value in row["values"].items())
        value = row[made.headline]
        table.add_row(
            row["run"],
            "failed" if value is None else f"{value:.3f}",
            Text(said or "the plan as it is"),
        )
    from privet.simulations.tune import sentence_of

    OUT.print(table)
    OUT.print(sentence_of(made), highlight=False, soft_wrap=True)
    path = made.folder / "tuned.toml"
    OUT.print(f"{path} is the plan with the best settings.", highlight=False, soft_wrap=True)
    OUT.print(f"Next: privet simulate {path}", highlight=False, soft_wrap=True)


def _value(plan: Plan, key: str) -> Any:
    value: Any = plan.model_dump(mode="json")
    for part in key.split("."):
        value = value[part]
    return json.loads(json.dumps(value))
