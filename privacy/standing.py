"""What a ledger's runs were charged and what their plans may still do, from its papers.

The plans themselves are kept beside the entries; without one nobody can say what its run
may spend.
"""

from __future__ import annotations

import functools
import json

from privet.common.errors import LedgerError
from privet.common.plan import MAX_ATTEMPTS, Plan
from privet.privacy.book import Book
from privet.privacy.events import Counts
from privet.privacy.filter import Charges, History
from privet.privacy.program import one_round, planned
from privet.privacy.store import Store


def history_of(store: Store, book: Book, population: str) -> History:
    """Return what was charged to ``population``, by run; nothing if it is not registered.

    Raises:
        LedgerError: if the plan of a run is not kept, or is another one.
    """
    if population not in book.populations:
        return {}
    found = {}
    for run, counts in book.charges(population).items():
        plan = book.plan_of(run)
        events = plan_events(store, plan)
        if events is None:
            raise LedgerError(
                f"{store.path}: plan {plan} of run '{run}' is not kept beside the "
                "ledger, so nobody can say what it may spend; keep it again (Ledger.keep)"
            )
        found[run] = Charges(tuple(counts.items()), *events)
    return found


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


@functools.lru_cache(maxsize=256)
def _events_of(plan: str, text: str) -> tuple[Counts, Counts]:
    found = _plan(plan, text)
    return planned(found), one_round(found)


@functools.lru_cache(maxsize=16)
def _plan(plan: str, text: str) -> Plan:
    found = Plan.parse(json.loads(text), where=plan)
    if found.digest != plan:
        raise LedgerError(f"the plan that is kept as {plan} is another one, {found.digest}")
    return found
