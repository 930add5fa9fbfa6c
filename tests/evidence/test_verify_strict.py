"""Canonical JSON, base64, decimals and times: one way to write each."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st

from privet.privacy.audit.verify.formats import strict
from privet.privacy.audit.verify.formats.strict import Malformed

scalars = st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | st.text(max_size=8)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=12,
)


@given(values)
def test_canonical_json_is_read_and_is_that_of_rfc8785(value: Any) -> None:
    text = rfc8785.dumps(value)
    assert strict.canonical(value) == text
    assert strict.read(text) == value


@pytest.mark.parametrize(
    "text",
    [
        b'{"b":1,"a":2}', b'{"a":1,"a":1}', b'{"a": 1}', b'{"a":1}\n', b"1.0", b"1e3", b"NaN",
        b"Infinity", b"-0", b"9007199254740992", b"1" * 5000, b'"\\u00e9"', b'"\\/"', b'"\xff"',
        b'"\\ud800"', b'"\xed\xa0\x80"', b"[" * 100_000, b'{"a":' * 100_000, b"", b"\xef\xbb\xbf1",
        b'"\\u0041"', b'"\\u001F"', b"[1,]", b"01", b"nul", b"[" * 900 + b"]" * 900 + b" ",
    ],
)  # fmt: skip
def test_any_other_way_to_write_it_is_refused(text: bytes) -> None:
    with pytest.raises(Malformed):
        strict.read(text)


def test_keys_are_sorted_by_utf_16() -> None:
    value = {"\U0001f600": 1, "\ufb33": 2}
    assert strict.read(rfc8785.dumps(value)) == value
    with pytest.raises(Malformed):
        strict.read('{"\ufb33":2,"\U0001f600":1}'.encode())


def test_the_pinned_roster_may_be_laid_out_but_not_say_a_key_twice() -> None:
    assert strict.read_loose(b'{ "a": [1,\n 2] }') == {"a": [1, 2]}
    with pytest.raises(Malformed, match="twice"):
        strict.read_loose(b'{"a": 1, "a": 1}')


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    for reader in (strict.read, strict.read_loose, strict.unbase64):
        with contextlib.suppress(Malformed):
            reader(data)


@pytest.mark.parametrize(
    "text", ["AAB=", "AA==\n", "AA", "A===", "AAAA====", "_-8=", "Ä", "\u2028"]
)
def test_base64_has_one_form(text: str) -> None:
    with pytest.raises(Malformed):
        strict.unbase64(text)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_decimals_round_trip(number: float) -> None:
    assert strict.decimal(repr(number)) == number


@pytest.mark.parametrize(
    "text", ["0.10", "1e-5", "+1", ".5", "5.", "1E5", "nan", "inf", "1e999", "1_0", " 1", "٣", 1, True, None, "00.5", "1" * 40]
)  # fmt: skip
def test_other_decimals_are_refused(text: object) -> None:
    with pytest.raises(Malformed):
        strict.decimal(text)


@pytest.mark.parametrize(
    "text",
    ["2026-11-22 03:40:07Z", "2026-11-22T03:40:07", "2026-02-30T00:00:00Z", "2026-11-22T24:00:00Z",
     "2026-11-22T03:40:07.0Z", "٢026-11-22T03:40:07Z", "0000-01-01T00:00:00Z", 5],
)  # fmt: skip
def test_other_times_are_refused(text: object) -> None:
    with pytest.raises(Malformed):
        strict.seconds(text)


def test_time_counts_from_1970() -> None:
    assert strict.seconds("1970-01-02T00:00:01Z") == 86401


@given(st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**53) + 1, 2**53 - 1))
def test_a_plan_has_numbers_as_rfc8785_writes_them(number: float) -> None:
    text = rfc8785.dumps({"x": number})
    assert strict.number(strict.read_plan(text)["x"]) == number


@pytest.mark.parametrize(
    "text",
    [b"1.0", b"1e0", b"-0.0", b"1e400", b"NaN", b"0.10", b"1E-7", b"[1,]", b"\xff", b"[" * 99_999],
)
def test_a_plan_has_them_in_no_other_way(text: bytes) -> None:
    with pytest.raises(Malformed):
        strict.read_plan(text)


@pytest.mark.parametrize("value", ["1.0", True, None, float("inf"), float("nan"), []])
def test_what_is_no_number_of_a_plan(value: object) -> None:
    with pytest.raises(Malformed):
        strict.number(value)
