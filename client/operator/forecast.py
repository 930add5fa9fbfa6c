"""Forecast what a plan would cost the people of one site, before anything is spent.

A place is a policy with the state of its ledger, read without its key. A forecast compares a plan
with it: the plan's cost, the budget spent, the budget left, and why the site would refuse the plan.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from privet.client.operator.approval import approval_fault, standing_faults
from privet.client.operator.decisions import has_ledger
from privet.common.errors import PlanClosedError, PlanError
from privet.common.plan import Plan
from privet.privacy.accounting.units import PrivacyLoss, Relation, Unit
from privet.privacy.evidence.ledger import Ledger
from privet.privacy.evidence.ledger_state import LedgerState

if TYPE_CHECKING:
    from collections.abc import Callable

    from privet.privacy.accounting.events import Counts
    from privet.privacy.accounting.renyi_filter import Cap, Decision, History
    from privet.privacy.policy import Policy

MANY = 1000
"""From here on the number of runs that fit is given as "at least"."""


class Place:
    """A policy, and the state of the ledger that it names, read without its key.

    Args:
        file: of the policy, for commands in messages.
        policy: of the site.

    Raises:
        WrongLedgerError: if the ledger is another site's, or was lost.
        LedgerError: if it cannot be read.
    """

    def __init__(self, file: Path, policy: Policy) -> None:
        self.file, self.policy = file, policy
        self.note = ""
        self._ledger: Ledger | None = None
        if has_ledger(policy):
            self._ledger = Ledger.read(policy.ledger_folder, policy.site)
            self.state = self._ledger.state
        else:
            self.note = f"no ledger at {policy.ledger_folder}: taken as empty"
            self.state = LedgerState()

    def charges(self, population: str) -> History:
        """Return a population's charges, by run."""
        return self._ledger.charges(population) if self._ledger else {}

    def is_composed(self, population: str, plan: Plan, cap: Cap) -> bool | None:
        """Return whether the ledger would compose a plan tightly as a population's first one.

        The rule is that of privacy/accounting/first_plans.py.

        Args:
            population: of the policy.
            plan: with its noise calibrated.
            cap: the population's budget and terms.

        Returns:
            Whether it would; None if rounding leaves that open. True without a ledger.
        """
        from privet.privacy.accounting import plan_events

        if self._ledger is None:
            return True
        events = plan_events.planned(plan), plan_events.one_round(plan)
        return self._ledger.is_composed(population, plan.digest, events, cap.relation)

    def closed(self, plan: str) -> str | None:
        """Return why failures closed a plan (by digest) here, or None."""
        try:
            if self._ledger is not None:
                self._ledger.require_open_plan(plan)
        except PlanClosedError as error:
            return f"{error}; `privet client approve {plan}` opens it again"
        return None

    def attempts(self, plan: str) -> tuple[int, int]:
        """Return how many attempts of a plan (by digest) failed in a row, and how many may."""
        return (0, 1) if self._ledger is None else self._ledger.attempts(plan)

    def kept(self, plan: str) -> Plan | None:
        """Return the plan of a digest that the ledger stored when it was first allowed, or None.

        Raises:
            PlanError: if the stored value is no plan, or another one.
        """
        if self._ledger is None:
            return None
        text = self._ledger.log.store.paper("plan", plan)
        if text is None:
            return None
        found = Plan.parse(json.loads(text), where=f"the ledger's copy of {plan}")
        if found.digest != plan:
            raise PlanError(f"the ledger's copy of {plan} is another plan, {found.digest}")
        return found


class Forecast:
    """The cost of a plan for one population of a site.

    Args:
        asked: the plan as it was given.
        fitted: the same plan, with its noise calibrated.
        place: the site's policy and ledger.
        data_set: name of one of the policy's data sets.

    Attributes:
        plan: the plan, noise calibrated.
        calibrated: whether the plan left its noise to be calibrated.
        per_round, total: cost of a round, of the whole run.
        spent, after: cost of all charges so far, and with the run; None if the plan has another
            unit or relation than the population, so that the costs cannot be added.
        decision: of the cap; None in the same case.
        runs_left: how many such runs could start and finish, this one included.
        faults: why the site would not let the plan run to its end now; empty if it would.
        only_undecided: whether nothing is missing but a decision of the operator.
        notes: remarks about the numbers.
    """

    def __init__(self, asked: Plan, fitted: Plan, place: Place, data_set: str) -> None:
        from privet.privacy.accounting import plan_events
        from privet.privacy.accounting.events import Repeated
        from privet.privacy.accounting.pld import privacy_loss
        from privet.privacy.accounting.renyi_filter import Cap

        policy = place.policy
        self.plan, self.policy, self.data_set = fitted, policy, data_set
        self.calibrated = asked != fitted
        self.population = policy.data_set(data_set)[1].population
        limits = policy.populations[self.population]
        terms = policy.terms(self.population)
        self.cap = Cap(limits.epsilon, limits.delta, *terms)
        privacy = fitted.privacy
        own = (Unit(privacy.unit), Relation(privacy.relation)) if privacy else terms
        planned = plan_events.planned(fitted)

        def cost(counts: Counts) -> PrivacyLoss:
            events = [Repeated(event, count) for event, count in counts]
            return privacy_loss(events, limits.delta, *own)

        self.per_round, self.total = cost(plan_events.one_round(fitted)), cost(planned)
        self.spent: PrivacyLoss | None = None
        self.after: PrivacyLoss | None = None
        self.decision: Decision | None = None
        self.runs_left: int | None = None
        self.notes = list(filter(None, [place.note]))
        self.faults = standing_faults(policy, place.state, data_set)
        # A plan approved by its digest was approved with its noise.
        forbidden = policy.fault(fitted, data_set=data_set)
        self.faults += filter(None, [forbidden, place.closed(fitted.digest)])
        if own == terms:
            once = plan_events.one_round(fitted)
            composed = place.is_composed(self.population, fitted, self.cap)
            self._add_up(cost, place.charges(self.population), planned, once, composed)
            if self.decision and not self.decision.allowed and not forbidden:
                against = self.decision.against(self.cap)
                self.faults.append(f"the budget does not cover the plan: {against}")
        refused = fitted.digest in place.state.refused_plans
        self.only_undecided = not self.faults and not refused
        undecided = approval_fault(policy, place.state, fitted.digest, place.file)
        if undecided and (refused or policy.allow.approval == "manual"):
            self.faults.append(undecided)

    def _add_up(
        self,
        cost: Callable[[Counts], PrivacyLoss],
        history: History,
        planned: Counts,
        once: Counts,
        composed: bool | None,
    ) -> None:
        from privet.privacy.accounting.renyi_filter import decide_whole, merged, runs_that_fit

        before = merged(charges.counts for charges in history.values())
        self.spent, self.after = cost(before), cost(merged([before, planned]))
        self.decision = decide_whole(self.cap, history, planned, once, composed=composed)
        self.runs_left = runs_that_fit(self.cap, history, planned, once, composed=composed)
        for what, loss in (("spent so far", self.spent), ("left after this run", self.after)):
            if loss.remark:
                self.notes.append(f"{what}: {loss.remark}")

    @property
    def left_after(self) -> float | None:
        """ε left after the run; None without a cap or a common unit."""
        if self.after is None or self.cap.epsilon is None:
            return None
        return max(0.0, self.cap.epsilon - self.after.epsilon)

    @property
    def fits(self) -> bool | None:
        """Whether the cap covers the run; None without a common unit."""
        return None if self.decision is None else self.decision.allowed

    @property
    def many(self) -> bool:
        """Whether more than :data:`MANY` runs fit, so that their number is only a lower bound."""
        return self.runs_left is not None and self.runs_left >= MANY

    def to_dict(self) -> dict[str, Any]:
        """Return the forecast as JSON values; infinite and unknown numbers are null."""
        privacy = self.plan.privacy
        return {
            "cost": {
                "per_round": self.per_round.to_dict()["epsilon"],
                "total": self.total.to_dict()["epsilon"],
            },
            "spent": self.spent and self.spent.to_dict()["epsilon"],
            "left_after": self.left_after,
            "runs_left": self.runs_left and min(self.runs_left, MANY),
            "runs_left_at_least": self.many,
            **{key: self.total.to_dict()[key] for key in ("delta", "unit", "relation")},
            "cap": self.cap.epsilon,
            "allowed": not self.faults,
            "reason": "; ".join(self.faults) or None,
            "rule": self.decision and self.decision.rule,
            "plan": self.plan.digest,
            "site": self.policy.site,
            "population": self.population,
            "data_set": self.data_set,
            "noise_multiplier": privacy and privacy.noise_multiplier,
            "calibrated": self.calibrated,
            "notes": self.notes,
        }
