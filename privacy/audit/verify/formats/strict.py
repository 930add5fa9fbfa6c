"""Strict readers: canonical JSON, base64, decimals, digests and times.

Whatever cannot be read raises :class:`Malformed`, never anything else.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import math
import re
import unicodedata
from collections.abc import Callable
from datetime import datetime
from typing import Any, NoReturn

import rfc8785

#: The longest line that is read, in bytes.
MAX_LINE = 1 << 26
_SAFE = 2**53 - 1
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_DECIMAL = re.compile(r"-?[0-9]+(\.[0-9]+)?(e[+-][0-9]+)?", re.ASCII)
_TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z", re.ASCII)
_EPOCH = datetime(1970, 1, 1)


class Malformed(ValueError):
    """A text is not what it must be."""


def _integer(text: str) -> int:
    if len(text) > 17 or abs(value := int(text)) > _SAFE:
        raise Malformed("an integer beyond 2^53")
    return value


def _integral(text: str) -> int | float:
    """Read a number without a fraction; RFC 8785 writes floats below 1e21 like that."""
    return _integer(text) if len(text) < 16 or len(text) > 22 else _narrow(float(text))


def _narrow(value: float) -> int | float:
    return int(value) if abs(value) <= _SAFE else value


def _no_float(text: str) -> NoReturn:
    raise Malformed("a number that is not an integer and not a decimal string")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise Malformed("a key occurs twice")
    return value


_decode = json.JSONDecoder(
    parse_float=_no_float, parse_int=_integer, parse_constant=_no_float
).decode
_decode_unique = json.JSONDecoder(
    parse_float=_no_float, parse_int=_integer, parse_constant=_no_float, object_pairs_hook=_unique
).decode
_decode_floats = json.JSONDecoder(parse_int=_integral, parse_constant=_no_float).decode
_encode = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode


def canonical(value: Any) -> bytes:
    """Return ``value`` (from :func:`read`, so without floats) as RFC 8785 JSON.

    The encoder of the standard library sorts by code point and RFC 8785 by UTF-16; for ASCII
    they are the same, and so are the escapes.
    """
    try:
        text = _encode(value)
        return text.encode() if text.isascii() else rfc8785.dumps(value)
    except (ValueError, TypeError, RecursionError) as error:
        raise Malformed(f"cannot be written as canonical JSON ({type(error).__name__})") from None


def _parse(decode: Callable[[str], Any], data: bytes) -> Any:
    try:
        return decode(data.decode())
    except Malformed:
        raise
    except UnicodeDecodeError:
        raise Malformed("not UTF-8") from None
    except RecursionError:
        raise Malformed("nested too deeply") from None
    except ValueError:
        raise Malformed("not JSON") from None


def read(data: bytes) -> Any:
    """Read canonical JSON; any other way to write the same value is refused."""
    value = _parse(_decode, data)
    if canonical(value) != data:
        raise Malformed("not canonical JSON")
    return value


def read_plan(data: bytes) -> Any:
    """Read canonical JSON whose numbers may have fractions, as plans have them."""
    value = _parse(_decode_floats, data)
    try:
        same = rfc8785.dumps(value) == data
    except (rfc8785.CanonicalizationError, RecursionError, UnicodeError) as error:
        raise Malformed(f"not canonical JSON ({type(error).__name__})") from None
    if not same:
        raise Malformed("not canonical JSON")
    return value


def read_loose(data: bytes) -> Any:
    """Read JSON that a person may have laid out; a key must not occur twice."""
    return _parse(_decode_unique, data)


def obj(value: Any, what: str, *keys: str) -> dict[str, Any]:
    """Return ``value`` if it is an object with exactly ``keys``.

    Args:
        value: what was read.
        what: its name in the message.
        keys: of its fields.
    """
    if not isinstance(value, dict):
        raise Malformed(f"{what} must be an object")
    if value.keys() != set(keys):
        raise Malformed(f"{what} must have exactly the fields {', '.join(keys)}")
    return value


def unbase64(text: str | bytes) -> bytes:
    """Decode canonical base64."""
    raw = text.encode() if isinstance(text, str) else text
    try:
        data = binascii.a2b_base64(raw, strict_mode=True)
    except (binascii.Error, ValueError):
        raise Malformed("not base64") from None
    if base64.b64encode(data) != raw:
        raise Malformed("base64 is not canonical")
    return data


def is_visible(text: str) -> bool:
    """Return whether a text has no control characters, and none that turn its direction.

    Such characters (ESC, U+202E, a line separator) let a text look like another one on a screen.
    """
    return (text.isascii() and text.isprintable()) or not any(map(_is_hidden, text))


def _is_hidden(sign: str) -> bool:
    kind = unicodedata.category(sign)
    return kind in ("Cc", "Cs", "Zl", "Zp") or (kind == "Cf" and sign not in "\u200c\u200d\u00ad")


def is_digest(value: object) -> bool:
    """Return whether ``value`` is ``sha256:`` and 64 lower-case hex digits."""
    return isinstance(value, str) and _DIGEST.fullmatch(value) is not None


def digest(data: bytes) -> str:
    """Return the digest of ``data``."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def decimal(value: object) -> float:
    """Read a decimal string: the shortest that reads back as the same float."""
    if not isinstance(value, str) or len(value) > 32 or not _DECIMAL.fullmatch(value):
        raise Malformed("must be a decimal string")
    number = float(value)
    if not math.isfinite(number):
        raise Malformed("must be a finite decimal")
    shortest = repr(number)
    if value not in (shortest, shortest.removesuffix(".0")):
        raise Malformed("is not the shortest decimal string")
    return number


def number(value: object) -> float:
    """Read a number of a plan, where alone numbers stand as JSON numbers."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise Malformed("must be a number")
    return float(value)


def seconds(value: object) -> int:
    """Read a time and return its seconds since 1970."""
    if not isinstance(value, str) or not _TIME.fullmatch(value):
        raise Malformed("time must be like 2026-11-22T03:40:07Z")
    try:
        moment = datetime.fromisoformat(value[:-1])
    except ValueError:
        raise Malformed("time does not exist") from None
    delta = moment - _EPOCH
    return delta.days * 86400 + delta.seconds
