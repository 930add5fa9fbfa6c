"""The number of record at the edges: a tiny δ, and a history made to be expensive."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from ledger_kit import GAUSSIAN, asked, opened

from privet.privacy.accounting import ceiling, pld, pld_size, renyi_filter
from privet.privacy.accounting.events import (
    Event,
    Gaussian,
    PoissonSampled,
    Repeated,
    group,
    to_json,
)
from privet.privacy.accounting.gaussian_dp import epsilon_of
from privet.privacy.accounting.noise_calibration import calibrate_noise
from privet.privacy.accounting.pld import REMARK, epsilon, privacy_loss, remark
from privet.privacy.accounting.units import Relation, Unit
from privet.privacy.audit.verify.cost import accounting as twin
from privet.privacy.audit.verify.formats.events import read_event

ADD, REPLACE = Relation.ADD_OR_REMOVE_ONE, Relation.REPLACE_ONE
RUN = [Repeated(PoissonSampled(0.1, Gaussian(2.0, 1.0)), 100), Repeated(Gaussian(20.0, 1.0), 5)]


def theirs(events: list[Event], delta: float, relation: Relation = ADD) -> tuple[float, float, str]:
    """What the verifier says."""
    return twin.epsilon([read_event(to_json(event)) for event in events], delta, str(relation))


def raw(events: list[Event], delta: float) -> float:
    """ε by the distribution alone, as the number of record was before."""
    found = pld._composed(group(events), ADD, pld.GRID)
    assert found is not None
    return float(found.get_epsilon_for_delta(delta))


# --- a tiny δ -----------------------------------------------------------------------------------


@pytest.mark.parametrize("delta", [1e-5, 1e-10, 1e-13])
def test_where_the_distribution_is_smaller_nothing_changes(delta):
    assert epsilon(RUN, delta) == raw(RUN, delta)
    assert theirs(RUN, delta)[0] == pytest.approx(
        raw(RUN, delta), abs=1e-4 if delta < 1e-12 else 1e-6
    )


@pytest.mark.parametrize("delta", [1e-15, 1e-16, 1e-30])
def test_below_the_truncated_tail_the_ceiling_is_the_number_of_record(delta):
    assert raw(RUN, delta) > 2 * ceiling.epsilon(group(RUN), delta, ADD)  # useless, or infinite
    found = epsilon(RUN, delta)
    assert found == ceiling.epsilon(group(RUN), delta, ADD)
    assert epsilon(RUN, 1e-13) < found < math.inf
    value, bound, said = theirs(RUN, delta)
    assert value == bound == pytest.approx(found, rel=1e-9)
    assert "resolve" in said
    assert not twin.contradict(value, bound, [])


@pytest.mark.parametrize("delta", [1e-5, 1e-12, 1e-13, 1e-14])
def test_the_verifier_allows_for_what_distributions_cut_off(delta):
    """The rounding of a convolution moves the cut, so two computations differ near 10⁻¹⁵."""
    events = [read_event(to_json(event)) for event in RUN]
    cost = epsilon(RUN, delta)
    assert twin.fits(events, delta, "add_or_remove_one", cost + 1e-6)
    less = epsilon(RUN, delta + 1e-14) - 1e-3
    assert not twin.fits(events, delta, "add_or_remove_one", less)


def test_a_plain_gaussian_at_a_tiny_delta_is_bounded_from_above():
    for delta in (1e-12, 1e-16, 1e-40):
        assert epsilon([Gaussian(3.0, 1.0)], delta) >= epsilon_of(1 / 3, delta) - 1e-9


@pytest.mark.parametrize("relation", [ADD, REPLACE])
def test_noise_is_calibrated_at_a_tiny_delta(relation):
    """The old accountant found that no noise reaches it."""

    def at(noise: float) -> list[Event]:
        return [Repeated(Gaussian(noise, 1.0), 20)]

    noise = calibrate_noise(5.0, 1e-16, at, relation)
    assert 4.95 < epsilon(at(noise), 1e-16, relation) <= 5.0
    assert 4.95 < theirs(at(noise), 1e-16, relation)[0] <= 5.0 + 1e-6


def test_delta_is_the_smaller_bound_too():
    far = 40.0
    assert raw(RUN, 1e-15) == math.inf or pld._composed(
        group(RUN), ADD, pld.GRID
    ).get_delta_for_epsilon(far) > 1e-16  # fmt: skip
    found = pld.delta_at(RUN, far)
    assert found == ceiling.delta(group(RUN), far, ADD) < 1e-20
    assert epsilon(RUN, found * 1.001) <= far + 1e-6
    events = [read_event(to_json(event)) for event in RUN]
    assert twin.delta_at(events, far, "add_or_remove_one") == pytest.approx(found, rel=1e-6)


@pytest.mark.parametrize(
    "event",
    [
        Gaussian(0.7, 1.0), PoissonSampled(0.001, Gaussian(0.5, 1.0)),
        PoissonSampled(0.5, Gaussian(9.0, 1.0)),
    ],
)  # fmt: skip
def test_the_ceiling_is_the_verifiers_and_above_the_distribution(event):
    events = [Repeated(event, 30)]
    found = ceiling.epsilon(group(events), 1e-6, ADD)
    assert found == pytest.approx(
        twin.ceiling([read_event(to_json(events[0]))], 1e-6, "add_or_remove_one"), rel=1e-10
    )
    assert found >= epsilon(events, 1e-6, grid=1e-2) * (1 - 1e-9)


# --- a history made to be expensive ------------------------------------------------------------


def different(count: int) -> list[Event]:
    """So many different sampled mechanisms, as nobody's plans have them."""
    return [
        Repeated(PoissonSampled(0.2 + number * 1e-4, Gaussian(1.0 + number * 1e-3, 1.0)), 40)
        for number in range(count)
    ]


EXPENSIVE = {
    "199 mechanisms": different(199),
    "tiny rates, much spread": [
        PoissonSampled(1e-7 * (1 + number), Gaussian(0.2, 1.0)) for number in range(199)
    ],
    "a huge count": [Repeated(PoissonSampled(1e-5, Gaussian(1.0, 1.0)), 10**12)],
}


@pytest.mark.parametrize("name", EXPENSIVE)
def test_it_ends_at_the_ceiling_and_with_a_remark(name, monkeypatch):
    """No distribution is made at all: the rule follows from the events, not from a clock."""
    monkeypatch.setattr(pld, "_distribution", None)
    monkeypatch.setattr(twin, "_composed", None)
    events = EXPENSIVE[name]
    loss = privacy_loss(events, 1e-5, Unit.RECORD, ADD)
    assert loss.epsilon == ceiling.epsilon(group(events), 1e-5, ADD)
    assert math.isfinite(loss.epsilon)
    assert loss.remark == REMARK
    assert REMARK in str(loss)
    assert loss.to_dict()["remark"] == REMARK
    value, _, said = theirs(events, 1e-5)
    assert value == pytest.approx(loss.epsilon, rel=1e-9)
    assert "too large" in said


def test_the_ceiling_of_many_is_above_the_true_epsilon():
    """By what is composed without any doubt: the same number of the least and most costly."""
    found = epsilon(different(199), 1e-5)
    count = sum(times for _, times in group(different(199)))
    least = epsilon([Repeated(PoissonSampled(0.2, Gaussian(1.198, 1.0)), count)], 1e-5, grid=1e-2)
    most = ceiling.epsilon(((PoissonSampled(0.2198, Gaussian(1.0, 1.0)), count),), 1e-5, ADD)
    assert least <= found <= most


def test_what_people_do_is_composed():
    for events in (RUN, different(8), [Repeated(PoissonSampled(1e-3, Gaussian(0.6, 1.0)), 10**6)]):
        assert remark(events) == ""
    assert privacy_loss(RUN, 1e-5, Unit.RECORD, ADD).to_dict().keys() == {
        "epsilon", "delta", "unit", "relation",
    }  # fmt: skip


@pytest.mark.parametrize("relation", [ADD, REPLACE])
@pytest.mark.parametrize("noise", [0.05, 0.3, 1.0, 50.0])
@pytest.mark.parametrize(("rate", "count"), [(1.0, 10**7), (0.5, 10), (0.01, 10**5), (1e-6, 10**7)])
def test_a_plan_is_always_composed(relation, noise, rate, count):
    """Two mechanisms are never too large, unless they cost thousands."""
    step = Gaussian(noise, 1.0) if rate == 1 else PoissonSampled(rate, Gaussian(noise, 1.0))
    counts = ((step, count), (Gaussian(0.5, 1.0), 10))
    if pld_size.grid_for(counts, relation, 1e-4) is None:
        assert ceiling.epsilon(counts, 1e-5, relation) > 10_000


def test_the_grid_is_one_for_site_and_verifier():
    for events in (
        RUN,
        [Gaussian(0.05, 1.0)],
        [Repeated(PoissonSampled(0.1, Gaussian(0.1, 1)), 9)],
    ):
        value, _, said = theirs(events, 1e-5)
        assert said == ""
        assert value == pytest.approx(epsilon(events, 1e-5), abs=2e-7)


def test_the_ledger_of_a_site_says_it(tmp_path: Path, monkeypatch):
    """``decide`` and ``spent`` end at once, too, and a refusal says what it counted with."""
    ledger = opened(tmp_path)
    reservation = ledger.reserve(asked(1))
    ledger.commit(reservation, GAUSSIAN, "sha256:" + "d" * 64)
    assert ledger.spent().remark == ""
    monkeypatch.setattr(type(ledger), "history", lambda self, population=None: different(199))
    assert ledger.spent().remark == REMARK
    cap = renyi_filter.Cap(1e6, 1e-5, Unit.RECORD, ADD)
    counts = group(different(199))
    monkeypatch.setattr(pld, "_distribution", None)
    found = renyi_filter.decide_whole(cap, {}, counts)
    assert found.allowed
    assert found.remark == REMARK
    assert REMARK in found.against(cap)
