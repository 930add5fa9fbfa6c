"""Persons with many records under per-record clipping: what they really lose (H20)."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from privet.common.errors import InputError
from privet.privacy.accounting.events import (
    Gaussian,
    MixtureOfGaussians,
    PoissonSampled,
    Repeated,
    from_json,
    per_record_clipping,
    to_json,
)
from privet.privacy.accounting.pld import epsilon, to_dp_event
from privet.privacy.accounting.units import Relation

STEP = per_record_clipping(0.1, 2.0, 1.0, 3)


def hockey_stick(event: MixtureOfGaussians, eps: float) -> float:
    """Integrate the larger of both directions' δ at ``eps``, on a fine grid of outputs."""
    std, top = event.standard_deviation, max(event.sensitivities)
    x = np.linspace(-12 * std, top + 12 * std, 2_000_001)
    without = stats.norm.pdf(x, 0, std)
    pairs = zip(event.sensitivities, event.probabilities, strict=True)
    with_person = sum(chance * stats.norm.pdf(x, size, std) for size, chance in pairs)
    return max(
        float(np.trapezoid(np.maximum(one - math.exp(eps) * other, 0), x))
        for one, other in ((with_person, without), (without, with_person))
    )


def test_h20_a_patient_with_many_records_loses_far_more_than_a_record():
    def cost(records: int) -> float:
        step = per_record_clipping(0.01, 9.0, 1.0, records)
        return epsilon([Repeated(step, 15_000)], 1e-5, grid=1e-3)

    assert [cost(1), cost(8), cost(16)] == pytest.approx([0.51, 4.9, 11.1], rel=0.02)


def test_one_record_is_a_sampled_gaussian():
    sampled = PoissonSampled(0.1, Gaussian(2.0, 1.0))
    assert per_record_clipping(0.1, 2.0, 1.0, 1).dominating == sampled
    for count in (1, 100):
        mine = [Repeated(per_record_clipping(0.1, 2.0, 1.0, 1), count)]
        theirs = epsilon([Repeated(sampled, count)], 1e-5, grid=1e-3)
        assert epsilon(mine, 1e-5, grid=1e-3) == pytest.approx(theirs, rel=1e-3)


@pytest.mark.parametrize("records", [2, 8])
@pytest.mark.parametrize("eps", [0.05, 0.5, 1.0])
def test_one_step_against_direct_integration(records, eps):
    step = per_record_clipping(0.1, 2.0, 1.0, records)
    delta = hockey_stick(step, eps)
    assert delta > 0
    reached = epsilon([step], delta, grid=1e-3)
    assert eps - 1e-6 <= reached <= eps + 2e-3  # pessimistic by a grid step or two


def test_the_integration_would_notice_a_record_that_is_left_out():
    delta = hockey_stick(per_record_clipping(0.1, 2.0, 1.0, 8), 0.5)
    assert epsilon([per_record_clipping(0.1, 2.0, 1.0, 7)], delta, grid=1e-3) < 0.5 - 1e-2


@pytest.mark.parametrize("records", [1, 3, 8])
@pytest.mark.parametrize("count", [1, 50])
def test_bounds_are_in_order(records, count):
    """PLD of the mixture ≤ PLD of its dominating event ≤ the Rényi ceiling."""
    step = per_record_clipping(0.05, 4.0, 1.0, records)
    pld = epsilon([Repeated(step, count)], 1e-5, grid=1e-3)
    dominating = epsilon([Repeated(step.dominating, count)], 1e-5, grid=1e-3)
    ceiling = epsilon([Repeated(step, count)], 1e-5, accountant="rdp")
    assert pld <= dominating * (1 + 1e-6) <= ceiling * (1 + 1e-6)


def test_the_dominating_event_is_what_dp_accounting_is_told():
    assert to_dp_event(STEP) == to_dp_event(STEP.dominating)
    assert STEP.dominating == PoissonSampled(pytest.approx(1 - 0.9**3), Gaussian(2.0, 3.0))
    sure = MixtureOfGaussians(2.0, (1.0, 3.0), (0.5, 0.5))
    assert sure.dominating == Gaussian(2.0, 3.0)


def test_replace_one_is_refused():
    with pytest.raises(InputError, match="'add_or_remove_one' only"):
        epsilon([STEP], 1e-5, Relation.REPLACE_ONE)


def test_a_sampled_mixture_is_never_cheap():
    assert math.isfinite(epsilon([STEP], 1e-5, grid=1e-3))
    with pytest.raises(InputError, match="no privacy loss distribution"):
        epsilon([PoissonSampled(0.1, STEP)], 1e-5)


@pytest.mark.parametrize(("rate", "records"), [(0.0, 3), (1.0, 3), (0.1, 0), (math.nan, 2)])
def test_an_impossible_step_is_refused(rate, records):
    with pytest.raises(InputError):
        per_record_clipping(rate, 1.0, 1.0, records)


def test_many_records_at_a_tiny_rate_are_a_mixture_still():
    step = per_record_clipping(1e-5, 1.0, 1.0, 100)
    assert math.fsum(step.probabilities) == pytest.approx(1)
    assert min(step.probabilities) > 0


def test_json_round_trip():
    value = to_json(STEP)
    assert value["sensitivities"] == ["0.0", "1.0", "2.0", "3.0"]
    assert from_json(value) == STEP


@pytest.mark.parametrize(
    "change",
    [
        {"sensitivities": "0.0"},
        {"sensitivities": []},
        {"sensitivities": ["0.0", "1.0"]},
        {"sensitivities": ["0.0", "2.0", "1.0", "3.0"]},
        {"sensitivities": ["0.0", "1.0", "1.0", "3.0"]},
        {"sensitivities": ["-1.0", "1.0", "2.0", "3.0"]},
        {"probabilities": ["0.25", "0.25", "0.25", "0.2"]},
        {"probabilities": ["0.5", "0.5", "0.5", "-0.5"]},
        {"probabilities": ["0.5", "0.25", "0.25", "0.0"]},
        {"standard_deviation": "0.0"},
        {"sensitivities": ["0.0"], "probabilities": ["1.0"]},
        {"probabilities": {}},
    ],
)
def test_a_mixture_with_impossible_numbers_is_refused(change):
    with pytest.raises(InputError):
        from_json({**to_json(STEP), **change})
