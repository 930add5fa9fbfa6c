"""Replace a key of the coordinator while the sites continue."""

from __future__ import annotations

from privet.common.errors import InputError
from privet.server.evidence.journal import FILE
from privet.server.membership.order_key_files import rotate_order_key
from privet.server.membership.registry import MemberRegistry
from privet.server.queue import OPEN, runs

WITNESS = (
    "the witness key is not rotated: the heads that it cosigned count by it, and sites know it "
    "from their join file. Where others may have it, tell sites and auditors not to count the "
    "coordinator's cosignatures from that day on (a quorum of the sites continues without it), and "
    "begin a new federation for later runs; its sites come with the ledgers that they have"
)


def rotate_orders(federation: MemberRegistry) -> tuple[str, str]:
    """Replace the order key; return the fingerprints of the old one and of the new.

    A running coordinator sends the handover to its sites at once; otherwise the next start does.

    Raises:
        InputError: if a run that began under the old key is open: sites accept no new run of it.
        PrivateKeyError: if a key cannot be decrypted.
    """
    begun = [
        run.id
        for run in runs(federation)
        if run.status["state"] in OPEN and (run.folder / "coordinator" / FILE).exists()
    ]
    if begun:
        raise InputError(
            f"open runs were begun under the order key in force: {', '.join(begun)}. Wait until "
            "they have ended, or cancel them; nothing was changed"
        )
    return rotate_order_key(federation.keys, federation.name, federation.passphrase)
