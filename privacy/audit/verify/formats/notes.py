"""Signed notes, checkpoints, cosignatures and offline proofs, as C2SP describes them."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass

from privet.privacy.audit.verify.formats import signatures
from privet.privacy.audit.verify.formats.strict import Malformed, unbase64

#: Signature types: 1 signs notes (and entries), 4 cosigns checkpoints.
SIGNER, COSIGNER = 1, 4
_SIZE = re.compile(r"0|[1-9][0-9]{0,15}", re.ASCII)
_VKEY = re.compile(r"([^+]+)\+([0-9a-f]{8})\+([A-Za-z0-9+/]+={0,2})", re.ASCII)
_MAX_SIGNATURES = 11_000


class Unsigned(ValueError):
    """A note carries a signature that is unknown, doubled or false."""


@dataclass(frozen=True)
class AuditedKey:
    """A verifier key: ``raw`` are the 32 bytes of an Ed25519 public key."""

    name: str
    id: bytes
    type: int
    raw: bytes

    @property
    def fingerprint(self) -> str:
        """64 hex digits of the SHA-256 of the raw key."""
        return hashlib.sha256(self.raw).hexdigest()


def key_id(name: str, signature_type: int, raw: bytes) -> bytes:
    """Return the four bytes that name a key in a signature line.

    Args:
        name: of the key.
        signature_type: 1 or 4.
        raw: its 32 bytes.
    """
    text = name.encode() + b"\n" + bytes([signature_type]) + raw
    return hashlib.sha256(text).digest()[:4]


def check_name(name: str) -> None:
    """Refuse a key name that is empty or has spaces, plus signs or control characters."""
    if not name or "+" in name or any(
        c.isspace() or unicodedata.category(c) in ("Cc", "Cs") for c in name
    ):  # fmt: skip
        raise Malformed("a key name must have no spaces, plus signs or control characters")


def read_vkey(text: object, signature_type: int) -> AuditedKey:
    """Read a verifier key of the type asked for.

    Args:
        text: ``name+id+key``.
        signature_type: that it must have: 1 or 4.
    """
    match = _VKEY.fullmatch(text) if isinstance(text, str) and len(text) < 4096 else None
    if match is None:
        raise Malformed("not a verifier key (name+id+key)")
    name, data = match[1], unbase64(match[3])
    check_name(name)
    if len(data) != 33 or data[0] != signature_type:
        raise Malformed(f"not an Ed25519 key of signature type {signature_type}")
    identity = key_id(name, signature_type, data[1:])
    if identity.hex() != match[2]:
        raise Malformed("the id of the verifier key does not fit")
    return AuditedKey(name, identity, signature_type, data[1:])


@dataclass(frozen=True)
class Signature:
    """One signature line of a note, decoded but not verified."""

    name: str
    id: bytes
    data: bytes


def read_note(text: str) -> tuple[str, list[Signature]]:
    """Split a note into its text (with the last newline) and its signatures."""
    if any(c < " " and c != "\n" for c in text):
        raise Malformed("a note must not hold control characters")
    body, blank, tail = text.rpartition("\n\n")
    if not blank or not tail.endswith("\n"):
        raise Malformed("a note must end in a blank line and signature lines")
    lines = tail[:-1].split("\n")
    if len(lines) > _MAX_SIGNATURES:
        raise Malformed("a note with too many signatures")
    found = []
    for line in lines:
        dash, _, rest = line.partition(" ")
        name, _, encoded = rest.partition(" ")
        if dash != "—":
            raise Malformed("a signature line must begin with an em dash")
        check_name(name)
        data = unbase64(encoded)
        if len(data) < 5:
            raise Malformed("a signature is too short")
        found.append(Signature(name, data[:4], data[4:]))
    return body + "\n", found


def verified(body: str, signature: Signature, key: AuditedKey) -> bool:
    """Return whether a signature line of ``key`` holds for the note's text.

    Args:
        body: the note's text.
        signature: its line.
        key: that should have made it.
    """
    message, data = body.encode(), signature.data
    if (signature.name, signature.id) != (key.name, key.id):
        return False
    if key.type == COSIGNER:
        if len(data) != 72 or data[0] > 127:  # the time is at most 2^63 - 1
            return False
        time, data = int.from_bytes(data[:8], "big"), data[8:]
        message = b"cosignature/v1\ntime %d\n" % time + message
    return len(data) == 64 and signatures.ed25519(key.raw, data, message)


@dataclass(frozen=True)
class AuditedCheckpoint:
    """The signed head of a log, with every signature that was verified, by (name, id).

    ``cosigned``: the times that the cosignatures state, in seconds since 1970.
    """

    origin: str
    size: int
    root: bytes
    signers: tuple[tuple[str, bytes], ...] = ()
    cosigned: tuple[int, ...] = ()


def read_checkpoint(body: str) -> AuditedCheckpoint:
    """Read a note's text as a checkpoint of three lines."""
    lines = body.split("\n")
    if len(lines) != 4 or lines[3] or not lines[0]:
        raise Malformed("a checkpoint has three lines")
    if not _SIZE.fullmatch(lines[1]):
        raise Malformed("the size of a checkpoint must be a plain integer")
    root = unbase64(lines[2])
    if len(root) != 32:
        raise Malformed("the root of a checkpoint must be 32 bytes")
    return AuditedCheckpoint(lines[0], int(lines[1]), root)


def open_checkpoint(text: str, keys: Mapping[tuple[str, bytes], AuditedKey]) -> AuditedCheckpoint:
    """Read a signed checkpoint; every line must be a valid one of ``keys``, none twice.

    Args:
        text: of the note, signatures included.
        keys: by which there may be signatures, by name and id.

    Raises:
        Malformed: if the note cannot be read.
        Unsigned: if a signature is by an unknown key, doubled or false.
    """
    body, lines = read_note(text)
    head = read_checkpoint(body)
    seen: list[tuple[str, bytes]] = []
    times: list[int] = []
    for line in lines:
        key = keys.get((line.name, line.id))
        if key is None:
            raise Unsigned(f"a signature by the unknown key {line.name[:120]!a}")
        if (key.name, key.id) in seen:
            raise Unsigned(f"two signatures by {line.name[:120]!a}")
        if not verified(body, line, key):
            raise Unsigned(f"the signature by {line.name[:120]!a} is false")
        seen.append((key.name, key.id))
        if key.type == COSIGNER:
            times.append(int.from_bytes(line.data[:8], "big"))
    if seen != sorted(seen, key=lambda signer: (signer[0] != head.origin, signer)):
        raise Unsigned("the signatures are not in order: the log's own, then by name")
    return AuditedCheckpoint(head.origin, head.size, head.root, tuple(seen), tuple(times))


def read_proof(text: str) -> tuple[int, list[bytes], str]:
    """Read a tlog-proof without extra data: index, path (leaf to root) and checkpoint."""
    head, blank, note = text.partition("\n\n")
    lines = head.split("\n")
    if not blank or lines[0] != "c2sp.org/tlog-proof@v1" or len(lines) < 2:
        raise Malformed("not a tlog-proof")
    word, _, index = lines[1].partition(" ")
    if word != "index" or not _SIZE.fullmatch(index):
        raise Malformed("a proof must name the index, and nothing extra")
    path = [unbase64(line) for line in lines[2:66]]
    if len(lines) > 66 or any(len(hash_) != 32 for hash_ in path):
        raise Malformed("a proof must be hashes of 32 bytes, at most 64 of them")
    return int(index), path, note
