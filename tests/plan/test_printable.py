"""What others wrote is shown without characters that move a cursor or turn text around."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from typing import Any

import pytest

from privet.common.errors import PlanError
from privet.common.plan import Plan
from privet.common.printable import printable, printable_all

BAD = [*map(chr, (*range(0x20), *range(0x7F, 0xA0))), *"\u2028\u2029\u061c\u200e\u200f"]
BAD += [chr(code) for code in (*range(0x202A, 0x202F), *range(0x2066, 0x206A), 0xD800, 0xDFFF)]


def test_every_such_character_becomes_its_escape() -> None:
    for character in BAD:
        shown = printable(f"a{character}b")
        assert shown.isascii() and shown.isprintable()
        assert shown == f"a\\x{ord(character):02x}b" or shown == f"a\\u{ord(character):04x}b"


def test_no_control_and_no_bidirectional_control_is_left_out() -> None:
    """By Unicode's own tables, not by ours."""
    kinds = {"LRE", "RLE", "PDF", "LRO", "RLO", "LRI", "RLI", "FSI", "PDI", "B"}
    for code in range(0x110000):
        character = chr(code)
        if unicodedata.category(character) in ("Cc", "Zl", "Zp", "Cs") or (
            unicodedata.bidirectional(character) in kinds
        ):
            assert printable(character) != character, hex(code)


@pytest.mark.parametrize("text", ["", "Größe ✓ “δ 1e-5”", "שלום", "مرحبا", "नमस्ते\u200d", "\\x1b"])
def test_other_text_stays(text: str) -> None:
    assert printable(text) == text


def test_newlines_stay_where_asked_and_nothing_else() -> None:
    assert printable("a\nb\r\x1b", lines=True) == "a\nb\\x0d\\x1b"
    assert printable("a\nb") == "a\\x0ab"


@dataclass(frozen=True)
class Thing:
    name: str
    rest: Any = None


def test_all_texts_of_a_value_are_shown_so() -> None:
    value = Thing("\x1b", [{"\u202e": ("\x07", 1, None, 2.5, Thing("\x00"))}])
    assert printable_all(value) == Thing(
        "\\x1b", [{"\\u202e": ("\\x07", 1, None, 2.5, Thing("\\x00"))}]
    )


@pytest.mark.parametrize("character", ["\x1b", "\x9b", "\u202e", "\u2066", "\u2028", "\u200f"])
@pytest.mark.parametrize("key", ["title", "name", "site"])
def test_a_plan_with_such_a_title_or_name_is_refused(
    plan_value: Any, key: str, character: str
) -> None:
    text = f"North{character}"
    value = plan_value(**({} if key == "site" else {key: text}))
    if key == "site":
        value["sites"][0]["name"] = text
    with pytest.raises(PlanError, match=r"title: must be one line|name: must be at most") as caught:
        Plan.parse(value)
    assert str(caught.value).isprintable()
