"""Small models, trained with privacy, of every family that can be delivered."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from families_kit import family_plan

from privet.simulations.run import simulate

Runs = Callable[[str], Path]


@pytest.fixture(scope="session")
def run_of(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Return the folder of a finished run of a family, made once."""
    made: dict[str, Path] = {}

    def run(name: str) -> Path:
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            plan = family_plan(name, folder, training={"rounds": 3, "steps": 4, "sample_rate": 0.5})
            made[name] = simulate(plan, out=folder / "run").out
        return made[name]

    return run
