"""What a site registers in its ledger: populations, data sets, policies, decisions on plans."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from privet.privacy.audit.verify.budget import Budget
from privet.privacy.audit.verify.case import Case
from privet.privacy.audit.verify.log import Log
from privet.privacy.audit.verify.plans import Terms
from privet.privacy.audit.verify.policy import TERMS, SitePolicy
from privet.privacy.audit.verify.result import NEW_RULE, show
from privet.privacy.audit.verify.roster import Member
from privet.privacy.audit.verify.strict import Malformed, decimal

MOST_DELTA = 0.01


@dataclass
class Population:
    """A registered population; ``said``: its entry, for policies to agree with."""

    name: str
    terms: Terms
    said: dict[str, Any]
    budget: Budget
    open: bool = True


class RegisteredLog(Log):
    """A site's ledger, as far as what it registers; reservations are held against that."""

    role = "ledger"
    called = "site"

    def __init__(self, case: Case, member: Member, wanted: set[int]) -> None:
        super().__init__(case, member, wanted)
        self.populations: dict[str, Population] = {}
        self.setting = ""
        self._first = ""
        self._data_sets: dict[str, str] = {}
        self._disjoint: dict[str, str] = {}
        self._policy: SitePolicy | None = None
        self._has_policy = False
        #: What the policy in force says of reservations, by what they depend on.
        self._refusals: dict[tuple[str, ...], str | None] = {}
        #: Who approved a plan; of one that was refused, nothing.
        self._approved: dict[str, list[str]] = {}
        self._registers: dict[str, Callable[[dict[str, Any]], None]] = {
            "genesis": self._set_setting, "population": self._population,
            "data-set": self._data_set, "policy": self._policy_set,
            "plan-approved": self._plan_approved, "plan-refused": self._plan_refused,
            "budget-closed": self._budget_closed,
        }  # fmt: skip

    def register(self, kind: str, predicate: dict[str, Any]) -> None:
        """Take in an entry, if it registers something."""
        if kind in self._registers:
            self._registers[kind](predicate)

    def owner(self, population: str, data_set: str, plan: str) -> Population | None:
        """Return the population of a reservation, and check that all it names is registered."""
        found = self.populations.get(population)
        if found is None or not found.open:
            self.fault("population", f"population {show(population)} is not registered or closed")
        if self._data_sets.get(data_set) != population:
            self.fault("population", f"data set {show(data_set)} is not one of the population")
        if not self._has_policy:
            self.fault("policy", "a reservation before a policy")
        if plan not in self._approved:
            self.fault("plan", "a reservation for a plan that is not approved")
        return found

    def check_policy(self, plan: str, owner: Population | None, data_set: str, keyid: str) -> None:
        """Check a reservation against the policy in force."""
        if self._policy is None:
            return
        by = self._approved.get(plan, [])
        asked = (plan, "" if owner is None else owner.name, data_set, keyid, *by)
        if asked not in self._refusals:
            found = self._policy.refusal(plan, self.case.plans.get(plan), keyid, by)
            if owner is not None and not self._policy.registers(owner.name, owner.said):
                found = f"the policy has other terms for population {show(owner.name)}"
            elif owner is not None and not self._policy.has(data_set, owner.name):
                found = f"the policy has data set {show(data_set)} as another one"
            elif self._disjoint.get(data_set):
                said = self._policy.data.get(data_set, (None, None))[1]
                if said != self._disjoint[data_set]:
                    found = f"the policy says otherwise why {show(data_set)} is disjoint"
            self._refusals[asked] = found
        if (found := self._refusals[asked]) is not None:
            self.fault("policy", found + NEW_RULE)

    def _set_setting(self, entry: dict[str, Any]) -> None:
        self.setting = entry["setting"]

    def _population(self, entry: dict[str, Any]) -> None:
        name, relation = entry["population"], entry["relation"]
        cap = None if entry["epsilon"] is None else decimal(entry["epsilon"])
        if name in self.populations:
            self.fault("population", f"population {show(name)} is registered twice")
            return
        if cap is None and self.setting == "site":
            self.fault("population", f"population {show(name)} has no cap outside a simulation")
        self._first = self._first or name
        delta = decimal(entry["delta"])
        if delta > MOST_DELTA:
            self.fault("population", f"the delta of population {show(name)} is above {MOST_DELTA:g}"
                       + NEW_RULE)  # fmt: skip
        terms = Terms(entry["unit"], relation, cap, delta, entry["max_records"])
        said = {key: entry[key] for key in TERMS}
        self.populations[name] = Population(name, terms, said, Budget(cap, delta, relation))

    def _data_set(self, entry: dict[str, Any]) -> None:
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
                " say why its persons are in no other",
            )
        self._data_sets[name], self._disjoint[name] = population, entry["disjoint"]

    def _plan_approved(self, entry: dict[str, Any]) -> None:
        # A policy that lists the plan is no person.
        self._approved[entry["plan"]] = entry["by"] if entry["how"] == "manual" else []
        self.case.referred.add(entry["plan"])
        if entry["how"] != "manual" and self._policy and not self._policy.lists(entry["plan"]):
            message = "a plan is approved as one that the policy lists, and it does not"
            self.fault("policy", message + NEW_RULE)

    def _plan_refused(self, entry: dict[str, Any]) -> None:
        self._approved.pop(entry["plan"], None)
        self.case.referred.add(entry["plan"])

    def _policy_set(self, entry: dict[str, Any]) -> None:
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
        self._policy = policy

    def _budget_closed(self, entry: dict[str, Any]) -> None:
        population = self.populations.get(entry["population"])
        if population is None or not population.open:
            self.fault("population", "'budget-closed' is of no open population")
            return
        population.open = False
