"""Plots of a run: its headline metric and ε by round, in total and by site."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.ticker import MaxNLocator

from privet.common.tasks.measure import measure_of_kind, pooled

if TYPE_CHECKING:
    from privet.server.rounds import Progress
    from privet.simulations.run_view import RunView

_STYLE: Any = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.alpha": 0.25,
    "font.size": 9,
    "svg.hashsalt": "privet",
    "svg.fonttype": "none",
}
_GREEN, _RED, _GREY = "#2f6f4f", "#b3412e", "#9aa39d"
_DRAWN_SITES = 60
"""Sites that have a line or a bar of their own."""


def write(result: RunView, folder: Path) -> None:
    """Write the plots ``rounds`` and ``sites`` as SVG and PNG.

    Args:
        result: of the run.
        folder: for the files; it is created.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context(_STYLE):
        for name, figure in (("rounds", _rounds(result)), ("sites", _sites(result))):
            _save(figure, folder / name)


def figure_of_rounds(result: RunView) -> Any:
    """Return matplotlib's drawing of the headline metric and ε by round.

    Args:
        result: of the run.
    """
    with mpl.rc_context(_STYLE):
        figure = _rounds(result)
    plt.close(figure)  # a notebook would display it twice
    return figure


def _headline(step: Progress, name: str, kind: str) -> tuple[float | None, dict[str, float | None]]:
    if step.histograms:
        overall, sites = pooled(step.histograms, kind)
    else:
        overall, sites = step.metrics, step.metrics.get("sites", {})
    return overall.get(name), {site: figures.get(name) for site, figures in sites.items()}


def _title(name: str) -> str:
    return name.replace("_", " ").capitalize()


def _rounds(result: RunView) -> Any:
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    kind = result.plan.task.kind
    name = measure_of_kind(kind).headline
    series = [(step.round, *_headline(step, name, kind)) for step in result.progress]
    shown = result.plan.participants[:_DRAWN_SITES]
    for spec in shown:
        points = [(r, sites[spec.name]) for r, _, sites in series if sites.get(spec.name)]
        if points:
            left.plot(*zip(*points, strict=True), color=_GREY, lw=0.8, alpha=0.7)
    overall = [(r, value) for r, value, _ in series if value is not None]
    if overall:
        left.plot(*zip(*overall, strict=True), color=_GREEN, lw=2.2, marker="o", ms=3)
    left.xaxis.set_major_locator(MaxNLocator(integer=True))
    left.set(
        title=f"{_title(name)} (thick: all sites, thin: each site)", xlabel="round",
        ylabel=name.replace("_", " "),
    )  # fmt: skip
    loss, privacy = result.loss, result.plan.privacy
    if loss is None or privacy is None:
        right.axis("off")
        right.text(0.5, 0.5, "no privacy in this run", ha="center", va="center", color=_RED)
        return figure
    for spec in shown:
        points = [
            (s.round, s.spent[spec.name]["epsilon"])
            for s in result.progress
            if spec.name in s.spent
        ]
        if points:
            right.plot(
                *zip(*points, strict=True), color=_GREEN, lw=1.2, alpha=0.8,
                drawstyle="steps-post", marker="." if result.plan.schedule else "",
            )  # fmt: skip
    right.axhline(privacy.epsilon, color=_RED, lw=1, ls="--")
    named = "of the plan" if privacy.is_central else "cap"
    right.annotate(named, (1, privacy.epsilon), color=_RED, va="bottom", fontsize=8)
    right.set(title=f"ε spent at each site\n({loss.terms})", xlabel="round", ylabel="ε")
    right.set_ylim(0, privacy.epsilon * 1.15)
    return figure


def _sites(result: RunView) -> Any:
    if len(result.sites) > _DRAWN_SITES:
        return _many_sites(result)
    names = [site.name for site in result.sites]
    height = 1.2 + 0.28 * len(names)
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(9, height), layout="constrained", sharey=True
    )
    name = measure_of_kind(result.plan.task.kind).headline
    values = [site.metrics.get(name) or 0.0 for site in result.sites]
    left.barh(names, values, color=_GREEN, height=0.6)
    left.invert_yaxis()
    most = _end(values)
    left.set(title=f"{_title(name)} of the joint model at each site", xlim=(0, most))
    for row, value in enumerate(values):
        text = f"{value:.3f}" if value else "not published"
        left.text(value + 0.01 * most, row, text, va="center", fontsize=8)
    privacy = result.plan.privacy
    if privacy is None or result.loss is None:
        right.axis("off")
        right.text(
            0.5, 0.5, "no privacy in this run", transform=right.transAxes, ha="center", color=_RED
        )
        return figure
    spent = [getattr(site.loss, "epsilon", 0.0) for site in result.sites]
    right.barh(names, [privacy.epsilon] * len(names), color="#e6ebe7", height=0.6)
    right.barh(names, spent, color=_GREEN, height=0.6)
    right.set(title=f"ε spent of the cap\n({result.loss.terms})")
    return figure


def _many_sites(result: RunView) -> Any:
    """Draw how metric and ε are distributed over sites, where a bar for each would be too many."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    name = measure_of_kind(result.plan.task.kind).headline
    values = [value for site in result.sites if (value := site.metrics.get(name)) is not None]
    if values:
        left.hist(values, bins=20, color=_GREEN)
    else:
        left.text(0.5, 0.5, "not measured by site", transform=left.transAxes, ha="center")
    left.set(title=f"{_title(name)} of the joint model, by site", ylabel="sites")
    spent = [site.loss.epsilon for site in result.sites if site.loss is not None]
    if result.loss is None:
        right.axis("off")
    else:
        right.hist(spent, bins=20, color=_GREEN)
        right.set(title=f"ε spent, by site\n({result.loss.terms})", ylabel="sites")
    return figure


def _end(values: list[float]) -> float:
    """Return the end of a metric's axis: 1 for a share, else a little beyond the largest value."""
    return 1.0 if max(values, default=0.0) <= 1.0 else 1.15 * max(values)


def write_comparison(
    names: list[str], figures: list[float | None], headline: str, terms: str, path: Path
) -> None:
    """Plot a bar for each way of training, as SVG and PNG.

    Args:
        names: of the ways of training, the first with privacy.
        figures: headline metric of each; None counts as 0.
        headline: name of the metric.
        terms: the guarantee of the private ones, for the title.
        path: of the files, without suffix.
    """
    with mpl.rc_context(_STYLE):
        height = 0.9 + 0.34 * len(names)
        figure, axes = plt.subplots(figsize=(7, height), layout="constrained")
        values = [value or 0.0 for value in figures]
        colors = [_GREEN if "with DP" in name else _GREY for name in names]
        axes.barh(names, values, color=colors, height=0.6)
        axes.invert_yaxis()
        most = _end(values)
        axes.set(title=f"Test {headline.replace('_', ' ')} (green: {terms})", xlim=(0, most))
        for place, value in enumerate(values):
            axes.text(value + 0.01 * most, place, f"{value:.3f}", va="center", fontsize=8)
        _save(figure, path)


def write_sweep(
    key: str,
    lines: dict[str, list[tuple[float, float, float | None]]],
    headline: str,
    path: Path,
) -> None:
    """Plot a metric against a key of the plan, as SVG and PNG.

    Args:
        key: that was swept.
        lines: by their label: value of the key, mean of the metric, half its interval or None.
        headline: name of the metric.
        path: of the files, without suffix.
    """
    with mpl.rc_context(_STYLE):
        figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
        for label, found in lines.items():
            points = sorted(found)
            errors = [half or 0.0 for _, _, half in points]
            at, means = [x for x, _, _ in points], [mean for _, mean, _ in points]
            axes.errorbar(at, means, yerr=errors, marker="o", ms=3, capsize=3, label=label or None)
        values = [x for found in lines.values() for x, _, _ in found]
        if min(values) > 0 and max(values) >= 20 * min(values):
            axes.set_xscale("log")
        if any(lines):
            axes.legend(fontsize=8, frameon=False)
        with_bars = any(half is not None for found in lines.values() for _, _, half in found)
        note = " (bars: 95 % interval of the mean over seeds)" if with_bars else ""
        axes.set(title=f"{_title(headline)}{note}", xlabel=key, ylabel=headline.replace("_", " "))
        _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    for kind, metadata in (("svg", {"Date": None}), ("png", None)):
        figure.savefig(path.with_suffix(f".{kind}"), dpi=150, metadata=metadata)
    plt.close(figure)


__all__ = ["figure_of_rounds", "write", "write_comparison", "write_sweep"]
