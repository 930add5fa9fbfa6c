"""The Gaussian filter and the alone rule: exact, adaptive, and with one δ for all rules."""

from __future__ import annotations

import math

import numpy as np
import pytest
from dp_accounting.gaussian_mechanism import get_sigma_gaussian
from dp_kit import examples
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate, stats

from privet.privacy.accounting import gaussian_dp, noise_calibration, pld, renyi, renyi_filter
from privet.privacy.accounting.delta_shares import as_events, enlarged, excess, merged, shares
from privet.privacy.accounting.events import (
    Counts,
    Gaussian,
    PoissonSampled,
    Repeated,
    group,
    within,
)
from privet.privacy.accounting.renyi_filter import (
    Cap,
    Charges,
    decide,
    decide_whole,
    runs_that_fit,
)
from privet.privacy.accounting.units import Relation, Unit
from privet.privacy.audit.verify.cost import gaussian as twin

ADD, REPLACE = Relation.ADD_OR_REMOVE_ONE, Relation.REPLACE_ONE
DELTA = 1e-5
CAP = Cap(3.0, DELTA, Unit.RECORD, ADD)
ROOM = gaussian_dp.mu_of(3.0, 0.99 * DELTA) ** 2
STEP = PoissonSampled(0.1, Gaussian(1.9, 1.0))
SAMPLED: Counts = ((STEP, 100), (Gaussian(20.0, 1.0), 20))
"""Costs ε 2.62 at δ 1e-5; the Rényi filter counts more than 3."""
ONCE: Counts = ((STEP, 5), (Gaussian(20.0, 1.0), 1))


def plain(share: float, count: int = 1) -> Counts:
    """A plan of plain Gaussians that takes this share of the room."""
    return ((Gaussian(math.sqrt(count / (share * ROOM)), 1.0), count),)


# --- the exact conversion -------------------------------------------------------------------


@pytest.mark.parametrize(("epsilon", "delta"), [(0.1, 1e-6), (3, 1e-5), (100, 1e-5), (1000, 1e-9)])
def test_mu_is_that_of_the_analytic_gaussian_mechanism(epsilon, delta):
    expected = 1 / get_sigma_gaussian(epsilon, delta)
    assert gaussian_dp.mu_of(epsilon, delta) == pytest.approx(expected, rel=1e-8)
    assert twin.largest(epsilon, delta) == pytest.approx(expected, rel=1e-8)
    assert gaussian_dp.epsilon_of(expected, delta) == pytest.approx(epsilon, rel=1e-8)


@examples(60)
@given(st.floats(0.02, 30), st.floats(0.0, 1000.0))
def test_delta_against_integration_and_the_verifier(mu, epsilon):
    found, other = gaussian_dp._log_delta(mu, epsilon), twin.log_delta(mu, epsilon)
    assert found == pytest.approx(other, rel=1e-9, abs=1e-9)
    if found > -200:
        loss = stats.norm(mu * mu / 2, mu)
        top = epsilon + 12 * mu + max(0.0, mu * mu / 2 - epsilon)
        area, _ = integrate.quad(
            lambda x: -math.expm1(epsilon - x) * loss.pdf(x) / math.exp(found), epsilon, top,
            points=[max(epsilon, mu * mu / 2)], limit=400,
        )  # fmt: skip
        assert area == pytest.approx(1, rel=1e-5)


def test_what_is_a_plain_gaussian():
    assert gaussian_dp.as_gaussian(Gaussian(4.0, 2.0)) == 0.5
    assert gaussian_dp.as_gaussian(PoissonSampled(1.0, Gaussian(4.0, 2.0))) == 0.5
    assert gaussian_dp.as_gaussian(STEP) is None
    assert gaussian_dp.squares(((Gaussian(4.0, 2.0), 3),), ADD) == 0.75
    assert gaussian_dp.squares(((Gaussian(4.0, 2.0), 3),), REPLACE) == 3.0
    assert gaussian_dp.squares(SAMPLED, ADD) is None


# --- adaptivity -------------------------------------------------------------------------------


def adversary(rule: str, people: int = 400_000, stages: int = 12) -> np.ndarray:
    """Return the privacy loss of an analyst who picks each μ by the loss so far.

    ``filter``: stops where Σ μ² would pass 1. ``forgets``: has the same rule and leaves out of
    the sum what looked harmless, as an accountant would who begins anew after good results.
    """
    generator = np.random.default_rng(5)
    loss, used = np.zeros(people), np.zeros(people)
    for _ in range(stages):
        wish = np.where(loss > 0.4, 0.5, np.where(loss < -0.2, 0.1, 0.25))
        square = np.minimum(wish, np.maximum(0.0, 1 - used))
        noise = generator.standard_normal(people)
        loss += np.sqrt(square) * noise + square / 2
        used += square
        if rule == "forgets":
            used = np.where(loss < 0.4, np.maximum(0.0, used - square), used)
    return loss


def delta_seen(loss: np.ndarray, epsilon: float) -> tuple[float, float]:
    parts = np.maximum(0.0, -np.expm1(epsilon - loss))
    return float(parts.mean()), float(parts.std() / math.sqrt(len(parts)))


@pytest.mark.parametrize("epsilon", [0.5, 1.0, 2.0])
def test_an_adaptive_analyst_reaches_the_delta_of_the_filter_and_no_more(epsilon):
    """Tight: Σ μ² = 1 is used up, and its exact δ at ε is what was seen, within 5 errors."""
    seen, error = delta_seen(adversary("filter"), epsilon)
    assert abs(seen - gaussian_dp.delta_of(1.0, epsilon)) < 5 * error


def test_the_simulation_would_notice_a_filter_that_forgets():
    seen, error = delta_seen(adversary("forgets"), 1.0)
    assert seen > gaussian_dp.delta_of(1.0, 1.0) + 20 * error


# --- from the second plan on ------------------------------------------------------------------


def test_gaussians_after_gaussians_lose_nothing():
    """Ten plans that each take a tenth; as the Rényi filter counts, seven or so are too many."""
    tenth = plain(0.0999)
    history: dict[str, Charges] = {}
    while decide_whole(CAP, history, tenth).allowed:
        assert runs_that_fit(CAP, history, tenth) == 10 - len(history)
        history[f"run {len(history)}"] = Charges(tenth, tenth)
    assert len(history) == 10
    total = merged(charges.counts for charges in history.values())
    assert 2.99 < pld.epsilon(as_events(total), DELTA) <= 3.0
    assert not renyi.fits(total, 3.0, DELTA, ADD)
    refused = decide_whole(CAP, history, tenth)
    assert refused.rule == "gaussian filter"
    assert "the Gaussian filter counts" in refused.against(CAP)
    assert refused.epsilon > 3


@pytest.mark.parametrize("relation", [ADD, REPLACE])
def test_the_noise_may_be_chosen_after_results(relation):
    """Every choice is admitted while Σ (Δ/σ)² is within the room, and no further."""
    cap = Cap(3.0, DELTA, Unit.RECORD, relation)
    factor = 1 if relation is ADD else 4
    generator, history, used = np.random.default_rng(1), {}, 0.0
    for number in range(60):
        noise = float(generator.choice([3.0, 8.0, 20.0]))
        one = ((Gaussian(noise, 1.0), 1),)
        allowed = decide(cap, history, f"run {number}", one[0][0], one).allowed
        assert allowed == (used + factor / noise**2 <= ROOM + 1e-9)
        if allowed:
            history[f"run {number}"] = Charges(one, one)
            used += factor / noise**2
    assert used > 0.9 * ROOM


def test_a_plan_calibrated_to_the_whole_cap_runs_to_its_end():
    """Between 0.99 δ and δ: the filter takes what the plan needs, the rest is Rényi's."""
    noise = noise_calibration.calibrate_noise(
        3.0, DELTA, lambda at: [Repeated(Gaussian(at, 1.0), 50)]
    )
    plan: Counts = ((Gaussian(noise, 1.0), 50),)
    squares = gaussian_dp.squares(plan, ADD)
    assert squares is not None
    assert decide_whole(CAP, {}, plan).rule == "one run"
    history = {"a": Charges(((plan[0][0], 49),), plan)}
    assert decide(CAP, history, "a", plan[0][0], plan).rule == "one run"
    assert not decide(CAP, {"a": Charges(plan, plan)}, "a", plan[0][0], plan).allowed
    other = ((Gaussian(noise * 1.01, 1.0), 1),)
    assert decide(CAP, history, "b", other[0][0], other).rule == "gaussian filter"


def test_what_is_sampled_falls_to_the_renyi_filter_with_its_own_delta():
    first = plain(0.1)
    begun = {"a": Charges(first, first)}
    assert renyi_filter._shares(CAP, begun["a"]).renyi == pytest.approx(0.01 * DELTA)
    found = decide(CAP, begun, "b", STEP, ((STEP, 100),))
    assert found.rule == "filter"
    assert found.allowed
    counted, _ = renyi.filter_epsilon(((STEP, 1), *first), 0.01 * DELTA, ADD)
    assert found.epsilon == pytest.approx(counted, rel=1e-9)
    mixed = {**begun, "b": Charges(((STEP, 1),), ((STEP, 100),))}
    assert decide(CAP, mixed, "c", Gaussian(50.0, 1.0), plain(0.001)).rule == "filter"


def test_a_first_plan_that_is_sampled_has_no_gaussian_filter():
    begun = {"a": Charges(((STEP, 5),), SAMPLED, ONCE)}
    assert decide(CAP, begun, "b", Gaussian(50.0, 1.0), plain(0.1)).rule == "filter"


# --- one δ for all rules ------------------------------------------------------------------------

PLANS = [
    plain(0.3), plain(0.995), plain(0.9999, 7), plain(1.0005), plain(1.3), SAMPLED,
    ((PoissonSampled(0.1, Gaussian(1.7364, 1.0)), 100), (Gaussian(20.0, 1.0), 20)),
    ((PoissonSampled(0.1, Gaussian(2.3, 1.0)), 100),),
    ((PoissonSampled(0.1, Gaussian(7.0, 1.0)), 100),),
    ((PoissonSampled(0.1, Gaussian(1.2, 1.0)), 100),),
]  # fmt: skip


def used_by_all(plan: Counts, renyi_share: float, room: float | None, extra: int) -> float:
    """Return the δ at the cap's ε of all classes of outcomes together, from their definitions."""
    total = renyi_share
    if room is not None:
        total += gaussian_dp.delta_of(math.sqrt(room), 3.0)
    whole = enlarged(plan, (), max(extra, 0))
    held = room is not None or renyi.fits(whole, 3.0, renyi_share, ADD) or extra < 0
    return total if held else total + pld.delta_at(as_events(whole), 3.0)


@pytest.mark.parametrize("plan", PLANS)
def test_the_shares_of_delta_are_no_more_than_delta(plan):
    found = shares(3.0, DELTA, ADD, plan, ())
    total = used_by_all(plan, found.renyi, found.room, found.extra)
    assert 0.98 * DELTA <= total <= DELTA * (1 + 1e-5)


def test_the_arithmetic_finds_a_split_that_spends_delta_twice():
    """Planted: both filters with all of δ, and a first run beside a filter with all of δ."""
    room = gaussian_dp.mu_of(3.0, DELTA) ** 2
    assert used_by_all(plain(0.3), DELTA, room, -1) > 1.9 * DELTA
    assert used_by_all(SAMPLED, DELTA, None, 4) > 1.2 * DELTA


# --- one run, with kept charges ---------------------------------------------------------------


def old_rule(charges: Charges) -> bool:
    """What admitted a run that is alone before: within its plan, to the letter."""
    return charges.planned is not None and within(charges.counts, charges.planned)


def test_a_kept_charge_does_not_send_a_run_to_the_filter():
    """Twenty rounds with three broken attempts; the old code refuses the seventeenth or so."""
    assert not renyi.fits(SAMPLED, 3.0, DELTA, ADD)
    history: dict[str, Charges] = {"a": Charges(((STEP, 5 * 22), (ONCE[1][0], 20)), SAMPLED, ONCE)}
    found = decide(CAP, history, "a", Repeated(STEP, 5), SAMPLED, ONCE)
    assert (found.allowed, found.rule) == (True, "one run")
    assert found.epsilon <= 3.0
    after = Charges(((STEP, 5 * 23), (ONCE[1][0], 20)), SAMPLED, ONCE)
    assert not old_rule(after)
    assert not renyi.fits(after.counts, 3.0, DELTA, ADD)
    assert shares(3.0, DELTA, ADD, SAMPLED, ONCE).extra >= 3


def test_kept_charges_have_an_end():
    """What the whole plan with its extra attempts costs is within the cap, whenever it ends."""
    history: dict[str, Charges] = {}
    for _ in range(60):
        if not decide(CAP, history, "a", Repeated(STEP, 5), SAMPLED, ONCE).allowed:
            break
        before = history["a"].counts if history else ()
        history["a"] = Charges(merged([before, group([Repeated(STEP, 5)])]), SAMPLED, ONCE)
    spent = dict(history["a"].counts)[STEP] // 5
    extra = shares(3.0, DELTA, ADD, SAMPLED, ONCE).extra
    assert spent == 20 + extra
    assert pld.epsilon(as_events(enlarged(SAMPLED, ONCE, extra)), DELTA) <= 3.0


def test_excess_is_counted_in_attempts():
    assert excess(((STEP, 100),), SAMPLED, ONCE) == 0
    assert excess(((STEP, 101),), SAMPLED, ONCE) == 1
    assert excess(((STEP, 105), (ONCE[1][0], 22)), SAMPLED, ONCE) == 2
    assert excess(((Gaussian(1.0, 1.0), 1),), SAMPLED, ONCE) is None
