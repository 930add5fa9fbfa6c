"""What :mod:`privet.privacy.accounting.pld_compat` keeps changes no bit of what dp-accounting computes."""

from __future__ import annotations

from unittest.mock import patch

import numpy as np
import pytest
from dp_accounting.pld import common, pld_pmf
from dp_accounting.pld import privacy_loss_distribution as pld
from scipy import special

from privet.privacy.accounting.events import (
    Event,
    Gaussian,
    PoissonSampled,
)
from privet.privacy.accounting.pld import LIVE_GRID, _of_one
from privet.privacy.accounting.pld_compat import SelfComposition
from privet.privacy.accounting.units import Relation

ADD = Relation.ADD_OR_REMOVE_ONE
EVENTS: list[tuple[Event, Relation]] = [
    (PoissonSampled(0.5, Gaussian(20.0, 1.0)), ADD),
    (PoissonSampled(0.1, Gaussian(1.3, 1.0)), ADD),
    (PoissonSampled(0.1, Gaussian(1.3, 1.0)), Relation.REPLACE_ONE),
]


def same(ours: pld.PrivacyLossDistribution, theirs: pld.PrivacyLossDistribution) -> bool:
    """Whether two distributions are equal, bit for bit."""
    pairs = [(ours._pmf_remove, theirs._pmf_remove), (ours._pmf_add, theirs._pmf_add)]
    return ours._symmetric == theirs._symmetric and all(
        type(mine) is type(other)
        and {key: value for key, value in vars(mine).items() if key != "_probs"}
        == {key: value for key, value in vars(other).items() if key != "_probs"}
        and np.array_equal(getattr(mine, "_probs", 0), getattr(other, "_probs", 0))
        for mine, other in pairs
    )


@pytest.mark.parametrize(("event", "relation"), EVENTS)
@pytest.mark.parametrize("grid", [LIVE_GRID, 1e-1])
def test_a_distribution_composed_with_itself_is_dp_accountings(
    event: Event, relation: Relation, grid: float
) -> None:
    once = _of_one(event, relation, grid)
    kept = SelfComposition(once)
    for count in (1, 2, 3, 40, 1000):
        assert same(kept.times(count), once.self_compose(count))
    assert not same(kept.times(40), once.self_compose(41))


def test_a_sparse_distribution_stays_as_sparse_as_theirs() -> None:
    few = pld_pmf.SparsePLDPmf({-1: 0.4, 1: 0.6}, 1e-3, 0.0, True)
    once = pld.PrivacyLossDistribution(few)
    kept = SelfComposition(once)
    for count in (1, 2, 9, 10, 64, 65, 500):
        assert same(kept.times(count), once.self_compose(count))


def test_moments_are_computed_once() -> None:
    once = _of_one(EVENTS[0][0], ADD, LIVE_GRID)
    kept = SelfComposition(once)
    kept.times(10)
    with patch.object(special, "logsumexp", side_effect=AssertionError("computed again")):
        kept.times(11)
        with pytest.raises(AssertionError, match="computed again"):
            once.self_compose(11)
    assert common.special is special
