"""The cap over a population's life: the Rényi filter, and one run's plan beside it."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
from dp_kit import examples
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from privet.common.errors import InputError
from privet.privacy.accounting import pld
from privet.privacy.accounting import renyi_filter as renyi
from privet.privacy.accounting.events import (
    Counts,
    Event,
    Gaussian,
    NonPrivate,
    PoissonSampled,
    Repeated,
    group,
)
from privet.privacy.accounting.noise_calibration import calibrate_noise
from privet.privacy.accounting.pld import delta_at, epsilon
from privet.privacy.accounting.renyi_filter import (
    ORDERS,
    Cap,
    Charges,
    budget,
    decide,
    fits,
    rho,
    runs_that_fit,
)
from privet.privacy.accounting.units import Relation, Unit

ADD, REPLACE = Relation.ADD_OR_REMOVE_ONE, Relation.REPLACE_ONE
CAP = Cap(3.0, 1e-5, Unit.RECORD, ADD)
STEP = PoissonSampled(0.1, Gaussian(1.7364, 1.0))
GATE = Gaussian(20.0, 1.0)
PLAN: Counts = ((STEP, 100), (GATE, 20))
"""Costs ε 2.9999 at δ 1e-5; the filter counts it as 3.85."""
SMALL: Counts = ((PoissonSampled(0.1, Gaussian(7.0, 1.0)), 100),)
ROUND = Repeated(STEP, 5)


def events(counts: Counts) -> list[Event]:
    return [Repeated(event, count) for event, count in counts]


def part(counts: Counts, share: float) -> Counts:
    return tuple((event, max(1, int(count * share))) for event, count in counts)


# --- the formulas of the page ---------------------------------------------------------------


def divergence(upper, lower, x: np.ndarray, order: int) -> float:
    """Return the Rényi divergence of two log densities by direct integration."""
    logs = order * upper(x) - (order - 1) * lower(x)
    top = logs.max()
    return float((top + math.log(np.trapezoid(np.exp(logs - top), x))) / (order - 1))


def both_ways(one, other, x: np.ndarray, order: int) -> float:
    return max(divergence(one, other, x, order), divergence(other, one, x, order))


def mixed(std: float, sizes, chances):
    def log_density(x):
        parts = [math.log(p) + stats.norm.logpdf(x, s, std) for s, p in zip(sizes, chances)]  # noqa: B905
        return np.logaddexp.reduce(parts, axis=0)

    return log_density


@pytest.mark.parametrize("order", [2, 5, 16, 64])
def test_gaussian_against_integration(order):
    place = ORDERS.index(order)
    x = np.linspace(-400, 400, 400_001)
    std = 4.0
    found = both_ways(mixed(std, [0], [1]), mixed(std, [1.5], [1]), x, order)
    assert rho(Gaussian(std, 1.5))[place] == pytest.approx(found, rel=1e-6)


@pytest.mark.parametrize("order", [2, 5, 16, 32])
@pytest.mark.parametrize(("rate", "noise"), [(0.1, 2.0), (0.5, 4.0), (0.01, 1.0)])
def test_sampled_gaussian_against_integration(order, rate, noise):
    x = np.linspace(-60, 60 + 2 * order, 400_001)
    found = both_ways(mixed(noise, [0, 1], [1 - rate, rate]), mixed(noise, [0], [1]), x, order)
    event = PoissonSampled(rate, Gaussian(noise * 3, 3.0))
    assert rho(event)[ORDERS.index(order)] == pytest.approx(found, rel=1e-6)


def test_the_budget_is_what_converts_to_the_cap():
    """δ of (α, ρ)-RDP at ε: Canonne, Kamath and Steinke 2020, Proposition 12."""
    for order, room in zip(ORDERS, budget(3.0, 1e-5), strict=True):
        delta = math.exp((order - 1) * (room - 3.0)) / (order - 1) * (1 - 1 / order) ** order
        assert delta == pytest.approx(1e-5 / len(ORDERS), rel=1e-9)
    assert set(budget(3.0, 0.0)) == {-math.inf}


@pytest.mark.parametrize(
    "event",
    [
        NonPrivate("x"),
        PoissonSampled(0.1, NonPrivate("x")),
        PoissonSampled(0.1, PoissonSampled(0.1, Gaussian(9, 1))),
        Repeated(NonPrivate("x"), 2),
    ],
)
def test_what_has_no_bound_is_infinite(event):
    assert set(rho(event)) == {math.inf}
    assert not fits(group([event]), 1000.0, 1e-5, ADD)


def test_replace_one_counts_twice_the_sensitivity_and_no_sampling():
    assert rho(Gaussian(2.0, 1.0), REPLACE) == rho(Gaussian(1.0, 1.0), ADD)
    assert rho(PoissonSampled(0.01, Gaussian(2.0, 1.0)), REPLACE) == rho(Gaussian(1.0, 1.0))


@examples(40)
@given(
    st.lists(
        st.tuples(
            st.one_of(
                st.builds(Gaussian, st.floats(2, 40), st.just(1.0)),
                st.builds(
                    PoissonSampled,
                    st.floats(0.01, 0.5),
                    st.builds(Gaussian, st.floats(1, 5), st.just(1.0)),
                ),
            ),
            st.integers(1, 30),
        ),
        max_size=3,
    )
)
def test_the_filter_never_admits_what_costs_more(pairs):
    """Filter ε is above the exact one, which is above nothing: a bound, not an estimate."""
    counts = group(Repeated(event, count) for event, count in pairs)
    if fits(counts, 3.0, 1e-5, ADD):
        assert epsilon(events(counts), 1e-5, grid=1e-2) <= 3.0 + 0.15  # the coarse grid's excess


# --- decisions ------------------------------------------------------------------------------


def run_until_refused(cap: Cap, run: str, event: Event, planned: Counts | None, history=None):
    """Ask for ``event`` again and again; return how often it was let through, and the charges."""
    history = dict(history or {})
    for count in range(10_000):
        if not decide(cap, history, run, event, planned).allowed:
            return count, history
        before = history[run].counts if run in history else ()
        history[run] = Charges(renyi.merged([before, group([event])]), planned)
    raise AssertionError("nothing stops it")


def test_a_plan_calibrated_to_the_cap_runs_to_its_end_and_no_further():
    count, history = run_until_refused(CAP, "a", ROUND, PLAN)
    assert count == 20
    assert decide(CAP, history, "a", GATE, PLAN).rule == "one run"
    over = decide(CAP, history, "a", STEP, PLAN)
    assert not over.allowed
    assert over.rule == "filter"
    assert over.epsilon > 3
    assert "the cap is ε 3" in over.against(CAP)
    assert "per record, add or remove one" in over.against(CAP)


def test_a_second_run_after_a_full_one_is_refused():
    full = {"a": Charges(PLAN, PLAN)}
    assert not decide(CAP, full, "b", GATE, SMALL).allowed


def test_the_same_plan_under_a_new_name_is_another_run():
    full = {"a": Charges(PLAN, PLAN)}
    assert not decide(CAP, full, "b", ROUND, PLAN).allowed


def test_a_plan_above_the_cap_is_held_by_the_filter():
    """Stopping it where its composition meets the cap would let results choose the mix."""
    cap = Cap(2.0, 1e-5, Unit.RECORD, ADD)
    first = decide(cap, {}, "a", ROUND, PLAN)
    assert first.rule == "filter"
    count, history = run_until_refused(cap, "a", ROUND, PLAN)
    assert 0 < count < 20
    assert epsilon(events(history["a"].counts), cap.delta) <= 2.0


def test_a_run_whose_plan_is_not_known_is_held_by_the_filter():
    count, history = run_until_refused(CAP, "a", ROUND, None)
    assert 0 < count < 20
    assert decide(CAP, {}, "a", ROUND, None).rule == "filter"
    assert fits(history["a"].counts, 3.0, 1e-5, ADD)


def test_an_event_that_is_not_in_the_plan_is_held_by_the_filter():
    assert decide(CAP, {}, "a", Gaussian(1.0, 1.0), PLAN).rule == "filter"
    assert not decide(CAP, {}, "a", Gaussian(1.0, 1.0), PLAN).allowed
    assert not decide(CAP, {}, "a", NonPrivate("in the clear"), PLAN).allowed


def test_a_run_has_one_plan():
    with pytest.raises(InputError, match="another plan"):
        decide(CAP, {"a": Charges(group([ROUND]), PLAN)}, "a", ROUND, SMALL)


def test_no_cap_admits_everything():
    cap = Cap(None, 1e-5, Unit.RECORD, ADD)
    assert decide(cap, {}, "a", NonPrivate("x"), None).allowed
    assert runs_that_fit(cap, {}, PLAN) is None


def test_what_cannot_be_accounted_is_refused_and_not_an_error():
    event = PoissonSampled(0.1, PoissonSampled(0.1, Gaussian(9.0, 1.0)))
    cap = Cap(3.0, 1e-5, Unit.PERSON, ADD)
    assert not decide(cap, {}, "a", event, ((event, 1),)).allowed


def test_plans_chosen_after_results_are_stopped():
    """An analyst picks each next plan after the last; the filter holds the sum of all."""
    generator = np.random.default_rng(0)
    history: dict[str, Charges] = {}
    refused = 0
    for number in range(200):
        noise = float(generator.choice([3.0, 5.0, 9.0, 20.0]))
        event = Repeated(PoissonSampled(0.1, Gaussian(noise, 1.0)), int(generator.integers(1, 30)))
        if decide(CAP, history, f"run {number}", event, group([event])).allowed:
            history[f"run {number}"] = Charges(group([event]), group([event]))
        else:
            refused += 1
    total = renyi.merged(charges.counts for charges in history.values())
    assert refused > 0
    assert len(history) > 5
    assert epsilon(events(total), 1e-5) <= 3.0


def test_h9_a_fresh_accountant_for_each_round_would_stop_nothing():
    """Each round alone costs ε 2.1, below the cap of 3; twenty of them cost 8.2."""
    one_round = Repeated(PoissonSampled(0.2, Gaussian(1.42, 1.0)), 5)
    assert all(decide(CAP, {}, f"round {i}", one_round, group([one_round])).allowed for i in (1, 2))
    assert epsilon([one_round], 1e-5) == pytest.approx(2.10, abs=0.01)
    assert epsilon([one_round] * 20, 1e-5) == pytest.approx(8.20, abs=0.01)
    history: dict[str, Charges] = {}
    for number in range(20):
        if decide(CAP, history, f"round {number}", one_round, group([one_round])).allowed:
            history[f"round {number}"] = Charges(group([one_round]), group([one_round]))
    assert len(history) < 3
    assert sum(len(charges.counts) for charges in history.values()) >= 1


# --- δ is not spent twice -----------------------------------------------------------------


def test_the_filter_gets_the_delta_that_the_first_plan_leaves():
    def delta_left(cap: Cap, first_plan: Counts | None) -> float:
        return renyi._shares(cap, Charges((), first_plan)).renyi

    left = delta_left(CAP, PLAN)
    assert left == pytest.approx(1e-5 - delta_at(events(PLAN), 3.0 + renyi.SLACK), rel=1e-6)
    assert 0 < left < 1e-7
    assert delta_left(CAP, SMALL) == 1e-5  # the filter holds it from the start
    assert delta_left(CAP, None) == 1e-5
    assert delta_left(Cap(2.0, 1e-5, Unit.RECORD, ADD), PLAN) == 1e-5  # never a run of its own


def test_an_abandoned_plan_and_another_share_one_delta():
    """Whether to abandon the first may depend on its results: both branches can use up δ."""
    begun = {"a": Charges(part(PLAN, 0.1), PLAN)}
    alone, _ = run_until_refused(CAP, "b", GATE, None, begun)
    naive, _ = run_until_refused(CAP, "b", GATE, None, {"a": Charges(part(PLAN, 0.1), None)})
    assert 0 < alone < naive
    after = decide(CAP, {**begun, "b": Charges(group([GATE]), None)}, "a", ROUND, PLAN)
    assert after.rule == "filter"


def test_charges_that_were_given_back_do_not_make_a_first_run():
    empty = {"z": Charges((), SMALL)}
    assert decide(CAP, empty, "a", ROUND, PLAN).rule == "one run"


# --- how many more --------------------------------------------------------------------------


def test_runs_that_fit():
    assert runs_that_fit(CAP, {}, PLAN) == 1
    assert runs_that_fit(CAP, {"a": Charges(PLAN, PLAN)}, PLAN) == 0
    assert runs_that_fit(Cap(2.0, 1e-5, Unit.RECORD, ADD), {}, PLAN) == 0
    assert runs_that_fit(CAP, {}, ((NonPrivate("x"), 1),)) == 0


def test_runs_that_fit_are_those_that_the_filter_lets_through():
    promised = runs_that_fit(CAP, {}, SMALL)
    assert promised is not None
    assert promised > 1
    history: dict[str, Charges] = {}
    whole = Repeated(*SMALL[0])
    while decide(CAP, history, f"run {len(history)}", whole, SMALL).allowed:
        assert runs_that_fit(CAP, history, SMALL) == promised - len(history)
        history[f"run {len(history)}"] = Charges(SMALL, SMALL)
    assert len(history) == promised


# --- speed ----------------------------------------------------------------------------------


def test_a_decision_after_many_releases_is_quick(monkeypatch):
    plan = ((PoissonSampled(0.01, Gaussian(2.0, 1.0)), 5000), (GATE, 10))
    cap = Cap(20.0, 1e-5, Unit.RECORD, ADD)
    assert decide(cap, {}, "a", GATE, plan).allowed
    history = {"a": Charges(((plan[0][0], 4900), (GATE, 9)), plan)}
    monkeypatch.setattr(pld, "_composed", None)  # nothing is composed again
    began = time.perf_counter()
    for _ in range(100):
        assert decide(cap, history, "a", GATE, plan).allowed
    assert time.perf_counter() - began < 0.2


def test_the_plan_of_these_tests_is_at_its_cap():
    def at(noise: float) -> list[Event]:
        return [Repeated(PoissonSampled(0.1, Gaussian(noise, 1.0)), 100), Repeated(GATE, 20)]

    assert 2.998 <= epsilon(events(PLAN), 1e-5) <= 3.0
    assert calibrate_noise(3.0, 1e-5, at) == pytest.approx(1.7364, abs=2e-3)
    assert not fits(PLAN, 3.0, 1e-5, ADD)
