"""Text of other parties made safe to print: no character moves a cursor or turns text around.

A title, a name or a reason comes from another party. With control characters it could rewrite a
terminal (ESC), begin a line of its own (LF, NEL, U+2028), or show itself in another order than it
is in (U+202E; Boucher and Anderson 2021, "Trojan Source"). Whatever shows such a text asks
:func:`printable` first; whatever shows a whole bundle's texts asks :func:`printable_all` once.
"""

from __future__ import annotations

import re
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

HIDDEN = (
    r"\x00-\x1f\x7f-\x9f"  # C0, DEL, C1
    r"\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # what turns the direction of text
    r"\u2028\u2029"  # line and paragraph ends
)
"""Characters that are never printed, as the inside of a character class."""
_HIDDEN = re.compile(rf"[{HIDDEN}\ud800-\udfff]")
_BUT_LINES = re.compile(rf"(?!\n)[{HIDDEN}\ud800-\udfff]")

_T = TypeVar("_T")


def printable(text: str, *, lines: bool = False) -> str:
    r"""Return ``text`` with each such character as its escape, such as ``\x1b`` or ``\u202e``.

    Args:
        text: of another party.
        lines: newlines stay; for a whole text that is written line by line.
    """
    return (_BUT_LINES if lines else _HIDDEN).sub(_escape, text)


def printable_all(value: _T) -> _T:
    """Return ``value`` with every text in it as :func:`printable` has it.

    Args:
        value: JSON values, tuples and dataclasses, nested in any way; others stay as they are.
    """
    return _shown(value)  # type: ignore[no-any-return]


def _shown(value: Any) -> Any:
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, dict):
        return {_shown(key): _shown(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_shown(item) for item in value]
    if type(value) is tuple:
        return tuple(_shown(item) for item in value)
    if is_dataclass(value) and not isinstance(value, type):
        parts = {part.name: getattr(value, part.name) for part in fields(value) if part.init}
        return replace(value, **{name: _shown(part) for name, part in parts.items()})
    return value


def counted(count: int, one: str, many: str = "") -> str:
    """Return a number with its noun: ``1 round``, ``2 rounds``.

    Args:
        count: how many there are.
        one: the noun's singular.
        many: its plural; "" appends an s.
    """
    if count == 1:
        return f"1 {one}"
    return f"{count} {many or one + 's'}"


def shortened(text: str, most: int = 40) -> str:
    """Return a text, cut after ``most`` characters."""
    if len(text) <= most:
        return text
    return f"{text[:most]}…"


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
