"""The status of a site: budgets spent, plans decided, and the witnesses of its ledger."""

from __future__ import annotations

from typing import Any

from privet.client.operator.approval import budget_of, in_words
from privet.privacy.accounting.units import PrivacyLoss
from privet.privacy.evidence.ledger import Ledger
from privet.privacy.evidence.ledger_state import LedgerState
from privet.privacy.policy import Policy


def site_standing(policy: Policy, ledger: Ledger) -> dict[str, Any]:
    """Return the state of a site in JSON values, from its ledger and its policy.

    Args:
        policy: of the site.
        ledger: its own.
    """
    ledger_state, log = ledger.state, ledger.log
    cosigned = log.cosigned()
    to_come = [name for name in policy.populations if name not in ledger_state.populations]
    registered = [_registered(ledger, name) for name in ledger_state.populations]
    remarks = [
        f"ε of population '{item['population']}' is {item['remark']}"
        for item in registered
        if item.get("remark")
    ]
    state = "open"
    if ledger_state.withdrawn:
        state = "withdrawn"
    elif ledger_state.paused:
        state = "paused"
    return {
        "site": policy.site,
        "state": state,
        "entries": len(log),
        "witnessed": cosigned.size if cosigned else 0,
        "origin": log.origin,
        "fingerprint": log.first_key.fingerprint,
        "key": log.key.fingerprint,
        "earlier_keys": [key.fingerprint for key in log.keys[:-1]],
        "populations": [*registered, *(_to_come(policy, name) for name in to_come)],
        "plans": decided(ledger),
        "open": [item.slot for item in ledger.pending()],
        "notes": [*_notes(policy, ledger_state), *remarks],
    }


def decided(ledger: Ledger) -> list[dict[str, Any]]:
    """Return the plans that were approved or refused, by whom, and how often they failed."""
    both = (("approved", ledger.state.approvals), ("refused", ledger.state.refused_plans))
    found: list[dict[str, Any]] = []
    for state, plans in both:
        for plan, by in sorted(plans.items()):
            failed, most = ledger.attempts(plan)
            value: dict[str, Any] = {"plan": plan, "state": state, "by": list(by)}
            if failed:
                value |= {"failed_attempts": failed, "max_attempts": most, "closed": failed >= most}
            found.append(value)
    return found


def _registered(ledger: Ledger, name: str) -> dict[str, Any]:
    population, spent = ledger.state.populations[name], ledger.spent(name)
    cap = population.budget.epsilon
    return {
        "population": name,
        **spent.to_dict(),
        "cap": cap,
        "cap_minus_spent": None if cap is None else max(0.0, cap - spent.epsilon),
        "runs": sum(bool(events) for events in population.charges.values()),
        "closed": population.closed,
        "registered": True,
    }


def _to_come(policy: Policy, name: str) -> dict[str, Any]:
    """Return a population that only the policy names: nothing of it is spent."""
    limits = policy.populations[name]
    return {
        "population": name,
        **PrivacyLoss(0.0, limits.delta, *policy.terms(name)).to_dict(),
        "cap": limits.epsilon,
        "cap_minus_spent": limits.epsilon,
        "runs": 0,
        "closed": False,
        "registered": False,
    }


def _notes(policy: Policy, ledger_state: LedgerState) -> list[str]:
    notes = []
    for name in policy.populations:
        if name not in ledger_state.populations:
            notes.append(
                f"population '{name}' is not in the ledger yet: it is registered, for life, when "
                "the site's client first works under this policy"
            )
        elif (held := ledger_state.populations[name].budget) != budget_of(policy, name):
            notes.append(
                f"the ledger holds population '{name}' with {in_words(held)}, the policy says "
                f"{in_words(budget_of(policy, name))}: the ledger's terms are for its life"
            )
    notes += [
        f"population '{name}' is in the ledger and not in the policy"
        for name in ledger_state.populations
        if name not in policy.populations
    ]
    return notes
