"""Signed notes, checkpoints, cosignatures and offline proofs, as C2SP specifies them.

Pure text in, pure text out: c2sp.org/signed-note, tlog-checkpoint, tlog-cosignature,
tlog-proof and tlog-policy. Ed25519 only; type 1 signs, type 4 cosigns with a time.
"""

from __future__ import annotations

import base64
import binascii
import functools
import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, Self

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from privet.common.errors import NoteError

SIGN = 1
"""Signature type of entries and checkpoints."""
COSIGN = 4
"""Signature type of timestamped checkpoint cosignatures."""
_DASH = "— "
_MAX_SIGNATURES = 10_002
"""On one note: of the log, the coordinator, and as many sites as a plan may have."""
_MAX_TREE_SIZE = 2**53 - 1
"""The largest size that canonical JSON can write. A path to a place in a tree that nobody has
grown is easily forged."""
_SHORT = 1 << 14
"""Characters of a note that is kept parsed."""
_SHORT_MESSAGE = 1 << 10
"""Bytes of a message, such as a head, whose signatures are remembered once they were checked."""
_FORBIDDEN = re.compile(r"[\x00-\x09\x0b-\x1f\ud800-\udfff]")


class Signer(Protocol):
    """A private key that signs. The key itself may be in a file or in hardware."""

    @property
    def public(self) -> bytes:
        """The 32 raw bytes of the public key."""
        ...

    def sign(self, message: bytes) -> bytes:
        """Return the 64 bytes of an Ed25519 signature (RFC 8032)."""
        ...


@dataclass(frozen=True)
class Key:
    """A public key with its name and its use, as a vkey writes it."""

    name: str
    public: bytes
    type: int = SIGN

    @property
    def id(self) -> bytes:
        """The four bytes that a signature line carries."""
        body = self.name.encode() + b"\n" + bytes([self.type]) + self.public
        return hashlib.sha256(body).digest()[:4]

    @property
    def fingerprint(self) -> str:
        """``sha256:…`` of the raw public key."""
        return fingerprint(self.public)

    def __str__(self) -> str:
        material = base64.b64encode(bytes([self.type]) + self.public).decode()
        return f"{self.name}+{self.id.hex()}+{material}"

    @classmethod
    def parse(cls, text: str, *, type_: int | None = None) -> Self:
        """Read a vkey.

        Raises:
            NoteError: if it is malformed, its id is wrong, or it is of another type.
        """
        parts = text.split("+", 2)
        if len(parts) != 3 or not _is_name(parts[0]):
            raise NoteError(f"'{text}' is not a verifier key (name+id+key)")
        material = decode64(parts[2])
        if len(material) != 33 or material[0] not in (SIGN, COSIGN):
            raise NoteError(f"'{parts[0]}': not an Ed25519 key of type 1 or 4")
        key = cls(parts[0], material[1:], material[0])
        if key.id.hex() != parts[1]:
            raise NoteError(f"'{parts[0]}': the key id does not belong to the key")
        if type_ is not None and key.type != type_:
            raise NoteError(f"'{parts[0]}': a key of type {key.type}, not {type_}")
        return key

    def verifies(self, signature: bytes, message: bytes) -> bool:
        """Whether ``signature`` is this key's over ``message``."""
        return verifies(self.public, signature, message)


def fingerprint(public: bytes) -> str:
    """Return ``sha256:…`` of a raw public key."""
    return "sha256:" + hashlib.sha256(public).hexdigest()


def verifies(public: bytes, signature: bytes, message: bytes) -> bool:
    """Whether ``signature`` over ``message`` is by the Ed25519 key ``public``."""
    # Each party that shows, cosigns or keeps a head checks it; the result does not change.
    verified = _verified if len(message) < _SHORT_MESSAGE else _verify
    return verified(public, signature, message)


def _verify(public: bytes, signature: bytes, message: bytes) -> bool:
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


_verified = functools.lru_cache(maxsize=1 << 14)(_verify)


def key_name(kind: str, owner: str, public: bytes) -> str:
    """Return the name of a key: ``privet.KIND/OWNER/FP16``, without spaces or plus."""
    slug = re.sub(r"[\s+]", "_", owner)
    return f"privet.{kind}/{slug}/{hashlib.sha256(public).hexdigest()[:16]}"


@dataclass(frozen=True)
class SignatureLine:
    """A signature line: name, key id, and the bytes after the id."""

    name: str
    id: bytes
    signature: bytes

    def __str__(self) -> str:
        return f"{_DASH}{self.name} {base64.b64encode(self.id + self.signature).decode()}\n"

    def is_by(self, key: Key) -> bool:
        """Whether name and id are the key's; says nothing about the signature."""
        return self.name == key.name and self.id == key.id


@dataclass(frozen=True)
class Checkpoint:
    """A log's head: origin, size, root, and who signed it."""

    origin: str
    size: int
    root: bytes
    lines: tuple[SignatureLine, ...] = ()

    @property
    def body(self) -> bytes:
        """The note text that is signed."""
        return f"{self.origin}\n{self.size}\n{base64.b64encode(self.root).decode()}\n".encode()

    @property
    def text(self) -> str:
        """The whole note."""
        return self.body.decode() + "\n" + "".join(map(str, self.lines))

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a checkpoint without trusting any of its signatures.

        Raises:
            NoteError: if it is not a checkpoint of three lines with signatures.
        """
        # Each witness, and each party that shows what it has seen, reads the same heads in turn.
        parsed = _checkpoint(text) if len(text) < _SHORT else _parse_checkpoint(text)
        return cls(*parsed)

    def signed(self, key: Key, signer: Signer) -> Self:
        """Return this checkpoint with the log's signature alone."""
        line = SignatureLine(key.name, key.id, signer.sign(self.body))
        return type(self)(self.origin, self.size, self.root, (line,))

    def is_signed_by(self, key: Key) -> bool:
        """Whether the log's key ``key`` signed it."""
        return any(
            line.is_by(key) and key.verifies(line.signature, self.body) for line in self.lines
        )

    def cosignature(self, key: Key, signer: Signer, time: int) -> SignatureLine:
        """Return a witness's cosignature at POSIX ``time``; it is not added."""
        signature = signer.sign(_cosigned(self.body, time))
        return SignatureLine(key.name, key.id, time.to_bytes(8, "big") + signature)

    def is_cosigned_by(self, key: Key) -> bool:
        """Whether the witness's key ``key`` cosigned it."""
        return any(line.is_by(key) and self._checks(line, key) for line in self.lines)

    def alone(self) -> Self:
        """Return this checkpoint with the log's own signature only."""
        return type(self)(self.origin, self.size, self.root, self.lines[:1])

    def trimmed(self, log: Key, witnesses: Iterable[Key] = ()) -> Self:
        """Return this checkpoint with the signatures of these keys alone.

        All other signatures on it are by parties that do not count.

        Raises:
            NoteError: if ``log`` did not sign it.
        """
        own = [s for s in self.lines if s.is_by(log) and log.verifies(s.signature, self.body)]
        if not own:
            raise NoteError(f"the checkpoint of '{self.origin}' is not signed by its log")
        bare = type(self)(self.origin, self.size, self.root, (own[0],))
        known = {(key.name, key.id): key for key in witnesses}
        return bare.with_cosignatures(
            line
            for line in self.lines
            if (line.name, line.id) in known and self._checks(line, known[line.name, line.id])
        )

    def with_cosignatures(self, lines: Iterable[SignatureLine]) -> Self:
        """Return this checkpoint with more lines, each name and id once, in order of name."""
        known = {(line.name, line.id): line for line in self.lines[1:]}
        known.update({(line.name, line.id): line for line in lines})
        return type(self)(
            self.origin, self.size, self.root, (*self.lines[:1], *(known[k] for k in sorted(known)))
        )

    def _checks(self, line: SignatureLine, key: Key) -> bool:
        if len(line.signature) != 72:
            return False
        time = int.from_bytes(line.signature[:8], "big")
        return time < 2**63 and key.verifies(line.signature[8:], _cosigned(self.body, time))


def _parse_checkpoint(text: str) -> tuple[str, int, bytes, tuple[SignatureLine, ...]]:
    body, lines = parse_note(text)
    parts = body.split("\n")
    if len(parts) != 4 or parts[3] or not parts[0]:
        raise NoteError("a checkpoint has three lines: origin, size, root")
    if not re.fullmatch(r"0|[1-9][0-9]{0,17}", parts[1]):
        raise NoteError(f"'{parts[1]}' is not the size of a tree")
    if int(parts[1]) > _MAX_TREE_SIZE:
        raise NoteError(f"a tree of {parts[1]} entries is not believed")
    root = decode64(parts[2])
    if len(root) != 32:
        raise NoteError("the root of a checkpoint has 32 bytes")
    return parts[0], int(parts[1]), root, lines


_checkpoint = functools.lru_cache(maxsize=2048)(_parse_checkpoint)


def _cosigned(body: bytes, time: int) -> bytes:
    return b"cosignature/v1\ntime %d\n" % time + body


def parse_note(text: str) -> tuple[str, tuple[SignatureLine, ...]]:
    """Split a signed note into its text and its signature lines.

    Raises:
        NoteError: if the form is wrong.
    """
    # Every witness receives the same heads in turn.
    return _parsed(text) if len(text) < _SHORT else _parse_note(text)


def _parse_note(text: str) -> tuple[str, tuple[SignatureLine, ...]]:
    if _FORBIDDEN.search(text):
        raise NoteError("a note is UTF-8 and holds no control character but newline")
    body, found, rest = text.rpartition("\n\n")
    if not found or not rest.endswith("\n"):
        raise NoteError("a note is a text, an empty line, and signature lines")
    raw = rest[:-1].split("\n")
    if len(raw) > _MAX_SIGNATURES:
        raise NoteError(f"a note with more than {_MAX_SIGNATURES} signatures is not read")
    return body + "\n", tuple(_line(line) for line in raw)


_parsed = functools.lru_cache(maxsize=1024)(_parse_note)


def _line(text: str) -> SignatureLine:
    name, space, material = text.removeprefix(_DASH).partition(" ")
    if not text.startswith(_DASH) or not space or not _is_name(name):
        raise NoteError(f"'{text[:60]}' is not a signature line")
    raw = decode64(material)
    if len(raw) < 5:
        raise NoteError(f"the signature of '{name}' is too short")
    return SignatureLine(name, raw[:4], raw[4:])


def parse_line(text: str) -> SignatureLine:
    """Read one signature line, as a witness sends it.

    Raises:
        NoteError: if it is not one.
    """
    if not text.endswith("\n"):
        raise NoteError("a signature line ends in a newline")
    return _line(text[:-1])


def proof_text(index: int, proof: Sequence[bytes], checkpoint: Checkpoint) -> str:
    """Return an offline proof (c2sp.org/tlog-proof) that entry ``index`` is in the log."""
    hashes = "".join(base64.b64encode(item).decode() + "\n" for item in proof)
    return f"c2sp.org/tlog-proof@v1\nindex {index}\n{hashes}\n{checkpoint.text}"


def parse_proof(text: str) -> tuple[int, list[bytes], Checkpoint]:
    """Read an offline proof: index, path, checkpoint. Extra data is refused.

    Raises:
        NoteError: if the form is wrong.
    """
    head, found, note = text.partition("\n\n")
    lines = head.split("\n")
    if not found or lines[0] != "c2sp.org/tlog-proof@v1" or len(lines) < 2:
        raise NoteError("this is not a tlog-proof")
    index = re.fullmatch(r"index (0|[1-9][0-9]{0,17})", lines[1])
    if not index:
        raise NoteError("a tlog-proof names its index in the second line")
    hashes = [decode64(line) for line in lines[2:]]
    if len(hashes) > 63 or any(len(item) != 32 for item in hashes):
        raise NoteError("a tlog-proof has at most 63 hashes of 32 bytes")
    return int(index[1]), hashes, Checkpoint.parse(note)


def policy_text(logs: Iterable[Key], witnesses: Iterable[Key], quorum: int) -> str:
    """Return a tlog-policy (c2sp.org/tlog-policy), for other people's verifiers."""
    witnesses = list(witnesses)
    lines = [f"log {key}" for key in logs]
    lines += [f"witness {_short(key)} {key}" for key in witnesses]
    if quorum:
        names = " ".join(_short(key) for key in witnesses)
        lines += [f"group witnesses {quorum} {names}", "quorum witnesses"]
    else:
        lines.append("quorum none")
    return "\n".join(lines) + "\n"


def _short(key: Key) -> str:
    return key.name.replace(" ", "_")


def decode64(text: str) -> bytes:
    """Decode strict base64: standard alphabet, padding, and no second way to write it.

    Raises:
        NoteError: otherwise.
    """
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise NoteError(f"'{text[:60]}' is not base64") from error
    if base64.b64encode(raw).decode() != text:
        raise NoteError(f"'{text[:60]}' is not written as base64 writes it")
    return raw


_UNFIT = re.compile("[\\s+\ud800-\udfff]")
"""White space, plus, and halves of surrogate pairs, which UTF-8 cannot write."""


def _is_name(name: str) -> bool:
    return bool(name) and _UNFIT.search(name) is None
