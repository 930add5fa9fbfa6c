"""Order keys that follow each other by statements of the ones before, by the format page."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from privet.privacy.audit.verify.formats import notes, signatures
from privet.privacy.audit.verify.formats.strict import Malformed, canonical, unbase64

_TYPE = b"application/vnd.privet.order-key+json"


def is_signature(value: Any) -> bool:
    """Return whether ``value`` is a signature's 64 bytes in base64."""
    try:
        return isinstance(value, str) and len(unbase64(value)) == 64
    except Malformed:
        return False


def _is_signed(entry: dict[str, Any], by: notes.AuditedKey, field: str) -> bool:
    """Return whether a key signed that the new one follows the old one."""
    named = {name: entry[name] for name in ("coordinator", "old", "key")}
    message = signatures.pae(_TYPE, canonical(named))
    return signatures.ed25519(by.raw, unbase64(entry[field]), message)


class AuditedOrderKeys:
    """Which order key follows which in one ledger; keys are named by their fingerprint in hex."""

    def __init__(self) -> None:
        self._next: dict[str, str] = {}
        self._before: dict[str, str] = {}

    def take(self, entry: dict[str, Any]) -> tuple[str, str] | None:
        """Take in an entry ``order-key``; return the rule that it breaks, and how."""
        old, new = (notes.read_vkey(entry[field], notes.SIGNER) for field in ("old", "key"))
        name = entry["coordinator"].replace(" ", "_")
        for key in (old, new):
            if key.name != f"privet.orders/{name}/{key.fingerprint[:16]}":
                return "signature", "an order key must be called privet.orders/NAME/FP16"
        if not _is_signed(entry, old, "sig"):
            return "signature", "the old order key did not sign that another follows it"
        if not _is_signed(entry, new, "key_sig"):
            return "signature", "the new order key did not sign that it follows another"
        if old.fingerprint in self._next:
            return "policy", "two order keys follow one"
        if new.fingerprint in {*self._before, *self._next, old.fingerprint}:
            return "policy", "an order key follows another, and was known before"
        self._next[old.fingerprint] = new.fingerprint
        self._before[new.fingerprint] = old.fingerprint
        return None

    def is_replaced(self, key: str) -> bool:
        """Return whether another key follows."""
        return key in self._next

    def line(self, key: str) -> list[str]:
        """Return a key and all before it, the newest first."""
        found = [key]
        while found[-1] in self._before:
            found.append(self._before[found[-1]])
        return found

    def are_kin(self, one: str, other: str) -> bool:
        """Return whether one of two keys follows the other.

        Args:
            one: key id in hex.
            other: another.
        """
        return one in self.line(other) or other in self.line(one)

    def leads(self, listed: Collection[str], key: str) -> bool:
        """Return whether a key, or one before it, is in a policy's list (``sha256:…``).

        Args:
            listed: fingerprints (``sha256:…``).
            key: key id in hex.
        """
        return any(f"sha256:{one}" in listed for one in self.line(key))
