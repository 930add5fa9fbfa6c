from __future__ import annotations

import json
import math

import pytest
from dp_accounting import NeighboringRelation
from dp_accounting.pld import PLDAccountant
from dp_kit import examples
from hypothesis import given
from hypothesis import strategies as st

from privet.common.canonical import canonical_json
from privet.common.errors import InputError
from privet.privacy.accounting import pld
from privet.privacy.accounting.events import (
    DiscreteGaussian,
    Event,
    Gaussian,
    NonPrivate,
    PoissonSampled,
    Repeated,
    from_json,
    group,
    to_json,
)
from privet.privacy.accounting.noise_calibration import calibrate_noise
from privet.privacy.accounting.pld import epsilon, privacy_loss, to_dp_event
from privet.privacy.accounting.units import Relation, Unit

ADD, REPLACE = Relation.ADD_OR_REMOVE_ONE, Relation.REPLACE_ONE


def sgd(rate: float, noise: float, steps: int) -> Event:
    step: Event = Gaussian(noise, 1.0)
    return Repeated(step if rate == 1 else PoissonSampled(rate, step), steps)


# Golden figures of dp-accounting's PLD at grid 1e-4, with the interval of prv-accountant.
GOLDEN = {
    "tiny rate, long": ([sgd(1e-4, 0.6, 100_000)], 1e-6, 0.9638, (0.953, 0.9735), 2.267),
    "mnist": ([sgd(256 / 60000, 1.1, 14_062)], 1e-5, 2.3817, (2.3715, 2.3917), 2.5966),
    "much noise": ([sgd(0.01, 4, 10_000)], 1e-5, 0.9470, (0.9368, 0.9569), 1.0355),
    "half": ([sgd(0.5, 2, 100)], 1e-5, 14.2845, (14.274, 14.295), 15.725),
    "no sampling": ([sgd(1, 10, 100)], 1e-5, 4.3772, (4.3669, 4.3874), 4.7285),
    "three plans": (
        [sgd(0.02, 0.8, 1500), sgd(0.01, 1.2, 3000), sgd(0.05, 1.5, 400)],
        1e-5, 9.1846, (9.174, 9.1951), 10.085,
    ),
    "with metrics": (
        [sgd(0.01, 1, 2000), Repeated(Gaussian(20, 1), 5), Repeated(Gaussian(10, 1), 3)],
        1e-6, 3.1074, (3.0972, 3.1175), 3.3988,
    ),
    "small hospital": ([sgd(16 / 150, 1.5, 282)], 1e-3, 4.6717, (4.6619, 4.6828), 5.325),
    "little noise": ([sgd(0.02, 0.4, 2000)], 1e-5, 72.5399, (72.527, 72.553), 83.52),
}  # fmt: skip


@pytest.mark.parametrize("row", GOLDEN)
def test_golden_table(row):
    events, delta, pld, (low, high), rdp = GOLDEN[row]
    value = epsilon(events, delta)
    assert value == pytest.approx(pld, abs=5e-4)
    assert low <= value <= high
    assert epsilon(events, delta, accountant="rdp") == pytest.approx(rdp, abs=6e-4 * rdp)


@pytest.mark.parametrize("row", GOLDEN)
def test_renyi_is_the_ceiling(row):
    events, delta, *_ = GOLDEN[row]
    assert epsilon(events, delta, accountant="rdp") >= epsilon(events, delta)


def test_the_table_would_notice_another_noise():
    _, delta, pld, *_ = GOLDEN["no sampling"]
    assert epsilon([sgd(1, 10.1, 100)], delta) != pytest.approx(pld, abs=5e-4)


def test_the_coarse_grid_is_an_upper_bound():
    events, delta, *_ = GOLDEN["half"]
    assert epsilon(events, delta, grid=10 * pld.GRID) >= epsilon(events, delta)


@pytest.mark.parametrize("name", ["gdp", "prv", "GDP", "clt", ""])
def test_unsound_and_unknown_accountants_are_refused(name):
    with pytest.raises(InputError, match="not accepted"):
        epsilon([Gaussian(1, 1)], 1e-5, accountant=name)


@pytest.mark.parametrize("delta", [0.0, 1.0, -1e-5, math.nan])
def test_impossible_delta(delta):
    with pytest.raises(InputError, match="delta"):
        epsilon([Gaussian(1, 1)], delta)


def test_nothing_costs_nothing():
    assert epsilon([], 1e-5) == 0.0
    assert epsilon([Repeated(Gaussian(1, 1), 0)], 1e-5) == 0.0


# --- relations ----------------------------------------------------------------------------


def test_replace_one_doubles_the_sensitivity():
    assert epsilon([Gaussian(1, 1)], 1e-5, ADD) == pytest.approx(4.377, abs=5e-4)
    assert epsilon([Gaussian(1, 1)], 1e-5, REPLACE) == pytest.approx(9.997, abs=5e-4)


def test_replace_one_with_sampling():
    run = [sgd(0.01, 1, 1000)]
    assert epsilon(run, 1e-5, ADD) == pytest.approx(1.83, abs=0.005)
    assert epsilon(run, 1e-5, REPLACE) == pytest.approx(2.84, abs=0.005)


def test_renyi_refuses_replace_one():
    with pytest.raises(InputError, match="replace_one"):
        epsilon([Gaussian(1, 1)], 1e-5, REPLACE, accountant="rdp")


def test_noise_and_sensitivity_count_together():
    assert epsilon([Gaussian(3, 1.5)], 1e-5) == epsilon([Gaussian(2, 1)], 1e-5)
    assert epsilon([Gaussian(2, 1.5)], 1e-5) > epsilon([Gaussian(2, 1)], 1e-5)


# --- composition --------------------------------------------------------------------------


def test_repeated_events_are_grouped():
    step = PoissonSampled(0.1, Gaussian(2, 1))
    ways = [
        [step] * 30,
        [Repeated(step, 30)],
        [Repeated(Repeated(step, 5), 6)],
        [Repeated(step, 10), step, Repeated(step, 19)],
    ]
    assert {group(way) for way in ways} == {((step, 30),)}
    assert len({epsilon(way, 1e-5) for way in ways}) == 1
    by_hand = PLDAccountant(value_discretization_interval=1e-3)
    for _ in range(3):
        by_hand.compose(to_dp_event(step), 10)
    value = epsilon(ways[0], 1e-5, grid=1e-3)
    assert value == pytest.approx(by_hand.get_epsilon(1e-5), abs=5e-3)


@pytest.mark.parametrize("relation", [ADD, REPLACE])
def test_the_figure_is_that_of_dp_accountings_own_accountant(relation):
    events = [sgd(0.1, 1.3, 40), Repeated(Gaussian(9, 0.5), 3), sgd(0.02, 0.8, 7)]
    theirs = PLDAccountant(NeighboringRelation[relation.name], value_discretization_interval=1e-3)
    for event, count in group(events):
        theirs.compose(to_dp_event(event), count)
    ours = epsilon(events, 1e-5, relation, grid=1e-3)
    assert ours == pytest.approx(theirs.get_epsilon(1e-5), rel=1e-9)


def test_order_does_not_matter():
    events = GOLDEN["with metrics"][0]
    assert sum(count for _, count in group(events)) == 2008
    assert dict(group(events)) == dict(group(reversed(events)))


def test_fresh_accountant():
    """H9: one round's ε, printed each round, is a third of what twenty rounds cost."""
    one_round = sgd(0.2, 1.42, 5)
    printed = {epsilon([one_round], 1e-5) for _ in range(20)}
    composed = epsilon([one_round] * 20, 1e-5)
    assert len(printed) == 1
    assert composed > 2.9 * printed.pop()
    assert composed == epsilon([sgd(0.2, 1.42, 100)], 1e-5)


@examples(12)
@given(
    st.sampled_from([0.05, 0.3, 1.0]), st.floats(0.8, 5.0), st.integers(1, 20), st.integers(1, 20)
)
def test_more_steps_cost_more_and_more_noise_costs_less(rate, noise, steps, more):
    grid = 1e-2
    base = epsilon([sgd(rate, noise, steps)], 1e-5, grid=grid)
    assert epsilon([sgd(rate, noise, steps + more)], 1e-5, grid=grid) >= base
    assert epsilon([sgd(rate, noise * 1.2, steps)], 1e-5, grid=grid) <= base
    assert epsilon([sgd(rate, noise, steps)], 1e-7, grid=grid) >= base


# --- non-private and foreign events ---------------------------------------------------------


@pytest.mark.parametrize(
    "event",
    [
        NonPrivate("trained in the clear"),
        Repeated(NonPrivate("x"), 3),
        PoissonSampled(0.01, NonPrivate("x")),
        from_json({"type": "skellam", "sigma": 4}),
        from_json({"type": "repeated", "count": 2, "event": {"type": "from_the_future"}}),
    ],
)
@pytest.mark.parametrize("accountant", ["pld", "rdp"])
def test_one_event_that_is_not_private_makes_epsilon_infinite(event, accountant):
    assert epsilon([Gaussian(50, 1), event], 1e-5, accountant=accountant) == math.inf
    loss = privacy_loss([event], 1e-5, Unit.RECORD, ADD)
    assert loss.figure == "∞"
    assert loss.to_dict()["epsilon"] is None


def test_what_the_accountant_cannot_treat_never_costs_less():
    assert epsilon([PoissonSampled(0.1, Repeated(Gaussian(9, 1), 2))], 1e-5) == math.inf


@pytest.mark.parametrize(
    ("event", "accountant"),
    [
        (PoissonSampled(0.1, PoissonSampled(0.1, Gaussian(1, 1))), "pld"),
        (PoissonSampled(0.1, DiscreteGaussian(2000, 1)), "rdp"),
    ],
)
def test_events_an_accountant_cannot_treat_raise_ours(event, accountant):
    with pytest.raises(InputError):
        epsilon([event], 1e-5, accountant=accountant)


# --- calibration --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "rate", "steps", "relation"),
    [(1.0, 0.1, 100, ADD), (3.0, 0.1, 100, ADD), (8.0, 0.5, 50, ADD), (4.0, 0.1, 50, REPLACE)],
)
def test_calibration_hits_the_target_from_below(target, rate, steps, relation):
    noise = calibrate_noise(target, 1e-5, lambda s: [sgd(rate, s, steps)], relation)
    reached = epsilon([sgd(rate, noise, steps)], 1e-5, relation)
    assert 0.998 * target <= reached <= target
    assert noise == round(noise, 4)
    assert epsilon([sgd(rate, noise - 5e-3, steps)], 1e-5, relation) > target


def test_calibration_counts_what_else_is_released():
    metrics = [Repeated(Gaussian(20, 1), 10)]
    alone = calibrate_noise(3.0, 1e-5, lambda s: [sgd(0.1, s, 50)])
    together = calibrate_noise(3.0, 1e-5, lambda s: [sgd(0.1, s, 50), *metrics])
    assert together > alone
    assert epsilon([sgd(0.1, together, 50), *metrics], 1e-5) <= 3.0
    assert epsilon([sgd(0.1, alone, 50), *metrics], 1e-5) > 3.0


def test_calibration_is_monotone():
    noises = [calibrate_noise(t, 1e-5, lambda s: [sgd(1, s, 20)]) for t in (1, 3, 6)]
    assert noises == sorted(noises, reverse=True)
    assert len(set(noises)) == 3


def test_an_epsilon_that_nothing_reaches():
    metrics = [Repeated(Gaussian(1, 1), 10)]
    with pytest.raises(InputError, match="no noise reaches"):
        calibrate_noise(0.5, 1e-5, lambda s: [sgd(1, s, 10), *metrics])


@pytest.mark.parametrize("target", [0.0, math.nan])
def test_a_target_that_cannot_be_meant(target):
    with pytest.raises(InputError):
        calibrate_noise(target, 1e-5, lambda s: [sgd(1, s, 1)])


# --- events as JSON -----------------------------------------------------------------------

positive = st.floats(min_value=0, exclude_min=True, allow_infinity=False, allow_subnormal=False)
text = st.text(st.characters(codec="utf-8"), max_size=20)
leaves = st.one_of(
    st.builds(Gaussian, positive, positive),
    st.builds(NonPrivate, text),
)
events = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.builds(PoissonSampled, st.floats(1e-9, 1), inner),
        st.builds(Repeated, inner, st.integers(0, 2**53 - 1)),
    ),
    max_leaves=4,
)


@examples(200)
@given(events)
def test_json_round_trip(event):
    line = canonical_json(to_json(event))
    assert from_json(json.loads(line)) == event
    assert canonical_json(to_json(from_json(json.loads(line)))) == line


scalars = st.one_of(st.none(), st.booleans(), st.floats(), st.integers(-5, 5), st.text(max_size=3))
fields = st.sampled_from(
    [
        "standard_deviation",
        "sensitivity",
        "sensitivities",
        "probabilities",
        "scale",
        "sample_rate",
        "event",
        "count",
        "reason",
        "x",
    ]
)
kinds = st.sampled_from(
    [
        "gaussian",
        "laplace",
        "mixture_of_gaussians",
        "poisson_sampled",
        "repeated",
        "non_private",
        "new",
        3,
    ]
)
almost_events = st.recursive(
    scalars,
    lambda inner: st.builds(
        lambda kind, rest: {"type": kind, **rest}, kinds, st.dictionaries(fields, inner)
    ),
    max_leaves=5,
)


@examples(300)
@given(almost_events)
def test_any_json_is_an_event_or_our_error(value):
    try:
        event = from_json(value)
    except InputError:
        return
    assert isinstance(event, Event)


@pytest.mark.parametrize(
    "value",
    [
        {"type": "gaussian", "standard_deviation": 1.0},
        {"type": "gaussian", "standard_deviation": 0, "sensitivity": 1},
        {"type": "gaussian", "standard_deviation": True, "sensitivity": 1},
        {"type": "gaussian", "standard_deviation": 1, "sensitivity": 1, "epsilon": 0.1},
        {"type": "gaussian", "standard_deviation": math.inf, "sensitivity": 1},
        {"type": "gaussian", "standard_deviation": math.nan, "sensitivity": 1},
        {"type": "poisson_sampled", "sample_rate": 1.5, "event": {"type": "x"}},
        {"type": "repeated", "count": 1.0, "event": {"type": "x"}},
        {"type": "repeated", "count": -1, "event": {"type": "x"}},
        {"event": {}},
        [],
        None,
    ],
)
def test_a_known_event_with_wrong_fields_is_refused(value):
    with pytest.raises(InputError):
        from_json(value)


def test_numbers_are_the_shortest_decimals():
    event = Repeated(PoissonSampled(0.1, Gaussian(1e-5, 20)), 3)
    assert to_json(event) == {
        "type": "repeated",
        "count": 3,
        "event": {
            "type": "poisson_sampled",
            "sample_rate": "0.1",
            "event": {
                "type": "gaussian", "standard_deviation": "1e-05", "sensitivity": "20.0"
            },
        },
    }  # fmt: skip


@pytest.mark.parametrize("number", [1.5, "1.5", 2, "2.0", "1e-05", 1e-5])
def test_numbers_are_read_as_decimals_or_as_json_numbers(number):
    value = {"type": "gaussian", "standard_deviation": number, "sensitivity": "1.0"}
    assert from_json(value) == Gaussian(float(number), 1.0)


@pytest.mark.parametrize(
    "number",
    [
        "1", "1.50", "+1.5", "01.5", ".5", "1.", "1e-5", "1E-05", "1_0.0", " 1.5", "1.5 ", "1.5\n",
        "0x1p3", "inf", "-inf", "nan", "Infinity", "1e999", "0.0", "-0.0", "-1.5", "", "one", "١.٥",
        "0.1000000000000000055", [1.5], None, {}, True,
    ],
)  # fmt: skip
def test_no_other_spelling_is_a_number(number):
    with pytest.raises(InputError, match="'standard_deviation'"):
        from_json({"type": "gaussian", "standard_deviation": number, "sensitivity": "1.0"})


@pytest.mark.parametrize(
    "value",
    [
        {"type": "laplace", "scale": "9.0", "sensitivity": "1.0"},
        {"type": "mixture_of_gaussians", "standard_deviation": "9.0", "sensitivities": ["1.0"],
         "probabilities": ["1.0"]},
    ],
)  # fmt: skip
def test_kinds_that_nothing_ever_wrote_are_unknown_here_and_never_cheap(value):
    """The verifier reads them (tests/evidence/test_verify_accounting.py)."""
    event = from_json({"type": "repeated", "count": 2, "event": value})
    assert event == Repeated(NonPrivate(f"unknown event type '{value['type']}'"), 2)
    assert epsilon([event], 1e-5) == math.inf


def test_a_number_too_large_for_a_float():
    with pytest.raises(InputError):
        from_json({"type": "gaussian", "standard_deviation": 10**400, "sensitivity": 1})
