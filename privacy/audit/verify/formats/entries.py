"""Leaves: DSSE envelopes around in-toto Statements, read and verified without any state.

:func:`read_leaves` is what worker processes run. What follows from the order of entries is left
to the state machine of their log.
"""

from __future__ import annotations

import json
import re
from functools import lru_cache
from sys import intern
from typing import Any, NamedTuple

from privet.privacy.audit.verify.formats import notes, signatures
from privet.privacy.audit.verify.formats.events import read_event
from privet.privacy.audit.verify.formats.rows import EntryRow, Problem
from privet.privacy.audit.verify.formats.schema import FIELDS, OPTIONAL, SUBJECTS, hides, untested
from privet.privacy.audit.verify.formats.strict import (
    Malformed,
    canonical,
    obj,
    read,
    seconds,
    unbase64,
)
from privet.privacy.audit.verify.formats.tree import leaf_hash
from privet.privacy.audit.verify.result import NEW_RULE

PAYLOAD_TYPE = b"application/vnd.in-toto+json"
_LONG_EVENT = 1 << 16
_STATEMENT = "https://in-toto.io/Statement/v1"
_SIGNATURE = rb'\{"keyid":"([0-9a-f]{64})","sig":"([A-Za-z0-9+/]{86}==)"\}'
# The canonical form of an envelope has no freedom, so one pattern reads and checks it.
_ENVELOPE = re.compile(
    rb'\{"payload":"([A-Za-z0-9+/]+={0,2})","payloadType":"application/vnd\.in-toto\+json",'
    rb'"signatures":\[' + _SIGNATURE + rb"(?:," + _SIGNATURE + rb")?\]\}"
)


class _UnknownKind(Exception):
    """The vocabulary has grown since."""


class Context(NamedTuple):
    """What a worker must know of a log: ``keys`` maps key ids (hex) to raw keys."""

    role: str
    origin: str
    keys: dict[str, bytes]


@lru_cache(maxsize=1024)
def _misread(text: str) -> str:
    """Return what is wrong with an event's canonical text, or ''."""
    try:
        read_event(json.loads(text))
    except (Malformed, RecursionError) as error:
        return str(error) or "nested too deeply"
    return ""


def _event_text(event: object, problems: list[Problem]) -> str:
    """Return the canonical text of an event; '' if it is malformed (rule ``event``)."""
    text = canonical(event).decode()
    wrong = _misread(text) if len(text) < _LONG_EVENT else "longer than a verifier reads"
    if wrong:
        problems.append(Problem("event", wrong))
        return ""
    return text


def _statement(context: Context, payload: bytes) -> tuple[str, dict[str, Any]]:
    """Return kind and predicate of a Statement, with the fields and the subject of its kind."""
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
    predicate = statement["predicate"]
    _check_fields(context.role, kind, predicate)
    name, subject_digest = SUBJECTS[kind]
    if statement["subject"] != [{"name": name, "digest": {"sha256": subject_digest(predicate)}}]:
        raise Malformed(f"the subject of '{kind}' is not the {name} with its digest")
    return kind, predicate


def _check_fields(role: str, kind: str, predicate: Any) -> None:
    """Refuse a predicate that has not exactly the fields of its kind, each of its type."""
    fields = FIELDS[role][kind]
    if isinstance(predicate, dict) and kind in OPTIONAL[role]:
        more = OPTIONAL[role][kind]
        fields = fields | {name: more[name] for name in more if name in predicate}
    if not isinstance(predicate, dict) or predicate.keys() != fields.keys():
        raise Malformed(f"'{kind}' must have exactly the fields {', '.join(fields)}")
    for name, check in fields.items():
        if not check(predicate[name]):
            raise Malformed(f"'{name}' of '{kind}' is impossible")


def _signer(context: Context, match: re.Match[bytes], row: EntryRow, payload: bytes) -> str | None:
    """Verify the signatures (rule ``signature``); return the key id of the first.

    Args:
        context: with the keys in force.
        match: of the envelope.
        row: of the entry; what is wrong is added to its problems.
        payload: that is signed.

    Returns:
        The key id; None if the key is not one of those in force.
    """
    first = intern(match[2].decode())  # one object, so that it is pickled once a batch
    message, problems = signatures.pae(PAYLOAD_TYPE, payload), row.problems
    if (match[4] is not None) != (row.kind == "key-rotated"):
        wrong = "'key-rotated' has two signatures, every other kind one"
        problems.append(Problem("signature", wrong))
    if match[4] is not None and row.kind == "key-rotated":
        key = notes.read_vkey(row.predicate["key"], notes.SIGNER)
        own = match[4].decode() == key.fingerprint
        if not own or not signatures.ed25519(key.raw, unbase64(match[5]), message):
            problems.append(Problem("signature", "the second signature is not the new key's"))
    raw = context.keys.get(first)
    if raw is None:
        return None
    if not signatures.ed25519(raw, unbase64(match[3]), message):
        problems.append(Problem("signature", "the signature is false"))
    return first


def read_leaf(context: Context, leaf: bytes) -> EntryRow:
    """Read one leaf (rules ``entry``, ``vocabulary``, ``signature`` and ``event``).

    Args:
        context: of the log.
        leaf: a line of the bundle.
    """
    unread = EntryRow(leaf_hash(leaf), [], "", "", 0, {}, "")
    try:
        match = _ENVELOPE.fullmatch(leaf)
        if match is None:
            raise Malformed("not the canonical JSON of a DSSE envelope")
        payload = unbase64(match[1])
        kind, predicate = _statement(context, payload)
        time = seconds(predicate["time"])
        row = unread._replace(kind=kind, predicate=predicate, seconds=time)
        signer = _signer(context, match, row, payload)
    except _UnknownKind as error:
        unread.problems.append(Problem("vocabulary", str(error)))
        return unread
    except (Malformed, RecursionError) as error:
        unread.problems.append(Problem("entry", str(error) or "nested too deeply"))
        return unread
    _check_texts(context, row)
    event = _event_text(predicate["event"], row.problems) if "event" in predicate else ""
    return row._replace(signer=signer, event=event)


def _check_texts(context: Context, row: EntryRow) -> None:
    """Rule 11 (``entry``): what an entry says can be seen; ``log`` is the log that contains it.

    It is broken without making the entry unreadable: what it charges counts all the same.
    """
    if (hidden := hides(row.predicate)) is not None:
        message = f"'{hidden}' of '{row.kind}' holds a character that cannot be displayed{NEW_RULE}"
        row.problems.append(Problem("entry", message))
    if untested(row.predicate):
        message = f"'self_tests' names a row that no test can show{NEW_RULE}"
        row.problems.append(Problem("entry", message))
    if row.predicate["log"] != context.origin:
        row.problems.append(Problem("entry", "the entry names another log"))


def read_leaves(context: Context, lines: list[bytes]) -> list[EntryRow]:
    """Read a batch of leaves of the log that ``context`` is of: a row for each."""
    return [read_leaf(context, line) for line in lines]
