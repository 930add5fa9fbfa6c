"""Accuracy with and without privacy, by scenario, over several seeds.

    python benchmarks/utility.py --data DIR --json > utility.json
    python benchmarks/utility.py --data DIR --only fed-heart banking77
    python benchmarks/utility.py --quick

A seed fixes split and initial weights; all rows of a scenario share the splits. Settings
were chosen on the validation split, which counts as public and is not trained on (H12);
figures are on the test split. The peer is logistic regression by scikit-learn on the
pooled training records, without any privacy, on the same features and the same splits.
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from harness import Row, finish, parser, row, tell
from sklearn.linear_model import LogisticRegression
from torch.nn import functional

from privet.client.workbench import workbench
from privet.common.plan import Plan
from privet.simulations import scenarios
from privet.simulations.planning import adjusted
from privet.simulations.records import Records
from privet.simulations.run import train_once

LEVELS: list[tuple[str, str | None, tuple[float | None, ...]]] = [
    ("fed-heart", None, (None, 5.0, 1.0)),
    ("lending", "linear", (None, 3.0, 1.0)),
    ("lending", None, (None, 3.0, 1.0)),
    ("medpar", None, (None, 3.0)),
    ("sba-loans", None, (None, 3.0)),
    ("eicu-text", None, (None, 8.0, 3.0)),
    ("banking77", None, (None, 8.0, 3.0)),
]
"""Scenario, model (None: the scenario's own), and the values of ε (None: no privacy)."""


def plan_at(name: str, model: str | None, epsilon: float | None, seed: int) -> Plan:
    """Return the scenario's plan at one level of privacy."""
    plan = scenarios.get(name).make_plan(model)
    return adjusted(plan, epsilon=epsilon, seed=seed, dp=epsilon is not None)


def accuracy(plan: Plan, data: Path | None) -> float:
    """Train once and return the accuracy on the test split."""
    with tempfile.TemporaryDirectory() as folder:
        figures = train_once(plan, Records(plan, data), Path(folder) / "run")
    return float(figures["accuracy"])


def pooled_logistic(plan: Plan, data: Path | None) -> float:
    """Return the test accuracy of logistic regression on all training records."""
    parts = Records(plan, data).parts()
    task = workbench(plan).task
    train, test = task.encode(parts["train"]), task.encode(parts["test"])
    sizes = [len(values) + 1 for _, values in sorted(plan.task.categorical.items())]

    def features(batch: dict[str, Any]) -> np.ndarray:  # type: ignore[type-arg]
        if "features" in batch:
            return np.asarray(batch["features"]) * 4.0
        columns = [batch["numeric"].numpy(), batch["missing"].numpy()]
        for j, size in enumerate(sizes):
            columns.append(functional.one_hot(batch["categorical"][:, j], size).numpy())
        return np.concatenate(columns, 1)

    model = LogisticRegression(max_iter=2000).fit(features(train), train["label"].numpy())
    return float(model.score(features(test), test["label"].numpy()))


def measure(
    name: str, model: str | None, levels: tuple[float | None, ...], seeds: int, data: Path | None
) -> list[Row]:
    """Return one row for each level of privacy."""
    peers = [pooled_logistic(plan_at(name, "linear" if model else None, None, s), data)
             if name == "lending" else pooled_logistic(plan_at(name, model, None, s), data)
             for s in range(seeds)]  # fmt: skip
    rows = []
    for epsilon in levels:
        values = []
        for seed in range(seeds):
            plan = plan_at(name, model, epsilon, seed)
            values.append(accuracy(plan, data))
            tell(f"{name} {plan.model.kind} ε {epsilon} seed {seed}: {values[-1]:.4f}")
        privacy = plan.privacy
        rows.append(
            row(
                f"{name}, {plan.model.kind}",
                statistics.mean(values),
                "accuracy",
                "pooled logistic regression, no privacy",
                statistics.mean(peers),
                sd=statistics.stdev(values) if seeds > 1 else None,
                peer_sd=statistics.stdev(peers) if seeds > 1 else None,
                epsilon=privacy.epsilon if privacy else None,
                delta=privacy.delta if privacy else None,
                privacy_unit=privacy.unit if privacy else None,
                relation=privacy.relation if privacy else None,
                trust=privacy.trust if privacy else None,
                seeds=seeds,
            )
        )
    return rows


def _line(item: Row) -> str:
    terms = "no privacy"
    if item["epsilon"]:
        terms = f"ε {item['epsilon']:g} (δ {item['delta']:g}, per {item['privacy_unit']})"
    spread = f" ± {item['sd']:.3f}" if item["sd"] is not None else ""
    return (
        f"{item['name']:28} {terms:34} {item['value']:.3f}{spread}  peer {item['peer_value']:.3f}"
    )


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--data", type=Path, help="data folder; default $PRIVET_DATA")
    options.add_argument("--only", nargs="*", help="scenarios")
    options.add_argument("--model", help="only this model")
    options.add_argument("--seeds", type=int, default=5)
    given = options.parse_args()
    rows: list[Row] = []
    for name, model, levels in LEVELS:
        kind = scenarios.get(name).make_plan(model).model.kind
        if (given.only and name not in given.only) or (given.model and kind != given.model):
            continue
        if given.quick and (name, model) not in (("medpar", None), ("lending", "linear")):
            continue
        if not scenarios.get(name).available(given.data):
            tell(f"{name}: its data is not there, left out")
            continue
        seeds = 1 if given.quick else given.seeds
        rows += measure(name, model, levels[:2] if given.quick else levels, seeds, given.data)
    finish(rows, given.json, _line)


if __name__ == "__main__":
    main()
