"""Order keys that follow each other: both keys sign a statement that names the two.

A policy lists the order keys that may ask. A coordinator that replaces its key shows sites a
:class:`KeyHandover`; each site keeps it as an entry of its ledger, so that a verifier finds from a
charge's key to the one that the policy lists. Once it is kept, the old key asks for no new run, and
another successor of it is refused: anyone who finds an old key file can continue the runs that it
began, and begin none there.

The new key signs, too. Else a coordinator could name another one's key as its own successor, which
then could follow no key of its owner's any more.

The holder of an order key could ask for anything that the policy allows before, so a handover gives
it nothing new. A policy that lists the old key no more ends all that follow it.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, Self

from privet.common.canonical import canonical_json
from privet.common.errors import InputError, NoteError
from privet.common.order import ORDER_TYPE, Order
from privet.privacy.evidence.signed_note import SIGN, Key, Signer, key_name
from privet.privacy.evidence.statement import pae

HANDOVER_TYPE = "application/vnd.privet.order-key+json"
"""DSSE payload type of a signed handover."""
MAX_HANDOVERS = 100
"""Handovers that a site reads at once, and that one line of keys has at most."""


@dataclass(frozen=True)
class KeyHandover:
    """One order key names the next.

    Attributes:
        coordinator: its name.
        old, new: the two keys.
        signature: of the old key, 64 bytes.
        key_signature: of the new one, over the same.
    """

    coordinator: str
    old: Key
    new: Key
    signature: bytes
    key_signature: bytes

    @classmethod
    def make(cls, coordinator: str, old: Signer, new: Signer) -> Self:
        """Sign a handover.

        Args:
            coordinator: its name.
            old: the key in force.
            new: the key that follows.
        """
        before, after = (
            Key(key_name("orders", coordinator, raw), raw) for raw in (old.public, new.public)
        )
        message = _message(coordinator, before, after)
        return cls(coordinator, before, after, old.sign(message), new.sign(message))

    def to_json(self) -> dict[str, Any]:
        """Return the fields of an entry ``order-key``."""
        return {
            "coordinator": self.coordinator,
            "old": str(self.old),
            "key": str(self.new),
            "sig": base64.b64encode(self.signature).decode(),
            "key_sig": base64.b64encode(self.key_signature).decode(),
        }

    @classmethod
    def from_json(cls, value: Any) -> Self:
        """Read a handover and check its signature; other fields are passed over.

        Raises:
            InputError: if it is malformed, or one of the keys did not sign it.
        """
        try:
            name = value["coordinator"]
            old, new = (Key.parse(value[field], type_=SIGN) for field in ("old", "key"))
            by_old, by_new = (
                base64.b64decode(value[field], validate=True) for field in ("sig", "key_sig")
            )
            fine = isinstance(name, str) and all(
                key.name == key_name("orders", name, key.public) for key in (old, new)
            )
        except (KeyError, TypeError, ValueError, AttributeError, binascii.Error, NoteError) as no:
            raise InputError(f"not a handover of an order key: {no!r}") from None
        found = cls(name, old, new, by_old, by_new)
        if not fine or found.old.public == found.new.public:
            raise InputError("a handover names two order keys of one coordinator")
        message = _message(name, old, new)
        if not old.verifies(by_old, message):
            raise InputError(
                f"the old key {found.old.fingerprint} did not sign that "
                f"{found.new.fingerprint} follows it"
            )
        if not new.verifies(by_new, message):
            raise InputError(f"the new key {new.fingerprint} did not sign that it follows another")
        return found


def _message(coordinator: str, old: Key, new: Key) -> bytes:
    named = {"coordinator": coordinator, "old": str(old), "key": str(new)}
    return pae(HANDOVER_TYPE, canonical_json(named))


def is_signed(order: Order, key: Key) -> bool:
    """Return whether ``key`` signed an order, and the order says so."""
    try:
        signature = base64.b64decode(order.signature, validate=True)
    except (binascii.Error, ValueError):
        return False
    named = key.fingerprint.partition(":")[2]
    return order.keyid == named and key.verifies(signature, pae(ORDER_TYPE, order.encode()))


@dataclass
class OrderKeys:
    """Which order key follows which, as a ledger holds it. Keys are named by their fingerprint."""

    _next: dict[str, str] = field(default_factory=dict)
    _before: dict[str, str] = field(default_factory=dict)

    def note(self, handover: KeyHandover) -> None:
        """Take in a handover.

        Raises:
            InputError: if another key follows the old one already, or the new one was known before.
        """
        if fault := self.fault(handover):
            raise InputError(fault)
        old, new = handover.old.fingerprint, handover.new.fingerprint
        self._next[old], self._before[new] = new, old

    def fault(self, handover: KeyHandover) -> str | None:
        """Return why a handover cannot be taken in, or None."""
        old, new = handover.old.fingerprint, handover.new.fingerprint
        if old in self._next:
            return f"order key {self._next[old]} follows {old} already, and {new} cannot"
        if new in self._before or new in self._next:
            return f"order key {new} was known before, and cannot follow {old}"
        if len(self.line(old)) > MAX_HANDOVERS:
            return f"{MAX_HANDOVERS} order keys follow {self.line(old)[-1]}, and no further one can"
        return None

    def has(self, handover: KeyHandover) -> bool:
        """Whether this very handover was taken in."""
        return self._next.get(handover.old.fingerprint) == handover.new.fingerprint

    def successor(self, key: str) -> str | None:
        """Return the key that follows ``key``, or None."""
        return self._next.get(key)

    def line(self, key: str) -> list[str]:
        """Return ``key`` and all before it, the newest first."""
        found = [key]
        while found[-1] in self._before:
            found.append(self._before[found[-1]])
        return found

    def leads(self, listed: Collection[str], key: str) -> bool:
        """Whether ``key`` is listed, or follows one that is."""
        return any(one in listed for one in self.line(key))

    def newest(self, key: str) -> str:
        """Return the last key that follows ``key``, or itself."""
        while key in self._next:
            key = self._next[key]
        return key

    def handovers(self) -> dict[str, str]:
        """Return who follows whom."""
        return dict(self._next)
