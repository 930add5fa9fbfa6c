"""Where rounding decides how δ is shared, the ledger has the least: its verifier finds no overrun.

A plan's author chooses its noise, here by bisection, so that a figure lies where a ledger and its
verifier, who allow for rounding differently, may read it differently.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache

import pytest
from scipy.optimize import brentq
from short_kit import short

from privet.common.plan import Plan
from privet.privacy.accounting import delta_shares, first_plans, gaussian_dp, pld_size, renyi
from privet.privacy.accounting.events import Event, PoissonSampled, group, to_json
from privet.privacy.accounting.events import Gaussian as Normal
from privet.privacy.accounting.plan_events import one_round, planned, training_event
from privet.privacy.accounting.pld import GRID
from privet.privacy.accounting.renyi_filter import Cap, Charges, decide, decide_whole, runs_that_fit
from privet.privacy.accounting.units import Relation, Unit
from privet.privacy.audit.verify.cost import accounting as twin
from privet.privacy.audit.verify.cost import first_plans as theirs
from privet.privacy.audit.verify.cost.budget import AuditedBudget, AuditedCharge, Filter
from privet.privacy.audit.verify.cost.plans import AuditedPlan as VerifiersPlan
from privet.privacy.audit.verify.cost.split import AuditedSplit
from privet.privacy.audit.verify.formats.events import read_event

ADD = Relation.ADD_OR_REMOVE_ONE
DELTA = 1e-5
OFFSETS = [7e-7, 1e-6 - 2e-10, 1e-6 + 2e-10]
"""Above the cap; the ledger allows 5e-7 and the verifier 1e-6."""


def plan_of(
    noise: float, rounds: int, steps: int, rate: float, cap: float = 3.0, gate: float | None = None
) -> Plan:
    return Plan.parse(
        {
            "name": "plan",
            "task": {"label": "y", "classes": ["0", "1"], "numeric": {"x": {"low": 0, "high": 1}}},
            "model": {"kind": "linear"},
            "training": {"rounds": rounds, "steps": steps, "sample_rate": rate},
            "privacy": {"epsilon": cap, "delta": DELTA, "noise_multiplier": noise, "clip": 1.0},
            "metrics": {"source": "public"}
            if gate is None
            else {"source": "gate", "noise_multiplier": gate, "every": 1},
            "sites": [{"name": "north", "nominal_size": 100}],
        },
        where="a test",
    )


def bisected(falling: Callable[[float], float], low: float, high: float) -> float:
    """Return where a function that falls from ``low`` to ``high`` is 0."""
    return float(brentq(falling, low, high, xtol=1e-14, rtol=1e-15))


@dataclass(frozen=True)
class Shape:
    """A plan but for its noise, with the cap of its population."""

    cap: float
    rounds: int
    steps: int
    rate: float

    def plan(self, noise: float) -> Plan:
        return plan_of(noise, self.rounds, self.steps, self.rate, self.cap)

    def noise_where(self, border: str, above: float) -> float:
        """Return the noise with which a figure that decides is so far above the cap."""
        near = self._near(border)
        return bisected(
            lambda noise: self._figure(border, noise) - above, near * (1 - 5e-6), near * (1 + 5e-6)
        )

    @lru_cache(maxsize=16)  # noqa: B019
    def _near(self, border: str) -> float:
        return bisected(lambda noise: self._figure(border, noise), 10.0, 50.0)

    def _figure(self, border: str, noise: float) -> float:
        kind, extra = border.split()
        plan = self.plan(noise)
        counts = delta_shares.enlarged(planned(plan), one_round(plan), int(extra))
        if kind == "H":
            return renyi.filter_epsilon(counts, DELTA, ADD)[0] - self.cap
        share = DELTA if kind == "plan" else DELTA / 10
        return delta_shares.plan_epsilon(counts, share, ADD) - self.cap

    def ledgers(self, plan: Plan) -> delta_shares.Shares:
        return delta_shares.shares(self.cap, DELTA, ADD, planned(plan), one_round(plan))

    def verifiers(self, plan: Plan) -> AuditedSplit:
        value = VerifiersPlan(plan.to_dict())
        return Filter(self.cap, DELTA, "add_or_remove_one")._after(value)[0]


FEW, MANY = Shape(1.0, 3, 100, 0.3), Shape(3.0, 12, 50, 0.5)
BORDERS = [(FEW, "H 0"), (FEW, "plan 0"), (MANY, "C 3"), (MANY, "H 1")]


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    delta_shares.shares.cache_clear()
    yield
    delta_shares.shares.cache_clear()


@pytest.fixture
def as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fault that there was: the ledger splits δ at its own allowance alone."""
    monkeypatch.setattr(delta_shares, "MAX_SLACK", delta_shares.SLACK)


def is_less(mine: delta_shares.Shares, other: AuditedSplit) -> bool:
    rooms = mine.room is None or (other.room is not None and mine.room <= other.room)
    return rooms and mine.renyi <= other.renyi and mine.extra <= other.extra


@pytest.mark.parametrize(("shape", "border"), short(BORDERS, BORDERS[:2]))
def test_no_rule_has_more_than_the_verifier_gives_it(shape: Shape, border: str) -> None:
    for above in OFFSETS:
        plan = shape.plan(shape.noise_where(border, above))
        mine, other = shape.ledgers(plan), shape.verifiers(plan)
        assert is_less(mine, other), (above, mine, other)


@pytest.mark.parametrize(("shape", "border"), BORDERS[:3])  # at the last one C decides
@pytest.mark.usefixtures("as_it_was")
def test_it_had_more(shape: Shape, border: str) -> None:
    for above in (6e-7, 9.9e-7):
        plan = shape.plan(shape.noise_where(border, above))
        assert not is_less(shape.ledgers(plan), shape.verifiers(plan))


def test_away_from_a_border_nothing_is_lost() -> None:
    for shape, noise in ((FEW, 24.0), (FEW, 26.0), (MANY, 21.0), (MANY, 30.0)):
        mine, other = shape.ledgers(shape.plan(noise)), shape.verifiers(shape.plan(noise))
        assert mine.extra == other.extra
        assert mine.renyi == pytest.approx(other.renyi, rel=1e-4)


# --- a ledger that the verifier reads -----------------------------------------------------------


class Site:
    """Charges what the ledger's rule admits; the verifier's rule reads it."""

    def __init__(self, cap: float) -> None:
        self.cap = Cap(cap, DELTA, Unit.RECORD, ADD)
        self.budget = AuditedBudget(cap, DELTA, "add_or_remove_one")
        self.history: dict[str, Charges] = {}
        self.entries = 0
        self._plans: dict[str, VerifiersPlan] = {}

    def ask(self, run: str, plan: Plan) -> bool:
        event, fixed, once = training_event(plan), planned(plan), one_round(plan)
        if not decide(self.cap, self.history, run, event, fixed, once).allowed:
            return False
        before = self.history[run].counts if run in self.history else ()
        self.history[run] = Charges(delta_shares.merged([before, group([event])]), fixed, once)
        value = self._plans.setdefault(run, VerifiersPlan(plan.to_dict()))
        charge = AuditedCharge(run, "train", read_event(to_json(event)), value)
        self.budget.add(self.entries, charge)
        self.entries += 1
        return True


def attempts(above: float) -> Site:
    """A run makes one attempt after another until its ledger refuses."""
    site, plan = Site(FEW.cap), FEW.plan(FEW.noise_where("H 0", above))
    while site.ask("run", plan):
        assert site.entries < 20
    return site


def second_plan(above: float) -> Site:
    """After the first plan comes another, which the filter admits with 9.3e-6 of δ or more."""
    site, plan = Site(MANY.cap), MANY.plan(MANY.noise_where("C 3", above))
    for _ in range(MANY.rounds):
        assert site.ask("first", plan)

    def figure(noise: float) -> float:
        event = PoissonSampled(0.5, Normal(noise, 1.0))
        counts = delta_shares.merged([planned(plan), group([event])])
        return renyi.filter_epsilon(counts, 9.3e-6, ADD)[0] - MANY.cap

    site.ask("second", plan_of(bisected(figure, 0.8, 500.0), 1, 1, 0.5))
    return site


@pytest.mark.parametrize("story", [attempts, second_plan])
def test_the_verifier_finds_no_overrun(story: Callable[[float], Site]) -> None:
    for above in OFFSETS:
        assert story(above).budget.fault is None, above


@pytest.mark.parametrize("story", [attempts, second_plan])
@pytest.mark.usefixtures("as_it_was")
def test_it_found_one(story: Callable[[float], Site]) -> None:
    fault = story(7.5e-7).budget.fault
    assert fault is not None
    assert "overrun" in fault[1]


# --- plain Gaussian noise ----------------------------------------------------------------------

PLAIN = Shape(3.0, 7, 1, 1.0)
SHARES = [0.99 * DELTA, DELTA]
"""Of δ: below the first a plan takes no more of it, above the second it is not admitted whole."""


def plain(share: float, above: float, part: float = 1.0) -> Plan:
    squares = gaussian_dp.mu_of(PLAIN.cap + above, share) ** 2
    return PLAIN.plan(math.sqrt(PLAIN.rounds / (part * squares)))


@pytest.mark.parametrize("share", SHARES)
def test_plain_noise_has_no_more_either(share: float) -> None:
    for above in OFFSETS:
        for part in (1 - 1e-9, 1 - 1e-15, 1.0, 1 + 1e-15, 1 + 1e-9):
            plan = plain(share, above, part)
            mine, other = PLAIN.ledgers(plan), PLAIN.verifiers(plan)
            assert is_less(mine, other), (above, part, mine, other)


@pytest.mark.parametrize(("share", "above"), [(0.99 * DELTA, 1e-6 - 1e-10), (DELTA, 7e-7)])
@pytest.mark.usefixtures("as_it_was")
def test_plain_noise_had_more(share: float, above: float) -> None:
    assert not is_less(PLAIN.ledgers(plain(share, above)), PLAIN.verifiers(plain(share, above)))


def test_a_plan_that_takes_all_of_delta_still_runs_to_its_end() -> None:
    for part in (0.995, 0.99999):
        plan, site = plain(DELTA, 0.0, part), Site(PLAIN.cap)
        assert decide_whole(site.cap, {}, planned(plan), one_round(plan)).allowed
        assert all(site.ask("run", plan) for _ in range(PLAIN.rounds))
        assert site.budget.fault is None


# --- costs and grids at a border ---------------------------------------------------------------


def walk(reads: Callable[[float], object], low: float, high: float, around: int) -> list[float]:
    """Return the numbers around the one between ``low`` and ``high`` where a reading changes."""
    start = reads(low)
    assert start != reads(high)
    while (middle := (low + high) / 2) not in (low, high):
        low, high = (middle, high) if reads(middle) == start else (low, middle)
    for _ in range(around):
        low = math.nextafter(low, 0)
    found = [low]
    while len(found) < 2 * around:
        found.append(math.nextafter(found[-1], math.inf))
    return found


ROWS = [
    (10, 100, 0.16110493660861, 6.814863879468418, 0.8035411999172174),
    (10, 100, 0.04969055990358621, None, 0.9957546558910653),
    (10, 10, 0.15918646794838115, None, 0.82675082493233),
]
"""Rounds, steps, rate, the gate's noise, and about the noise at which seconds change."""


def test_the_cost_of_a_first_plan_is_one_of_the_two_that_the_ledger_reads() -> None:
    """The verifier rounds up another sum of the same terms; both readings do occur."""
    both = missed = 0
    for rounds, steps, rate, gate, near in ROWS:

        def plan(noise: float, row: tuple[int, int, float] = (rounds, steps, rate),
                 gate: float | None = gate) -> Plan:  # fmt: skip
            return plan_of(noise, *row, gate=gate)

        def verifiers(noise: float, plan: Callable[[float], Plan] = plan) -> int:
            return theirs.seconds(VerifiersPlan(plan(noise).to_dict()), "add_or_remove_one")

        for noise in walk(verifiers, near * (1 - 1e-6), near * (1 + 1e-6), 12):
            counts, once = planned(plan(noise)), one_round(plan(noise))
            least, most = first_plans.seconds(counts, once, ADD)
            assert least <= verifiers(noise) <= most
            assert most - least <= 1
            both += least < most
            compositions = 2 + (delta_shares.most_extra(counts, once) + 1).bit_length()
            nominal = pld_size._size(counts, ADD, GRID, 1.0)
            assert nominal is not None
            missed += math.ceil(compositions * nominal[1] / 1e6) != verifiers(noise)
    assert both == 24 * len(ROWS)
    assert missed > 0  # one reading alone is not enough


def test_a_plan_with_two_readings_is_composed_if_both_say_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(first_plans, "MAX_SECONDS", 10)
    costs = [
        ("a", (4, 4)),
        ("b", (6, 7)),
        ("c", (0, 0)),
        ("d", (6, 6)),
        ("e", (7, 7)),
        ("a", (4, 4)),
    ]
    found = {"a": True, "b": None, "c": True, "d": None, "e": False}
    assert first_plans.composed(costs) == found
    monkeypatch.setattr(first_plans, "MAX_SECONDS", 11)
    assert first_plans.composed(costs[:2]) == {"a": True, "b": True}


def test_of_such_a_plan_what_is_admitted_is_admitted_both_ways() -> None:
    """Composed, its own attempts fit; not composed, later plans have all of δ."""
    plan = MANY.plan(21.0)
    own = planned(plan), one_round(plan)
    cap = Cap(MANY.cap, DELTA, Unit.RECORD, ADD)
    tight = MANY.plan(19.5)
    loud = planned(tight), one_round(tight)
    assert decide_whole(cap, {}, *loud).allowed
    assert not decide_whole(cap, {}, *loud, composed=False).allowed
    assert not decide_whole(cap, {}, *loud, composed=None).allowed
    assert runs_that_fit(cap, {}, *loud, composed=None) == 0

    def later(event: Event, composed: bool | None) -> bool:
        history = {"a": Charges(own[0], *own, composed)}
        return decide(cap, history, "b", event, group([event])).allowed

    def figure(noise: float) -> float:
        counts = delta_shares.merged([own[0], group([Normal(noise, 1.0)])])
        return renyi.filter_epsilon(counts, 0.95 * DELTA, ADD)[0] - cap.epsilon

    event = Normal(bisected(figure, 1.0, 500.0), 1.0)
    assert [later(event, way) for way in (True, False, None)] == [False, True, False]
    assert later(Normal(500.0, 1.0), None)


def test_where_the_grid_is_at_a_border_the_ledger_counts_with_each(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """So little noise that one step takes all points of the finest grid."""
    relation = "add_or_remove_one"

    def plan(noise: float) -> Plan:
        return plan_of(noise, 1, 1, 1e-3)

    def grid(noise: float) -> float | None:
        events = VerifiersPlan(plan(noise).to_dict()).planned
        return twin._grid(events, twin._merged(events, relation) or [], relation)

    def grids(noise: float) -> list[float | None]:
        counts = planned(plan(noise))
        found = pld_size.readings(counts, ADD, GRID)
        return [pld_size.grid_for(counts, ADD, GRID, reading) for reading in found]

    for noise in (around := walk(grid, 0.08, 0.3, 12)):
        assert set(grids(noise)) == {1e-4, 1e-3}
        assert grid(noise) in grids(noise)
    assert grids(0.08) == [1e-3]
    assert grids(0.3) == [1e-4]

    monkeypatch.setattr(delta_shares.pld, "epsilon", lambda *_, reading: 7 * abs(reading - 1) + 1)
    found = delta_shares.plan_epsilon(planned(plan(around[0])), DELTA / 3, ADD)
    assert found > 1  # the one that is more of the two
