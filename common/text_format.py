"""How a text file writes its cells: separator, decimal sign, encoding, what is missing.

It is declared, and never found out during a run: if a format followed from the records, one of
them could change how all others are read (H6). With a declared one each record is still read from
its own bytes, and each cell from its own characters.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from privet.common.schema import Part

Separator = Literal[",", ";", "\t", "|"]
Encoding = Literal["utf-8", "latin-1", "cp1252", "iso-8859-15"]
"""Each has one byte or a few for a character, and a line end that no other character holds."""
_COMMA = re.compile(
    r"(?P<sign>[+-]?)(?P<whole>[0-9]{1,3}(?:\.[0-9]{3})+|[0-9]*)(?:,(?P<part>[0-9]*))?"
    r"(?P<exponent>[eE][+-]?[0-9]+)?"
)
_MAX_CHARACTERS = 400
Marker = Annotated[str, Field(min_length=1, max_length=40)]


class TextFormat(Part):
    """The format of CSV and TSV files.

    Attributes:
        separator: between two cells; None: the one of the file's name, a comma or a tab.
        decimal: sign between a number's whole part and its fraction, in columns that a plan
            declares numeric: with ``,`` their cell ``117,8`` or ``1.234,5`` is read as ``117.8`` or
            ``1234.5``. Names, people, labels, categories and texts stay as they are.
        encoding: of the file's characters.
        na: texts of cells that are missing, in any column.
    """

    separator: Separator | None = None
    decimal: Literal[".", ","] = "."
    encoding: Encoding = "utf-8"
    na: tuple[Marker, ...] = ()

    @model_validator(mode="after")
    def _is_readable(self) -> Self:
        if self.decimal == "," and self.separator == ",":
            raise ValueError("'separator' and 'decimal' cannot both be ','")
        return self

    def separator_or(self, by_name: str) -> str:
        """Return the separator.

        Args:
            by_name: the one that a file's name says.
        """
        return self.separator or by_name

    def cell(self, text: str, *, is_number: bool) -> str | None:
        """Return a cell as Privet reads it; None where it is missing.

        Args:
            text: as the file has it.
            is_number: whether its column is declared numeric.
        """
        if not text or (self.na and text.strip() in self.na):
            return None
        return with_point(text) if is_number and self.decimal == "," else text


PLAIN = TextFormat()
"""A comma or tab, a decimal point, UTF-8."""


def with_point(text: str) -> str:
    """Return a number that is written with a decimal comma with a point; any other text as it is.

    Args:
        text: of one cell.
    """
    if len(text) > _MAX_CHARACTERS or not ("," in text or "." in text):
        return text
    found = _COMMA.fullmatch(text.strip())
    if found is None or not (found["whole"] or found["part"]):
        return text
    whole = found["whole"].replace(".", "") or "0"
    part = f".{found['part']}" if found["part"] else ""
    return f"{found['sign']}{whole}{part}{found['exponent'] or ''}"
