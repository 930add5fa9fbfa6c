"""A ledger key that never leaves its hardware: Ed25519 in a PKCS#11 token.

The token (an HSM, a smart card, SoftHSM2 for trials) signs; this process sees signatures
and the public key. Reached through python-pkcs11 (MIT), the extra ``privet[pkcs11]``. What
is needed of the token is CKM_EDDSA without parameters (PKCS#11 3.0, section 2.3.14), which
is the Ed25519 of RFC 8032.
"""

from __future__ import annotations

import getpass
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from privet.common.errors import PrivateKeyError
from privet.privacy.evidence.signed_note import verifies

PIN = "PRIVET_PIN"
"""Environment variable that holds the PIN of the site's token."""

_GONE = frozenset(
    "DeviceError DeviceRemoved KeyHandleInvalid ObjectHandleInvalid SessionClosed "
    "SessionHandleInvalid SlotIDInvalid TokenNotPresent UserNotLoggedIn".split()
)
"""What libraries say when a token was pulled out, or inserted again, in an open session."""


class Pkcs11Signer:
    """An Ed25519 key in a token; made by :meth:`open`."""

    def __init__(self, private: Any, public: bytes, where: str) -> None:
        self._private, self._public, self._where = private, public, where
        self._lock = threading.Lock()  # a session does one thing at a time
        self._process = os.getpid()

    @property
    def public(self) -> bytes:
        """The 32 raw bytes of the public key."""
        return self._public

    def sign(self, message: bytes) -> bytes:
        """Return an Ed25519 signature (RFC 8032), checked against the public key.

        Raises:
            PrivateKeyError: if the token is gone, or signs with another key or in another way.
        """
        import pkcs11

        if os.getpid() != self._process:
            raise PrivateKeyError(
                f"{self._where}: was opened by another process, and a token's session is not "
                "inherited; open the key in the process that signs"
            )
        with self._lock, _told(self._where):
            signature = bytes(self._private.sign(message, mechanism=pkcs11.Mechanism.EDDSA))
        if not verifies(self._public, signature, message):
            raise PrivateKeyError(
                f"{self._where}: the token's signature is not by the public key of the same "
                "label; do two key pairs share the label?"
            )
        return signature

    @classmethod
    def open(cls, module: Path, token: str, label: str, pin: str | None = None) -> Pkcs11Signer:
        """Log in to a token and find a key pair in it.

        A token stays logged in for as long as this process lives; a second key of it is
        opened without a check of the PIN.

        Args:
            module: the vendor's PKCS#11 library.
            token: label of the token.
            label: label of both halves of the key pair.
            pin: the user's PIN; default :func:`find_pin`. It is tried once, because tokens
                lock themselves.

        Raises:
            PrivateKeyError: if python-pkcs11, the library, the token or the key is not there, the
                PIN is wrong, or the key is not an Ed25519 key.
        """
        try:
            import pkcs11
        except ImportError:
            raise PrivateKeyError(
                "a key in a token needs python-pkcs11, which is not installed: "
                "install Privet with the extra [pkcs11]"
            ) from None
        if not module.is_file():
            raise PrivateKeyError(f"{module}: there is no PKCS#11 library; is keys.module right?")
        with _told(str(module)):
            library = pkcs11.lib(str(module))
        where = f"key '{label}' in token '{token}'"
        with _told(where):
            session = _session(library.get_token(token_label=token), pin, token)
            private = session.get_key(object_class=pkcs11.ObjectClass.PRIVATE_KEY, label=label)
            public = session.get_key(object_class=pkcs11.ObjectClass.PUBLIC_KEY, label=label)
            kinds = {private.key_type, public.key_type}
            point = None
            if kinds == {pkcs11.KeyType.EC_EDWARDS}:
                point = _raw_point(bytes(public[pkcs11.Attribute.EC_POINT]))
        if point is None:
            raise PrivateKeyError(f"{where}: is not an Ed25519 key; make one of type EC_EDWARDS")
        return cls(private, point, where)


def find_pin(token: str) -> str:
    """Return the PIN in ``PRIVET_PIN``, or ask for it where there is a terminal.

    Raises:
        PrivateKeyError: if it is not set and nobody can be asked.
    """
    found = os.environ.get(PIN)
    if not found and sys.stdin.isatty():
        found = getpass.getpass(f"PIN of token '{token}': ")
    if not found:
        raise PrivateKeyError(f"token '{token}' needs its PIN: set {PIN}")
    return found


def _session(token: Any, pin: str | None, label: str) -> Any:
    import pkcs11

    try:
        return token.open(user_pin=find_pin(label) if pin is None else pin)
    except pkcs11.UserAlreadyLoggedIn:
        return token.open()


def _raw_point(written: bytes) -> bytes | None:
    """Return an Ed25519 key's 32 bytes as tokens write them, or None.

    Version 3.0 says a DER octet string, 3.1 the bytes themselves, some write a bit string.
    """
    for prefix in (b"", b"\x04\x20", b"\x03\x21\x00"):
        if len(written) == len(prefix) + 32 and written.startswith(prefix):
            return written[len(prefix) :]
    return None


@contextmanager
def _told(where: str) -> Iterator[None]:
    """Say what a library's error means to an operator."""
    from pkcs11 import PKCS11Error

    try:
        yield
    except PKCS11Error as error:
        raise PrivateKeyError(f"{where}: {_meaning(error)}") from error


def _meaning(error: Exception) -> str:
    name = type(error).__name__
    if name in _GONE:
        return (
            f"the token was removed, or its session ended ({name}); insert it and start "
            "again. What was not signed is not in the ledger"
        )
    said = {
        "NoSuchToken": "there is no such token; is it plugged in, and is keys.token its label?",
        "MultipleTokensReturned": "several tokens have this label; give each its own",
        "NoSuchKey": "there is no such key pair: both halves must have this label",
        "MultipleObjectsReturned": "several keys have this label; give each its own",
        "PinIncorrect": "wrong PIN. Tokens lock themselves after a few wrong ones",
        "PinInvalid": "wrong PIN. Tokens lock themselves after a few wrong ones",
        "PinLenRange": "wrong PIN: it is too short or too long",
        "PinLocked": "the PIN is locked after too many wrong ones; the token's security "
        "officer can set a new one",
        "UserPinNotInitialized": "the token has no PIN yet; initialize it",
        "MechanismInvalid": "the token does not do Ed25519 (CKM_EDDSA)",
    }.get(name)
    return said or f"the PKCS#11 library failed: {name} {error}".rstrip()
