"""What calibration accepts, the run's own ledger admits to the last round, and it verifies."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from privet.common.errors import InputError
from privet.common.plan import Plan
from privet.privacy.accounting import renyi_filter as admission
from privet.privacy.accounting.events import Event, group, to_json
from privet.privacy.accounting.noise_calibration import calibrated
from privet.privacy.accounting.plan_events import (
    gate_event,
    is_measured,
    one_round,
    planned,
    training_event,
)
from privet.privacy.accounting.renyi_filter import Cap, Charges, decide, merged
from privet.privacy.accounting.units import Relation, Unit
from privet.privacy.audit.verify.cost.budget import AuditedBudget, AuditedCharge
from privet.privacy.audit.verify.cost.plans import AuditedPlan as VerifiersPlan
from privet.privacy.audit.verify.formats.events import read_event


def plan_of(epsilon: float, delta: float, q: float, steps: int, rounds: int, gate: bool,
            relation: str = "add_or_remove_one") -> Plan:  # fmt: skip
    """A plan whose noise is calibrated to ε."""
    return calibrated(
        Plan.parse(
            {
                "name": "tiny",
                "task": {"label": "y", "classes": ["0", "1"],
                         "numeric": {"x": {"low": 0, "high": 1}}},
                "model": {"kind": "linear"},
                "training": {"rounds": rounds, "steps": steps, "sample_rate": q},
                "privacy": {"epsilon": epsilon, "delta": delta, "relation": relation},
                "metrics": {"source": "gate", "noise_multiplier": 30.0, "every": 2}
                if gate
                else {"source": "public"},
                "sites": [{"name": "North", "nominal_size": 100}],
            }
        )
    )  # fmt: skip


def asked(plan: Plan) -> Iterator[tuple[str, Event]]:
    """Yield purpose and event of all that a run of the plan does."""
    for number in range(1, plan.training.rounds + 1):
        yield "train", training_event(plan)
        if plan.metrics.source == "gate" and is_measured(plan, number):
            yield "evaluate", gate_event(plan)


class Site:
    """A population whose cap is the plan's own ε, in the ledger's rules and the verifier's."""

    def __init__(self, epsilon: float, delta: float, relation: str = "add_or_remove_one") -> None:
        self.cap = Cap(epsilon, delta, Unit.RECORD, Relation(relation))
        self.budget = AuditedBudget(epsilon, delta, relation)
        self.history: dict[str, Charges] = {}
        self.entries = 0
        self._plans: dict[str, VerifiersPlan] = {}

    def ask(self, run: str, plan: Plan, purpose: str, event: Event) -> str | None:
        """Charge an event if the ledger admits it; return the rule, None if it is refused."""
        fixed, once = planned(plan), one_round(plan)
        found = decide(self.cap, self.history, run, event, fixed, once)
        if not found.allowed:
            return None
        before = self.history[run].counts if run in self.history else ()
        self.history[run] = Charges(merged([before, group([event])]), fixed, once)
        theirs = self._plans.setdefault(run, VerifiersPlan(plan.to_dict()))
        charge = AuditedCharge(run, purpose, read_event(to_json(event)), theirs)
        assert charge.event == theirs.event(purpose)
        self.budget.add(self.entries, charge)
        self.entries += 1
        return found.rule


ROWS: list[tuple[Any, ...]] = [
    (100.0, 1e-5, 0.1, 5, 20, False), (100.0, 1e-5, 1.0, 1, 1, False),
    (300.0, 1e-9, 0.1, 5, 2, True),
    (3.0, 1e-5, 1.0, 2, 10, True), (1000.0, 1e-5, 1.0, 1, 1, True),
    (5.0, 1e-13, 0.2, 4, 5, True), (5.0, 1e-15, 0.2, 4, 5, True), (5.0, 1e-15, 1.0, 4, 5, True),
]  # fmt: skip


@pytest.mark.parametrize("row", ROWS)
def test_at_the_edges(row: tuple[Any, ...]) -> None:
    runs_to_its_end(*row)


@pytest.mark.long
@settings(
    max_examples=8, deadline=None, derandomize=True,
    suppress_health_check=list(HealthCheck), database=None,
)  # fmt: skip
@given(
    st.sampled_from([0.5, 2.0, 8.0, 40.0]),
    st.sampled_from([1e-3, 1e-5, 1e-8, 1e-13, 1e-16]),
    st.sampled_from([0.01, 0.1, 0.5, 1.0]),
    st.integers(1, 8),
    st.integers(1, 12),
    st.booleans(),
    st.sampled_from(["add_or_remove_one", "replace_one"]),
)
def test_anywhere(
    epsilon: float, delta: float, q: float, steps: int, rounds: int, gate: bool, relation: str
) -> None:
    try:
        plan_of(epsilon, delta, q, steps, rounds, gate, relation)
    except InputError:
        return  # the evaluations alone cost more: nothing is calibrated
    runs_to_its_end(epsilon, delta, q, steps, rounds, gate, relation)


def runs_to_its_end(
    epsilon: float, delta: float, q: float, steps: int, rounds: int, gate: bool,
    relation: str = "add_or_remove_one",
) -> None:  # fmt: skip
    plan = plan_of(epsilon, delta, q, steps, rounds, gate, relation)
    site = Site(epsilon, delta, relation)
    assert admission.decide_whole(site.cap, {}, planned(plan), one_round(plan)).allowed
    for purpose, event in asked(plan):
        assert site.ask("run", plan, purpose, event) == "one run"
    assert site.budget.fault is None
    assert site.budget.enforced_by == "pld"


def test_the_rule_of_before_would_have_refused() -> None:
    """ε 100 was counted by the Rényi filter: noise below a fifth of the clip was not composed."""
    plan = plan_of(100.0, 1e-5, 1.0, 1, 1, False)
    assert plan.privacy is not None
    assert plan.privacy.noise_multiplier is not None
    assert plan.privacy.noise_multiplier < 0.2
    counted, _ = admission.filter_epsilon(planned(plan), 1e-5, Relation.ADD_OR_REMOVE_ONE)
    assert counted > 120


def test_kept_charges_and_plans_chosen_later_are_one_to_both() -> None:
    """Whatever is asked for, in whatever order, what the ledger admits the verifier admits."""
    generator = np.random.default_rng(3)
    rules = set()
    for first in (plan_of(2.0, 1e-5, 1.0, 1, 4, True), plan_of(1.2, 1e-5, 0.1, 5, 10, True)):
        site = Site(3.0, 1e-5)
        later = [plan_of(e, 1e-5, q, 2, 3, False) for e, q in ((0.5, 1.0), (1.0, 1.0), (0.8, 0.2))]
        done = list(asked(first))
        for purpose, event in [*done, done[0], done[0]]:  # two attempts that broke
            assert site.ask("first", first, purpose, event) is not None
        for number in range(60):
            plan = later[int(generator.integers(0, 3 if number > 20 else 2))]
            purpose, event = next(iter(asked(plan)))
            rules.add(site.ask(f"run {number % 7} {id(plan)}", plan, purpose, event))
            assert site.budget.fault is None
        kinds = {None: "", "one run": "pld"}
        rule = site.ask("last", later[0], "train", training_event(later[0]))
        assert rule is None or site.budget.enforced_by == kinds.get(rule, rule)
    assert rules >= {"gaussian filter", "filter", None}


def test_the_verifier_finds_a_ledger_that_admits_more() -> None:
    """Planted: a site that charges on, one event beyond what its rule admits."""
    plan = plan_of(3.0, 1e-5, 1.0, 2, 10, True)
    site = Site(3.0, 1e-5)
    for purpose, event in asked(plan):
        site.ask("run", plan, purpose, event)
    small = plan_of(0.05, 1e-5, 1.0, 1, 1, False)
    assert site.ask("other", small, "train", training_event(small)) is None
    charged = read_event(to_json(training_event(small)))
    site.budget.add(
        site.entries, AuditedCharge("other", "train", charged, VerifiersPlan(small.to_dict()))
    )
    assert site.budget.fault is not None
    assert "Gaussian and the Renyi filter" in site.budget.fault[1]
