"""What people see of a model's evaluation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich import box
from rich.markup import escape
from rich.table import Table

from privet.cli.output.console import OUT, or_dash

if TYPE_CHECKING:
    from privet.simulations.model_check import ModelCheck

_SHOWN = {
    "accuracy": "accuracy", "token_accuracy": "tokens", "exact_match": "exact",
    "precision": "precision", "recall": "recall", "f1": "F1", "auc": "AUC",
    "calibration_error": "calib.", "selected": "selected", "false_positive_rate": "false +",
    "perplexity": "perplexity", "loss": "loss", "bits_per_character": "bits/char",
    "chrf": "chrF", "bleu": "BLEU",
}  # fmt: skip
"""Metrics of the tables, each with its heading; --json has all.

Of two classes the recall is the share of true positives.
"""
_SMALL_GROUP = 30
"""Records of a group, below which a share is off by a tenth and more."""
_NAMED = 12
"""Parameters that are listed."""


def check(name: str, found: ModelCheck) -> None:
    """Print how a plan's model is clipped, what a step costs, and what is trained."""
    trained = sum(found.trained.values())
    OUT.print(f"[bold]{escape(name)}[/bold] trains under privacy: clipping by {found.way}")
    for way, why in found.passed_over.items():
        OUT.print(f"  not by {way}: {why}", style="dim", highlight=False)
    for way, seconds in found.measured.items():
        if way != found.way:
            OUT.print(f"  slower by {way}: {1000 * seconds:.1f} ms", style="dim", highlight=False)
    OUT.print(
        f"A step of {found.records} records takes {found.seconds * 1000:.1f} ms, "
        f"{found.seconds / found.plain_seconds:.2f} × the {found.plain_seconds * 1000:.1f} ms "
        "without privacy (this machine, now).",
        highlight=False,
    )
    if found.peak_bytes is not None and found.plain_peak_bytes:
        OUT.print(
            f"Its memory: {found.peak_bytes / 1e6:,.0f} MB, "
            f"{found.peak_bytes / found.plain_peak_bytes:.2f} × without privacy.",
            highlight=False,
        )
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("trained parameter")
    table.add_column("numbers", justify="right")
    for parameter, count in list(found.trained.items())[:_NAMED]:
        table.add_row(escape(parameter), f"{count:,}")
    if (more := len(found.trained) - _NAMED) > 0:
        table.add_row(f"and {more} more", "", style="dim")
    table.add_section()
    table.add_row("all", f"{trained:,}", style="bold")
    if found.frozen:
        table.add_row("frozen", f"{found.frozen:,}", style="dim")
    OUT.print(table)


def written(path: str, way: str, *, is_new: bool) -> None:
    """Print what was written into a plan's file."""
    if not is_new:
        OUT.print(f"{escape(path)} says so already.")
        return
    OUT.print(
        f'{escape(path)} has clipping = "{way}" now. It is another plan than before, with another '
        "digest: sites that approved the old one approve it again.",
        highlight=False,
    )


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
    if "token_accuracy" in names:
        said.append("tokens: share of words with the right tag; the rest counts whole spans.")
    if "exact_match" in names:
        said.append("exact: share of answers found as they are; F1 counts their tokens.")
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
