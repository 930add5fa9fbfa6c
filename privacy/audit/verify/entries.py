"""Leaves: DSSE envelopes around in-toto Statements, read and verified without any state.

:func:`read_leaves` is what worker processes run. It answers with plain tuples, so that little
travels back; what follows from the order of entries is left to the log's state machine.
"""

from __future__ import annotations

import hashlib
import json
import re
from functools import lru_cache
from typing import Any, NamedTuple

from privet.privacy.audit.verify import notes, signatures
from privet.privacy.audit.verify.events import read_event
from privet.privacy.audit.verify.result import NEW_RULE
from privet.privacy.audit.verify.schema import FIELDS, OPTIONAL, SUBJECTS, hides, untested
from privet.privacy.audit.verify.strict import (
    Malformed,
    canonical,
    obj,
    read,
    seconds,
    unbase64,
)

PAYLOAD_TYPE = b"application/vnd.in-toto+json"
_LONG_EVENT = 1 << 16
_STATEMENT = "https://in-toto.io/Statement/v1"
_SIGNATURE = rb'\{"keyid":"([0-9a-f]{64})","sig":"([A-Za-z0-9+/]{86}==)"\}'
# The canonical form of an envelope has no freedom, so one pattern reads and checks it.
_ENVELOPE = re.compile(
    rb'\{"payload":"([A-Za-z0-9+/]+={0,2})","payloadType":"application/vnd\.in-toto\+json",'
    rb'"signatures":\[' + _SIGNATURE + rb"(?:," + _SIGNATURE + rb")?\]\}"
)

#: The kinds that come in masses travel as the tuples of these fields.
PICKED: dict[str, tuple[str, ...]] = {
    "reserved": (
        "population", "data_set", "run", "round", "attempt", "purpose", "order", "keyid", "plan",
        "model", "code", "event",
    ),
    "refused": ("run", "round", "attempt", "purpose", "order", "keyid", "plan", "model", "status"),
    "released": ("reservation", "order", "digest", "reproducible", "event"),
    "metric-released": ("reservation", "order", "digest", "reproducible", "event"),
    "aborted": ("reservation", "data_opened", "reason"),
}  # fmt: skip


class _UnknownKind(Exception):
    """The vocabulary has grown since."""


class Context(NamedTuple):
    """What a worker must know of a log: ``keys`` maps key ids (hex) to raw keys."""

    role: str
    origin: str
    keys: dict[str, bytes]
    keep: bool


#: leaf hash, key id that signed (None: unknown key), problems, kind, sequence, seconds,
#: values of :data:`PICKED` or None, predicate or None, time.
Row = tuple[
    bytes, "str | None", "list[tuple[str, str]]", str, int, int, "tuple[Any, ...] | None",
    "dict[str, Any] | None", str,
]  # fmt: skip


@lru_cache(maxsize=1024)
def _misread(text: str) -> str:
    """Return what is wrong with an event's canonical text, or ''."""
    try:
        read_event(json.loads(text))
    except (Malformed, RecursionError) as error:
        return str(error) or "nested too deeply"
    return ""


def _event_text(event: object, problems: list[tuple[str, str]]) -> str:
    """Return the canonical text of an event, checked; '' if it is malformed."""
    text = canonical(event).decode()
    wrong = _misread(text) if len(text) < _LONG_EVENT else "longer than a verifier reads"
    if wrong:
        problems.append(("event", wrong))
        return ""
    return text


def _predicate(context: Context, payload: bytes) -> tuple[str, dict[str, Any]]:
    """Return kind and predicate of a Statement."""
    statement = obj(read(payload), "a statement", "_type", "subject", "predicateType", "predicate")
    prefix = f"urn:privet:{context.role}:v1:"
    kind = statement["predicateType"]
    if statement["_type"] != _STATEMENT:
        raise Malformed("not an in-toto Statement v1")
    if not isinstance(kind, str) or kind.removeprefix(prefix) not in FIELDS[context.role]:
        raise _UnknownKind("an entry of a kind that this verifier does not know")
    if not kind.startswith(prefix):
        raise Malformed("the predicate type is not of this log's role")
    kind = kind.removeprefix(prefix)
    predicate, fields = statement["predicate"], FIELDS[context.role][kind]
    if isinstance(predicate, dict) and kind in OPTIONAL[context.role]:
        more = OPTIONAL[context.role][kind]
        fields = fields | {name: more[name] for name in more if name in predicate}
    if not isinstance(predicate, dict) or predicate.keys() != fields.keys():
        raise Malformed(f"'{kind}' must have exactly the fields {', '.join(fields)}")
    for name, check in fields.items():
        if not check(predicate[name]):
            raise Malformed(f"'{name}' of '{kind}' is impossible")
    name, subject_digest = SUBJECTS[kind]
    if statement["subject"] != [{"name": name, "digest": {"sha256": subject_digest(predicate)}}]:
        raise Malformed(f"the subject of '{kind}' is not the {name} with its digest")
    return kind, predicate


def _signer(
    context: Context, match: re.Match[bytes], kind: str, predicate: dict[str, Any],
    payload: bytes, problems: list[tuple[str, str]],
) -> str | None:  # fmt: skip
    """Verify the signatures; return the key id of the first, or None if it is unknown."""
    first = match[2].decode()
    message = signatures.pae(PAYLOAD_TYPE, payload)
    if (match[4] is not None) != (kind == "key-rotated"):
        problems.append(("signature", "'key-rotated' has two signatures, every other kind one"))
    if match[4] is not None and kind == "key-rotated":
        key = notes.read_vkey(predicate["key"], notes.SIGNER)
        own = match[4].decode() == key.fingerprint
        if not own or not signatures.ed25519(key.raw, unbase64(match[5]), message):
            problems.append(("signature", "the second signature is not the new key's"))
    raw = context.keys.get(first)
    if raw is None:
        return None
    if not signatures.ed25519(raw, unbase64(match[3]), message):
        problems.append(("signature", "the signature is false"))
    return first


def read_leaf(context: Context, leaf: bytes, events: dict[str, int]) -> Row:
    """Read one leaf; ``events`` numbers the texts of the events met so far."""
    hashed = hashlib.sha256(b"\x00" + leaf).digest()
    problems: list[tuple[str, str]] = []
    match = _ENVELOPE.fullmatch(leaf)
    if match is None:
        problems.append(("entry", "not the canonical JSON of a DSSE envelope"))
        return hashed, "", problems, "", -1, 0, None, None, ""
    try:
        payload = unbase64(match[1])
        kind, predicate = _predicate(context, payload)
        time = seconds(predicate["time"])
        signer = _signer(context, match, kind, predicate, payload, problems)
    except _UnknownKind as error:
        problems.append(("vocabulary", str(error)))
        return hashed, "", problems, "", -1, 0, None, None, ""
    except (Malformed, RecursionError) as error:
        problems.append(("entry", str(error) or "nested too deeply"))
        return hashed, "", problems, "", -1, 0, None, None, ""
    # Broken without making the entry unreadable: what it charges counts all the same.
    if (hidden := hides(predicate)) is not None:
        problems.append(
            ("entry", f"'{hidden}' of '{kind}' holds a sign that is not shown{NEW_RULE}")
        )
    if untested(predicate):
        problems.append(("entry", f"'self_tests' names a row that no test can show{NEW_RULE}"))
    if predicate["log"] != context.origin:
        problems.append(("entry", "the entry names another log"))
    picked = PICKED.get(kind)
    values: tuple[Any, ...] | None = None
    whole: dict[str, Any] | None = predicate
    if picked is not None:
        values = tuple([predicate[name] for name in picked])
        whole = predicate if context.keep else None
        if picked[-1] == "event":
            text = _event_text(predicate["event"], problems)
            values = (*values[:-1], events.setdefault(text, len(events)))
    return (
        hashed, signer, problems, kind, predicate["sequence"], time, values, whole,
        predicate["time"],
    )  # fmt: skip


def read_leaves(context: Context, lines: list[bytes]) -> tuple[list[str], list[Row]]:
    """Read a batch of leaves: the texts of their events, and a row for each."""
    events: dict[str, int] = {}
    keys = {keyid: keyid for keyid in context.keys}
    rows = []
    for line in lines:
        row = read_leaf(context, line, events)
        # One object for each key id, so that it is pickled once a batch.
        rows.append((row[0], keys.get(row[1] or "", row[1]), *row[2:]))
    return list(events), rows
