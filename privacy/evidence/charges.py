"""What a ledger's runs were charged and what their plans may still do, from its papers.

The plans themselves are kept beside the entries; without one nobody can say what its run
may spend.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator

from privet.common.canonical import digest_json
from privet.common.errors import LedgerError
from privet.common.plan import MAX_ATTEMPTS, Plan
from privet.privacy.accounting import first_plans
from privet.privacy.accounting.events import Counts
from privet.privacy.accounting.plan_events import one_round, planned
from privet.privacy.accounting.renyi_filter import Charges, History
from privet.privacy.accounting.units import Relation
from privet.privacy.evidence.ledger_state import LedgerState
from privet.privacy.evidence.store import Store


def history_of(store: Store, state: LedgerState, population: str) -> History:
    """Return what was charged to ``population``, by run; nothing if it is not registered.

    Raises:
        LedgerError: if the plan of a run is not kept, or is another one.
    """
    if population not in state.populations:
        return {}
    found: dict[str, Charges] = {}
    for run, counts in state.charges(population).items():
        plan = state.plan_of(run)
        events = plan_events(store, plan)
        if events is None:
            raise LedgerError(
                f"{store.path}: plan {plan} of run '{run}' is not kept beside the "
                "ledger, so nobody can say what it may spend; keep it again (Ledger.keep)"
            )
        relation = state.populations[population].budget.relation
        composed = bool(found) or is_composed(store, state, population, plan, events, relation)
        found[run] = Charges(tuple(counts.items()), *events, composed)
    return found


def is_composed(
    store: Store,
    state: LedgerState,
    population: str,
    plan: str,
    events: tuple[Counts, Counts],
    relation: Relation,
) -> bool | None:
    """Return whether a plan is composed as the first one of a population, now or if it became so.

    None where it depends on the rounding of costs (privacy/accounting/first_plans.py).

    Args:
        store: has the other plans.
        state: of the ledger; the population need not be registered.
        population: whose first plan it is.
        plan: its digest.
        events: :func:`plan_events` of it.
        relation: of the population.
    """

    def costs() -> Iterator[tuple[tuple[str, str], tuple[int, int]]]:
        for owner, name in state.first_plans:
            found = plan_events(store, name)
            other = state.populations[owner].budget.relation
            yield (owner, name), first_plans.seconds(*found, other) if found else (0, 0)
        yield (population, plan), first_plans.seconds(*events, relation)

    return first_plans.composed(costs())[population, plan]


def plan_events(store: Store, plan: str) -> tuple[Counts, Counts] | None:
    """Return all that a run of ``plan`` (a digest) may do, and what one more attempt adds.

    None if the plan is not kept.

    Raises:
        LedgerError: if what is kept under the digest is another plan.
    """
    text = store.paper("plan", plan)
    return None if text is None else _events_of(plan, text)


def plan_attempts(store: Store, plan: str) -> int:
    """Return how many failures in a row close ``plan`` (a digest); the default if it is not kept.

    Raises:
        LedgerError: if what is kept under the digest is another plan.
    """
    text = store.paper("plan", plan)
    return MAX_ATTEMPTS if text is None else _plan(plan, text).training.max_attempts


@functools.lru_cache(maxsize=2048)
def _events_of(plan: str, text: str) -> tuple[Counts, Counts]:
    found = _plan(plan, text)
    return planned(found), one_round(found)


@functools.lru_cache(maxsize=16)
def _plan(plan: str, text: str) -> Plan:
    value = json.loads(text)
    if (digest := digest_json(value)) != plan:
        raise LedgerError(f"the plan that is kept as {plan} is another one, {digest}")
    # Clipping has no effect on what is charged, and old plans name ways that were removed.
    value.get("training", {}).pop("clipping", None)
    return Plan.parse(value, where=plan)
