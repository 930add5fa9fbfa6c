"""The rounds of a simulation over real gRPC with mutual TLS: the same bits, the same evidence."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from link_kit import Ends, answering

from privet.common.flat import Arrays

Make = Callable[..., Any]
NAMES = ["North", "East", "South"]


@pytest.fixture
def ends(tmp_path: Path) -> Iterator[Ends]:
    made = Ends(tmp_path / "hub", NAMES)
    yield made
    made.close()


def test_a_run_over_the_link_is_the_run_in_process(
    federation: Make, ends: Ends, same: Callable[[Arrays, Arrays], bool]
) -> None:
    inside = federation(folder="inside", noise_seed=7, metrics={"source": "gate"})
    expected = inside.run()
    outside = federation(folder="outside", noise_seed=7, metrics={"source": "gate"})
    for site in outside.sites:
        ends.dial(site.name, answering(site))
    outcome = outside.run(ends.grid())
    assert same(outcome.model, expected.model)
    assert [step.statuses for step in outcome.progress] == [
        step.statuses for step in expected.progress
    ]
    assert outside.verdict().ok
