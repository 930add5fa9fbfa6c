"""Whole federations, in this process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from federation_kit import as_bytes, federation, order_for, same, start, turned

from privet.common.plan import Plan
from privet.simulations.planning import Setting
from privet.simulations.run import Result, run_plan

__all__ = ["as_bytes", "federation", "order_for", "same", "start", "turned"]
Make = Callable[..., Any]


@pytest.fixture
def many(frame_of: Make, plan_value: Make, tmp_path: Path) -> Make:
    """Return a plan of that many sites, with a file of records for each."""

    def make(count: int = 5, **changes: Any) -> Plan:
        sites = []
        for k in range(count):
            path = tmp_path / f"s{k}.csv"
            if not path.exists():
                frame_of(20, k, persons=9).to_csv(path, index=False)
            sites.append({"name": f"Site {k}", "nominal_size": 15, "path": str(path)})
        return Plan.parse(plan_value(sites=sites, **changes))

    return make


@pytest.fixture
def simulated(tmp_path: Path) -> Callable[..., Result]:
    """Simulate a plan; the noise is the same each time unless it is None."""

    def run(plan: Plan, name: str = "run", seed: int | None = 1, **setting: Any) -> Result:
        observe = setting.pop("observe", lambda _: None)
        return run_plan(plan, Setting(noise_seed=seed, **setting), tmp_path / name, observe)

    return run
