"""One order of a bundle, and what the logs say became of it."""

from __future__ import annotations

from dataclasses import dataclass
from sys import intern
from typing import NamedTuple

from privet.privacy.audit.verify.formats.lines import AuditedOrder


class OrderRelease(NamedTuple):
    """A release in a site's ledger: its place there, its digest and the hash of its leaf."""

    entry: int
    digest: str
    leaf: bytes


@dataclass(eq=False, slots=True)
class OrderOutcome:
    """What became of one order.

    Attributes:
        order: as the bundle has it.
        reserved: its site reserved it.
        refused: the status with which its site refused it, or None.
        release: the release of it, or None.
        listed: a round of the journal lists it.
        used: a round of the journal joined or showed its release.
    """

    order: AuditedOrder
    reserved: bool = False
    refused: str | None = None
    release: OrderRelease | None = None
    listed: bool = False
    used: bool = False


def outcome_of(order: AuditedOrder) -> OrderOutcome:
    """Return the outcome of an order of which no log spoke yet.

    A bundle may hold as many orders as a ledger has entries. They share their texts, which keeps
    one at about 600 bytes.
    """
    return OrderOutcome(
        order._replace(
            run=intern(order.run), purpose=intern(order.purpose), site=intern(order.site),
            plan=intern(order.plan), model=intern(order.model), parameters=b"",
        )
    )  # fmt: skip
