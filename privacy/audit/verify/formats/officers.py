"""Decisions that an officer signed with a key of her own, by the format page."""

from __future__ import annotations

import re
from typing import Any

from privet.privacy.audit.verify.formats import signatures
from privet.privacy.audit.verify.formats.strict import Malformed, canonical, unbase64

_TYPE = b"application/vnd.privet.decision+json"
_FIELDS = {"name", "key", "size", "sig"}
# The wire form of RFC 8709 in base64: its first 19 bytes are always the same.
_KEY = re.compile(r"ssh-ed25519 (AAAAC3NzaC1lZDI1NTE5AAAAI[A-Za-z0-9+/]{43})", re.ASCII)


def read_key(text: Any) -> bytes:
    """Return the raw Ed25519 key of a policy's officer.

    Raises:
        Malformed: if it is not written as OpenSSH writes one, without a comment.
    """
    match = _KEY.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        raise Malformed("the key of an officer must be 'ssh-ed25519' and its base64")
    return unbase64(match[1])[-32:]


def is_signature(value: Any) -> bool:
    """Return whether ``value`` has the form of an officer's signature."""
    try:
        if not isinstance(value, dict) or value.keys() != _FIELDS:
            return False
        read_key(value["key"])
        sized = type(value["size"]) is int and value["size"] >= 0
        return sized and bool(value["name"]) and isinstance(value["name"], str) and (
            len(unbase64(value["sig"])) == 64
        )  # fmt: skip
    except (Malformed, TypeError, AttributeError, UnicodeEncodeError):
        return False


def are_signatures(value: Any) -> bool:
    """Return whether ``value`` is a list of officers' signatures."""
    return isinstance(value, list) and bool(value) and all(map(is_signature, value))


def signs(value: dict[str, Any], ledger: str, kind: str, subject: str) -> bool:
    """Return whether an entry's ``signature`` is one over its decision.

    Args:
        value: the field, of the right form.
        ledger: the log's name.
        kind: of the entry.
        subject: digest of the plan, or of the policy.
    """
    decision = {
        "ledger": ledger, "kind": kind, "subject": subject, "name": value["name"],
        "size": value["size"],
    }  # fmt: skip
    message = signatures.pae(_TYPE, canonical(decision))
    return signatures.ed25519(read_key(value["key"]), unbase64(value["sig"]), message)
