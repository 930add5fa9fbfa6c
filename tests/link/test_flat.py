"""Flat streams: one hash for what is moved and what ledgers name, cut anywhere, never trusted."""

from __future__ import annotations

import hashlib
import re
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from privet.common.errors import InputError
from privet.common.flat import ArrayHeader, Arrays, StreamDecoder, chunks, digest_arrays, size_of

FLOATS = st.sampled_from(["<f2", "<f4", "<f8", ">f4"]).flatmap(
    lambda dtype: hnp.arrays(
        dtype, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5)
    )
)
NAMES = st.text(
    st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=20
)
MODELS = st.dictionaries(NAMES, FLOATS, max_size=6)
TINY: Arrays = {"w": np.arange(6, dtype="<f4").reshape(2, 3), "b": np.zeros(2, "<f4")}


def stream(arrays: Arrays, **how: int) -> bytes:
    return b"".join(chunks(arrays, **how))


def take(data: bytes, size: int | None = None, step: int = 7) -> tuple[Arrays, str]:
    intake = StreamDecoder(len(data) if size is None else size)
    for start in range(0, len(data), step):
        intake.take(data[start : start + step])
    return intake.finish()


def by_definition(arrays: Arrays) -> bytes:
    """The format as its page says, written once more."""
    out = b""
    for name, array in arrays.items():
        kind = f"<f{array.dtype.itemsize}"
        label = "\0".join((name, kind, ",".join(str(n) for n in array.shape))).encode()
        data = array.astype(kind).tobytes()
        out += struct.pack("<Q", len(label)) + label + struct.pack("<Q", len(data)) + data
    return out


@given(MODELS)
def test_the_stream_is_the_one_of_the_page(arrays: Arrays) -> None:
    assert stream(arrays) == by_definition(arrays)
    assert size_of(arrays) == len(by_definition(arrays))
    assert digest_arrays(arrays) == "sha256:" + hashlib.sha256(by_definition(arrays)).hexdigest()


@given(MODELS, st.integers(1, 50), st.data())
def test_a_stream_may_be_cut_and_begun_anywhere(arrays: Arrays, size: int, data: Any) -> None:
    whole = stream(arrays)
    start = data.draw(st.integers(0, len(whole)))
    parts = list(chunks(arrays, start, size))
    assert b"".join(parts) == whole[start:]
    assert all(len(part) == size for part in parts[:-1])


@given(MODELS, st.integers(1, 50))
def test_what_is_taken_is_what_was_sent(arrays: Arrays, step: int) -> None:
    taken, digest = take(stream(arrays), step=step)
    assert digest == digest_arrays(arrays) == digest_arrays(taken)
    assert list(taken) == list(arrays)
    for name, array in arrays.items():
        assert taken[name].shape == array.shape
        assert taken[name].tobytes() == array.astype(taken[name].dtype).tobytes()


def test_strided_arrays_are_sent_in_order() -> None:
    wide = np.arange(24, dtype="<f4").reshape(4, 6)
    for view in (wide.T, wide[::2, ::-1], np.asfortranarray(wide)):
        taken, _ = take(stream({"w": view}))
        assert np.array_equal(taken["w"], view)


def label(text: bytes, size: int, data: bytes = b"") -> bytes:
    return struct.pack("<Q", len(text)) + text + struct.pack("<Q", size) + data


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (label(b"w\0<f4\x002", 8), "announced|ended|longer"),
        (label(b"w\0<f4\x002", 4, b"1234"), "another length"),
        (label(b"w\0<f4\x00999999999999", 4 * 999999999999), "longer than the whole"),
        (label(b"w\0<f4\0-1", 0), "that can be read"),
        (label(b"w\0<f4\0\xc2\xb2", 8, b"12345678"), "that can be read"),
        (label(b"w\0<f4\x0002", 8, b"12345678"), "one form"),
        (label(b"w\0|O\x002", 8, b"12345678"), "that can be read"),
        (label(b"w\0<i8\x001", 8, b"12345678"), "that can be read"),
        (label(b"\0<f4\x001", 4, b"1234"), "that can be read"),
        (label(b"w\0<f4", 4, b"1234"), "malformed"),
        (label(b"\xff\0<f4\x001", 4, b"1234"), "malformed"),
        (label(b"w\0<f4\x001", 4, b"1234") * 2, "twice"),
        (struct.pack("<Q", 0), "label too long"),
        (struct.pack("<Q", 2**63) + b"x", "label too long"),
        (b"\1", "ended"),
    ],
)  # fmt: skip
def test_what_is_no_stream_is_refused(data: bytes, said: str) -> None:
    with pytest.raises(InputError, match=said):
        take(data)


@given(st.binary(max_size=200))
def test_nothing_but_our_own_error(data: bytes) -> None:
    try:
        arrays, digest = take(data)
    except InputError:
        return
    assert stream(arrays) == data and digest == digest_arrays(arrays)


@given(st.integers(0, 10**6), st.binary(min_size=1, max_size=3))
def test_a_changed_byte_changes_the_digest_or_is_refused(at: int, other: bytes) -> None:
    whole = stream(TINY)
    place = at % len(whole)
    changed = whole[:place] + other + whole[place + len(other) :]
    try:
        _, digest = take(changed)
    except InputError:
        return
    assert (digest == digest_arrays(TINY)) == (changed == whole)


@pytest.mark.parametrize("size", [-1, 1])
def test_a_stream_of_another_length_than_announced(size: int) -> None:
    whole = stream(TINY)
    with pytest.raises(InputError, match=re.compile("more bytes|ended")):
        take(whole, len(whole) + size)


def test_a_label_claims_no_memory_that_was_not_announced() -> None:
    intake = StreamDecoder(100)
    with pytest.raises(InputError, match="longer than the whole"):
        intake.take(label(b"w\0<f8\x0099999999", 8 * 99999999))


def test_layouts_read_back() -> None:
    found = ArrayHeader.of("a.b", TINY["w"])
    assert ArrayHeader.read(found.label, 0) == found and found.size == 24
