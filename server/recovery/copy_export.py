"""Export the copy of a ledger for a site that lost it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from privet.common.errors import InputError, PrivetError
from privet.common.order import Order
from privet.common.plan import Plan
from privet.privacy.evidence.copies.copy_file import CopyFile
from privet.privacy.evidence.order_keys import KeyHandover
from privet.privacy.evidence.signed_note import COSIGN, SIGN, Checkpoint, Key
from privet.privacy.evidence.statement import Entry
from privet.privacy.evidence.store import Store
from privet.server.evidence.journal import CHECKPOINT, FILE, ORDER
from privet.server.membership.order_key_files import handovers
from privet.server.membership.registry import MemberRegistry

_UNRESOLVED = ("no-reply", "failed")
"""Answers after which a site may have been charged."""


def copy_of(federation: MemberRegistry, site: str) -> CopyFile:
    """Return the copy of a site's ledger, with heads, and orders that it may have answered since.

    Args:
        federation: the opened folder, with the passphrase of its keys.
        site: name of the member that lost its ledger.

    Returns:
        The encrypted copy, which only the site can read; the newest cosigned heads of its log; and
        the orders, with their plans, that the journals do not show as answered.

    Raises:
        InputError: if the site is not enrolled, or no copy was kept.
    """
    record = federation.members().get(site)
    if record is None or not record.ledger:
        raise InputError(f"site '{site}' is not enrolled")
    ledger = Key.parse(record.ledger, type_=SIGN)
    try:
        pieces = federation.copies().all(ledger.name)
    except InputError as error:
        raise InputError(
            f"{error}. One is kept of each site whose policy allows it (ledger_copy), from its "
            "next run on"
        ) from None
    found = _Journals(federation, site, ledger.name)
    seen = federation.witness().seen.get(ledger.name)
    heads = list(found.heads)
    if seen is not None:
        heads.append(Checkpoint.parse(seen.note))
    orders = found.unresolved()
    wanted = {order.plan for order in orders}
    return CopyFile(
        ledger.name,
        federation.name,
        Key.parse(record.witness, type_=COSIGN),
        federation.order_key(),
        tuple(pieces),
        tuple(_newest(heads)),
        tuple(plan for digest, plan in found.plans.items() if digest in wanted),
        tuple(orders),
        order_keys=tuple(KeyHandover.from_json(one) for one in handovers(federation.keys)),
    )


class _Journals:
    """The facts about one site in the journals of all runs."""

    def __init__(self, federation: MemberRegistry, site: str, log: str) -> None:
        self._site, self._log = site, log
        self.heads: list[Checkpoint] = []
        self.plans: dict[str, Plan] = {}
        self._orders: dict[str, Order] = {}
        self._answers: dict[str, tuple[str, str]] = {}
        """By order, the answer that a round notes, and the time of its line."""
        self._witnessed: dict[str, str] = {}
        """By run, when a round last noted that the log was witnessed."""
        for path in sorted((federation.folder / "runs").glob(f"*/coordinator/{FILE}")):
            self._read(path)

    def unresolved(self) -> list[Order]:
        """Return the orders that the ledger may have answered after the newest witnessed head.

        A site has one run at a time. So an order of a run before one in which the log was witnessed
        is under that head, or has no entry. (Within a run the site's own ledger decides.)
        """
        found = []
        for digest, order in self._orders.items():
            answer, time = self._answers.get(digest, ("no-reply", ""))
            others = [when for run, when in self._witnessed.items() if run != order.run]
            if answer in _UNRESOLVED and not (time and any(time < when for when in others)):
                found.append(order)
        return sorted(found, key=lambda o: (o.run, o.purpose, o.round, o.attempt))

    def _read(self, path: Path) -> None:
        store = Store(path)
        try:
            for _, text in store.papers(ORDER):
                value = json.loads(text)
                if value["order"]["site"] == self._site:
                    order = Order.decode(value["order"], value["keyid"], value["sig"])
                    self._orders[order.digest] = order
            for _, text in store.papers(CHECKPOINT):
                if text.startswith(self._log + "\n"):
                    self.heads.append(Checkpoint.parse(text))
            for leaf in store.leaves():
                entry = Entry.read(leaf)
                if entry.kind == "round":
                    self._take_round(entry.predicate)
        finally:
            store.close()
        plan = path.parent.parent / "plan.json"
        try:
            parsed = Plan.parse(json.loads(plan.read_text(encoding="utf-8")), where=str(plan))
        except (OSError, ValueError, PrivetError):
            return
        self.plans[parsed.digest] = parsed

    def _take_round(self, value: dict[str, Any]) -> None:
        time = str(value["time"])
        for item in value["orders"]:
            if item["site"] == self._site:
                self._answers[str(item["order"])] = str(item["answer"]), time
        if any(item["log"] == self._log for item in value["witnessed"]):
            run = str(value["run"])
            self._witnessed[run] = max(self._witnessed.get(run, ""), time)


def _newest(heads: list[Checkpoint]) -> list[Checkpoint]:
    """Return the heads of the largest size, with all cosignatures on each."""
    largest = max((head.size for head in heads), default=0)
    found: dict[bytes, Checkpoint] = {}
    for head in heads:
        if head.size == largest:
            known = found.get(head.root, head)
            found[head.root] = known.with_cosignatures(head.lines[1:])
    return list(found.values())
