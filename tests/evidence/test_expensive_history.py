"""A ledger of 199 different plans: verified and reported in bounded time, with a remark."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from verify_kit import SITES, Federation, plan_of, write

from privet.privacy.audit.report import claims, input
from privet.privacy.audit.verify import verify
from privet.privacy.audit.verify.cost import accounting

NORTH = SITES[0]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    fed = Federation(cap="1000000.0")
    for number in range(199):
        plan = plan_of(
            name=f"plan {number}",
            training={"rounds": 1, "sample_rate": 0.2 + number * 1e-3},
            privacy={"noise_multiplier": 1.0 + number * 1e-2},
        )
        fed.run(f"run-{number}", plan)
    return write(tmp_path_factory.mktemp("expensive") / "bundle", fed.bundle())


@pytest.fixture
def composed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many mechanisms were composed at a time."""
    sizes: list[int] = []
    real = accounting._composed

    def counted(merged: Any, *more: Any) -> Any:
        sizes.append(len(merged))
        return real(merged, *more)

    monkeypatch.setattr(accounting, "_composed", counted)
    return sizes


def test_it_verifies_at_the_ceiling_and_says_so(bundle: Path, composed: list[int]) -> None:
    answer = verify(bundle, keep=True)
    assert answer.faults == []
    assert max(composed, default=0) <= 2  # first plans alone, and nothing else
    site = next(finding for finding in answer.sites if finding.site == NORTH)
    assert site.epsilon is not None
    assert math.isfinite(site.epsilon)
    assert site.epsilon == site.rdp_epsilon
    said = [note for note in answer.notes if note.startswith(f"{NORTH}: epsilon of")]
    assert len(said) == 1
    assert "too large for privacy loss distributions: the Rényi ceiling" in said[0]
    case = input.read(answer.record)
    cost = claims._cost_on_the_way(case.groups[0], site.epsilon)
    counts = claims.Counter(charge.event for charge, _ in case.groups[0].steps)
    assert cost(counts) == pytest.approx(site.epsilon, rel=1e-9)
