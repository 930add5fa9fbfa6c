"""Try settings near a plan's own, and choose the best by a validation split.

::

    privet simulate PLAN --tune 20 --out DIR
        │  candidates_of: the plan itself, and draws around its settings, from public facts alone
        ▼
    DIR/…                   the runs, as those of a sweep; measured on the validation split
    DIR/tuned.toml          the plan with the settings that were best
    DIR/tune.json           what each run reached, and what choosing among them costs

The records of the validation split, and those trained on, have a part in the choice. The former
are measured without noise: they count as public, and have no guarantee. Where the others are
private the choice costs them what all runs together cost (H12): repeating and keeping the best is
not cheaper here, because the coordinator sees every release of every run.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from privet.common.canonical import write_atomic, write_json
from privet.common.errors import InputError
from privet.common.plan import Plan
from privet.common.plan_file import plan_toml, relocated
from privet.privacy.accounting.noise_calibration import calibrated
from privet.privacy.accounting.plan_events import all_events
from privet.privacy.accounting.pld import GRID, privacy_loss
from privet.privacy.accounting.units import PrivacyLoss, Relation, Unit
from privet.simulations.plan_values import Values, changes_of
from privet.simulations.planning import Setting
from privet.simulations.sweep import INTERRUPTED, Point, run_sweep

MAX_RUNS = 1000
_IN_VAIN = 100
"""Draws in a row that give no other plan, at most."""
_MOMENTA = (0.0, 0.8, 0.9)
_NOTE = """# The settings of '{name}' that were best among {runs}, by {headline} on the
# validation split.
# {cost}
# If the records are public, or proxies of others, say so in [attested] H12.
"""


@dataclass(frozen=True)
class Tuned:
    """The outcome of trying settings.

    Attributes:
        plan: with the best ones.
        values: that the best run had in place of the plan's; empty for the plan itself.
        rows: each run's values and its metric on the validation split, the best first; or an error.
        headline: the metric.
        cost: of all runs together, for each site's people; None without privacy.
        folder: of the runs.
    """

    plan: Plan
    values: Values
    rows: list[dict[str, Any]]
    headline: str
    cost: PrivacyLoss | None
    folder: Path

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "plan": self.plan.digest,
            "values": self.values,
            "metric": self.headline,
            "rows": self.rows,
            # Of the records trained on; those of the validation split have no guarantee.
            "cost_of_choosing": None if self.cost is None else self.cost.to_dict(),
            "measured": "validation",
            "out": str(self.folder),
        }


def candidates_of(plan: Plan, runs: int) -> list[Point]:
    """Return the plan itself, and plans with settings near its own.

    Args:
        plan: as its author wrote it; draws follow from its digest, and from no record.
        runs: how many, the plan itself included.

    Raises:
        InputError: if that is no such number, or the plan trains nothing.
    """
    if not 2 <= runs <= MAX_RUNS:
        raise InputError(f"--tune takes from 2 to {MAX_RUNS:,} runs, not {runs}")
    if not plan.trains:
        raise InputError(f"plan '{plan.name}' trains nothing: there is nothing to tune")
    draws = random.Random(plan.digest)
    found = [Point({}, plan, "as-it-is")]
    seen = {plan.digest}
    in_vain = 0
    while len(found) < runs and in_vain < _IN_VAIN:
        in_vain += 1
        values = _drawn(plan, draws)
        changed = plan.redrafted(**changes_of(plan, values))
        if changed.digest not in seen:
            seen.add(changed.digest)
            found.append(Point(values, changed, f"try-{len(found):03}"))
            in_vain = 0
    if len(found) < runs:
        raise InputError(
            f"--tune {runs}: there are no more than some {len(found)} different settings near the "
            "plan's; ask for fewer"
        )
    return found


def _drawn(plan: Plan, draws: random.Random) -> Values:
    """Return values of one try: around the plan's, on a logarithmic scale."""
    rate = plan.training.learning_rate * 4 ** draws.uniform(-1, 1)
    values: Values = {}
    options = plan.strategy.options
    before = float(getattr(options, "server_momentum", 0.0))
    if plan.strategy.kind in ("fedavg", "fedavgm"):
        momentum = draws.choice(_MOMENTA)
        values["strategy.kind"] = "fedavgm"
        values["strategy.options"] = {"server_momentum": momentum}
        rate *= (1 - momentum) / (1 - before)  # so that the way has about the same length
    rounds = plan.training.rounds
    values["strategy.average_last"] = draws.choice((1, max(1, rounds // 8), max(1, rounds // 4)))
    if plan.privacy is not None and not plan.training.is_automatic:
        values["privacy.clip"] = _rounded(plan.privacy.clip * 3 ** draws.uniform(-1, 1))
    if plan.model.reads_features:
        scale = float(getattr(plan.model.options, "scale", 1.0)) or 1.0
        values["model.options"] = {
            **dict(plan.model_dump(mode="json")["model"]["options"]),
            "scale": scale * draws.choice((0.5, 1.0, 2.0)),
        }
    values["training.learning_rate"] = _rounded(rate)
    return values


def _rounded(value: float) -> float:
    return float(f"{value:.2g}")


def tune(
    plan: Plan,
    setting: Setting,
    folder: Path,
    runs: int,
    *,
    jobs: int = 1,
    resume: bool = False,
    tell: Callable[[str], None] = lambda text: None,
) -> Tuned:
    """Run the candidates, and write the plan with the best settings.

    Args:
        plan: as its author wrote it.
        setting: of every run.
        folder: new or empty, or that of the runs to resume.
        runs: how many candidates.
        jobs: runs at once.
        resume: continue the runs of ``folder``.
        tell: called with a line for each run that ends.

    Raises:
        InputError: if the plan has no validation split or measures nothing public, the folder holds
            something else, or no run came to its end.
    """
    if not plan.split.validation:
        raise InputError(
            f"plan '{plan.name}' has no validation split, by which settings could be chosen: say "
            "validation = 0.1 under [split], or --set split.validation=0.1"
        )
    if plan.metrics.source != "public":
        raise InputError(
            "--tune measures on a public validation split: metrics.source must be 'public'"
        )
    if setting.noise_seed is not None:
        raise InputError("--tune goes without --noise-seed, whose noise protects nobody")
    # What was attested of the test split says nothing of the one that is measured here.
    others = {key: why for key, why in plan.attested.items() if key != "H13"}
    points = [
        replace(point, plan=point.plan.model_copy(update={"attested": others}))
        for point in candidates_of(plan, runs)
    ]
    setting = replace(setting, measured="validation")
    made = run_sweep([], points, setting, folder, jobs=jobs, resume=resume, tell=tell)
    headline, rows = made.headline, []
    for point, row in zip(points, made.rows, strict=True):
        value = row.get("metrics", {}).get(headline)
        rows.append({"values": point.values, "run": point.name, headline: value,
                     **({"error": row["error"]} if "error" in row else {})})  # fmt: skip
    ended = [place for place, row in enumerate(rows) if isinstance(row[headline], float)]
    if not ended:
        raise InputError(f"no run came to its end: {rows[0].get('error', 'nothing was measured')}")
    lower_is_better = headline in ("perplexity", "loss")

    def rank(place: int) -> float:
        value = float(rows[place][headline])
        return value if lower_is_better else -value

    ended.sort(key=rank)
    best = points[ended[0]]
    cost = cost_of(points, folder)
    # Who attested that settings were chosen without looking attests it no longer.
    attested = {key: why for key, why in plan.attested.items() if key != "H12"}
    chosen = best.plan.model_copy(update={"attested": attested})
    chosen = relocated(chosen, setting.base, folder)
    failed = [row for row in rows if not isinstance(row[headline], float)]
    tuned = Tuned(
        chosen, best.values, [*(rows[place] for place in ended), *failed], headline, cost, folder
    )
    write_atomic(folder / "tuned.toml", _file(plan, tuned, len(points)).encode())
    write_json(folder / "tune.json", tuned.to_dict())
    return tuned


def cost_of(points: list[Point], folder: Path | None = None) -> PrivacyLoss | None:
    """Return what all runs together cost those whose records are trained on, by composition.

    Args:
        points: of the runs.
        folder: of the runs; those that were interrupted there, and begun again, count too.
    """
    privacy = points[0].plan.privacy
    if privacy is None:
        return None
    begun = Counter(point.name for point in points)
    for home in (folder / INTERRUPTED).glob("*") if folder is not None else ():
        begun[home.name.rpartition("-")[0]] += 1
    events = [
        event
        for point in points
        for event in all_events(calibrated(point.plan)) * begun[point.name]
    ]
    unit, relation = Unit(privacy.unit), Relation(privacy.relation)
    return privacy_loss(events, privacy.delta, unit, relation, grid=10 * GRID)


def sentence_of(tuned: Tuned) -> str:
    """Return what choosing costs, in words.

    Args:
        tuned: the outcome.
    """
    if tuned.cost is None:
        return "The runs had no privacy: on private records the choice has no guarantee."
    return (
        "The validation split was measured without noise: its records count as public, and have no "
        f"guarantee. If those trained on are private, choosing costs them {tuned.cost} (H12), and "
        "each run with the chosen settings as much as before on top."
    )


def _file(plan: Plan, tuned: Tuned, runs: int) -> str:
    note = _NOTE.format(
        name=plan.name,
        runs=f"{runs} runs",
        headline=tuned.headline,
        cost=sentence_of(tuned),
    )
    return note + "\n" + plan_toml(tuned.plan)
