"""Which records are one person's: one function, used wherever records are grouped by person.

The split, the privacy unit, the feedback file and the operator's check all call
:meth:`PersonId.of`, so that one person cannot be one unit here and four there. The privacy unit is
the *folded* id. Folding is not the safe side: where two people share one folded id, they are one
unit, and the guarantee for each of them alone is not claimed.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any

from privet.common.cells import plain, text_of

MAX_CHARACTERS = 1000
"""The longest id; a longer cell names nobody. Unicode's forms take quadratic time."""
MAX_DIGITS = 400
"""The longest id that is read as a number."""


@dataclass(frozen=True)
class PersonId:
    """How an id is folded. Outer blanks and Unicode's forms (NFC) never tell people apart.

    Attributes:
        ignore_case: ids that differ in case alone are one person's.
        numeric: ids are numbers, written in several ways: ``0012``, ``12`` and ``12.0`` are one
            person's. Read in decimal, so that long ids stay apart. What is not a number stays text.
    """

    ignore_case: bool = False
    numeric: bool = False

    def of(self, cell: Any) -> str | None:
        """Return the folded id in a cell, or None if the cell names nobody."""
        cell = plain(cell)
        text = text_of(cell).strip()
        if not text or len(text) > MAX_CHARACTERS:
            return None
        text = unicodedata.normalize("NFC", text)
        if self.numeric and len(text) <= MAX_DIGITS:
            text = _as_number(text)
        # Casefolding can undo NFC (Unicode 15, 3.13 D145).
        return unicodedata.normalize("NFC", text.casefold()) if self.ignore_case else text


def _as_number(text: str) -> str:
    if not text.isascii() or "_" in text:
        return text
    try:
        number = Decimal(text)
    except InvalidOperation:
        return text
    if not number.is_finite() or number.adjusted() > MAX_DIGITS:
        return text
    if number == number.to_integral_value():
        return str(int(number))
    sign, digits, exponent = number.as_tuple()
    kept = "".join(map(str, digits)).rstrip("0")
    shift = len(digits) - len(kept)
    return f"{'-' * sign}{kept}e{int(exponent) + shift}"
