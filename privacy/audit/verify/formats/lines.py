"""Orders, checkpoints and receipts: read and verified without any state, for workers."""

from __future__ import annotations

import hashlib
from typing import Any, NamedTuple

from privet.privacy.audit.verify.formats import notes, signatures
from privet.privacy.audit.verify.formats.rows import Problem
from privet.privacy.audit.verify.formats.schema import PURPOSES, is_count, is_text
from privet.privacy.audit.verify.formats.strict import (
    Malformed,
    canonical,
    digest,
    is_digest,
    obj,
    read,
    unbase64,
)

ORDER_TYPE = b"application/vnd.privet.order+json"
ORDER_FIELDS = ("run", "site", "round", "attempt", "purpose", "plan", "model", "parameters")


class AuditedOrder(NamedTuple):
    """An order of the bundle, with its digest.

    ``parameters``: the digest of the list, for there is one for each order.
    """

    run: str
    round: int
    purpose: str
    attempt: int
    site: str
    plan: str
    model: str
    digest: str
    parameters: bytes = b""


class AuditedReceipt(NamedTuple):
    """A receipt: its slot, the inclusion proof, and the hash of its checkpoint's text."""

    run: str
    round: int
    purpose: str
    site: str
    place: int
    path: list[bytes]
    checkpoint: bytes


def _order(key: bytes, keyid: str, line: bytes) -> tuple[AuditedOrder | None, list[Problem]]:
    """Read an order, which must be signed (``order``).

    Args:
        key: the order key, raw.
        keyid: its id.
        line: of the bundle.
    """
    value = obj(read(line), "an order line", "kind", "order", "keyid", "sig")
    order = obj(value["order"], "an order", *ORDER_FIELDS)
    if value["kind"] != "order":
        raise Malformed("not an order line")
    fine = (
        is_text(order["run"]) and is_text(order["site"]) and is_count(order["round"])
        and is_count(order["attempt"]) and order["purpose"] in PURPOSES
        and is_digest(order["plan"]) and is_digest(order["model"])
        and isinstance(order["parameters"], list) and all(map(is_text, order["parameters"]))
    )  # fmt: skip
    if not fine or not isinstance(value["sig"], str):
        raise Malformed("an order has a field of the wrong type")
    payload = canonical(order)
    problems = []
    message = signatures.pae(ORDER_TYPE, payload)
    if value["keyid"] != keyid:
        problems.append(Problem("order", "an order is not signed by the roster's order key"))
    signature = unbase64(value["sig"])
    if len(signature) != 64 or not signatures.ed25519(key, signature, message):
        problems.append(Problem("order", "the signature of an order is false"))
    found = AuditedOrder(
        order["run"], order["round"], order["purpose"], order["attempt"], order["site"],
        order["plan"], order["model"], digest(payload),
        hashlib.sha256(canonical(order["parameters"])).digest()[:16],
    )  # fmt: skip
    return found, problems


def read_orders(
    context: tuple[bytes, str], lines: list[bytes]
) -> list[tuple[AuditedOrder | None, list[Problem]]]:
    """Read order lines (``order``).

    Args:
        context: the order key, raw and as key id.
        lines: of the bundle.

    Returns:
        The order, None if it cannot be read, and what is wrong, for each line.
    """
    found = []
    for line in lines:
        try:
            found.append(_order(*context, line))
        except (Malformed, RecursionError, TypeError) as error:
            found.append((None, [Problem("order", str(error))]))
    return found


def _text(line: bytes, kind: str, *fields: str) -> dict[str, Any]:
    value = obj(read(line), f"a {kind} line", "kind", *fields)
    if not all(isinstance(value[name], str) for name in fields if name != "round"):
        raise Malformed(f"a {kind} line has a field of the wrong type")
    return value


def read_checkpoints(
    context: dict[tuple[str, bytes], notes.AuditedKey], lines: list[bytes]
) -> list[tuple[notes.AuditedCheckpoint | None, bytes, Problem | None]]:
    """Read checkpoint lines (``bundle``), with true signatures alone (``signature``).

    Args:
        context: the keys by which there may be signatures, by name and id.
        lines: of the bundle.

    Returns:
        The checkpoint, the SHA-256 of its text and what is wrong, for each line.
    """
    found: list[tuple[notes.AuditedCheckpoint | None, bytes, Problem | None]] = []
    for line in lines:
        try:
            text = _text(line, "checkpoint", "note")["note"]
            head = notes.open_checkpoint(text, context)
            found.append((head, hashlib.sha256(text.encode()).digest(), None))
        except notes.Unsigned as error:
            found.append((None, b"", Problem("signature", str(error))))
        except (Malformed, RecursionError) as error:
            found.append((None, b"", Problem("bundle", f"a checkpoint: {error}")))
    return found


def read_receipts(_: None, lines: list[bytes]) -> list[AuditedReceipt | Problem]:
    """Read receipt lines (``receipt``); they need no context."""
    found: list[AuditedReceipt | Problem] = []
    for line in lines:
        try:
            value = _text(line, "receipt", "run", "round", "purpose", "site", "proof")
            if not is_count(value["round"]) or value["purpose"] not in PURPOSES:
                raise Malformed("a receipt line has a field of the wrong type")
            index, path, note = notes.read_proof(value["proof"])
            checkpoint = hashlib.sha256(note.encode()).digest()
            slot = (value["run"], value["round"], value["purpose"], value["site"])
            found.append(AuditedReceipt(*slot, index, path, checkpoint))
        except (Malformed, RecursionError) as error:
            found.append(Problem("receipt", str(error)))
    return found
