"""The copy of a ledger that others keep for its site, and that the site alone can read.

A copy is a chain of pieces. Each holds the leaves from one size of the log to the next,
encrypted to the recovery key that the genesis names, and is signed by the site's witness key, so
that its keeper accepts nothing that another party forged. The format is that of
docs/reference/ledger-copy.md.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

from nacl.exceptions import CryptoError
from nacl.public import SealedBox
from nacl.signing import SigningKey, VerifyKey

from privet.common.canonical import canonical_json
from privet.common.errors import LedgerError, NoteError
from privet.privacy.evidence.signed_note import Key, Signer, decode64
from privet.privacy.evidence.statement import pae

PIECE_TYPE = "application/vnd.privet.ledger-copy+json"
"""DSSE payload type of a piece's signature."""
PADDING = 4096
"""The length of what is encrypted is a multiple of this, in bytes."""
MAX_PIECE_LEAVES = 512 << 10
"""Bytes of leaves in a piece; a piece holds one leaf at least."""


@dataclass(frozen=True)
class PieceContent:
    """What a piece contains, encrypted.

    Attributes:
        leaves: of the log, in order.
        papers: (kind, name, text) of what is kept beside the entries: plans.
        head: the log's head at the end of the piece, as a signed checkpoint, or "".
        witness_seed: the witness's private key, in the first piece.
    """

    leaves: tuple[bytes, ...]
    papers: tuple[tuple[str, str, str], ...] = ()
    head: str = ""
    witness_seed: bytes = b""


@dataclass(frozen=True)
class CopyPiece:
    """An encrypted part of a ledger.

    Attributes:
        log: the ledger's origin.
        start, end: sizes of the log before and after the leaves in it.
        before, root: roots of the tree at these sizes, in hex.
        sealed: the content, for the recovery key.
        signature: by the site's witness key, over all of this.
    """

    log: str
    start: int
    end: int
    before: str
    root: str
    sealed: bytes
    signature: bytes = b""

    def is_signed_by(self, witness: bytes) -> bool:
        """Whether the witness key with these raw bytes signed the piece."""
        return Key(self.log, witness).verifies(self.signature, self._signed())

    def _signed(self) -> bytes:
        value = {
            "log": self.log,
            "from": self.start,
            "to": self.end,
            "before": self.before,
            "root": self.root,
            "sha256": hashlib.sha256(self.sealed).hexdigest(),
        }
        return pae(PIECE_TYPE, canonical_json(value))

    def to_json(self) -> dict[str, Any]:
        """Return JSON values; :meth:`from_json` reads them back."""
        return {
            "log": self.log,
            "from": self.start,
            "to": self.end,
            "before": self.before,
            "root": self.root,
            "sealed": base64.b64encode(self.sealed).decode(),
            "sig": base64.b64encode(self.signature).decode(),
        }

    @classmethod
    def from_json(cls, value: Any) -> Self:
        """Read what :meth:`to_json` wrote; its signature is not checked.

        Raises:
            NoteError: if it is malformed.
        """
        try:
            log, start, end = value["log"], value["from"], value["to"]
            roots = [value["before"], value["root"]]
            if type(start) is not int or type(end) is not int or not 0 <= start < end < 2**53:
                raise ValueError("sizes")
            if not isinstance(log, str) or any(len(bytes.fromhex(root)) != 32 for root in roots):
                raise ValueError("roots")
            sealed, signature = decode64(value["sealed"]), decode64(value["sig"])
            return cls(log, start, end, roots[0], roots[1], sealed, signature)
        except (KeyError, TypeError, ValueError, AttributeError, NoteError) as error:
            raise NoteError(f"a piece of a ledger's copy is malformed: {error!r}") from error

    def open(self, recovery_seed: bytes) -> PieceContent:
        """Return what is in the piece.

        Args:
            recovery_seed: raw private bytes of the recovery key.

        Raises:
            LedgerError: if the key does not open it, or what is in it is malformed.
        """
        where = f"the piece of entries {self.start} to {self.end - 1}"
        try:
            private = SigningKey(recovery_seed).to_curve25519_private_key()
            value = json.loads(SealedBox(private).decrypt(self.sealed))
            content = PieceContent(
                tuple(leaf.encode() for leaf in value["leaves"]),
                tuple((str(kind), str(name), str(text)) for kind, name, text in value["papers"]),
                str(value["head"]),
                decode64(value["witness"]),
            )
        except CryptoError:
            raise LedgerError(f"{where} was altered, or is encrypted to another key") from None
        except (ValueError, KeyError, TypeError, AttributeError, NoteError) as error:
            raise LedgerError(f"{where} cannot be read: {error!r}") from error
        if (value["log"], value["from"]) != (self.log, self.start):
            raise LedgerError(f"{where} holds another part of a ledger")
        if len(content.leaves) != self.end - self.start:
            raise LedgerError(f"{where} does not hold that many")
        return content


def seal(
    content: PieceContent,
    log: str,
    start: int,
    roots: tuple[bytes, bytes],
    recovery: Key,
    signer: Signer,
) -> CopyPiece:
    """Return a piece.

    Args:
        content: what is encrypted.
        log: the ledger's origin.
        start: size of the log before it.
        roots: of the tree before and after it.
        recovery: the key that the genesis names; it alone opens the piece.
        signer: the site's witness key.
    """
    plain = json.dumps(
        {
            "log": log,
            "from": start,
            "leaves": [leaf.decode() for leaf in content.leaves],
            "papers": [list(paper) for paper in content.papers],
            "head": content.head,
            "witness": base64.b64encode(content.witness_seed).decode(),
        }
    ).encode()
    # Nothing is compressed: coordinators choose parts of a ledger that has entries of others, too,
    # and the length would reveal to them what those repeat.
    plain += b" " * (-len(plain) % PADDING)
    sealed = SealedBox(VerifyKey(recovery.public).to_curve25519_public_key()).encrypt(plain)
    end = start + len(content.leaves)
    unsigned = CopyPiece(log, start, end, roots[0].hex(), roots[1].hex(), sealed)
    return CopyPiece(
        log, start, end, unsigned.before, unsigned.root, sealed, signer.sign(unsigned._signed())
    )


def chains(pieces: Sequence[CopyPiece]) -> list[list[CopyPiece]]:
    """Return the pieces in chains, each from entry 0 on and without a gap.

    A piece that does not continue its chain is left out; one from entry 0 begins another.
    """
    found: list[list[CopyPiece]] = []
    for piece in pieces:
        if piece.start == 0:
            found.append([piece])
        elif found and (found[-1][-1].end, found[-1][-1].root) == (piece.start, piece.before):
            found[-1].append(piece)
    return found
