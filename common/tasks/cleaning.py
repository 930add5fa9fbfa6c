"""Remove dates, people's numbers, phone numbers and names from a text before a model reads it.

Each text is cleaned separately, by rules and by Google's phone number library. Nothing is counted
or reported, because the number of matches depends on private records (H13). Cleaning reduces the
information about a person for a reader of the text. It guarantees nothing: rules miss names that
follow no title. The people behind a released model are protected by the noise.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Literal

from privet.common.cells import text_of
from privet.common.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

Kind = Literal["dates", "emails", "links", "phones", "ids", "names"]
KINDS: tuple[Kind, ...] = ("dates", "emails", "links", "phones", "ids", "names")

MAX_CHARACTERS = 50_000
"""Of a text that is cleaned; the rest is cut off, for the search for phone numbers takes long."""

_MONTHS = (
    "january|february|march|april|may|june|july|august|september|october|november|december|"
    "jan|feb|mar|apr|jun|jul|aug|sept|sep|oct|nov|dec|"
    "enero|febrero|marzo|abril|mayo|junio|julio|agosto|septiembre|octubre|noviembre|diciembre"
)
_DAY = r"(?:0?[1-9]|[12]\d|3[01])"
_DATES = re.compile(
    rf"""\b(?:
        (?:19|20)\d\d[-/.]{_DAY}[-/.]{_DAY}(?:T\d\d:\d\d(?::\d\d)?)?      # 2014-03-05
      | {_DAY}[-/.]{_DAY}[-/.](?:19|20)?\d\d                              # 5/3/14, 05.03.2014
      | {_DAY}[-/](?:{_MONTHS})(?:[-/](?:19|20)?\d\d)?                    # 5-Mar-14
      | (?:{_MONTHS})[-/]{_DAY}(?:[-/.](?:19|20)?\d\d)?                   # Mar-05-2014
      | {_DAY}(?:st|nd|rd|th)?\s+(?:of\s+|de\s+)?(?:{_MONTHS})\.?(?:,?\s+(?:de\s+)?(?:19|20)\d\d)?
      | (?:{_MONTHS})\.?\s+{_DAY}(?:st|nd|rd|th)?\b(?:,?\s+(?:19|20)\d\d)?
      | (?:{_MONTHS})\.?,?\s+(?:19|20)\d\d
    )\b""",
    re.IGNORECASE | re.VERBOSE,
)
_EMAILS = re.compile(r"(?<![\w.+-])[\w.+-]{1,64}@[\w-]+(?:\.[\w-]+)+\b")
_LINKS = re.compile(r"\b(?:https?://|www\.)[^\s<>\"']+", re.IGNORECASE)
_IDS = re.compile(
    r"""\b(?:
        \d{3}-\d{2}-\d{4}                                   # US social security
      | [A-Z]{2}\d{2}(?:[ ]?[A-Z0-9]{4}){2,7}(?:[ ]?[A-Z0-9]{1,4})?   # IBAN
      | (?:\d[ -]?){12,18}\d                                # cards, accounts
      | (?i:MRN|ID|SSN|NHS)[.:#\s]{1,3}[A-Za-z0-9-]{0,30}\d[A-Za-z0-9-]{0,30}
      | (?:No|Nr)[.:#\s]{1,3}[A-Z0-9-]{0,30}\d[A-Z0-9-]{0,30}
      | \d{6,}                                              # record numbers
    )\b""",
    re.VERBOSE,
)
_PARTICLES = r"(?:(?:van|von|de|del|la|der|den|di|da|dos)[ ]+)*"
_CAPITAL = "[A-ZÀ-ÖØ-Þ]"
# Initials, with or without blanks between them, and the name after them: "J.K. Smith", "Smith".
_WORD = rf"{_PARTICLES}(?:{_CAPITAL}\.[ ]*)*{_CAPITAL}[\w'’-]*"
_TITLED = re.compile(
    # Written as titles are: "MR" is an image and "ms" a unit.
    rf"""\b(?:
        (?:Dr|DR|Mr|Mrs|Ms|Prof|Sr|Sra|Mme)(?:\.[ ]*|[ ]+)
      | (?:Miss|Herr|Frau|Doctor|Nurse|Professor)[ ]+
      | dr\.[ ]*
    ){_WORD}(?:[ ]+{_WORD}){{0,3}}""",
    re.VERBOSE,
)
_HEADED = re.compile(
    rf"(?P<heading>\b(?:(?i:name)|[Pp]atient)[ ]*:\s*){_WORD}(?:,?[ ]+{_WORD}){{0,3}}"
)
_SHOUTED = re.compile(
    # Where all is in capitals, a phrase of at most three words is a name, and a longer one is none.
    rf"(?P<heading>\bPATIENT[ ]*:\s*){_WORD}(?:,?[ ]+{_WORD}){{0,2}}(?=[ ]*(?:[,;(\n\d]|$))"
)


def texts_of(frame: pd.DataFrame, column: str) -> list[str]:
    """Return a column's texts; a missing cell is an empty text.

    Args:
        frame: the records.
        column: its name.

    Raises:
        DataError: if the column is missing.
    """
    if column not in frame.columns:
        raise DataError(f"the text column '{column}' is missing")
    return [text_of(cell) for cell in frame[column].tolist()]


def cleaner(kinds: Iterable[Kind], region: str = "US") -> Callable[[str], str]:
    """Return a function that cleans one text.

    Args:
        kinds: of :data:`KINDS`; the order does not matter.
        region: country of phone numbers without a country code (ISO 3166, two letters).
    """
    wanted = set(kinds)
    # What holds other things first: an address holds a name, a phone number looks like an id.
    steps: list[Callable[[str], str]] = []
    for kind, pattern in (("links", _LINKS), ("emails", _EMAILS), ("dates", _DATES)):
        if kind in wanted:
            steps.append(_by(pattern, kind))
    if "phones" in wanted:
        steps.append(lambda text: _without_phones(text, region))
    names = (("names", pattern) for pattern in (_HEADED, _SHOUTED, _TITLED))
    for kind, pattern in (("ids", _IDS), *names):
        if kind in wanted:
            steps.append(_by(pattern, kind))

    def clean(text: str) -> str:
        if steps:
            text = text[:MAX_CHARACTERS]
        for step in steps:
            text = step(text)
        return text

    return clean


def _by(pattern: re.Pattern[str], kind: str) -> Callable[[str], str]:
    mark = _mark(kind)

    def marked(found: re.Match[str]) -> str:
        return (found.groupdict().get("heading") or "") + mark

    return lambda text: pattern.sub(marked, text)


def _mark(kind: str) -> str:
    return f"[{kind.removesuffix('s')}]"


def _without_phones(text: str, region: str) -> str:
    import phonenumbers

    found = list(phonenumbers.PhoneNumberMatcher(text, region))
    for match in reversed(found):
        text = text[: match.start] + _mark("phones") + text[match.end :]
    return text
