"""Two accountants, the filter, and what an unknown event costs."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import stats
from verify_kit import gate_event, gaussian, plan_of, repeated, sampled, train_event

from privet.privacy.audit.verify.cost import accounting
from privet.privacy.audit.verify.cost.budget import AuditedBudget, AuditedCharge, Filter
from privet.privacy.audit.verify.cost.gaussian import largest
from privet.privacy.audit.verify.cost.plans import AuditedPlan
from privet.privacy.audit.verify.formats import events
from privet.privacy.audit.verify.formats.events import (
    NON_PRIVATE,
    RELATIONS,
    Event,
    Mechanism,
    read_event,
)
from privet.privacy.audit.verify.formats.strict import Malformed

ADD, REPLACE = RELATIONS


def laplace(scale: float, sensitivity: float = 1.0) -> dict[str, Any]:
    return {"type": "laplace", "scale": repr(scale), "sensitivity": repr(sensitivity)}


def step(rate: float, noise: float, count: int) -> Event:
    return Event(events.gaussian(noise, 1.0, rate), count)


def peer(mechanism: Mechanism, order: int) -> float:
    """ρ by dp-accounting."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import dp_accounting
        from dp_accounting import rdp

        ratio = mechanism.scale / mechanism.sensitivities[0]
        kinds = {"gaussian": dp_accounting.GaussianDpEvent, "laplace": dp_accounting.LaplaceDpEvent}
        event = kinds[mechanism.type](ratio)
        if mechanism.rate < 1:
            event = dp_accounting.PoissonSampledDpEvent(mechanism.rate, event)
        accountant = rdp.RdpAccountant([float(order)])
        accountant.compose(event)
        return float(accountant._rdp[0])


@pytest.mark.parametrize("order", [2, 3, 8, 20, 64])
@pytest.mark.parametrize("noise", [0.5, 1.1, 4.0])
@pytest.mark.parametrize("rate", [1.0, 0.5, 0.1, 0.01])
def test_rho_of_a_sampled_gaussian_is_dp_accountings(rate: float, noise: float, order: int) -> None:
    mechanism = events.gaussian(2 * noise, 2.0, rate)
    assert accounting.rho(mechanism, order, ADD) == pytest.approx(peer(mechanism, order), rel=1e-9)


@pytest.mark.parametrize("order", [2, 5, 64])
@pytest.mark.parametrize("scale", [0.5, 3.0, 10.0])
def test_rho_of_laplace_is_dp_accountings(scale: float, order: int) -> None:
    mechanism = Mechanism("laplace", scale, (1.0,))
    assert accounting.rho(mechanism, order, ADD) == pytest.approx(peer(mechanism, order), rel=1e-9)


def test_rho_does_not_cancel_where_it_is_tiny() -> None:
    q, noise = 1e-6, 10.0
    exact = math.log1p(q * q * math.expm1(1 / noise**2))
    assert accounting.rho(events.gaussian(noise, 1.0, q), 2, ADD) == pytest.approx(exact, rel=1e-12)


def test_replace_one_doubles_the_sensitivity_and_does_not_sample() -> None:
    plain, twice = events.gaussian(2.0, 1.0, 0.01), events.gaussian(1.0, 1.0)
    assert accounting.rho(plain, 8, REPLACE) == accounting.rho(twice, 8, ADD)
    assert accounting.rho(Mechanism("laplace", 3.0, (1.0,)), 8, REPLACE) == math.inf


def test_a_mixture_counts_as_its_largest_part_sampled() -> None:
    mixture = Mechanism("mixture", 40.0, (0.0, 1.0, 2.0), (0.5, 0.25, 0.25))
    assert accounting.rho(mixture, 6, ADD) == accounting.rho(
        events.gaussian(40.0, 2.0, 0.5), 6, ADD
    )
    value, ceiling, _ = accounting.epsilon([Event(mixture, 3)], 1e-5, ADD)
    assert 0 < value <= ceiling
    assert accounting.epsilon([Event(mixture, 3)], 1e-5, REPLACE) == (math.inf, math.inf, "")


GOLDEN = [
    ([step(1e-4, 0.6, 100_000)], 1e-6, 0.9638),
    ([step(256 / 60000, 1.1, 14_062)], 1e-5, 2.3817),
    ([step(0.01, 4.0, 10_000)], 1e-5, 0.9470),
    ([step(0.5, 2.0, 100)], 1e-5, 14.2845),
    ([step(1.0, 10.0, 100)], 1e-5, 4.3772),
    ([step(0.02, 0.8, 1500), step(0.01, 1.2, 3000), step(0.05, 1.5, 400)], 1e-5, 9.1846),
    ([step(0.01, 1.0, 2000), step(1.0, 20.0, 5), Event(Mechanism("laplace", 10.0, (1.0,)), 3)],
     1e-6, 3.0980),
    ([step(16 / 150, 1.5, 282)], 1e-3, 4.6717),
    ([step(0.02, 0.4, 2000)], 1e-5, 72.5399),
]  # fmt: skip


@pytest.mark.parametrize(("charges", "delta", "expected"), GOLDEN)
def test_golden_values_of_the_distributions(
    charges: list[Event], delta: float, expected: float
) -> None:
    value, ceiling, remark = accounting.epsilon(charges, delta, ADD)
    assert value == pytest.approx(expected, abs=6e-5)
    assert value <= ceiling <= 6 * value
    assert remark == ""


@pytest.mark.parametrize(
    ("charges", "delta", "expected"),
    [(GOLDEN[0], 1e-6, 2.267), (GOLDEN[1], 1e-5, 2.5966), (GOLDEN[3], 1e-5, 15.725)],
)
def test_the_ceiling_is_near_the_renyi_accountant(
    charges: Any, delta: float, expected: float
) -> None:
    assert accounting.ceiling(charges[0], delta, ADD) == pytest.approx(expected, rel=0.02)


def test_a_gaussian_under_replace_one() -> None:
    assert accounting.epsilon([step(1.0, 1.0, 1)], 1e-5, REPLACE)[0] == pytest.approx(
        9.997, abs=1e-3
    )


def test_what_is_too_large_for_distributions_gets_the_ceiling() -> None:
    for charges in ([step(1.0, 1e-9, 1)], [step(0.5, 0.5, 10**15)], [step(1.0, 5e-324, 1)]):
        value, ceiling, remark = accounting.epsilon(charges, 1e-5, ADD)
        assert value == ceiling > 100 and "too large" in remark


def test_the_accountants_may_differ_by_what_the_grid_explains() -> None:
    charges = [step(1e-4, 5.0, 10**5)]
    value, ceiling, _ = accounting.epsilon(charges, 1e-5, ADD)
    assert not accounting.contradict(value, ceiling, charges)
    assert not accounting.contradict(math.inf, math.inf, charges)
    assert accounting.contradict(2.01, 2.0, [step(0.1, 1.0, 100)])
    assert accounting.contradict(math.inf, 2.0, charges)


def test_an_unknown_event_is_non_private() -> None:
    for unknown in (
        {"type": "quantum", "anything": [1]},
        repeated({"type": "quantum"}, 3),
        sampled(0.1, {"type": "quantum"}),
        sampled(0.1, repeated(gaussian(1.0, 1.0), 2)),
        sampled(0.1, sampled(0.1, gaussian(1.0, 1.0))),
        {"type": "non_private", "reason": "none"},
    ):
        event = read_event(unknown)
        assert event.mechanism == NON_PRIVATE
        assert accounting.epsilon([event], 1e-5, ADD)[:2] == (math.inf, math.inf)
        budget = AuditedBudget(1e6, 1e-5, ADD)
        budget.add(3, AuditedCharge("run", "train", event, None))
        assert budget.fault is not None and budget.fault[0] == 3


def test_a_mixture_of_gaussians_is_still_read() -> None:
    """No version wrote one; the format has it. Against direct integration of the hockey stick."""
    std, sizes, chances = 8.0, [0, 1, 2], [0.81, 0.18, 0.01]
    value = {
        "type": "mixture_of_gaussians", "standard_deviation": repr(std),
        "sensitivities": [repr(float(size)) for size in sizes],
        "probabilities": [repr(chance) for chance in chances],
    }  # fmt: skip
    x = np.linspace(-12 * std, 2 + 12 * std, 2_000_001)
    without = stats.norm.pdf(x, 0, std)
    parts = [c * stats.norm.pdf(x, s, std) for s, c in zip(sizes, chances, strict=True)]
    beside = np.sum(parts, axis=0)
    most = max(
        float(np.trapezoid(np.maximum(one - math.exp(0.05) * other, 0), x))
        for one, other in ((without, beside), (beside, without))
    )
    found = accounting.delta_at([read_event(value)], 0.05, ADD)
    assert most * (1 - 1e-6) <= found <= most * 1.01


def test_laplace_noise_is_still_read() -> None:
    """No version wrote it; the format has it. δ(ε) = 1 - e^((ε - Δ/b)/2)."""
    event = read_event(laplace(2.0))
    for epsilon in (0.1, 0.3):
        want = 1 - math.exp((epsilon - 0.5) / 2)
        assert accounting.delta_at([event], epsilon, ADD) == pytest.approx(want, rel=1e-3)


@pytest.mark.parametrize(
    "event",
    [
        None, [], "gaussian", {}, {"type": 3}, {"type": "gaussian"},
        {**gaussian(1.0, 1.0), "more": 1}, gaussian(0.0, 1.0), gaussian(-1.0, 1.0),
        {"type": "gaussian", "standard_deviation": 1, "sensitivity": "1.0"},
        {"type": "gaussian", "standard_deviation": "nan", "sensitivity": "1.0"},
        repeated(gaussian(1.0, 1.0), 0), repeated(gaussian(1.0, 1.0), True),
        repeated(repeated(gaussian(1.0, 1.0), 2**30), 2**30),
        sampled(1.5, gaussian(1.0, 1.0)), sampled(0.0, gaussian(1.0, 1.0)),
        {"type": "mixture_of_gaussians", "standard_deviation": "1.0", "sensitivities": ["1.0"],
         "probabilities": ["0.5"]},
        {"type": "mixture_of_gaussians", "standard_deviation": "1.0", "sensitivities": [],
         "probabilities": []},
    ],
)  # fmt: skip
def test_a_malformed_event_is_refused(event: object) -> None:
    with pytest.raises(Malformed):
        read_event(event)


def test_events_must_not_be_nested_without_end() -> None:
    event: dict[str, Any] = gaussian(1.0, 1.0)
    for _ in range(20):
        event = repeated(event, 1)
    with pytest.raises(Malformed, match="deeply"):
        read_event(event)


def bound(order: int, cap: float, delta: float) -> float:
    """B(α) of the format page, in floats."""
    share = math.log(delta / len(accounting.FILTER_ORDERS)) + math.log(order)
    return cap - math.log((order - 1) / order) + share / (order - 1)


def admits(held: list[Event], cap: float, delta: float) -> bool:
    """Whether the filter of the format page holds, in floats."""
    return delta > 0 and any(
        sum(e.count * accounting.rho(e.mechanism, a, ADD) for e in held)
        <= bound(a, cap, delta) + 1e-6
        for a in accounting.FILTER_ORDERS
    )


def test_the_filter_is_the_formula() -> None:
    cap, delta, event = 3.0, 1e-5, step(0.1, 2.0, 10)
    held, spent = Filter(cap, delta, ADD), 0
    while True:
        held.add(event, 1)
        spent += 1
        expected = admits([event] * spent, cap, delta)
        assert held.holds(None) == expected
        if not expected:
            break
    assert 10 < spent < 1000
    held.add(event, -1)
    assert held.holds(None)


def test_a_huge_charge_given_back_leaves_no_trace() -> None:
    fresh, used = (Filter(1.0, 1e-5, ADD) for _ in range(2))
    small, huge = step(0.01, 5.0, 3), step(1.0, 1e-120, 1)
    for held in (fresh, used):
        held.add(small, 1)
    for event in (huge, Event(NON_PRIVATE)):
        used.add(event, 1)
        assert not used.holds(None)
        used.add(event, -1)
    assert used._sums == fresh._sums and used.holds(None)


def charge(plan: AuditedPlan, purpose: str = "train", run: str = "run") -> AuditedCharge:
    event = plan.event(purpose)
    assert event is not None
    return AuditedCharge(run, purpose, event, plan)


def test_one_run_is_held_by_the_composition_of_its_whole_plan() -> None:
    plan = AuditedPlan(plan_of(training={"rounds": 6}))
    whole = accounting.epsilon(plan.planned, 1e-5, ADD)[0]
    assert [event.count for event in plan.planned] == [18, 6]
    budget = AuditedBudget(whole, 1e-5, ADD)
    for sequence in range(6):
        budget.add(sequence, charge(plan))
    assert budget.enforced_by == "pld" and budget.fault is None
    budget = AuditedBudget(whole - 1e-3, 1e-5, ADD)  # now the filter, from the first charge on
    first = next(n for n in range(1, 9) if not admits([plan.train] * n, whole - 1e-3, 1e-5))
    for sequence in range(6):
        budget.add(sequence, charge(plan))
    assert budget.enforced_by == "filter"
    assert budget.fault is not None and budget.fault[0] == first - 1


def test_far_more_than_the_plan_or_a_second_run_is_held_by_the_filter() -> None:
    """Four attempts more than planned are within the composition, the fifth is not."""
    plan = AuditedPlan(plan_of(training={"rounds": 2}))
    budget = AuditedBudget(50.0, 1e-5, ADD)
    for sequence in range(6):
        budget.add(sequence, charge(plan))
        assert budget.enforced_by == "pld"
    budget.add(6, charge(plan))
    assert budget.enforced_by == "filter"
    budget.add(7, charge(plan), -1)
    assert budget.enforced_by == "pld"
    budget.add(8, charge(plan, run="other"))
    assert budget.enforced_by == "filter" and budget.runs == 2
    assert budget.fault is None


def test_the_two_rules_share_one_delta() -> None:
    """A first run that only distributions admit leaves less δ to what follows."""
    plan = AuditedPlan(plan_of(training={"rounds": 6}))
    cap = accounting.epsilon(plan.planned, 1e-5, ADD)[0] + 1e-3
    assert not admits(plan.planned, cap, 1e-5)
    used = accounting.delta_at(plan.planned, cap + 1e-6, ADD)
    assert 0.9e-5 < used < 1e-5
    filters = Filter(cap, 1e-5, ADD)
    assert filters._limits_after(None) == filters._limits(1e-5)
    assert filters._limits_after(plan) == filters._limits(1e-5 - used)
    small = AuditedPlan(plan_of(training={"rounds": 1, "steps": 1}))
    assert filters._limits_after(small) == filters._limits(1e-5)
    large = AuditedPlan(plan_of(training={"rounds": 60}))
    assert filters._limits_after(large) == filters._limits(1e-5)


def test_delta_of_what_has_no_distribution_is_one() -> None:
    assert accounting.delta_at([Event(NON_PRIVATE)], 1.0, ADD) == 1.0
    assert accounting.delta_at([step(1.0, 1e-9, 1)], 1.0, ADD) == 1.0
    assert accounting.delta_at([], 1.0, ADD) == 0.0
    assert accounting.delta_at([step(1.0, 1.0, 1)], 4.377, ADD) == pytest.approx(1e-5, rel=0.01)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 4), st.booleans()), max_size=14),
    st.sampled_from([1.0, 1.6, 2.2, 3.0]),
)
@example([(2, False), (2, True), (0, False), (0, False), (2, False)], 3.0)
def test_the_cap_is_that_of_the_page_at_every_prefix(
    moves: list[tuple[int, bool]], cap: float
) -> None:
    """Against the page's words, with charges given back in between."""
    plans = [
        AuditedPlan(plan_of(training={"rounds": n, "sample_rate": q}))
        for n, q in ((3, 0.5), (2, 1.0))
    ]
    runs = ["a", "b", "c"]
    choices = [charge(plans[0], "train", "a"), charge(plans[0], "evaluate", "a"),
               charge(plans[1], "train", "b"), charge(plans[0], "train", "c"),
               charge(plans[1], "evaluate", "b")]  # fmt: skip
    budget, first = AuditedBudget(cap, 1e-5, ADD), None
    held: list[AuditedCharge] = []
    seen: list[str] = []
    for sequence, (which, back) in enumerate(moves):
        moved = choices[which]
        sign = -1 if back and moved in held else 1
        if sign > 0:
            held.append(moved)
            seen += [moved.run] * (moved.run not in seen)
        else:
            held.remove(moved)
            seen = [run for run in seen if run in {c.run for c in held}]  # it begins anew
        budget.add(sequence, moved, sign)
        if first is None and held and not _page(held, seen, cap):
            first = sequence
    assert (budget.fault and budget.fault[0]) == first
    assert budget.runs == len({c.run for c in held} & set(runs))


def _page(held: list[AuditedCharge], seen: list[str], cap: float) -> bool:
    """Whether the page's rules hold, in floats, each share of δ found by trying all numbers."""
    delta, events = 1e-5, [c.event for c in held]
    first = next(c.plan for run in seen for c in held if c.run == run)
    assert first is not None
    assert first.train is not None
    if first.train.mechanism.rate == 1:
        total, plan = (
            sum(e.count * (e.mechanism.sensitivities[0] / e.mechanism.scale) ** 2 for e in some)
            for some in (events, first.planned)
        )
        room = largest(cap + 1e-6, 0.99 * delta) ** 2
        assert not room < plan <= largest(cap + 1e-6, delta) ** 2  # not of these plans
        if all(e.mechanism.rate == 1 for e in events) and total <= room:
            return True
        return admits(events, cap, 0.01 * delta)
    limit = max(4, first.rounds // 10)
    within = [admits(first.with_more(e), cap, delta) for e in range(limit + 1)].count(True)
    share = delta if not within else delta / 10
    composed = [
        accounting.epsilon(first.with_more(e), share, ADD)[0] <= cap + 1e-6
        for e in range(limit + 1)
    ].count(True)
    most, left = max(within, composed) - 1, delta
    if accounting.epsilon(first.planned, delta, ADD)[0] > cap + 1e-6:
        most = -1
    elif composed > within:
        left -= accounting.delta_at(first.with_more(most), cap + 1e-6, ADD)
    counts = [[c.purpose for c in held].count(p) for p in ("train", "evaluate")]
    extra = max(0, counts[0] - first.rounds, counts[1] - first.evaluations)
    if len({c.run for c in held}) == 1 and extra <= most:
        return True
    return admits(events, cap, left)


def test_what_a_plan_fixes() -> None:
    plan = AuditedPlan(plan_of(training={"rounds": 7}, metrics={"every": 3}))
    assert plan.train == read_event(train_event(plan_of()))
    assert plan.evaluate == read_event(gate_event(plan_of()))
    assert [r for r in range(1, 9) if plan.has("evaluate", r, "A")] == [3, 6, 7]
    assert plan.evaluations == 3
    bare = plan_of()
    del bare["privacy"]
    assert AuditedPlan(bare).train.mechanism == NON_PRIVATE


@pytest.mark.parametrize(
    "changes",
    [
        {"sites": []}, {"sites": [{"nominal_size": 3}]}, {"sites": [{"name": "A"}] * 2},
        {"training": {"rounds": -1}}, {"training": {"sample_rate": 1.5}},
        {"training": {"steps": True}}, {"privacy": {"clip": 0.0}},
        {"privacy": {"noise_multiplier": None}}, {"privacy": {"relation": "both"}},
        {"metrics": {"every": 0}}, {"strategy": {"average_last": "2"}}, {"privacy": {"epsilon": "8.0"}},
        {"privacy": {"delta": True}}, {"training": "x"},
    ],
)  # fmt: skip
def test_an_impossible_plan_is_refused(changes: dict[str, Any]) -> None:
    plan = plan_of()
    for key, change in changes.items():
        plan[key] = {**plan[key], **change} if isinstance(change, dict) else change
    with pytest.raises(Malformed):
        AuditedPlan(plan)


def test_a_run_that_got_everything_back_is_not_the_first_one_again() -> None:
    small, large = (AuditedPlan(plan_of(training={"rounds": rounds})) for rounds in (1, 2))
    budget = AuditedBudget(90.0, 1e-5, "add_or_remove_one")
    budget.add(0, charge(small, run="A"))
    budget.add(1, charge(small, run="A"), -1)
    budget.add(2, charge(large, run="B"))
    budget.add(3, charge(small, run="A"))
    assert budget._first_plan() is large
