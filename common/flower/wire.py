"""Encode orders and releases as Flower messages. Only a :class:`Release` has an encoding here.

A raw gradient, a clipped sum or a state dict cannot be encoded: no function accepts one. Received
content is checked before it is used: names, types, shapes, and that every number is finite.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import numpy.typing as npt
from flwr.app import ArrayRecord, ConfigRecord, RecordDict

from privet.common.compat.flower import ZeroCopyRecord
from privet.common.errors import InputError, NotReleasableError
from privet.common.flat import Arrays, digest_arrays, not_finite
from privet.common.order import Order, Status
from privet.common.release import Release

ARRAYS = "arrays"
ORDER = "order"
REPLY = "reply"
SHOW = "show"
OFFER = "offer"


def to_record(arrays: Arrays) -> ArrayRecord:
    """Return named arrays as Flower's record, in the same order, without copying them."""
    return ZeroCopyRecord(arrays)


def from_record(record: ArrayRecord) -> Arrays:
    """Return Flower's record as named arrays.

    Raises:
        InputError: if an array cannot be read without pickle, or holds no numbers that travel.
    """
    if isinstance(record, ZeroCopyRecord):
        known = record.arrays
        if known is not None and all(_travels(array) for array in known.values()):
            return known
    arrays: Arrays = {}
    for name, array in record.items():
        try:
            # numpy's parser raises what it pleases on a damaged header; it never unpickles.
            value = array.numpy()
        except Exception as error:
            raise InputError(f"array '{name}' cannot be read: {error}") from error
        if not isinstance(value, np.ndarray):
            raise InputError(f"array '{name}' is not an array")
        if not _travels(value):
            raise InputError(f"array '{name}' holds {value.dtype}, which does not travel")
        arrays[name] = value
    return arrays


def _travels(array: npt.NDArray[Any]) -> bool:
    """Whether these are floats, or the small integers of a compressed update."""
    return array.dtype.kind == "f" or array.dtype in (np.int8, np.int32)


def pack(content: RecordDict) -> tuple[bytes, Arrays]:
    """Return a message's records as JSON, and its arrays separately, for the link.

    Raises:
        InputError: if it holds something that the link does not carry: bytes, or arrays twice.
    """
    records: dict[str, Any] = {}
    arrays: Arrays = {}
    for name, record in content.items():
        if isinstance(record, ArrayRecord) and name == ARRAYS:
            arrays = from_record(record)
            records[name] = "arrays"
        elif isinstance(record, ConfigRecord):
            records[name] = dict(record)
        else:
            raise InputError(f"a {type(record).__name__} '{name}' does not travel over the link")
    try:
        return json.dumps(records, allow_nan=False).encode(), arrays
    except (TypeError, ValueError) as error:
        raise InputError(f"a record cannot travel over the link: {error}") from error


def unpack(records: bytes, arrays: Arrays) -> RecordDict:
    """Return the message that :func:`pack` took apart.

    Args:
        records: the message without its arrays, as JSON; it is not trusted.
        arrays: of the message, by name.

    Raises:
        InputError: if the records have another form than :func:`pack` gives them.
    """
    content = RecordDict()
    try:
        for name, values in json.loads(records).items():
            if values == "arrays" and name == ARRAYS:
                content[name] = to_record(arrays)
            else:
                content[name] = ConfigRecord(values)
    except (TypeError, ValueError, AttributeError, RecursionError) as error:
        raise InputError(f"the records of a message are malformed: {error}") from error
    return content


def encode_order(
    order: Order,
    model: ArrayRecord,
    config: ConfigRecord,
    head: str = "",
    question: dict[str, Any] | None = None,
) -> RecordDict:
    """Return the content of an order's message.

    Args:
        order: signed.
        model: to train or to evaluate.
        config: Flower's own.
        head: the newest cosigned head of the site's own log that the coordinator knows.
        question: the evidence of its log that the site shall send beside a release (as in
            :func:`encode_show`).
    """
    signed = ConfigRecord(
        {
            "json": order.encode().decode(),
            "keyid": order.keyid,
            "signature": order.signature,
            "head": head,
        }
    )
    content = RecordDict({ARRAYS: model, "config": config, ORDER: signed})
    if question is not None:
        content[SHOW] = _show(question)
    return content


def decode_order(content: RecordDict) -> tuple[Order, Arrays, str]:
    """Read an order's message: the order, its model, and the head in it.

    Raises:
        InputError: if a part is missing or malformed, or the model is not the one ordered.
    """
    if ORDER not in content or ARRAYS not in content.array_records:
        raise InputError("the message carries no order")
    texts = [content[ORDER].get(name, "") for name in ("keyid", "signature", "head")]
    if not all(isinstance(text, str) for text in texts):
        raise InputError("the signature or the head that came with the order is not a text")
    keyid, signature, head = texts
    order = Order.decode(_json(content[ORDER]), keyid, signature)
    arrays = from_record(content.array_records[ARRAYS])
    if tuple(arrays) != order.parameters:
        raise InputError("the model that came with the order has other parameters than ordered")
    if digest_arrays(arrays) != order.model:
        raise InputError("the model that came with the order is not the one ordered")
    return order, arrays, head


def encode_show(value: dict[str, Any]) -> RecordDict:
    """Return the content of a message about logs, in either direction."""
    return RecordDict({SHOW: _show(value)})


def _show(value: dict[str, Any]) -> ConfigRecord:
    return ConfigRecord({"json": json.dumps(value)})


def decode_show(content: RecordDict) -> dict[str, Any]:
    """Read a message about logs, or the part about them of an order or its answer.

    Raises:
        InputError: if it is malformed.
    """
    if SHOW in content:
        value = _json(content[SHOW])
        if isinstance(value, dict):
            return value
    raise InputError("the message shows no log")


def encode_offer(offered: bytes) -> RecordDict:
    """Return the content of an offer's message on stock Flower; see :mod:`~common.link.offer`."""
    return RecordDict({OFFER: ConfigRecord({"json": offered.decode()})})


def decode_offer(content: RecordDict) -> bytes:
    """Read an offer's message.

    Raises:
        InputError: if it carries none.
    """
    text = content.config_records.get(OFFER, {}).get("json")
    if not isinstance(text, str):
        raise InputError("the message carries no offer")
    return text.encode()


def encode_reply(
    site: str,
    status: Status,
    release: Release | None = None,
    shown: dict[str, Any] | None = None,
) -> RecordDict:
    """Return the content of a site's reply.

    Args:
        site: its name.
        status: of the closed list.
        release: for an order that was answered with one; else None.
        shown: the evidence of the site's log that the order asked for.

    Raises:
        NotReleasableError: if ``release`` is anything but a release, or one that is not finite.
    """
    reply: dict[str, Any] = {"site": site, "status": str(status)}
    records = RecordDict()
    if release is not None:
        if not isinstance(release, Release):
            raise NotReleasableError(f"a {type(release).__name__} has no wire encoding")
        if name := not_finite(release.arrays):
            raise NotReleasableError(f"'{name}' is not finite")
        reply |= {"order": release.order, "facts": release.facts}
        records[ARRAYS] = to_record(release.arrays)
    records[REPLY] = ConfigRecord({"json": json.dumps(reply)})
    if shown is not None:
        records[SHOW] = _show(shown)
    return records


def decode_reply(content: RecordDict) -> tuple[str, Status, Release | None]:
    """Read a site's reply: site, status, and the release if there is one.

    Raises:
        InputError: if it is malformed or its digest does not match its arrays.
    """
    if REPLY not in content:
        raise InputError("the message carries no reply")
    reply = _json(content[REPLY])
    try:
        site, status = str(reply["site"]), Status(reply["status"])
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"the reply is malformed: {error}") from error
    if status is not Status.RELEASED or ARRAYS not in content.array_records:
        return site, status, None
    arrays = from_record(content.array_records[ARRAYS])
    facts = reply.get("facts")
    if not isinstance(facts, dict) or facts.get("digest") != digest_arrays(arrays):
        raise InputError(f"the release of '{site}' does not match its digest")
    if name := not_finite(arrays):
        raise InputError(f"'{name}' in the release of '{site}' is not finite")
    return site, status, Release(str(reply.get("order")), facts, arrays)


def status_of(records: bytes) -> Status | None:
    """Return the status in a site's packed reply, or None; its arrays are not read."""
    try:
        return Status(json.loads(json.loads(records)[REPLY]["json"])["status"])
    except (KeyError, TypeError, ValueError):
        return None


def _json(record: Any) -> Any:
    try:
        return json.loads(record["json"])
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"a record of the message is not JSON: {error}") from error
