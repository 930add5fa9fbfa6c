"""The plans that a site was offered or decided on: their content, cost and changes.

Plans come from a coordinator. This module runs none of their code, prices none that the policy
forbids (a plan may be made so that its accounting is expensive), and cuts their texts; the caller
that prints them uses :mod:`privet.common.printable` first.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from dataclasses import astuple, dataclass, field, replace
from pathlib import Path
from typing import Any

from privet.client.data.source import misfit
from privet.client.link.offers import Offer, Offers
from privet.client.operator.approval import approval_fault, waits_for_approval
from privet.client.operator.forecast import Forecast, Place
from privet.common.errors import InputError, LedgerError
from privet.common.plan import Plan

OFFERED, WAITS, APPROVED, REFUSED, CLOSED = (
    "offered", "waits-for-approval", "approved", "refused", "closed",
)  # fmt: skip
"""States of a plan. ``offered``: people cannot approve it, the policy is against it."""
MAX_CHANGES, MAX_VALUE_CHARS, MAX_WHY_CHARS = 200, 80, 500
_ABSENT = "–"


@dataclass(frozen=True)
class Change:
    """A key in which two plans differ; values as JSON text, cut."""

    key: str
    before: str
    after: str


@dataclass(frozen=True)
class Listed:
    """A plan as its site's operator sees it.

    Attributes:
        digest: of the plan.
        state: one of :data:`OFFERED`, :data:`WAITS`, :data:`APPROVED`, :data:`REFUSED`,
            :data:`CLOSED`.
        by: names of the people who approved or refused it.
        plan: None if only its digest is known, or the stored plan cannot be read.
        coordinator: the first coordinator that offered it, "" if unknown.
        also: the other coordinators that offered the same plan.
        offered: time of the last offer, in seconds since 1970; None if there was none lately.
        attempts: how many failed in a row, and how many may.
        why: a note for the operator: why it may not run, or cannot be read; "" for none.
        misfit: why the site's records do not fit an offered plan that may run; "" if they do.
        forecast: its cost; None if it is not priced.
        against: digest of the plan with which ``changes`` compares: the last approved one of the
            same name, or else of the same coordinator; "" without one.
        changes: keys in which this plan differs, at most :data:`MAX_CHANGES`.
    """

    digest: str
    state: str
    by: tuple[str, ...] = ()
    plan: Plan | None = None
    coordinator: str = ""
    also: tuple[str, ...] = ()
    offered: float | None = None
    attempts: tuple[int, int] = (0, 1)
    why: str = ""
    misfit: str = ""
    forecast: Forecast | None = None
    against: str = ""
    changes: tuple[Change, ...] = field(default=())

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values; an unknown one is null."""
        plan, cost = self.plan, self.forecast
        failed, most = self.attempts
        privacy = plan and plan.privacy
        value: dict[str, Any] = {
            "plan": self.digest,
            "state": self.state,
            "by": list(self.by),
            "name": plan and _cut(plan.name),
            "coordinator": self.coordinator or None,
            "also": list(self.also),
            "offered": None if self.offered is None else int(self.offered),
            "epsilon": privacy and privacy.epsilon,
            **dict.fromkeys(("data_set", "population", "cost", "spent", "left_after", "cap")),
            "fits": None,
            "why": _cut(self.why or self.misfit, MAX_WHY_CHARS) or None,
            "against": self.against or None,
            "changes": [vars(change) for change in self.changes],
        }
        if cost is not None:
            shown = cost.to_dict()
            taken = ("data_set", "population", "spent", "left_after", "cap")
            value |= {name: shown[name] for name in taken}
            value |= {"cost": cost.total.to_dict(), "fits": cost.fits}
        if failed:
            closed = failed >= most
            value |= {"failed_attempts": failed, "max_attempts": most, "closed": closed}
        return value


class Catalogue:
    """The plans that a site was offered and decided on.

    Args:
        place: the site's policy and ledger.
        home: its folder, with the offers.
    """

    def __init__(self, place: Place, home: Path) -> None:
        self._place = place
        self._offers = {offer.digest: offer for offer in Offers(home).all()}

    def plans(self) -> list[Listed]:
        """Return all plans, without price: offers first, the newest first, then older decisions."""
        ledger_state = self._place.state
        decided = sorted({*ledger_state.approvals, *ledger_state.refused_plans} - set(self._offers))
        return [self.plan(digest) for digest in (*self._offers, *decided)]

    def waiting(self) -> list[Listed]:
        """Return the offered plans that wait for approval."""
        return [one for one in self.plans() if one.state == WAITS and one.offered is not None]

    def plan(self, digest: str) -> Listed:
        """Return one plan by its digest, without price."""
        ledger_state, policy = self._place.state, self._place.policy
        offer = self._offers.get(digest)
        plan, why = self._text(digest, offer)
        attempts = self._place.attempts(digest)
        by = ledger_state.refused_plans.get(digest) or ledger_state.approvals.get(digest, ())
        forbidden = _forbidden(self._place, plan)
        if digest in ledger_state.refused_plans:
            state = REFUSED
        elif attempts[0] >= attempts[1]:
            state = CLOSED
        elif approval_fault(policy, ledger_state, digest) is None:
            state = APPROVED
        elif waits_for_approval(policy, ledger_state, digest) and not forbidden:
            state = WAITS
        else:
            state = APPROVED if by and offer is None else OFFERED
            forbidden = forbidden or approval_fault(policy, ledger_state, digest) or ""
        listed = Listed(digest, state, by, plan, attempts=attempts, why=why or forbidden)
        if offer is None:
            return listed
        listed = replace(
            listed, coordinator=offer.coordinator, also=offer.also, offered=offer.offered
        )
        if plan is None or state not in (WAITS, APPROVED):
            return listed
        return replace(listed, misfit=misfit(policy, plan))

    def priced(self, listed: Listed) -> Listed:
        """Return a plan with its price, and with its changes against the last approved one.

        A plan that was refused, that the policy forbids, or whose noise is not set has no price.
        """
        base = self._base(listed)
        if listed.plan is not None and base is not None:
            changes = tuple(changes_between(base.to_dict(), listed.plan.to_dict()))
            listed = replace(listed, against=base.digest, changes=changes)
        if listed.plan is None or listed.state == REFUSED or _forbidden(self._place, listed.plan):
            return listed
        try:
            data_set = self._place.policy.data_set_for(listed.plan)
            cost = Forecast(listed.plan, listed.plan, self._place, data_set)
        except (InputError, LedgerError) as error:
            return replace(listed, why=listed.why or f"it cannot be priced: {error}")
        return replace(listed, forecast=cost)

    def _text(self, digest: str, offer: Offer | None) -> tuple[Plan | None, str]:
        if offer is not None and offer.plan is not None:
            return offer.plan, ""
        try:
            kept = self._place.kept(digest)
        except (InputError, ValueError, RecursionError) as error:
            return None, str(error)
        return kept, "" if kept is not None or offer is None else offer.fault

    def _base(self, listed: Listed) -> Plan | None:
        """Return the last approved plan of the same name, or else of the same coordinator."""
        if listed.plan is None:
            return None
        same: Plan | None = None
        for digest in reversed(self._place.state.approvals):
            if digest == listed.digest:
                continue
            offer = self._offers.get(digest)
            plan, _ = self._text(digest, offer)
            if plan is None:
                continue
            if plan.name == listed.plan.name:
                return plan
            # Of a plan that is offered no more the coordinator's name is not kept.
            if same is None and (offer is None or offer.coordinator == listed.coordinator):
                same = plan
        return same


def changes_between(before: dict[str, Any], after: dict[str, Any]) -> Iterator[Change]:
    """Yield the keys in which two plans, or two policies, differ, at most :data:`MAX_CHANGES`.

    Args:
        before: the approved one, as JSON values.
        after: the one to decide on, as JSON values.
    """
    old, new = (dict(_leaves(value)) for value in (before, after))
    for one in itertools.islice(_differing(old, new), MAX_CHANGES):
        yield Change(*map(_cut, astuple(one)))


def policy_changes(before: dict[str, Any], after: dict[str, Any]) -> Iterator[Change]:
    """Yield every difference of two policies, item by item; officers, permissions, populations
    first.

    Args:
        before: the policy in force, as it is published.
        after: the policy to sign.
    """
    old, new = (dict(_items(value)) for value in (before, after))
    first = ("officers", "allow", "populations")
    yield from sorted(_differing(old, new), key=lambda one: not one.key.startswith(first))


def _differing(old: dict[str, str], new: dict[str, str]) -> Iterator[Change]:
    for key in sorted({*old, *new}):
        values = old.get(key, _ABSENT), new.get(key, _ABSENT)
        if values[0] != values[1]:
            yield Change(key, *values)


def _items(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Yield the key and the value, as JSON, of all that is no table; each item of a list, too."""
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from _items(item, _below(path, key))
    elif isinstance(value, list) and value:
        for item in value:
            yield f"{path}[{json.dumps(item, ensure_ascii=False)}]", "there"
    else:
        yield path, json.dumps(value, ensure_ascii=False)


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Yield the key and the value, as JSON, of all that is no table; lists of named tables, too."""
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from _leaves(item, _below(path, key))
    elif isinstance(value, list) and value and all(_is_named(item) for item in value):
        for item in value:
            yield from _leaves(item, f"{path}[{item['name']}]")
    else:
        yield path, json.dumps(value, ensure_ascii=False)


def _below(path: str, key: object) -> str:
    return f"{path}.{key}" if path else str(key)


def _is_named(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("name"), str)


def _forbidden(place: Place, plan: Plan | None) -> str:
    """Return why the policy forbids a plan, or ""."""
    if plan is None:
        return ""
    try:
        return place.policy.fault(plan, data_set=place.policy.data_set_for(plan)) or ""
    except InputError as error:
        return str(error)


def _cut(text: str, most: int = MAX_VALUE_CHARS) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"
