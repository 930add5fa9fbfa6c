"""The first plans of a ledger are composed up to a bound, to which ledger and verifier come alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ledger_kit import PATIENTS, SITE, VISITS, asked, budget, opened

from privet.common.errors import BudgetExceededError
from privet.common.plan import Plan
from privet.privacy.accounting import first_plans, renyi
from privet.privacy.accounting.delta_shares import as_events
from privet.privacy.accounting.plan_events import one_round, planned, training_event
from privet.privacy.accounting.pld import epsilon
from privet.privacy.accounting.renyi_filter import Cap, decide_whole, runs_that_fit
from privet.privacy.accounting.units import Relation, Unit
from privet.privacy.audit.verify.cost import first_plans as theirs
from privet.privacy.audit.verify.cost.budget import AuditedBudget, AuditedCharge
from privet.privacy.audit.verify.cost.plans import AuditedPlan as VerifiersPlan
from privet.privacy.audit.verify.formats.events import read_event
from privet.privacy.evidence.ledger import Ledger
from privet.privacy.evidence.ledger_state import Reservation
from privet.privacy.evidence.statement import Entry

ADD, REPLACE = "add_or_remove_one", "replace_one"
DELTA = 1e-5


def plan(
    number: int = 0, *, rounds: int = 2, rate: float = 0.5, noise: float = 4.0, gate: bool = True,
    relation: str = ADD,
) -> Plan:  # fmt: skip
    """A plan; those of another number have a little more noise."""
    return Plan.parse(
        {
            "name": f"plan {number}",
            "task": {"label": "y", "classes": ["0", "1"], "numeric": {"x": {"low": 0, "high": 1}}},
            "model": {"kind": "linear"},
            "training": {"rounds": rounds, "steps": 3, "sample_rate": rate},
            "privacy": {"epsilon": 90.0, "delta": DELTA, "relation": relation,
                        "noise_multiplier": noise + number / 100},
            "metrics": {"source": "gate", "noise_multiplier": 20.0, "every": 1}
            if gate
            else {"source": "public"},
            "sites": [{"name": SITE, "nominal_size": 100}],
        }
    )  # fmt: skip


PLANS = [plan(number) for number in range(6)]
CAP = epsilon(as_events(planned(PLANS[0])), DELTA) + 1e-3
"""Every one of the plans fits it alone, by its composition."""


def seconds(one: Plan, relation: str = ADD) -> int:
    least, most = first_plans.seconds(planned(one), one_round(one), Relation(relation))
    assert least == most  # no plan of these tests is at a border
    return most


def bounded(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    """Give first plans so many seconds, in the ledger and in the verifier."""
    monkeypatch.setattr(first_plans, "MAX_SECONDS", most)
    monkeypatch.setattr(theirs, "MAX_SECONDS", most)


class Site:
    """A real ledger with two populations, whose entries the verifier's rules read after it."""

    def __init__(self, folder: Path) -> None:
        self.ledger = opened(folder, CAP)
        self.ledger.register("staff", budget(CAP))
        self.ledger.add_data_set("payroll", "staff", "nobody on the payroll is a patient")
        self.populations = {VISITS: PATIENTS, "payroll": "staff"}
        for one in PLANS:
            self.ledger.keep("plan", one.digest, one.to_dict())
            self.ledger.approve(one.digest, ["Ada"], "manual")

    def reserve(self, run: str, one: Plan, data_set: str = VISITS, round_: int = 1) -> Reservation:
        self.ledger.require_whole_run(data_set, run, one.digest)
        event = training_event(one)
        request = asked(round_, event=event, run=run, plan=one.digest, data_set=data_set)
        return self.ledger.reserve(request)

    def give_back(self, reservation: Reservation) -> None:
        self.ledger.abort(reservation, data_opened=False)

    def pass_by(self, one: Plan, data_set: str = VISITS) -> None:
        """Reserve for a plan and give it back."""
        self.give_back(self.reserve(f"passing {one.name}", one, data_set))

    def budgets(self) -> dict[str, AuditedBudget]:
        """What the verifier makes of the entries on disk."""
        shared = theirs.FirstPlans()
        found = {name: AuditedBudget(CAP, DELTA, ADD, shared) for name in (PATIENTS, "staff")}
        plans = {one.digest: VerifiersPlan(one.to_dict()) for one in PLANS}
        charged: dict[int, tuple[AuditedBudget, AuditedCharge]] = {}
        for number, entry in enumerate(map(Entry.read, self.ledger.log.store.leaves())):
            value = entry.predicate
            if entry.kind == "reserved":
                event = read_event(value["event"])
                charge = AuditedCharge(value["run"], value["purpose"], event, plans[value["plan"]])
                charged[number] = found[value["population"]], charge
                charged[number][0].add(number, charge)
            elif entry.kind == "aborted" and not value["data_opened"]:
                owner, charge = charged[value["reservation"]]
                owner.add(number, charge, -1)
        return found


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def test_the_bound_is_one_to_ledger_and_verifier() -> None:
    assert first_plans.MAX_SECONDS == theirs.MAX_SECONDS


@pytest.mark.parametrize("relation", [ADD, REPLACE])
@pytest.mark.parametrize("gate", [True, False])
@pytest.mark.parametrize("rate", [0.001, 0.1, 0.7])
def test_costs_are_one_to_ledger_and_verifier(relation: str, gate: bool, rate: float) -> None:
    for rounds in (1, 7, 100, 5000):
        for noise in (0.11, 0.5, 1.0, 3.0, 40.0):
            one = plan(rounds=rounds, rate=rate, noise=noise, gate=gate, relation=relation)
            value = VerifiersPlan(one.to_dict())
            assert seconds(one, relation) == theirs.seconds(value, relation)


def test_what_needs_no_distribution_costs_nothing() -> None:
    for one in (plan(rate=1.0), plan(rounds=10**6, noise=0.01)):
        assert seconds(one) == theirs.seconds(VerifiersPlan(one.to_dict()), ADD) == 0
    few, many = plan(rounds=2), plan(rounds=1000, noise=80.0)
    assert 1 <= seconds(few) <= 20
    assert seconds(few) < seconds(many)


def test_no_honest_ledger_is_near_the_bound() -> None:
    """A hundred populations with a plan of a hundred rounds at ε 3, or forty at ε 20."""
    usual, loud = plan(rounds=100, rate=0.02, noise=1.0), plan(rounds=100, rate=0.1, noise=0.8)
    assert 2.9 < epsilon(as_events(planned(usual)), DELTA) < 3.1
    assert 19 < epsilon(as_events(planned(loud)), DELTA) < 20
    assert 100 * seconds(usual) < first_plans.MAX_SECONDS
    assert 40 * seconds(loud) < first_plans.MAX_SECONDS


def test_the_plans_fit_by_their_composition_alone() -> None:
    for one in PLANS:
        assert not renyi.admits(planned(one), CAP + 1e-6, DELTA, Relation.ADD_OR_REMOVE_ONE)


@pytest.mark.parametrize("short", [0, 1])
def test_the_rule_is_exact_at_the_border(
    site: Site, monkeypatch: pytest.MonkeyPatch, short: int
) -> None:
    """With room for three plans the third is composed, and with a second less it is not."""
    bounded(monkeypatch, sum(map(seconds, PLANS[:3])) - short)
    for one in PLANS[:2]:
        site.pass_by(one)
    if short:
        with pytest.raises(BudgetExceededError, match="would not come to its end"):
            site.reserve("third", PLANS[2])
        assert list(site.budgets()[PATIENTS].counts) == []
        return
    site.reserve("third", PLANS[2])
    site.reserve("third", PLANS[2], round_=2)
    found = site.budgets()[PATIENTS]
    assert found.enforced_by == "pld" and found.fault is None


def test_a_plan_beyond_the_bound_is_held_by_the_filter_with_all_of_delta(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One release, of which nothing is given back, is admitted; the rest is not. Alike here."""
    bounded(monkeypatch, sum(map(seconds, PLANS[:2])))
    for one in PLANS[:2]:
        site.pass_by(one)
    third = PLANS[2]
    monkeypatch.setattr(Ledger, "require_whole_run", lambda *_: None)
    site.reserve("third", third)
    events = planned(third), one_round(third)
    cap = Cap(CAP, DELTA, Unit.RECORD, Relation.ADD_OR_REMOVE_ONE)
    history = site.ledger.charges(PATIENTS)
    assert not history["third"].composed
    assert not decide_whole(cap, {}, *events, composed=False).allowed
    assert decide_whole(cap, {}, *events).allowed
    assert runs_that_fit(cap, {}, *events, composed=False) == 0
    assert runs_that_fit(cap, {}, *events) == 1
    found = site.budgets()[PATIENTS]
    assert found.enforced_by == "filter" and found.fault is None
    assert found._filter is not None
    assert found._filter._limits_after(found._first_plan()) == found._filter._limits(DELTA)


def test_a_bound_that_was_kept_once_is_kept_for_ever(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What came too late stays so; what is counted stays counted, and counts once."""
    bounded(monkeypatch, sum(map(seconds, PLANS[:2])))
    monkeypatch.setattr(Ledger, "require_whole_run", lambda *_: None)
    for one in (*PLANS[:3], *PLANS[:2], PLANS[0]):
        site.pass_by(one)
    for one, known in zip(PLANS[:3], (True, True, False), strict=True):
        reservation = site.reserve(f"again {one.name}", one)
        assert next(iter(site.ledger.charges(PATIENTS).values())).composed is known
        assert site.budgets()[PATIENTS].enforced_by == ("pld" if known else "filter")
        site.give_back(reservation)


def test_the_populations_of_a_ledger_share_the_bound(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of them counts its first plan, also the same one."""
    bounded(monkeypatch, 2 * seconds(PLANS[0]))
    monkeypatch.setattr(Ledger, "require_whole_run", lambda *_: None)
    site.pass_by(PLANS[0])
    site.reserve("staff", PLANS[0], "payroll")
    site.reserve("late", PLANS[1])
    found = site.budgets()
    assert found["staff"].enforced_by == "pld"
    assert found[PATIENTS].enforced_by == "filter"
    assert next(iter(site.ledger.charges("staff").values())).composed
    assert not next(iter(site.ledger.charges(PATIENTS).values())).composed


def test_a_run_that_becomes_the_first_is_counted_then(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By giving back what was before it: not when it was charged."""
    bounded(monkeypatch, 2 * seconds(PLANS[0]))
    monkeypatch.setattr(Ledger, "require_whole_run", lambda *_: None)
    first = site.reserve("first", PLANS[0])
    monkeypatch.setattr(
        "privet.privacy.evidence.ledger.decide", _always
    )  # as an owner may write it
    site.reserve("second", PLANS[1])
    site.reserve("staff", PLANS[0], "payroll")
    site.give_back(first)
    assert list(site.ledger.state.first_plans) == [
        (PATIENTS, PLANS[0].digest), ("staff", PLANS[0].digest), (PATIENTS, PLANS[1].digest),
    ]  # fmt: skip
    found = site.budgets()
    assert found["staff"].enforced_by == "pld"
    assert found[PATIENTS].enforced_by == "filter"
    assert not site.ledger.charges(PATIENTS)["second"].composed


def _always(cap: Cap, *_: Any, **__: Any) -> Any:
    return decide_whole(Cap(None, cap.delta, cap.unit, cap.relation), {}, ())
