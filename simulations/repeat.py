"""A run repeated with other seeds: mean and standard deviation of its metrics."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from privet.common.errors import InputError
from privet.common.plan import Plan
from privet.simulations.result import Result
from privet.simulations.run import simulate

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class RepeatedRuns:
    """The same plan with several seeds.

    Attributes:
        seeds: of split and initial weights; the noise of each run is its own.
        results: of the runs, in the same order.
    """

    seeds: tuple[int, ...]
    results: tuple[Result, ...]

    @property
    def mean(self) -> dict[str, float]:
        """The mean of each metric."""
        return {name: statistics.mean(values) for name, values in self._values().items()}

    @property
    def deviation(self) -> dict[str, float]:
        """The sample standard deviation of each metric; NaN of one run."""
        return {
            name: statistics.stdev(values) if len(values) > 1 else math.nan
            for name, values in self._values().items()
        }

    def _values(self) -> dict[str, list[float]]:
        found: dict[str, list[float]] = {}
        for result in self.results:
            for name, value in result.metrics.items():
                if isinstance(value, int | float) and not isinstance(value, bool):
                    found.setdefault(name, []).append(float(value))
        return {name: values for name, values in found.items() if len(values) == len(self.results)}

    def to_frame(self) -> pd.DataFrame:
        """Return a row of metrics for each seed."""
        import pandas as pd

        rows = [
            {"seed": seed, "epsilon": result.loss.epsilon if result.loss else None,
             **{name: values[place] for name, values in self._values().items()}}
            for place, (seed, result) in enumerate(zip(self.seeds, self.results, strict=True))
        ]  # fmt: skip
        return pd.DataFrame(rows).set_index("seed")

    def __repr__(self) -> str:
        deviation = self.deviation
        said = ", ".join(
            f"{name} {value:.3f} ± {deviation[name]:.3f}" for name, value in self.mean.items()
        )
        return f"<RepeatedRuns of {len(self.results)} seeds: {said}>"


def repeat(
    plan: Plan | str | Path,
    seeds: Sequence[int] | int = 3,
    *,
    out: str | Path | None = None,
    **options: Any,
) -> RepeatedRuns:
    """Run a plan once with each of several seeds.

    Each run spends the plan's ε: where records are private, so do all of them together (H12).

    Args:
        plan: as :func:`privet.simulate` takes it.
        seeds: seeds, or how many, from 0.
        out: folder of the runs, new or empty, with ``seed-N`` for each; None takes a new folder
            under ``runs`` for each.
        options: of :func:`privet.simulate`.

    Raises:
        InputError: if there is no seed, or one comes twice; and as ``simulate``.
    """
    chosen = tuple(range(seeds)) if isinstance(seeds, int) else tuple(seeds)
    if not chosen or len(set(chosen)) < len(chosen):
        raise InputError("'seeds' must be one or more different whole numbers, or how many")
    if "seed" in options:
        raise InputError("'seed' goes with privet.simulate; privet.repeat takes 'seeds'")
    results = [
        simulate(
            plan, seed=seed, out=None if out is None else Path(out) / f"seed-{seed}", **options
        )
        for seed in chosen
    ]
    return RepeatedRuns(chosen, tuple(results))
