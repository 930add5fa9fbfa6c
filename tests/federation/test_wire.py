"""Only a release can be encoded; what was tampered with is not decoded."""

from __future__ import annotations

import io
import json
import pickle
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from privet.common.errors import InputError, NotReleasableError
from privet.common.flat import Arrays, digest_arrays
from privet.common.flower.wire import (
    decode_order,
    decode_reply,
    encode_order,
    encode_reply,
    from_record,
    to_record,
)
from privet.common.order import Order, Status
from privet.common.release import Release
from privet.privacy.mechanism.clipping import ClippedSum
from privet.privacy.mechanism.clipping.methods import RawGradients
from privet.privacy.mechanism.dpsgd import NoisedUpdate

floats = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=0, max_dims=3, max_side=4),
    elements=st.floats(-(2.0**59), 2.0**59, width=32),
)
arrays = st.dictionaries(st.text(min_size=1, max_size=8), floats, max_size=4)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
runs = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", fullmatch=True)
PLAN = "sha256:" + "0" * 64
facts = st.dictionaries(texts, st.one_of(st.integers(-9, 9), st.floats(-1, 1), texts), max_size=3)


def release(values: Arrays | None = None, **more: Any) -> Release:
    values = {"w": np.arange(6, dtype=np.float32).reshape(2, 3)} if values is None else values
    return Release("sha256:order", {"digest": digest_arrays(values), **more}, values)


def over_the_wire(content: RecordDict) -> RecordDict:
    """Through Flower's own bytes and back."""
    from flwr.common.serde import recorddict_from_proto, recorddict_to_proto

    message = recorddict_to_proto(content)
    return recorddict_from_proto(type(message).FromString(message.SerializeToString()))


@settings(max_examples=50, deadline=None)
@given(arrays, facts, texts)
def test_a_release_comes_back_as_it_left(values: Arrays, more: dict[str, Any], site: str) -> None:
    sent = Release("sha256:order", {**more, "digest": digest_arrays(values)}, values)
    content = over_the_wire(encode_reply(site, Status.RELEASED, sent))
    name, status, got = decode_reply(content)
    assert (name, status) == (site, Status.RELEASED)
    assert got is not None
    assert (got.order, got.facts, list(got.arrays)) == (sent.order, sent.facts, list(values))
    assert digest_arrays(got.arrays) == digest_arrays(values)


@settings(max_examples=50, deadline=None)
@given(arrays, runs, st.integers(1, 99), st.sampled_from(["train", "evaluate"]), texts, texts)
def test_an_order_comes_back_as_it_left(
    values: Arrays, run: str, number: int, purpose: str, signature: str, head: str
) -> None:
    order = Order(
        run, "A", number, 1, purpose, PLAN, digest_arrays(values), tuple(values), "key", signature
    )
    config = ConfigRecord({"server-round": number})
    sent = encode_order(order, to_record(values), config, head)
    got, model, shown = decode_order(over_the_wire(sent))
    assert got == order
    assert (got.keyid, got.signature, shown) == ("key", signature, head)
    assert got.digest == order.digest
    assert digest_arrays(model) == order.model


@pytest.mark.parametrize("status", [status for status in Status if status != Status.RELEASED])
def test_a_status_travels_alone(status: Status) -> None:
    content = over_the_wire(encode_reply("A", status))
    assert list(content) == ["reply"]
    assert json.loads(str(content["reply"]["json"])) == {"site": "A", "status": str(status)}
    assert decode_reply(content) == ("A", status, None)


@dataclass
class Unlike:
    """Has a release's fields and is none."""

    order: str
    facts: dict[str, Any]
    arrays: Arrays


@pytest.mark.parametrize(
    "value",
    [
        {"w": np.zeros(3, np.float32)},
        torch.nn.Linear(2, 2).state_dict(),
        torch.zeros(3),
        [torch.zeros(3)],
        np.zeros(3),
        ClippedSum((torch.zeros(3),), 1.0),
        RawGradients([torch.zeros(4, 3)]),
        Unlike("sha256:order", {}, {}),
        b"bytes",
        "text",
        object(),
    ],
    ids=lambda value: type(value).__name__,
)
def test_only_a_release_has_an_encoding(value: Any) -> None:
    with pytest.raises(NotReleasableError, match="has no wire encoding"):
        encode_reply("A", Status.RELEASED, value)


def test_only_a_mechanism_makes_a_noised_update() -> None:
    with pytest.raises(NotReleasableError, match="only a mechanism"):
        NoisedUpdate(object(), {}, None, False)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", [np.float16, np.float32])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_number_that_is_not_finite_neither_leaves_nor_arrives(value: float, kind: type) -> None:
    values = {"w": np.array([0.0, value], kind)}
    with pytest.raises(NotReleasableError, match="'w' is not finite"):
        encode_reply("A", Status.RELEASED, release(values))
    content = encode_reply("A", Status.RELEASED, release())
    reply = json.loads(str(content["reply"]["json"]))
    reply["facts"]["digest"] = digest_arrays(values)
    content["reply"] = ConfigRecord({"json": json.dumps(reply)})
    content["arrays"] = to_record(values)
    with pytest.raises(InputError, match="not finite"):
        decode_reply(content)


def flipped(place: int, bit: int) -> RecordDict:
    """A reply in which one bit of the array's bytes is another."""
    content = encode_reply("A", Status.RELEASED, release())
    array = content.array_records["arrays"]["w"]
    raw = bytearray(array.data)
    raw[place] ^= 1 << bit
    content.array_records["arrays"]["w"] = Array(array.dtype, array.shape, array.stype, bytes(raw))
    return content


def refused_or_the_same(content: RecordDict) -> None:
    """Some spaces and spellings of numpy's header say the same; all else is refused."""
    try:
        _, _, got = decode_reply(content)
    except InputError:
        return
    assert got is not None
    assert digest_arrays(got.arrays) == digest_arrays(release().arrays)


def test_flowers_own_transport_and_pickle_see_its_own_types() -> None:
    """A SuperLink refuses an object of a class that it does not know."""
    values = {"w": np.arange(6, dtype=np.float32).reshape(3, 2)}
    record = to_record(values)
    assert record.deflate().startswith(b"ArrayRecord ")
    for child in record.children.values():
        assert child.deflate().startswith(b"Array ")
    again = ArrayRecord.inflate(
        record.deflate(),
        {
            key: Array.inflate(child.deflate(), dict(child.children))
            for key, child in record.children.items()
        },
    )
    assert np.array_equal(again["w"].numpy(), values["w"])
    copied = pickle.loads(pickle.dumps(record))
    assert type(copied) is ArrayRecord and type(copied["w"]) is Array
    assert np.array_equal(copied["w"].numpy(), values["w"])


@pytest.mark.parametrize("place", range(128, 152))
def test_a_flipped_bit_in_the_numbers_is_noticed(place: int) -> None:
    for bit in range(8):
        with pytest.raises(InputError):
            decode_reply(flipped(place, bit))


@pytest.mark.filterwarnings("ignore")
def test_a_flipped_bit_in_the_header_is_noticed() -> None:
    for place in range(128):
        for bit in range(8):
            refused_or_the_same(flipped(place, bit))


@pytest.mark.parametrize(
    "values",
    [
        {"w": np.arange(6, dtype=np.float32).reshape(3, 2)},
        {"w": np.arange(6, dtype=np.float64).reshape(2, 3)},
        {"v": np.arange(6, dtype=np.float32).reshape(2, 3)},
        {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "v": np.zeros(1, np.float32)},
        {"w": -np.arange(6, dtype=np.float32).reshape(2, 3)},
        {},
    ],
    ids=["shape", "type", "name", "more", "value", "none"],
)
def test_other_arrays_than_digested_are_refused(values: Arrays) -> None:
    content = encode_reply("A", Status.RELEASED, release())
    content["arrays"] = to_record(values)
    with pytest.raises(InputError, match="does not match its digest"):
        decode_reply(content)


def test_arrays_in_another_order_are_refused() -> None:
    values = {"a": np.zeros(2, np.float32), "b": np.ones(2, np.float32)}
    content = encode_reply("A", Status.RELEASED, release(values))
    content["arrays"] = to_record(dict(reversed(values.items())))
    with pytest.raises(InputError, match="does not match its digest"):
        decode_reply(content)


def pickled() -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    return stream.getvalue()


def saved(value: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, value)
    return stream.getvalue()


@pytest.mark.parametrize("number", [1.1e18, -1.1e18, np.inf, np.nan])
def test_numbers_without_measure_are_not_let_out(number: float) -> None:
    with pytest.raises(NotReleasableError, match="'w' is not finite"):
        encode_reply("North", Status.RELEASED, release({"w": np.array([0.0, number], np.float32)}))


@pytest.mark.parametrize(
    "raw",
    [
        pickled(), b"", b"\x93NUMPY", b"not an array", b"\x80\x04}.",
        saved(np.arange(6)), saved(np.array(["text"])), saved(np.array([True])),
        saved(np.array([1j])), saved(np.zeros(2, dtype=[("a", "f4")])),
    ],
    ids=["object", "empty", "cut", "text", "pickle", "int", "str", "bool", "complex", "struct"],
)  # fmt: skip
def test_anything_but_floats_is_refused(raw: bytes) -> None:
    record = ArrayRecord({"w": Array("float32", (6,), "numpy.ndarray", raw)})
    with pytest.raises(InputError, match="array 'w'"):
        from_record(record)


@pytest.mark.parametrize(
    ("stype", "raw"),
    [("pickle", b"x"), ("numpy.ndarray", b"PK\x05\x06" + bytes(18))],
    ids=["stype", "zip"],
)
def test_another_serialisation_is_refused(stype: str, raw: bytes) -> None:
    record = ArrayRecord({"w": Array("float32", (6,), stype, raw)})
    with pytest.raises(InputError, match="array 'w'"):
        from_record(record)


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "[]", "null", '"a"', "{}", '{"site": "A"}', '{"status": "released"}',
        '{"site": "A", "status": "fine"}', '{"site": "A", "status": null}',
        '{"site": "A", "status": ["failed"]}',
    ],
)  # fmt: skip
def test_a_malformed_reply_is_refused(text: str) -> None:
    with pytest.raises(InputError):
        decode_reply(RecordDict({"reply": ConfigRecord({"json": text})}))


@pytest.mark.parametrize(
    "content",
    [
        RecordDict(),
        RecordDict({"reply": ConfigRecord()}),
        RecordDict({"reply": ArrayRecord()}),
    ],
    ids=["empty", "no-json", "arrays"],
)
def test_a_message_without_a_reply_is_refused(content: RecordDict) -> None:
    with pytest.raises(InputError):
        decode_reply(content)


@pytest.mark.parametrize(
    "changes",
    [
        {"round": 0}, {"round": -1}, {"round": True}, {"round": 1.0}, {"round": "1"},
        {"attempt": 0}, {"purpose": "steal"}, {"run": 3}, {"parameters": "w"},
        {"parameters": [1]}, {"extra": 1}, {"site": None}, {"run": ""}, {"run": "a\n"},
        {"run": "../a"}, {"run": "a/b"}, {"run": "a b"}, {"run": "ä"}, {"run": "a" * 129},
        {"plan": "hello"}, {"plan": PLAN + "\n"}, {"model": ""}, {"model": PLAN.upper()},
    ],
    ids=str,
)  # fmt: skip
def test_a_malformed_order_is_refused(changes: dict[str, Any]) -> None:
    good = json.loads(Order("r", "A", 1, 1, "train", PLAN, PLAN, ("w",)).encode())
    assert Order.decode(good).parameters == ("w",)
    with pytest.raises(InputError, match="order"):
        Order.decode({**good, **changes})
    for name in good:
        with pytest.raises(InputError, match="exactly the fields"):
            Order.decode({key: value for key, value in good.items() if key != name})


def test_statuses_are_a_closed_list() -> None:
    """The list is append-only: a name that is out in the world is never changed."""
    assert [str(status) for status in Status][:8] == [
        "released", "refused-plan", "refused-parameters", "refused-budget", "refused-conflict",
        "refused-self-test", "failed", "present",
    ]  # fmt: skip
