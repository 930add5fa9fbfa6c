"""Central noise in a simulation beside Apple's pfl: the same data, model, clip, noise and turns.

    python -m venv other && other/bin/pip install pfl
    python benchmarks/central.py --pfl other/lib/python3.11/site-packages --json
    python benchmarks/central.py --quick

1,424 of scikit-learn's 1,797 digits are dealt to 89 clients of 16 images; 30 take part in a round,
in turns, by 5 steps of all of their images. The other 373 images are the test. A row is the mean
accuracy over seeds (weights, turns and noise), with the half width of its 95 % interval; the peer
is pfl's FederatedAveraging with its GaussianMechanism, applied centrally. Without `--pfl` there is
no peer.
"""

from __future__ import annotations

import math
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pfl_peer
import torch
from harness import Row, finish, parser, row, tell
from scipy.stats import t
from sklearn.datasets import load_digits

from privet.client.training.model_runtime import model_runtime
from privet.common.plan import Plan
from privet.simulations.planning import Setting, resolve
from privet.simulations.run import run_plan

CLIENTS, IMAGES, STEPS = 89, 16, 5
CLIP, NOISES = 0.5, (0.2, 1.0, 3.0)


def dealt() -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the clients' records, with the column ``site``, and those of the test."""
    found = load_digits()
    frame = pd.DataFrame({f"pixel_{k}": found.data[:, k] for k in range(64)})
    frame["digit"] = found.target.astype(str)
    frame = frame.sample(frac=1, random_state=7).reset_index(drop=True)
    mine, test = frame[: CLIENTS * IMAGES].copy(), frame[CLIENTS * IMAGES :]
    mine["site"] = [f"Client {k // IMAGES}" for k in range(len(mine))]
    return mine, test


def plan_of(path: Path, noise: float | None, rounds: int, seed: int) -> Plan:
    """Return the plan of one run."""
    privacy: dict[str, Any] = {
        "unit": "site", "trust": "central", "epsilon": 1000.0, "delta": 1e-3,
        "clip": CLIP, "noise_multiplier": noise,
    }  # fmt: skip
    value = {
        "name": "central",
        "seed": seed,
        "task": {
            "kind": "tabular", "label": "digit", "classes": [str(k) for k in range(10)],
            "numeric": {f"pixel_{k}": {"low": 0, "high": 16} for k in range(64)},
        },
        "model": {"kind": "dense", "options": {"width": 64, "layers": 1}},
        "training": {
            "rounds": rounds, "steps": STEPS, "sample_rate": 1.0, "learning_rate": 0.1,
        },
        "strategy": {"sites_per_round": 30},
        "privacy": privacy if noise else "none",
        "metrics": {"source": "off"},
        "split": {"test": 0.0, "validation": 0.0},
        "data": {"path": str(path), "site_column": "site"},
        "sites": [{"name": f"Client {k}", "nominal_size": IMAGES} for k in range(CLIENTS)],
    }  # fmt: skip
    return resolve(Plan.parse(value))


def accuracy(plan: Plan, weights: Any, test: pd.DataFrame) -> float:
    """Return the share of the test's images that a model reads as they are."""
    bench = model_runtime(plan)
    bench.load(weights)
    batch = bench.encode_records(test).batch
    scores = bench.score(batch)
    return float((np.asarray(scores).argmax(1) == batch["label"].numpy()).mean())


def interval(values: list[float]) -> tuple[float, float]:
    """Return the mean, and half the width of its 95 % interval."""
    if len(values) < 2:
        return values[0], math.nan
    error = statistics.stdev(values) / math.sqrt(len(values))
    return statistics.mean(values), float(t.ppf(0.975, len(values) - 1)) * error


def rows_of(noise: float | None, options: Any, folder: Path) -> Row:
    """Train by both with one noise, over all seeds."""
    mine, test = dealt()
    path = folder / "digits.csv"
    mine.to_csv(path, index=False)
    found: dict[str, list[float]] = {"privet": [], "pfl": []}
    seconds = dict.fromkeys(found, 0.0)
    epsilon = math.inf
    for seed in range(options.seeds):
        plan = plan_of(path, noise, options.rounds, seed)
        began = time.perf_counter()
        result = run_plan(plan, Setting(evidence="off"), folder / f"{noise}-{seed}")
        seconds["privet"] += time.perf_counter() - began
        epsilon = result.loss.epsilon if result.loss else math.inf
        found["privet"].append(accuracy(plan, dict(result.model), test))
        if options.pfl:
            encoded = [
                model_runtime(plan).encode_records(part).batch
                for _, part in mine.groupby("site", sort=False)
            ]
            began = time.perf_counter()
            model = pfl_peer.train(
                plan, encoded, batch=None, steps=STEPS, seed=seed,
                mechanism=(CLIP, noise) if noise else None,
            )  # fmt: skip
            seconds["pfl"] += time.perf_counter() - began
            weights = {name: p.detach().numpy() for name, p in model.named_parameters()}
            found["pfl"].append(accuracy(plan, weights, test))
        tell(f"noise {noise}, seed {seed}: {[(k, round(v[-1], 3)) for k, v in found.items() if v]}")
    value, half = interval(found["privet"])
    peer, peer_half = interval(found["pfl"]) if found["pfl"] else (None, None)
    return row(
        f"digits, 30 of {CLIENTS}, noise {noise or 0:g}", value, "accuracy",
        "pfl" if options.pfl else None, peer, half_width=half, peer_half_width=peer_half,
        epsilon=None if math.isinf(epsilon) else epsilon, delta=1e-3, unit_of_privacy="site",
        seeds=options.seeds, seconds=seconds["privet"], peer_seconds=seconds["pfl"],
    )  # fmt: skip


def main() -> None:
    """Measure."""
    made = parser(__doc__)
    made.add_argument("--pfl", type=Path, help="site-packages of an environment that has pfl")
    made.add_argument("--seeds", type=int, default=0, help="default 10")
    made.add_argument("--rounds", type=int, default=60)
    made.add_argument("--noise", type=float, nargs="*", help="multipliers; default several and 0")
    options = made.parse_args()
    options.seeds = options.seeds or (2 if options.quick else 10)
    if options.quick:
        options.rounds = min(options.rounds, 5)
    if options.pfl:
        pfl_peer.find(options.pfl)
    torch.set_num_threads(1)
    noises = [None, *NOISES] if options.noise is None else [one or None for one in options.noise]
    if options.quick:
        noises = [None, 1.0]
    with tempfile.TemporaryDirectory() as folder:
        rows = [rows_of(noise, options, Path(folder)) for noise in noises]
    finish(rows, options.json, _line)


def _line(item: Row) -> str:
    text = f"{item['name']:34} {item['value']:.3f} ± {item['half_width']:.3f}"
    if item["peer"]:
        text += f"   pfl {item['peer_value']:.3f} ± {item['peer_half_width']:.3f}"
    return f"{text}   ε {item['epsilon'] or math.inf:.4g} ({item['seconds']:.0f} s)"


if __name__ == "__main__":
    sys.exit(main())
