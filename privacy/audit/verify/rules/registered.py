"""What a site registers in its ledger: populations, data sets, policies, decisions on plans."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from privet.privacy.audit.verify.cost.budget import AuditedBudget
from privet.privacy.audit.verify.cost.first_plans import FirstPlans
from privet.privacy.audit.verify.cost.plans import AuditedPlan, Terms
from privet.privacy.audit.verify.formats import notes, officers
from privet.privacy.audit.verify.formats.events import Event
from privet.privacy.audit.verify.formats.order_keys import AuditedOrderKeys
from privet.privacy.audit.verify.formats.roster import AuditedMember
from privet.privacy.audit.verify.formats.rows import ReservedRow
from privet.privacy.audit.verify.formats.schema import SUBJECTS
from privet.privacy.audit.verify.formats.strict import Malformed, decimal
from privet.privacy.audit.verify.result import NEW_RULE, show
from privet.privacy.audit.verify.rules.log import AuditedLog
from privet.privacy.audit.verify.rules.policy import TERMS, Approval, SitePolicy
from privet.privacy.audit.verify.rules.state import VerificationState

MAX_DELTA = 0.01


@dataclass
class AuditedPopulation:
    """A registered population; ``said``: its entry, for policies to agree with."""

    name: str
    terms: Terms
    said: dict[str, Any]
    budget: AuditedBudget
    open: bool = True


class RegisteredLog(AuditedLog):
    """A site's ledger, as far as what it registers; reservations are checked against that."""

    role = "ledger"
    called = "site"

    def __init__(self, state: VerificationState, member: AuditedMember, wanted: set[int]) -> None:
        super().__init__(state, member, wanted)
        self.populations: dict[str, AuditedPopulation] = {}
        self._first_plans = FirstPlans()
        self.setting = ""
        #: Other ledgers that keep a budget of the same people, by the site's word.
        self.other_ledgers: tuple[str, ...] = ()
        self._first = ""
        self._data_sets: dict[str, str] = {}
        self._disjoint: dict[str, str] = {}
        self._policy: SitePolicy | None = None
        self._has_policy = False
        #: Of the last policy that could be read: who must sign the next one.
        self._officers: dict[str, bytes] = {}
        self._needed = 0
        self._policy_at = -1
        #: What the policy in force says of reservations, by what they depend on.
        self._refusals: dict[tuple[Any, ...], str | None] = {}
        #: Of a plan that was refused, nothing.
        self._approved: dict[str, Approval] = {}
        self._refused_at: dict[str, int] = {}
        self._refused_plans: set[str] = set()
        self._signatures: set[str] = set()
        self._order_keys = AuditedOrderKeys()
        #: Why a plan does not fit a population, by their names.
        self._fits: dict[tuple[str, str], str | None] = {}
        #: Evaluations by the metrics mechanism as it was before it had integer weights.
        self.gate_before = 0
        self._registers: dict[str, Callable[[dict[str, Any]], None]] = {
            "genesis": self._set_setting, "population": self._population,
            "data-set": self._data_set, "policy": self._policy_set,
            "plan-approved": self._plan_approved, "plan-refused": self._plan_refused,
            "budget-closed": self._budget_closed, "order-key": self._order_key,
        }  # fmt: skip

    def register(self, kind: str, predicate: dict[str, Any]) -> None:
        """Take in an entry, if it registers something.

        Args:
            kind: of the entry.
            predicate: its fields.
        """
        if kind in self._registers:
            self._registers[kind](predicate)

    def owner(self, entry: ReservedRow) -> AuditedPopulation | None:
        """Rule 3 (``population``, ``policy``, ``plan``): what a reservation names is registered.

        Returns:
            Its population, if that is.
        """
        found = self.populations.get(entry.population)
        if found is None or not found.open:
            name = show(entry.population)
            self.fault("population", f"population {name} is not registered or closed")
        if self._data_sets.get(entry.data_set) != entry.population:
            name = show(entry.data_set)
            self.fault("population", f"data set {name} is not one of the population")
        if not self._has_policy:
            self.fault("policy", "a reservation before a policy")
        if entry.plan not in self._approved:
            self.fault("plan", "a reservation for a plan that is not approved")
        return found

    def check_policy(self, entry: ReservedRow, owner: AuditedPopulation | None) -> None:
        """Rule 8 (``policy``): a reservation keeps to the policy in force.

        Args:
            entry: the reservation.
            owner: its population, if that is registered.
        """
        if self._policy is None:
            return
        approval = self._approved.get(entry.plan, Approval())
        whose = "" if owner is None else owner.name
        asked = (entry.plan, whose, entry.data_set, entry.keyid, approval)
        if asked not in self._refusals:
            self._refusals[asked] = self._misfit_of_terms(self._policy, entry, owner) or (
                self._policy.refusal(
                    entry, self.state.plans.get(entry.plan), approval, self._order_keys
                )
            )
        if (found := self._refusals[asked]) is not None:
            self.fault("policy", found + NEW_RULE)

    def _misfit_of_terms(
        self, policy: SitePolicy, entry: ReservedRow, owner: AuditedPopulation | None
    ) -> str | None:
        """Return in what a policy has population or data set otherwise than the ledger."""
        name = entry.data_set
        if owner is not None and not policy.registers(owner.name, owner.said):
            return f"the policy has other terms for population {show(owner.name)}"
        if owner is not None and not policy.has(name, owner.name):
            return f"the policy has data set {show(name)} as another one"
        disjoint = self._disjoint.get(name)
        if disjoint and policy.data.get(name, (None, None))[1] != disjoint:
            return f"the policy says otherwise why {show(name)} is disjoint"
        return None

    def check_plan(
        self, entry: ReservedRow, owner: AuditedPopulation | None, event: Event
    ) -> AuditedPlan | None:
        """Rule 27: the ``plan`` names the site and has such a release, and fixes its ``event``.

        Args:
            entry: the reservation.
            owner: its population, if that is registered.
            event: that it reserves.

        Returns:
            The plan if it fixes this charge.
        """
        self.state.needed.add(entry.plan)
        plan = self.state.plans.get(entry.plan)
        if plan is None:
            return None
        where = (entry.plan, "" if owner is None else owner.name)
        if where not in self._fits:
            self._fits[where] = self._misfit(plan, owner)
        if (misfit := self._fits[where]) is not None:
            self.fault("plan", misfit)
        if not plan.has(entry.purpose, entry.round, self.name):
            who = "" if plan.turns is None else " of this site"
            self.fault("plan", f"the plan has no '{entry.purpose}'{who} in round {entry.round}")
        if entry.purpose == "evaluate" and event == plan.evaluate_before != plan.evaluate:
            self.gate_before += 1
        elif event != plan.event(entry.purpose):
            self.fault("event", "the event is not the one that the plan fixes")
            return None
        return plan

    def _misfit(self, plan: AuditedPlan, owner: AuditedPopulation | None) -> str | None:
        """Rules 9 and 28: why a plan does not fit a population; None if it does."""
        if self.name not in plan.sites:
            return "the plan does not name the site"
        if owner is None:
            return None
        if self.state.may_compose(plan) and plan.overspends:
            return "the plan costs more than the epsilon that it asks for" + NEW_RULE
        size, delta = plan.sizes.get(self.name), owner.terms.delta
        if plan.budget is not None and size is not None and delta * size > 1:
            self.state.findings.note(
                f"{self.name}: delta {delta:g} of population {show(owner.name)} is above one in"
                f" {size}, the nominal size: it allows to let out one record whole"
            )
        return plan.misfit(owner.terms)

    def _set_setting(self, entry: dict[str, Any]) -> None:
        """A genesis does not name its own ledger among the other ones (``entry``)."""
        self.setting = entry["setting"]
        self.other_ledgers = tuple(entry.get("other_ledgers", ()))
        own = notes.read_vkey(entry["key"], notes.SIGNER).fingerprint
        if f"sha256:{own}" in self.other_ledgers:
            self.fault("entry", "the ledger names itself as another ledger of the same people")

    def _population(self, entry: dict[str, Any]) -> None:
        """Rules 2 and 9 (``population``): it is registered once, with a cap and a small delta."""
        name, relation = entry["population"], entry["relation"]
        cap = None if entry["epsilon"] is None else decimal(entry["epsilon"])
        if name in self.populations:
            self.fault("population", f"population {show(name)} is registered twice")
            return
        if cap is None and self.setting == "site":
            self.fault("population", f"population {show(name)} has no cap outside a simulation")
        self._first = self._first or name
        delta = decimal(entry["delta"])
        if delta > MAX_DELTA:
            self.fault("population", f"the delta of population {show(name)} is above {MAX_DELTA:g}"
                       + NEW_RULE)  # fmt: skip
        terms = Terms(entry["unit"], relation, cap, delta, entry["max_records"])
        said = {key: entry[key] for key in TERMS}
        budget = AuditedBudget(cap, delta, relation, self._first_plans)
        self.populations[name] = AuditedPopulation(name, terms, said, budget)

    def _data_set(self, entry: dict[str, Any]) -> None:
        """Rule 2 (``population``): it is registered once, of the first population or apart."""
        name, population = entry["data_set"], entry["population"]
        if population not in self.populations:
            self.fault("population", f"data set {show(name)} is of an unregistered population")
        if name in self._data_sets:
            self.fault("population", f"data set {show(name)} is registered twice")
            return
        if (population == self._first) != (entry["disjoint"] == ""):
            self.fault(
                "population",
                f"data set {show(name)} must share the first population, with 'disjoint' empty, or"
                " say why its people are in no other",
            )
        self._data_sets[name], self._disjoint[name] = population, entry["disjoint"]

    def _plan_approved(self, entry: dict[str, Any]) -> None:
        """Rules 8, 13 and 15 (``policy``): who approved a plan, and who of them signed."""
        # A policy that lists the plan is no person.
        plan, by = entry["plan"], []
        if entry["how"] == "manual":
            by = entry["by"]
        signed = {one for one in self._approved.get(plan, Approval()).signed if one[0] in by}
        found = self._signature(entry.get("signature"), "plan-approved", plan)
        refused = self._refused_at.get(plan, -1)
        if found is not None and entry["signature"]["size"] <= refused:
            self.fault("policy", "an approval that was signed before the plan was refused")
        elif found is not None:
            signed.add(found)
        elif (
            self._officers and plan in self._refused_plans and not self._lists_since(plan, refused)
        ):
            self.fault("policy", "a plan that was refused is approved, and no officer signed")
        self._refused_plans.discard(plan)
        self._approved[plan] = Approval(tuple(by), frozenset(signed))
        self.state.referred.add(plan)
        if entry["how"] != "manual" and self._policy and not self._policy.lists(plan):
            message = "a plan is approved as one that the policy lists, and it does not"
            self.fault("policy", message + NEW_RULE)

    def _lists_since(self, plan: str, refused: int) -> bool:
        """Return whether a policy that came after a refusal lists the plan."""
        return self._policy_at > refused and self._policy is not None and self._policy.lists(plan)

    def _signature(
        self, value: dict[str, Any] | None, kind: str, subject: str
    ) -> tuple[str, bytes] | None:
        """Rule 12 (``signature``): an officer signed just this decision, and only here.

        Args:
            value: the signature of an entry, if it has one.
            kind: of the entry.
            subject: digest of the plan or the policy that it decides on.

        Returns:
            The officer's name and key; None if none signed.
        """
        if value is None:
            return None
        if value["size"] > self._here or not officers.signs(value, self.origin, kind, subject):
            self.fault("signature", "an officer's signature is not over this decision")
            return None
        if value["sig"] in self._signatures:
            self.fault("signature", "an officer's signature was used before")
            return None
        self._signatures.add(value["sig"])
        return value["name"], officers.read_key(value["key"])

    def _order_key(self, entry: dict[str, Any]) -> None:
        """Rule 16: one order key follows another; what the policy says may change with it."""
        if fault := self._order_keys.take(entry):
            self.fault(*fault)
        self._refusals.clear()

    def _plan_refused(self, entry: dict[str, Any]) -> None:
        self._approved.pop(entry["plan"], None)
        self._refused_at[entry["plan"]] = self._here
        self._refused_plans.add(entry["plan"])
        self.state.referred.add(entry["plan"])

    def _policy_set(self, entry: dict[str, Any]) -> None:
        """Rule 8 (``policy``): a policy is the site's, and has the terms of its populations."""
        self._check_officers(entry)
        self._policy_at = self._here
        self._has_policy, self._policy = True, None
        self._refusals.clear()
        try:
            policy = SitePolicy(entry["policy"])
        except (Malformed, RecursionError, TypeError) as error:
            self.fault("policy", str(error) + NEW_RULE)
            return
        wanted = "site" if self.setting == "site" else "simulation"
        if policy.site != self.name or (self.setting and policy.setting != wanted):
            self.fault("policy", "the policy is of another site or setting" + NEW_RULE)
        for name, population in self.populations.items():
            if name in policy.populations and not policy.registers(name, population.said):
                message = f"the policy has other terms for population {show(name)}"
                self.fault("policy", message + NEW_RULE)
        self._officers, self._needed = policy.officers, policy.approvers
        self._policy = policy

    def _check_officers(self, entry: dict[str, Any]) -> None:
        """Rule 14 (``policy``): enough officers of the policy in force signed the next one."""
        digest = "sha256:" + SUBJECTS["policy"][1](entry)
        signed = set()
        for value in entry.get("signatures", ()):
            found = self._signature(value, "policy", digest)
            if found is not None and value["size"] <= self._policy_at:
                self.fault("policy", "a policy that was signed before the one in force was noted")
            elif found is not None:
                signed.add(found)
        count = sum(pair in signed for pair in self._officers.items())
        if self._officers and count < self._needed:
            self.fault(
                "policy",
                f"the policy was changed, and {count} of {self._needed} officers of the one before"
                " signed",
            )

    def _budget_closed(self, entry: dict[str, Any]) -> None:
        """Rule 3 (``population``): from here on nothing is reserved of a population."""
        population = self.populations.get(entry["population"])
        if population is None or not population.open:
            self.fault("population", "'budget-closed' is of no open population")
            return
        population.open = False
