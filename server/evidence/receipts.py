"""Proofs that a site's log holds a release."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from privet.common.errors import LedgerError, NoteError
from privet.common.order import Order
from privet.privacy.evidence.log import Evidence
from privet.privacy.evidence.merkle import root_from_inclusion
from privet.privacy.evidence.signed_note import Checkpoint, proof_text
from privet.privacy.evidence.statement import Entry


@dataclass(frozen=True)
class Receipt:
    """A release, and its place in its site's log.

    Attributes:
        site: by its name.
        origin: of its log.
        entry: place of the release's entry in the log, from 0.
        digest: of the release.
    """

    site: str
    origin: str
    entry: int
    digest: str

    def to_json(self) -> dict[str, Any]:
        """Return the receipt as the journal stores it."""
        return {"site": self.site, "log": self.origin, "entry": self.entry, "digest": self.digest}

    def proof(self, evidence: Evidence, head: Checkpoint) -> str:
        """Return the proof of the receipt as a text (tlog-proof).

        Args:
            evidence: of the site's log, with the path of this entry.
            head: of the log, under which the path is.
        """
        _, path = evidence.inclusion[self.entry]
        return proof_text(self.entry, path, head)


def receipt_for(
    site: str, origin: str, order: Order, digest: str, evidence: Evidence
) -> Receipt | None:
    """Return the receipt of a release; None if the site's log does not hold it under its head.

    Args:
        site: by its name.
        origin: of its log.
        order: that the release answers.
        digest: of the release as it came.
        evidence: of the log, as the site sent it.
    """
    try:
        head = Checkpoint.parse(evidence.note)
        for number, (leaf, path) in evidence.inclusion.items():
            if root_from_inclusion(leaf, number, head.size, path) != head.root:
                return None
            entry = Entry.read(leaf)
            value = entry.predicate
            released = entry.kind in ("released", "metric-released")
            if released and (value["order"], value["digest"]) == (order.digest, digest):
                return Receipt(site, origin, number, digest)
    except (NoteError, LedgerError, KeyError):
        return None
    return None
