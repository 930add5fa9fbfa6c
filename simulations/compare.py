"""Train the same plan without privacy: together, each site alone, and on all data pooled.

A linear model, alone and pooled, is trained by scikit-learn's solver to its end; other models take
the plan's steps. Beside them stand what scikit-learn makes of the same columns
(:mod:`.reference`), so that a comparison does not flatter: settings that train badly do so with
privacy and without.

These models and metrics are not private. They are written under ``non-private/`` in the run folder,
with a notice. A bundle of the run leaves that folder out, and bundles of its own ledgers claim
nothing. Another model of the scenario is trained with privacy too, at the same ε, to show which one
is better; each spends a budget of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from privet.client.data.records import SiteData
from privet.common.canonical import write_atomic, write_json
from privet.common.plan import Plan
from privet.common.tasks.measure import measure_of_kind
from privet.simulations import plots, scenarios
from privet.simulations.evaluate import PublicTest
from privet.simulations.feature_cache import cached, use_cache
from privet.simulations.partition import SITE
from privet.simulations.planning import Setting, without_privacy
from privet.simulations.records import SiteRecords
from privet.simulations.reference import Fitted, ReferenceModels
from privet.simulations.result import Result
from privet.simulations.run import train_once

_NOTICE = """The models and metrics in this folder were trained WITHOUT noise, or were compared with
such models, on private records. Treat them as if they were the records: they must not
leave this machine. Their ledgers are here too, and can be bundled; their bundles claim nothing.
"""


@dataclass(frozen=True)
class ComparisonRow:
    """The result of one way of training; ``epsilon`` is text, ∞ without privacy."""

    name: str
    private: bool
    epsilon: str
    metrics: dict[str, Any]


def compare(
    result: Result, setting: Setting, tell: Callable[[str], None] = lambda text: None
) -> list[ComparisonRow]:
    """Train the comparison rows of a finished run, and write them under ``non-private/``.

    Args:
        result: of the run; its folder is written to.
        setting: names the folder of the records, and the engine.
        tell: called with a text as each row begins.

    Returns:
        The rows, in the order of the plot, without the run itself.
    """
    folder = result.out / "non-private"
    write_atomic(folder / "NOTICE.txt", _NOTICE.encode())
    plain = without_privacy(result.plan).changed(metrics={"source": "public"})
    rows = [
        *_other_models(result, setting, folder, tell),
        _together(plain, setting, folder, tell),
        *_alone_and_pooled(plain, setting, folder, tell),
    ]
    headline = measure_of_kind(result.plan.task.kind).headline
    label, terms = "federated", "with privacy"
    if result.loss is not None:
        label, terms = f"federated with DP ({result.plan.model.kind})", str(result.loss)
    plots.write_comparison(
        [label, *(row.name for row in rows)],
        [result.metrics.get(headline), *(row.metrics.get(headline) for row in rows)],
        headline,
        terms,
        folder / "compare",
    )
    write_json(
        folder / "compare.json",
        {
            "private": False,
            "notice": " ".join(_NOTICE.split()),
            "rows": [
                {"name": r.name, "private": r.private, "epsilon": r.epsilon, "metrics": r.metrics}
                for r in rows
            ],
        },
    )
    return rows


def _other_models(
    result: Result, setting: Setting, folder: Path, tell: Callable[[str], None]
) -> list[ComparisonRow]:
    plan = result.plan
    if plan.scenario is None or plan.privacy is None or plan.privacy.is_central:
        return []
    rows = []
    scenario = scenarios.get(plan.scenario)
    own = scenarios.model_name(scenario.make_plan().model)
    for name in [own, *scenario.models]:
        if name == scenarios.model_name(plan.model) or name in scenario.slow:
            continue
        tell(f"{name} with privacy")
        other = scenario.make_plan(name).changed(
            seed=plan.seed,
            sites=[site.model_dump(mode="json") for site in plan.sites],
            privacy={"epsilon": plan.privacy.epsilon, "noise_multiplier": None},
        )
        once = train_once(other, SiteRecords(other, setting.data_dir, setting.base), folder / name)
        figure = f"{plan.privacy.epsilon:g}"
        rows.append(ComparisonRow(f"federated with DP ({name})", True, figure, _overall(once)))
    return rows


def _together(
    plan: Plan, setting: Setting, folder: Path, tell: Callable[[str], None]
) -> ComparisonRow:
    tell("together")
    records = SiteRecords(plan, setting.data_dir, setting.base)
    figures = train_once(plan, records, folder / "together")
    return ComparisonRow("federated, no privacy", False, "∞", _overall(figures))


def _alone_and_pooled(
    plan: Plan, setting: Setting, folder: Path, tell: Callable[[str], None]
) -> list[ComparisonRow]:
    records = SiteRecords(plan, setting.data_dir, setting.base)
    if not ReferenceModels.fit_for(plan):
        return [_alone(plan, setting, folder, tell), _pooled(plan, setting, folder, tell)]
    with cached(setting.cache_of(plan)) as cache:
        use_cache(cache)
        models = ReferenceModels(plan, records.measurable())
        train = records.parts()["train"]
        train = train[train[SITE].isin([site.name for site in plan.participants]).to_numpy()]
        is_linear = plan.model.kind == "linear" or plan.model.reads_features
        rows = [] if is_linear else [
            _alone(plan, setting, folder, tell), _pooled(plan, setting, folder, tell)
        ]  # fmt: skip
        tell("logistic regression, each site alone")
        if is_linear and (row := _each_alone(plan, models, train)):
            rows.append(row)
        tell("logistic regression, pooled")
        name = "all data pooled, " + ("no privacy" if is_linear else "logistic regression")
        rows += _fitted(name, models.logistic(train))
        if models.reads_table:
            tell("boosted trees, pooled")
            rows += _fitted("all data pooled, boosted trees", models.boosted(train))
    return rows


def _fitted(name: str, found: Fitted | None) -> list[ComparisonRow]:
    if found is None:
        return []
    if not found.has_converged:
        name += " (did not converge)"
    return [ComparisonRow(name, False, "∞", found.metrics)]


def _each_alone(plan: Plan, models: ReferenceModels, train: pd.DataFrame) -> ComparisonRow | None:
    """Return the mean over the sites that have two classes; a site with one has no model."""
    own: dict[str, Any] = {}
    ended = True
    for site in plan.participants:
        found = models.logistic(train[(train[SITE] == site.name).to_numpy()])
        if found is not None:
            own[site.name] = found.metrics
            ended = ended and found.has_converged
    if not own:
        return None
    mean = {
        name: _mean([figures.get(name) for figures in own.values()])
        for name in measure_of_kind(plan.task.kind).names
    }
    name = "each site alone, mean" + ("" if ended else " (did not converge)")
    return ComparisonRow(name, False, "∞", {**mean, "sites": own})


def _alone(
    plan: Plan, setting: Setting, folder: Path, tell: Callable[[str], None]
) -> ComparisonRow:
    """Each site trains on its own records; every model is measured on all test records."""
    everyone: list[dict[str, Any]] = []
    own: dict[str, Any] = {}
    test = SiteRecords(plan, setting.data_dir, setting.base).measurable()
    for site in plan.participants:
        tell(f"{site.name} alone")
        single = plan.changed(
            sites=[site.model_dump(mode="json")],
            strategy={"min_sites": None, "sites_per_round": None},
        )
        records = _Fixed(plan, setting.data_dir, setting.base, (site.name,))
        figures = train_once(single, records, folder / "alone" / site.name, PublicTest(plan, test))
        own[site.name] = _overall(figures)
        everyone.append(own[site.name])
    mean = {
        name: _mean([figures.get(name) for figures in everyone])
        for name in measure_of_kind(plan.task.kind).names
    }
    return ComparisonRow("each site alone, mean", False, "∞", {**mean, "sites": own})


def _pooled(
    plan: Plan, setting: Setting, folder: Path, tell: Callable[[str], None]
) -> ComparisonRow:
    tell("pooled")
    total = sum(site.nominal_size for site in plan.participants)
    single = plan.changed(
        sites=[{"name": "pooled", "nominal_size": total, "path": None}],
        strategy={"min_sites": None, "sites_per_round": None},
    )
    records = _Fixed(plan, setting.data_dir, setting.base, None)
    test = SiteRecords(plan, setting.data_dir, setting.base).measurable()
    figures = train_once(single, records, folder / "pooled", PublicTest(plan, test))
    return ComparisonRow("all data pooled, no privacy", False, "∞", _overall(figures))


@dataclass(frozen=True)
class _Fixed(SiteRecords):
    """The whole federation's split, of which one site, or all as one, are trained on."""

    only: tuple[str, ...] | None = None

    def site(self, name: str) -> SiteData:
        del name
        parts = super().parts()
        train, test = parts["train"], parts["test"]
        if self.only is not None:
            train = train[train[SITE].isin(self.only).to_numpy()]
        return SiteData(train, test)


def _overall(figures: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in figures.items() if name != "sites"}


def _mean(values: list[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return sum(there) / len(there) if there else None
