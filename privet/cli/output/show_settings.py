"""Print the settings that rules chose for a plan, and the noise that its budget asks for."""

from __future__ import annotations

import json
from typing import Any

from rich.console import Console
from rich.table import Table

from privet.cli.output.console import OUT
from privet.common.plan import Plan
from privet.common.plan_file import toml_value
from privet.privacy.accounting.noise_table import PlannedNoise


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


def _value(plan: Plan, key: str) -> Any:
    value: Any = plan.model_dump(mode="json")
    for part in key.split("."):
        value = value[part]
    return json.loads(json.dumps(value))
