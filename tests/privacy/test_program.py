"""What a plan says it will do is what the mechanism does."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import pytest

from privet.common.errors import BudgetExceededError, InputError
from privet.common.plan import Plan
from privet.privacy.accounting import noise_calibration, plan_events
from privet.privacy.accounting.events import DiscreteGaussian, Gaussian, Repeated, group
from privet.privacy.accounting.pld import epsilon
from privet.privacy.mechanism import metrics_mechanism
from privet.privacy.mechanism.dpsgd import DpSgd, PlainSgd

Make = Callable[..., dict[str, Any]]


@pytest.mark.parametrize("rate", [0.5, 1.0])
@pytest.mark.parametrize("clip", [1.0, 0.3])
@pytest.mark.parametrize(("rounds", "every", "releases"), [(2, 1, 2), (5, 2, 3), (4, 2, 2)])
def test_it_equals_what_mechanism_and_gate_give(plan_value: Make, rate, clip, rounds, every, releases):  # fmt: skip
    plan = Plan.parse(
        plan_value(
            training={"sample_rate": rate, "rounds": rounds, "steps": 3},
            privacy={"clip": clip},
            metrics={"source": "gate", "every": every},
        )
    )
    mechanism = DpSgd(rate, noise_multiplier=2.0, clip=clip, steps=3)
    evaluation = metrics_mechanism.event(plan.metrics.noise_multiplier)
    assert plan_events.training_event(plan) == mechanism.event
    assert plan_events.gate_event(plan) == evaluation
    ran = [mechanism.event] * rounds + [evaluation] * releases
    assert dict(plan_events.planned(plan)) == dict(group(ran))
    assert dict(plan_events.one_round(plan)) == dict(group([mechanism.event, evaluation]))
    assert dict(plan_events.planned(plan)) != dict(group(ran[1:]))


def test_without_the_gate_a_run_is_training_only(plan_value: Make):
    plan = Plan.parse(plan_value())
    assert plan_events.planned(plan) == group([plan_events.training_event(plan)] * 2)
    assert plan_events.one_round(plan) == group([plan_events.training_event(plan)])


def test_training_and_gate_have_events_of_their_own(plan_value: Make):
    plan = Plan.parse(
        plan_value(
            training={"sample_rate": 1.0, "rounds": 2, "steps": 3},
            metrics={"source": "gate", "noise_multiplier": 2.0},
        )
    )
    gate_release = DiscreteGaussian(2 * 2**20, 2**20)
    assert plan_events.planned(plan) == ((Gaussian(2.0, 1.0), 6), (gate_release, 2))


@pytest.mark.parametrize("noise", [1e-9, 0.1, 1 / 3, 20.0, 20.0000001, 8e9])
def test_the_noise_of_the_gate_is_never_rounded_down(plan_value: Make, noise: float):
    plan = Plan.parse(plan_value(metrics={"source": "gate", "noise_multiplier": noise}))
    event = plan_events.gate_event(plan)
    assert isinstance(event, DiscreteGaussian)
    exact = Fraction(noise) * 2**20
    assert exact <= event.standard_deviation < exact + 1


def test_noise_that_cannot_be_written_is_refused(plan_value: Make):
    plan = Plan.parse(plan_value(metrics={"source": "gate", "noise_multiplier": 1e10}))
    with pytest.raises(InputError, match="above 8e9"):
        plan_events.planned(plan)


def test_a_plan_without_privacy_has_non_private_events_only(plan_value: Make):
    plan = Plan.parse(plan_value(privacy=None))
    assert plan_events.planned(plan) == ((PlainSgd(0.5).event, 2),)


def test_a_plan_without_noise_says_so(plan_value: Make):
    plan = Plan.parse(plan_value(privacy={"noise_multiplier": None}))
    with pytest.raises(InputError, match="calibrate it first"):
        plan_events.planned(plan)


def test_calibration_spends_the_epsilon_and_no_more(plan_value: Make):
    plan = Plan.parse(plan_value(privacy={"epsilon": 3.0, "noise_multiplier": None}))
    fitted = noise_calibration.calibrated(plan)
    events = [Repeated(event, count) for event, count in plan_events.planned(fitted)]
    assert 2.99 <= epsilon(events, 1e-4) <= 3.0
    assert noise_calibration.calibrated(fitted) == fitted


def test_noise_of_ones_own_must_be_enough(plan_value: Make):
    plan = Plan.parse(plan_value(privacy={"epsilon": 1.0, "noise_multiplier": 0.5}))
    with pytest.raises(BudgetExceededError, match="leave it out to have it calibrated"):
        noise_calibration.calibrated(plan)
