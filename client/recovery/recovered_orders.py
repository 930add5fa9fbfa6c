"""Charge the orders that a lost part of a ledger may have answered."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from privet.client.operator.approval import LISTED_BY
from privet.common.canonical import digest_json
from privet.common.code import code_digest
from privet.common.errors import LedgerError, RefusedError
from privet.common.order import Order
from privet.common.plan import Plan
from privet.privacy.accounting.plan_events import gate_event, training_event
from privet.privacy.evidence.copies.copy_file import CopyFile
from privet.privacy.evidence.ledger import Ledger, Request
from privet.privacy.evidence.statement import Entry
from privet.privacy.policy import Policy


@dataclass(frozen=True)
class Counted:
    """The outcome of an order that is newer than the copies.

    Attributes:
        slot: of the order.
        entry: number of its reservation; None if none was written.
        why: the reason for none: the site would have refused the order.
    """

    slot: str
    entry: int | None
    why: str = ""


def count_orders(
    ledger: Ledger, files: Sequence[CopyFile], policy: Policy | None
) -> Iterator[Counted]:
    """Charge each order that the ledger does not answer and that the site may have answered.

    Args:
        ledger: rebuilt, under its new key.
        files: the copies, with orders and their plans.
        policy: the site's, which decides the data set of a plan; None if it is lost.

    Raises:
        LedgerError: if an order's plan is not among the files, or fits no data set for certain.
    """
    if ledger.state.withdrawn:
        return
    plans = {plan.digest: plan for file in files for plan in file.plans}
    orders = {(order.keyid, order.digest): order for file in files for order in file.orders}
    # What the lost part held was answered before or after the order key was replaced: those of the
    # old key count as if before, for a run that it began is charged in either case.
    left = sorted(orders.values(), key=lambda o: (o.run, o.purpose, o.round, o.attempt))
    for order in [one for one in left if _may_ask_now(ledger, one)]:
        left.remove(order)
        if not ledger.state.is_answered(order):
            yield _count(ledger, order, plans, policy)
    _follow_order_keys(ledger, files)
    for order in left:
        if not ledger.state.is_answered(order):
            yield _count(ledger, order, plans, policy)


def _may_ask_now(ledger: Ledger, order: Order) -> bool:
    return may_ask((ledger.state.policy or {}).get("allow", {}), f"sha256:{order.keyid}", ledger)


def _follow_order_keys(ledger: Ledger, files: Sequence[CopyFile]) -> None:
    """Note the handovers that the lost part of the ledger may have held.

    Without them, orders of the newer key that the site answered would count as refused.
    """
    allow = (ledger.state.policy or {}).get("allow", {})
    for one in (one for file in files for one in file.order_keys):
        if may_ask(allow, one.old.fingerprint, ledger) and not ledger.state.order_keys.fault(one):
            ledger.follow(one)


def _count(ledger: Ledger, order: Order, plans: dict[str, Plan], policy: Policy | None) -> Counted:
    plan = plans.get(order.plan)
    if plan is None:
        raise LedgerError(f"order {order.slot}: its plan {order.plan} is in no copy")
    try:
        _require_may_ask(ledger, order, plan)
        data_set = ledger.state.data_set_of(order.run) or _data_set(ledger, plan, policy)
        request = Request(
            order,
            gate_event(plan) if order.purpose == "evaluate" else training_event(plan),
            data_set,
            ledger.state.code_of(order.run) or code_digest(plan),
            _tests_of(ledger, order.run),
        )
        ledger.keep("plan", plan.digest, plan.to_dict())
        with _open_meanwhile(ledger):
            reservation = ledger.reserve(request)
    except RefusedError as no:
        return Counted(order.slot, None, str(no))
    ledger.abort(reservation, data_opened=True, reason="recovered")
    return Counted(order.slot, reservation.number)


def _require_may_ask(ledger: Ledger, order: Order, plan: Plan) -> None:
    """Check that the site would have taken the order, by the policy and approvals in the ledger.

    Raises:
        RefusedError: if not: then nothing was spent for it.
    """
    allow = (ledger.state.policy or {}).get("allow", {})
    key = f"sha256:{order.keyid}"
    if not may_ask(allow, key, ledger) or ledger.state.is_replaced(key, order.run):
        raise RefusedError("its coordinator may not ask here")
    if order.round > plan.last_round:
        raise RefusedError(f"the plan has {plan.last_round} rounds")
    if not plan.takes_part(order.site, order.round):
        raise RefusedError(f"the plan lets others train in round {order.round}")
    if order.plan in ledger.state.approvals:
        return
    if order.plan not in allow.get("plans", ()):
        raise RefusedError("its plan was not approved")
    by = f"{LISTED_BY}{digest_json(ledger.state.policy)[7:19]}"
    ledger.approve(order.plan, [by], "listed")


def may_ask(allow: dict[str, Any], key: str, ledger: Ledger) -> bool:
    """Whether the policy in a ledger accepts orders of an order key.

    Args:
        allow: the policy's section ``[allow]``.
        key: fingerprint of the key.
        ledger: holds the handovers of order keys.
    """
    listed = allow.get("coordinators", ())
    follows = allow.get("key_rotation") != "listed"
    return key in listed or (follows and ledger.state.order_keys.leads(listed, key))


def _data_set(ledger: Ledger, plan: Plan, policy: Policy | None) -> str:
    if len(ledger.state.data_sets) == 1:
        return next(iter(ledger.state.data_sets))
    if policy is None:
        raise LedgerError(
            f"the site has several data sets, and its policy says which one plan {plan.digest} "
            "fits: put site.toml into the folder first. Nothing was written"
        )
    return policy.data_set_for(plan)


def _tests_of(ledger: Ledger, run: str) -> tuple[str, ...]:
    """Return the tests that a run passed; its code stays the same, and so do they."""
    for leaf in ledger.log.store.leaves():
        entry = Entry.read(leaf)
        if entry.kind == "reserved" and entry.predicate["run"] == run:
            return tuple(entry.predicate["self_tests"])
    return ()


@contextmanager
def _open_meanwhile(ledger: Ledger) -> Iterator[None]:
    """End a pause for an entry: the site may have done so in the part that was lost."""
    paused = ledger.state.paused
    if paused:
        ledger.resume("recovery")
    try:
        yield
    finally:
        if paused:
            ledger.pause("recovery")
