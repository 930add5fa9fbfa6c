"""Derive from the operator's decisions who approved a plan, and why it may not run now.

The functions are pure. The rules are those of docs/reference/policy.md;
:class:`~privet.client.admission.AdmissionControl` holds orders to them, and ``privet budget``
prints the result beforehand.

If the policy has ``[officers]``, an approval counts if the officer's own key signed it
(:mod:`privet.privacy.evidence.officers`). Otherwise names are not authenticated: a holder of the
ledger's key can note any name. Privet then only prevents that one person counts as two by another
spelling.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from privet.common.errors import PolicyError
from privet.privacy.accounting.units import Relation, Unit, cap_in_words
from privet.privacy.evidence.ledger_state import Budget, LedgerState
from privet.privacy.evidence.officers import ssh_key
from privet.privacy.person_names import same_person, tidy
from privet.privacy.policy import Policy

LISTED_BY = "policy sha256:"
"""Begins the name under which a plan is noted as approved that the policy lists."""


def people(names: Iterable[str]) -> int:
    """Return how many different people these names are; a policy that lists a plan is none."""
    return len({same_person(name) for name in persons(names)} - {""})


def persons(names: Iterable[str]) -> list[str]:
    """Return the names of people, without the mark of a policy that listed the plan."""
    return [name for name in names if not name.startswith(LISTED_BY)]


def joined(names: Iterable[str], name: str) -> list[str]:
    """Add a person to a list of names; keep the noted spelling of one who is in it.

    Args:
        names: of the people so far.
        name: of the person to add.
    """
    known = persons(names)
    if same_person(name) in map(same_person, known):
        return known
    return [*known, tidy(name)]


def approval_fault(
    policy: Policy, ledger_state: LedgerState, plan: str, policy_file: Path | None = None
) -> str | None:
    """Return why a plan (by digest) is not approved, with the command that approves it; or None.

    Args:
        policy: of the site.
        ledger_state: state of its ledger.
        plan: digest, with the noise calibrated.
        policy_file: file of the policy, for the command; None leaves it out.
    """
    allow = policy.allow
    if plan in ledger_state.refused_plans:
        return f"the operator refused this plan ({', '.join(ledger_state.refused_plans[plan])})"
    if plan in allow.plans:
        return None
    if allow.approval != "manual":
        return f'the policy has approval = "{allow.approval}" and does not list {plan} under plans'
    count = approvers(policy, ledger_state, plan)
    if count >= allow.approvers:
        return None
    where = f" --policy {policy_file}" if policy_file is not None else ""
    signed = " by officers' keys" if policy.officers else ""
    return (
        f"not approved yet{signed} ({count} of {allow.approvers}): review the plan, then "
        f"`privet client approve {plan}{where}`"
    )


def approvers(policy: Policy, ledger_state: LedgerState, plan: str) -> int:
    """Return how many people approved a plan; if the policy has officers, by their signatures.

    Args:
        policy: of the site.
        ledger_state: state of its ledger.
        plan: digest, with the noise calibrated.
    """
    names = ledger_state.approvals.get(plan, ())
    if not policy.officers:
        return people(names)
    signed = ledger_state.signed.get(plan, set())
    return sum((name, ssh_key(key)) in signed for name, key in policy.officers.items())


def waits_for_approval(policy: Policy, ledger_state: LedgerState, plan: str) -> bool:
    """Whether nothing but the approval of people is missing.

    That is so if nobody refused the plan, the policy lets people approve, and too few of them did.

    Args:
        policy: of the site.
        ledger_state: state of its ledger.
        plan: digest, with the noise calibrated.
    """
    return (
        plan not in ledger_state.refused_plans
        and policy.allow.approval == "manual"
        and approval_fault(policy, ledger_state, plan) is not None
    )


def how_to_open(ledger_state: LedgerState, plan: str) -> str:
    """Return the command that opens a plan again after its failures closed it.

    Args:
        ledger_state: state of the site's ledger.
        plan: digest of the plan.
    """
    if ledger_state.setting == "site":
        return f"`privet client approve {plan}`"
    return "`privet simulate` with --open-again"


def standing_faults(policy: Policy, ledger_state: LedgerState, data_set: str) -> list[str]:
    """Return why the site would reserve nothing for a data set now, whatever the plan.

    Args:
        policy: of the site.
        ledger_state: state of its ledger.
        data_set: name of one of the policy's data sets.

    Raises:
        PolicyError: if the policy has another name for the population than the ledger.
    """
    name = policy.data[data_set].population
    require_known(policy, ledger_state, name)
    faults = []
    if ledger_state.withdrawn:
        faults.append("the site has withdrawn")
    elif ledger_state.paused:
        faults.append("the site is paused; `privet client pause --end` ends that")
    population = ledger_state.populations.get(name)
    if population is not None and population.closed:
        faults.append(f"the budget of population '{name}' was closed permanently")
    if population is not None and population.budget != budget_of(policy, name):
        faults.append(
            f"the ledger holds population '{name}' with {in_words(population.budget)}, the policy "
            f"says {in_words(budget_of(policy, name))}: these terms are for its life"
        )
    if ledger_state.data_sets.get(data_set, name) != name:
        faults.append(
            f"data set '{data_set}' belongs to population '{ledger_state.data_sets[data_set]}' for "
            "its life"
        )
    if not policy.allow.coordinators:
        faults.append(
            "nobody may ask: `coordinators` under [allow] is empty; it takes the fingerprint of "
            "the coordinator's order key"
        )
    return faults


def require_known(policy: Policy, ledger_state: LedgerState, population: str) -> None:
    """Check that a population is the ledger's, or really a new one beside the ledger's own.

    Args:
        policy: of the site.
        ledger_state: state of its ledger.
        population: name of one of the policy's populations.

    Raises:
        PolicyError: if it seems to be one of the ledger's under another name, whose budget would
            start at zero (H32).
    """
    gone = [name for name in ledger_state.populations if name not in policy.populations]
    if not ledger_state.populations or population in ledger_state.populations:
        return
    if gone or population == policy.first_population:
        known = ", ".join(f"'{name}'" for name in ledger_state.populations)
        raise PolicyError(
            f"population '{population}' is not in the ledger, which has {known}. A population is "
            "not renamed: its budget would begin at zero (H32). Write the ledger's name into the "
            "policy"
        )


def budget_of(policy: Policy, population: str) -> Budget:
    """Return a population's budget as the policy sets it.

    Args:
        policy: of the site.
        population: name of one of the policy's populations.
    """
    found = policy.populations[population]
    return Budget(
        found.epsilon, found.delta, Unit(found.unit), Relation(found.relation), found.max_records
    )


def in_words(budget: Budget) -> str:
    """Return a budget's terms as a phrase."""
    cap = cap_in_words(budget.epsilon)
    text = f"{cap}, δ {budget.delta:g}, per {budget.unit}, {budget.relation}"
    return text if budget.max_records == 1 else f"{text}, {budget.max_records} records"
