"""What people see of a model's evaluation."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.markup import escape
from rich.table import Table

from privet.cli.output.console import OUT, or_dash

_SHOWN = {
    "accuracy": "accuracy", "precision": "precision", "recall": "recall", "f1": "F1", "auc": "AUC",
    "calibration_error": "calib.", "selected": "selected", "false_positive_rate": "false +",
    "perplexity": "perplexity", "loss": "loss", "bits_per_character": "bits/char",
    "chrf": "chrF", "bleu": "BLEU",
}  # fmt: skip
"""Metrics of the tables, each with its heading; --json has all.

Of two classes the recall is the share of true positives.
"""
_SMALL_GROUP = 30
"""Records of a group, below which a share is off by a tenth and more."""


def evaluation(value: dict[str, Any]) -> None:
    """Print metrics over all, by site and by group, the gaps, and the calibration."""
    found = {name for name, figure in value["metrics"].items() if figure is not None}
    names = [name for name in _SHOWN if name in found]
    table = _table(f"{value['records']} records ({value['source']})", "of", names)
    _row(table, "all", value["records"], value["metrics"], names, style="bold")
    for site, figures in value["sites"].items():
        _row(table, site, figures["records"], figures, names)
    OUT.print(table)
    for column, found in value["groups"].items():
        table = _table(f"By {column}", column, names)
        for group, figures in found["figures"].items():
            _row(table, group, figures["records"], figures, names)
        table.add_section()
        _row(table, "gap", None, found["gaps"], names, style="bold")
        OUT.print(table)
    OUT.print(" ".join(_explained(value, names)), style="dim", highlight=False)
    if (calibration := value["calibration"]) is not None:
        OUT.print(
            f"Calibration: stated probabilities are off by {calibration['error']:.3f} on average "
            f"(Brier score, summed over classes, {calibration['brier']:.3f}).",
            highlight=False,
        )
    OUT.print(
        "These metrics are exact, not noised: of private records they are private.", style="dim"
    )


def _explained(value: dict[str, Any], names: list[str]) -> list[str]:
    """Return what a reader of the tables should know."""
    said = []
    if "calibration_error" in names:
        said.append("calib.: how far stated probabilities are off.")
    if "selected" in names:
        said.append(
            "selected: share said to be of the second class; false +: of those that are not."
        )
    if "chrf" in names:
        said.append("chrF and BLEU are from 0 to 100.")
    counts = [row["records"] for one in value["groups"].values() for row in one["figures"].values()]
    if any(count < _SMALL_GROUP for count in counts):
        said.append(
            f"Groups of fewer than {_SMALL_GROUP} records say little, and so do gaps to them."
        )
    if value["metrics"].get("selected") in (0.0, 1.0):
        said.append("The model says the same of every record.")
    return said


def _table(title: str, first: str, names: list[str]) -> Table:
    table = Table(
        title=escape(title), title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0),
    )  # fmt: skip
    table.add_column(escape(first), no_wrap=True)
    table.add_column("records", justify="right")
    for name in names:
        table.add_column(_SHOWN[name], justify="right")
    return table


def _row(
    table: Table, name: str, count: int | None, figures: dict[str, Any], names: list[str],
    style: str | None = None,
) -> None:  # fmt: skip
    cells = [or_dash(figures.get(key)) for key in names]
    table.add_row(escape(name), or_dash(count, str), *cells, style=style)
