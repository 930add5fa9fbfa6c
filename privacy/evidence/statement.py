"""Leaves of a log: in-toto Statements in DSSE envelopes, as canonical JSON.

The form is that of docs/reference/evidence-format.md. A leaf's bytes are what is hashed,
stored and bundled; nothing is ever encoded a second time.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Self

from privet.common.canonical import canonical_json
from privet.common.errors import LedgerError, NoteError
from privet.privacy.evidence.signed_note import Signer, decode64, fingerprint, verifies

PAYLOAD_TYPE = "application/vnd.in-toto+json"
_STATEMENT = "https://in-toto.io/Statement/v1"
LEDGER = "urn:privet:ledger:v1:"
JOURNAL = "urn:privet:journal:v1:"


_UNREADABLE = (
    ValueError, KeyError, TypeError, AttributeError, IndexError, StopIteration, RecursionError,
    NoteError,
)  # fmt: skip
"""What reading a leaf of any bytes may raise."""


def pae(payload_type: str, payload: bytes) -> bytes:
    """Return DSSE's pre-authentication encoding: what is signed."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


@dataclass(frozen=True)
class Entry:
    """One entry: its kind, its predicate, and what it is about.

    Attributes:
        vocabulary: :data:`LEDGER` or :data:`JOURNAL`.
        kind: the last part of the predicate type.
        predicate: JSON values; ``sequence``, ``time`` and ``log`` among them.
        subject: name of the thing.
        digest: ``sha256:…`` of the thing.
    """

    vocabulary: str
    kind: str
    predicate: dict[str, Any]
    subject: str
    digest: str

    @property
    def sequence(self) -> int:
        """Place in the log, from 0."""
        return int(self.predicate["sequence"])

    def leaf(self, signers: Sequence[Signer]) -> bytes:
        """Return the entry's leaf, signed by each of ``signers`` in order."""
        payload = canonical_json(
            {
                "_type": _STATEMENT,
                "subject": [
                    {"name": self.subject, "digest": {"sha256": self.digest.partition(":")[2]}}
                ],
                "predicateType": self.vocabulary + self.kind,
                "predicate": self.predicate,
            }
        )
        message = pae(PAYLOAD_TYPE, payload)
        return canonical_json(
            {
                "payload": base64.b64encode(payload).decode(),
                "payloadType": PAYLOAD_TYPE,
                "signatures": [
                    {
                        "keyid": fingerprint(signer.public).partition(":")[2],
                        "sig": base64.b64encode(signer.sign(message)).decode(),
                    }
                    for signer in signers
                ],
            }
        )

    @classmethod
    def read(cls, leaf: bytes, keys: Sequence[bytes] = ()) -> Self:
        """Read a leaf; with ``keys``, check that these keys and no others signed it.

        Raises:
            LedgerError: if it is not a leaf, or a signature is missing or wrong.
        """
        try:
            envelope = json.loads(leaf)
            payload = decode64(envelope["payload"])
            statement = json.loads(payload)
            subject = statement["subject"][0]
            whole = statement["predicateType"]
            vocabulary = next(known for known in (LEDGER, JOURNAL) if whole.startswith(known))
            entry = cls(
                vocabulary,
                whole.removeprefix(vocabulary),
                dict(statement["predicate"]),
                str(subject["name"]),
                "sha256:" + subject["digest"]["sha256"],
            )
            if type(entry.predicate["sequence"]) is not int:
                raise ValueError("sequence")
            signatures = [(item["keyid"], decode64(item["sig"])) for item in envelope["signatures"]]
            message = pae(str(envelope["payloadType"]), payload)
        except _UNREADABLE as error:
            raise LedgerError(f"an entry cannot be read: {error!r}") from error
        if keys:
            wanted = [fingerprint(key).partition(":")[2] for key in keys]
            if [keyid for keyid, _ in signatures] != wanted or not all(
                verifies(key, sig, message) for key, (_, sig) in zip(keys, signatures, strict=True)
            ):
                raise LedgerError(f"entry {entry.sequence} is not signed by the key in force")
        return entry


def now() -> str:
    """Return the time as entries write it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
