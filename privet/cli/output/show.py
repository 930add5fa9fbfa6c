"""What people see: progress, tables, where things are. ε never stands without its terms."""

from __future__ import annotations

import math
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar
from rich.spinner import Spinner
from rich.table import Table

from privet.cli.output.console import OUT, or_dash
from privet.common.printable import printable
from privet.privacy.accounting.units import PrivacyLoss, Relation, Unit, rounded_down, rounded_up
from privet.privacy.audit.summary import claim_sentence, figures_sentence, trust_sentence

if TYPE_CHECKING:
    from privet.common.plan import Plan
    from privet.common.tasks.measure import Measure
    from privet.server.rounds import Progress
    from privet.simulations.compare import ComparisonRow
    from privet.simulations.result import Result
    from privet.simulations.sweep import Sweep

_err = Console(stderr=True)
_SHOWN_SITES = 30
"""Sites that a table or a list names; result.json has all."""


class RunDisplay:
    """A live table on standard error: round, each site's ε spent and left, metrics."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed}/{task.total} rounds"),
            TimeElapsedColumn(),
            console=_err,
        )
        self._task = self._bar.add_task(plan.name, total=plan.last_round)
        self._live: Live | None = None
        self._rows: Table | None = None
        self._started = time.monotonic()
        self.out: Path | None = None
        """The run folder, once it is made."""

    def __enter__(self) -> RunDisplay:
        if _err.is_terminal:
            self._live = Live(self._bar, console=_err, refresh_per_second=4)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def stage(self, text: str) -> None:
        """Show what is done before the first round."""
        if self._live is None:
            _err.print(f"{self._plan.name}: {text}", highlight=False, soft_wrap=True)
        self.step(text)

    def folder(self, path: Path) -> None:
        """Take the run folder."""
        self.out = path

    def step(self, text: str) -> None:
        """Show what is done within a round; on a terminal alone."""
        if self._live is not None:
            self._live.update(Group(self._bar, *self._shown, Spinner("dots", text=f"{text} …")))

    @property
    def _shown(self) -> list[Table]:
        return [] if self._rows is None else [self._rows]

    def update(self, progress: Progress) -> None:
        """Show one round."""
        self._bar.update(self._task, completed=progress.round)
        if self._live is not None:
            self._rows = self._table(progress)
            self._live.update(Group(self._bar, *self._shown))
            return
        figures = _words(_figures(progress, self._plan.task.kind), _short(_measure(self._plan)))
        loss = self._worst(progress)
        _err.print(
            f"round {progress.round}/{self._plan.last_round}  "
            f"{time.monotonic() - self._started:5.1f} s  {figures}  {loss or 'no privacy'}",
            highlight=False,
            soft_wrap=True,
        )

    def _worst(self, progress: Progress) -> PrivacyLoss | None:
        if self._plan.privacy is None:
            return None
        losses = [loss_of(value) for value in progress.spent.values()]
        return max(losses, key=lambda loss: loss.epsilon, default=None)

    def _table(self, progress: Progress) -> Table:
        worst, privacy = self._worst(progress), self._plan.privacy
        terms = _terms(worst, "no privacy in this run")
        title = f"round {progress.round} · {terms}"
        table = Table("site", "answer", title=title, title_justify="left")
        table.add_column("ε spent", justify="right")
        table.add_column("ε left", justify="right")
        headline = _measure(self._plan).headline
        table.add_column(headline, justify="right")
        figures = _figures(progress, self._plan.task.kind)
        by_site = figures.get("sites", {})
        turn = [s for s in self._plan.sites if self._plan.takes_part(s.name, progress.round)]
        for site in turn[:_SHOWN_SITES]:
            spent = left = "–"
            if privacy and site.name in progress.spent:
                loss = loss_of(progress.spent[site.name])
                spent, left = loss.figure, rounded_down(privacy.epsilon - loss.epsilon)
            table.add_row(
                site.name,
                str(progress.statuses.get(site.name, "no reply")),
                spent,
                left,
                or_dash(by_site.get(site.name, {}).get(headline)),
            )
        if len(turn) > _SHOWN_SITES:
            table.add_row(f"… and {len(turn) - _SHOWN_SITES} more", "", "", "", "")
        table.add_section()
        table.add_row("all sites", "", "", "", or_dash(figures.get(headline)), style="bold")
        return table


@contextmanager
def stage(title: str) -> Iterator[Callable[[str], None]]:
    """Show that something long is in progress; the function given takes the current step."""
    if not _err.is_terminal:
        yield lambda text: _err.print(f"{title}: {text}", highlight=False)
        return
    with _err.status(title) as status:
        yield lambda text: status.update(f"{title}: {text}")


@contextmanager
def counting(title: str) -> Iterator[Callable[[int, int], None]]:
    """Show a bar on a terminal; the function given takes what is done and the total."""
    if not _err.is_terminal:
        yield lambda done, total: None
        return
    with Bar(TextColumn(title), BarColumn(), TimeElapsedColumn(), console=_err) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def result(outcome: Result, rows: list[ComparisonRow] | None, ledgers: Path | None = None) -> None:
    """Print a finished run, whose ledgers lie in its folder or in ``ledgers``."""
    OUT.print()
    OUT.print(_comparison(outcome, rows))
    if rows:
        OUT.print(
            "Rows marked ✗ were trained without noise on the same records; they and their "
            "metrics are in non-private/ and must not leave it.",
            style="dim",
        )
    if outcome.metrics.get("chrf") is not None:
        OUT.print(
            f"Test records as the model writes them, by beam search: chrF "
            f"{outcome.metrics['chrf']:.1f}, BLEU {outcome.metrics['bleu']:.1f} (0 to 100)",
            highlight=False,
        )
    if outcome.note:
        OUT.print(outcome.note, soft_wrap=True, highlight=False)
    table = Table("site", "last answer", title_justify="left")
    table.title = f"Sites · {_terms(outcome.loss)}"
    shown = _short(_measure(outcome.plan))
    for name in ("ε spent", "ε cap", *shown):
        table.add_column(name, justify="right", no_wrap=True)
    for site in outcome.sites[:_SHOWN_SITES]:
        table.add_row(
            site.name,
            site.status,
            _spent(site.loss),
            or_dash(site.cap, "{:g}".format),
            *(or_dash(site.metrics.get(name)) for name in shown),
        )
    if more := _more(outcome.sites):
        table.add_row(more)
    OUT.print(table)
    releases(outcome, OUT)
    OUT.print(_claim(outcome), soft_wrap=True, highlight=False)
    privacy = outcome.plan.privacy
    if privacy is not None and privacy.is_central:
        noise = (privacy.noise_multiplier or 0.0) * privacy.clip
        OUT.print(
            f"Each site's update was clipped to {privacy.clip:g}; the coordinator added noise of "
            f"{noise:.4g} to their sum (noise multiplier {privacy.noise_multiplier:g})",
            highlight=False, style="dim", soft_wrap=True,
        )  # fmt: skip
    elif outcome.loss is not None and outcome.plan.trains:
        OUT.print(f"Gradients were clipped by {outcome.clipping}", highlight=False, style="dim")
    if outcome.plan.compression is not None:
        size = outcome.update_bytes
        OUT.print(
            f"Each update is {size['sent']:,} bytes instead of {size['numbers']:,} "
            f"({outcome.plan.compression.kind})",
            highlight=False,
        )
    OUT.print(
        f"Everything is in {outcome.out} ({outcome.seconds:.0f} s)", highlight=False, soft_wrap=True
    )
    if outcome.evidence != "off":
        _next(outcome.out, ledgers)


def releases(outcome: Result, console: Console | None = None) -> None:
    """Say which sites released in how many rounds, with the reason, and what else did not work.

    Args:
        outcome: of the run.
        console: where it is printed; default standard error.
    """
    console = console or _err

    def tell(text: str, style: str | None = None) -> None:
        shown = printable(text)
        console.print(shown, markup=False, highlight=False, soft_wrap=True, style=style)

    short = [site for site in outcome.sites if site.released < site.rounds]
    if not short:
        rounds = len(outcome.progress)
        which = "the only round" if rounds == 1 else f"all {rounds} rounds"
        if outcome.plan.schedule is not None:
            which = f"all rounds in which it takes part ({len(outcome.sites)} sites)"
        tell(f"Every site released in {which}.")
    else:
        # Those that lack something come first where not all are named.
        told = outcome.sites
        if len(told) > _SHOWN_SITES:
            told = sorted(told, key=lambda site: site.released >= site.rounds)
        for site in told[:_SHOWN_SITES]:
            if site.released >= site.rounds:
                tell(f"{site.sentence}.")
                continue
            tell(f"{site.sentence}.", "bold")
            tell(f"  {site.log} says: {site.reason or 'nothing'}")
        if more := _more(told):
            tell(more)
    for site in outcome.silent[:_SHOWN_SITES]:
        text = f"{site.name} never released"
        if site.loss is not None and site.loss.epsilon > 0:
            text += ": what it spent bought nothing"
        tell(f"{text}.", "bold red")
    for remark in outcome.remarks:
        tell(f"note: {remark}")


def _more(sites: Sequence[object]) -> str:
    rest = len(sites) - _SHOWN_SITES
    return f"… and {rest} more: result.json has all" if rest > 0 else ""


def _next(folder: Path, ledgers: Path | None) -> None:
    """Say how to gather the evidence of a run."""
    sources = [str(one) for one in (folder, ledgers) if one]
    words = ["privet", "audit", "bundle", *sources, "--out", f"{folder.name}.bundle"]
    OUT.print(f"Next: {shlex.join(words)}", highlight=False, soft_wrap=True, markup=False)


def _comparison(outcome: Result, rows: list[ComparisonRow] | None) -> Table:
    plan = outcome.plan
    source = {"public": "public test split", "gate": "noised by the sites", "off": "off"}
    table = Table(
        title=f"{plan.title or plan.name} · figures: {source[plan.metrics.source]} · "
        f"{_terms(outcome.loss)}",
        title_justify="left",
    )
    table.add_column("trained" if plan.trains else "model")
    table.add_column("ε", justify="right")
    names = _measure(plan).names
    for name in names:
        table.add_column(name, justify="right")
    label = "federated, no privacy"
    if not plan.trains:
        label = "measured at the sites"
    elif outcome.loss:
        label = "federated with DP"
    table.add_row(
        f"{label} ({plan.model.kind})",
        _spent(outcome.loss),
        *(or_dash(outcome.metrics.get(name)) for name in names),
        style="bold",
    )
    if outcome.metrics.get("majority") is not None:
        blanks = ["–"] * (len(names) - 1)
        table.add_row(
            "always the most frequent class", "–", or_dash(outcome.metrics["majority"]), *blanks
        )
    for row in rows or []:
        mark = "" if row.private else " ✗"
        table.add_row(
            f"{row.name}{mark}",
            row.epsilon,
            *(or_dash(row.metrics.get(name)) for name in names),
        )
    return table


def _claim(outcome: Result) -> str:
    top = outcome.standing
    trust = "" if top.trust == "local" else f"{trust_sentence(top)} "
    return f"{figures_sentence(top)} {trust}{claim_sentence(top)}"


def sweep(made: Sweep) -> None:
    """Print one row for each combination of values, over its seeds."""
    swept = [axis.key for axis in made.axes if axis.key != "seed"]
    table = Table(title=f"Sweep · {made.folder}", title_justify="left")
    for key in swept:
        table.add_column(key, justify="right")
    table.add_column("runs", justify="right")
    table.add_column("ε spent at most", justify="right")
    ended = [row for row in made.rows if "error" not in row]
    names = list(dict.fromkeys(
        name for row in ended for name, value in row["metrics"].items()
        if isinstance(value, float) or value is None
    ))  # fmt: skip
    for name in names:
        table.add_column(name, justify="right")
    for values, rows in made.combined():
        fine = [row for row in rows if "error" not in row]
        spent = [row["epsilon"] for row in fine if row["epsilon"] is not None]
        most = "no privacy" if fine else "–"
        if spent:
            most = rounded_up(max(spent))
        table.add_row(
            *(escape(str(values[key])) for key in swept),
            str(len(fine)),
            most,
            *(_mean_of([row["metrics"].get(name) for row in fine]) for name in names),
        )
    OUT.print(table)
    terms = next((row for row in ended if row["epsilon"] is not None), None)
    if terms is not None:
        OUT.print(
            f"ε at δ {terms['delta']:g}, per {terms['unit']}. Each run spent its own on the same "
            "records: choosing among them on private metrics would cost the sum (H11, H12).",
            style="dim",
        )
    OUT.print(
        f"± is the 95 % interval of a mean over seeds. {made.folder}/sweep.parquet has a row for "
        "each run; plots/ the picture.",
        style="dim",
        soft_wrap=True,
        highlight=False,
    )


def _mean_of(values: list[float | None]) -> str:
    from privet.simulations.sweep import interval

    found = [value for value in values if value is not None]
    if not found:
        return "–"
    mean, half = interval(found)
    return f"{mean:.3f}" if half is None else f"{mean:.3f} ± {half:.3f}"


def scenarios(rows: list[dict[str, Any]], *, folder: Path) -> None:
    """Print the scenarios, and the folder of their plans."""
    table = Table("name", "what", "models", "sites", "unit", "data", "there?")
    table.title, table.title_justify = "Scenarios (privet simulate NAME)", "left"
    for row in rows:
        there = "yes" if row["available"] else "no"
        table.add_row(
            row["name"], row["title"], ", ".join(row["models"]), str(row["sites"]), row["unit"],
            row["data"], there,
        )  # fmt: skip
    OUT.print(table)
    OUT.print(f"Their plans, to copy and to change: {folder}/*.toml", style="dim", soft_wrap=True)


def _figures(progress: Progress, kind: str) -> dict[str, Any]:
    if not progress.histograms:
        return progress.metrics
    from privet.common.tasks.measure import pooled

    overall, sites = pooled(progress.histograms, kind)
    return {**overall, "sites": sites}


def _measure(plan: Plan) -> Measure:
    """Return how a plan's task is measured."""
    from privet.common.tasks.measure import measure_of_kind

    return measure_of_kind(plan.task.kind)


def _short(measure: Measure) -> tuple[str, str]:
    """Return the two metrics that say most: the first and the last."""
    return measure.names[0], measure.names[-1]


def _words(figures: dict[str, Any], names: tuple[str, ...]) -> str:
    shown = [f"{name} {figures[name]:.3f}" for name in names if figures.get(name)]
    return "  ".join(shown) or "no metrics"


def _terms(loss: PrivacyLoss | None, none: str = "no privacy") -> str:
    return none if loss is None else loss.terms


def _spent(loss: PrivacyLoss | None) -> str:
    return "∞" if loss is None else loss.figure


def loss_of(value: dict[str, Any]) -> PrivacyLoss:
    """Read back what ``PrivacyLoss.to_dict`` gave."""
    epsilon = value["epsilon"]
    if epsilon is None:
        epsilon = math.inf
    return PrivacyLoss(epsilon, value["delta"], Unit(value["unit"]), Relation(value["relation"]))
