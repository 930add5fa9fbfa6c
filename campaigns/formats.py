"""What the format page defines: what DSSE signs, the Merkle tree, and the subject of an entry."""

from __future__ import annotations

import hashlib
from typing import Any

from meaning import canonical, raw_of, sha

#: Kinds whose subject is not the ledger: what it names, and the field with its digest.
_SUBJECTS = {
    "genesis": ("key", "key"), "key-rotated": ("key", "key"), "order-key": ("key", "key"),
    "policy": ("policy", "policy"),
    "plan-approved": ("plan", "plan"), "plan-refused": ("plan", "plan"),
    "run-opened": ("plan", "plan"), "reserved": ("order", "order"), "refused": ("order", "order"),
    "released": ("release", "digest"), "metric-released": ("release", "digest"),
    "round": ("model", "next"), "run-closed": ("model", "model"), "run-resumed": ("model", "model"),
}  # fmt: skip


def pae(kind: str, payload: bytes) -> bytes:
    """Return what DSSE signs."""
    return f"DSSEv1 {len(kind.encode())} {kind} {len(payload)} ".encode() + payload


def root(leaves: list[bytes]) -> bytes:
    """Return the root of RFC 6962, section 2.1, over leaf hashes."""
    if not leaves:
        return hashlib.sha256(b"").digest()
    if len(leaves) == 1:
        return leaves[0]
    cut = 1 << ((len(leaves) - 1).bit_length() - 1)
    return hashlib.sha256(b"\x01" + root(leaves[:cut]) + root(leaves[cut:])).digest()


def path(index: int, leaves: list[bytes]) -> list[bytes]:
    """Return the inclusion path of RFC 6962, section 2.1.1, over leaf hashes."""
    if len(leaves) <= 1:
        return []
    cut = 1 << ((len(leaves) - 1).bit_length() - 1)
    if index < cut:
        return [*path(index, leaves[:cut]), root(leaves[cut:])]
    return [*path(index - cut, leaves[cut:]), root(leaves[:cut])]


def subject(kind: str, predicate: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the subject of an entry; raise what reading impossible fields raises."""
    name, field = _SUBJECTS.get(kind, ("ledger", "log"))
    value = predicate[field]
    if name == "key":
        digest = sha(raw_of(value))
    elif name == "ledger":
        digest = sha(value.encode())
    elif name == "policy":
        digest = sha(canonical(value))
    else:
        digest = value.removeprefix("sha256:")
    return [{"name": name, "digest": {"sha256": digest}}]
