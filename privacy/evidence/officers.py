"""Officers' keys: who signed a decision, by a key that the site's policy lists.

A name that somebody types at the site's machine proves nothing about who typed it. Where the
policy has ``[officers]``, an approval counts if the officer's own key signed it, and so does a
change of the policy; a key is listed as OpenSSH writes it (``ssh-ed25519 AAAA…``).

What is signed is DSSE's encoding of a small JSON object (:class:`OfficerDecision`): whose ledger,
what is decided, by whom, and how long the ledger was when the officer read it. A decision counts
once in one ledger, and not if its subject was refused since.

The private key is a file (PEM, or OpenSSH's own format), a hardware token (PKCS#11), or with the
officer's SSH agent (draft-miller-ssh-agent, section 3.6). SSH's own log-in messages begin with
another prefix than DSSE's, so that no signature of one can stand for the other.
"""

from __future__ import annotations

import base64
import os
import socket
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from nacl.exceptions import BadSignatureError
from nacl.signing import VerifyKey

from privet.common.canonical import canonical_json
from privet.common.errors import InputError, NoteError, PrivateKeyError
from privet.common.files.private_files import read_private
from privet.privacy.evidence.keys import FileSigner, secret_of
from privet.privacy.evidence.signed_note import Signer, decode64
from privet.privacy.evidence.statement import pae

DECISION_TYPE = "application/vnd.privet.decision+json"
"""DSSE payload type of a signed decision."""
_KIND = b"ssh-ed25519"
_SSH_BEGINS = b"-----BEGIN OPENSSH PRIVATE KEY-----"
_REQUEST_SIGN, _SIGNED = 13, 14
_MAX_REPLY = 1 << 16
_AGENT_TIMEOUT_S = 120.0
"""An agent may wait for its owner to touch a token or to say yes."""


@dataclass(frozen=True)
class OfficerDecision:
    """What an officer signs.

    Attributes:
        ledger: the ledger's origin.
        kind: of the entry: ``plan-approved`` or ``policy``.
        subject: digest of the plan, or of the policy.
        name: of the officer, as the policy has it.
        size: entries of the ledger when the officer read it.
    """

    ledger: str
    kind: str
    subject: str
    name: str
    size: int

    @property
    def message(self) -> bytes:
        """The bytes that are signed."""
        return pae(
            DECISION_TYPE,
            canonical_json(
                {
                    "ledger": self.ledger,
                    "kind": self.kind,
                    "subject": self.subject,
                    "name": self.name,
                    "size": self.size,
                }
            ),
        )


@dataclass(frozen=True)
class OfficerSignature:
    """A decision's signature, as an entry of the ledger holds it.

    Attributes:
        name: of the officer.
        key: the 32 raw bytes of the public key.
        size: as in :class:`OfficerDecision`.
        signature: 64 bytes.
    """

    name: str
    key: bytes
    size: int
    signature: bytes

    @classmethod
    def make(cls, decision: OfficerDecision, signer: Signer) -> OfficerSignature:
        """Sign a decision.

        Raises:
            PrivateKeyError: if the key cannot sign.
        """
        signature = signer.sign(decision.message)
        return cls(decision.name, signer.public, decision.size, signature)

    def signs(self, ledger: str, kind: str, subject: str) -> bool:
        """Whether it is the key's signature over this decision."""
        message = OfficerDecision(ledger, kind, subject, self.name, self.size).message
        return _verifies(self.key, self.signature, message)

    def to_json(self) -> dict[str, Any]:
        """Return the field ``signature`` of an entry."""
        return {
            "name": self.name,
            "key": ssh_text(self.key),
            "size": self.size,
            "sig": base64.b64encode(self.signature).decode(),
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> OfficerSignature:
        """Read the field ``signature`` of an entry.

        Raises:
            InputError: if it is malformed.
        """
        try:
            signature, key = decode64(value["sig"]), ssh_key(value["key"])
            sized = type(value["size"]) is int and value["size"] >= 0
            named = isinstance(value["name"], str) and value["name"]
            if set(value) != {"name", "key", "size", "sig"} or value["key"] != ssh_text(key):
                raise ValueError("it has other fields, or another form of the key")
            if not sized or not named or len(signature) != 64:
                raise ValueError("a field has another type or length")
            return cls(value["name"], key, value["size"], signature)
        except (KeyError, TypeError, ValueError, NoteError, InputError) as error:
            raise InputError(f"not an officer's signature: {error!r}") from error


def ssh_key(text: str) -> bytes:
    """Return the 32 raw bytes of a public key in OpenSSH's form; a comment is left out.

    Raises:
        InputError: if it is no Ed25519 key.
    """
    parts = text.split()
    try:
        blob = decode64(parts[1]) if len(parts) > 1 and parts[0] == _KIND.decode() else b""
    except NoteError:
        blob = b""
    if len(blob) != 51 or not blob.startswith(_string(_KIND) + struct.pack(">I", 32)):
        raise InputError(
            "not an Ed25519 public key of OpenSSH (ssh-ed25519 AAAA…); "
            "`ssh-keygen -t ed25519` makes one"
        )
    return blob[-32:]


def ssh_text(public: bytes) -> str:
    """Return a raw Ed25519 public key as OpenSSH writes it, without a comment."""
    return f"{_KIND.decode()} {base64.b64encode(_blob(public)).decode()}"


def key_from_file(path: Path, passphrase: str | None) -> Signer:
    """Return the officer's key in a file: PEM as Privet makes it, or OpenSSH's own format.

    Args:
        path: of the private key.
        passphrase: of the file; None: it has none.

    Raises:
        PrivateKeyError: if it cannot be read, others can read it, it is no Ed25519 key, or the
            passphrase is wrong.
    """
    try:
        content = read_private(path)
    except OSError as error:
        raise PrivateKeyError(f"{path}: the key cannot be read: {error.strerror}") from error
    if not content.lstrip().startswith(_SSH_BEGINS):
        return FileSigner.load(path, passphrase)
    try:
        private = load_ssh_private_key(content, secret_of(passphrase))
    except TypeError as error:
        wants = "needs its passphrase" if not passphrase else "has no passphrase"
        raise PrivateKeyError(f"{path}: the key {wants}") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise PrivateKeyError(f"{path}: wrong passphrase, or not a key file") from error
    if not isinstance(private, Ed25519PrivateKey):
        raise PrivateKeyError(f"{path}: not an Ed25519 key; `ssh-keygen -t ed25519` makes one")
    return FileSigner(private)


class AgentSigner:
    """A key of the SSH agent at ``SSH_AUTH_SOCK``.

    Args:
        public: the 32 raw bytes of the public key.
        address: path of the agent's socket; default that of the environment.
    """

    def __init__(self, public: bytes, address: str | None = None) -> None:
        self._public = public
        self._address = address or os.environ.get("SSH_AUTH_SOCK", "")

    @property
    def public(self) -> bytes:
        """The 32 raw bytes of the public key."""
        return self._public

    def sign(self, message: bytes) -> bytes:
        """Return an Ed25519 signature (RFC 8032), checked against the public key.

        Raises:
            PrivateKeyError: if there is no agent, it lacks the key, or its owner said no.
        """
        if not self._address:
            raise PrivateKeyError(
                "no SSH agent: SSH_AUTH_SOCK is not set; name the key's file with --key"
            )
        asked = bytes([_REQUEST_SIGN]) + _string(_blob(self._public)) + _string(message)
        reply = self._ask(asked + struct.pack(">I", 0))
        inner = _strings(reply[1:])[0] if reply[:1] == bytes([_SIGNED]) else b""
        parts = _strings(inner)
        if len(parts) != 2 or not _verifies(self._public, parts[1], message):
            raise PrivateKeyError(
                "the SSH agent did not sign: it does not have the officer's key (`ssh-add -L` "
                "lists those it has), or its owner said no"
            )
        return parts[1]

    def _ask(self, message: bytes) -> bytes:
        try:
            with socket.socket(socket.AF_UNIX) as agent:
                agent.settimeout(_AGENT_TIMEOUT_S)
                agent.connect(self._address)
                agent.sendall(_string(message))
                (size,) = struct.unpack(">I", _exactly(agent, 4))
                return _exactly(agent, min(size, _MAX_REPLY))
        except (OSError, EOFError) as error:
            raise PrivateKeyError(
                f"the SSH agent at {self._address} does not answer: {error}"
            ) from error


def _verifies(public: bytes, signature: bytes, message: bytes) -> bool:
    """Whether a signature is good by libsodium, which refuses weak keys as verifiers do."""
    try:
        VerifyKey(public).verify(message, signature)
    except (BadSignatureError, ValueError, TypeError):
        return False
    return True


def _exactly(connection: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        part = connection.recv(count - len(data))
        if not part:
            raise EOFError("it closed the connection")
        data += part
    return data


def _blob(public: bytes) -> bytes:
    return _string(_KIND) + _string(public)


def _string(data: bytes) -> bytes:
    """Return a string as RFC 4251, section 5, writes it."""
    return struct.pack(">I", len(data)) + data


def _strings(data: bytes) -> list[bytes]:
    """Return the strings that ``data`` is made of; one empty one if it is not."""
    found = []
    while len(data) >= 4:
        (size,) = struct.unpack(">I", data[:4])
        found.append(data[4 : 4 + size])
        data = data[4 + size :]
    return found if found and not data else [b""]
