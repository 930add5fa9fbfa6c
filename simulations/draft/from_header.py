"""What a column's name alone says of it: the usual range of what is known to everybody.

The ranges are round numbers that hold for adults, wide enough that few values lie outside; a value
outside is held at twice the range. They are no limits of what is normal.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from privet.simulations.draft.columns import Columns


@dataclass(frozen=True)
class KnownKind:
    """A kind of column that is known by its name.

    Attributes:
        name: of the kind, with its unit.
        words: patterns of one or more words of a column's name, in small letters.
        low, high: its usual range.
        source: where the range comes from.
        log: whether it is logarithmic.
    """

    name: str
    words: str
    low: float
    high: float
    source: str
    log: bool = False

    @property
    def range(self) -> dict[str, Any]:
        """As a plan writes it."""
        found: dict[str, Any] = {"low": self.low, "high": self.high}
        return {**found, "log": True} if self.log else found


_LAB = "adult reference intervals of the ABIM, widened"
_VITAL = "vital signs of adults, MedlinePlus, widened"
KINDS = (
    KnownKind("age in years", r"age|alter|age years", 18, 90, "adults"),
    KnownKind("year", r"year|jahr|yr|annee", 1980, 2025, "the last decades"),
    KnownKind("month of the year", r"month", 1, 12, "calendar"),
    KnownKind("day of the month", r"day of month|dom", 1, 31, "calendar"),
    KnownKind("day of the week", r"weekday|day of week|dow", 0, 7, "calendar"),
    KnownKind("hour of the day", r"hour|hr of day", 0, 23, "clock"),
    KnownKind("per cent", r"percent|percentage|pct|prozent|perc", 0, 100, "by definition"),
    KnownKind("share", r"share|fraction|proportion|ratio|probability", 0, 1, "by definition"),
    KnownKind("latitude", r"lat|latitude", -90, 90, "by definition"),
    KnownKind("longitude", r"lon|lng|longitude", -180, 180, "by definition"),
    KnownKind(
        "systolic blood pressure, mmHg", r"sbp|systolic|sysbp|trestbps|blood pressure|sys bp",
        90, 180, _VITAL,
    ),
    KnownKind("diastolic blood pressure, mmHg", r"dbp|diastolic|diabp|dia bp", 50, 110, _VITAL),
    KnownKind(
        "heart rate, per minute", r"heart rate|heartrate|pulse|hr|thalach|bpm", 40, 180, _VITAL
    ),
    KnownKind(
        "respiratory rate, per minute", r"respiratory rate|resp rate|resprate|rr", 8, 40, _VITAL
    ),
    KnownKind("oxygen saturation, %", r"spo2|sao2|oxygen saturation|o2 sat", 80, 100, _VITAL),
    KnownKind("body temperature, °C", r"temperature|body temp|temp c", 35, 41, _VITAL),
    KnownKind("body mass index, kg/m²", r"bmi|body mass index", 15, 45, "WHO classes, widened"),
    KnownKind("body height, cm", r"height|height cm|groesse", 145, 200, "adults"),
    KnownKind("body weight, kg", r"weight|weight kg|gewicht", 40, 140, "adults"),
    KnownKind("glucose, mg/dl", r"glucose|blood sugar|glu", 60, 300, _LAB),
    KnownKind("cholesterol, mg/dl", r"chol|cholesterol|total cholesterol", 100, 350, _LAB),
    KnownKind("haemoglobin A1c, %", r"hba1c|a1c", 4, 12, _LAB),
    KnownKind("creatinine, mg/dl", r"creatinine|crea", 0.4, 5, _LAB, log=True),
    KnownKind("haemoglobin, g/dl", r"hemoglobin|haemoglobin|hgb|hb", 6, 18, _LAB),
    KnownKind("sodium, mmol/l", r"sodium", 125, 150, _LAB),
    KnownKind("potassium, mmol/l", r"potassium", 3, 6, _LAB),
    KnownKind("bilirubin, mg/dl", r"bilirubin|bili", 0.1, 10, _LAB, log=True),
    KnownKind("albumin, g/dl", r"albumin|alb", 2, 5.5, _LAB),
    KnownKind("platelets, 10⁹/l", r"platelets|plt", 50, 500, _LAB, log=True),
    KnownKind("white cells, 10⁹/l", r"wbc|white cells|leukocytes", 2, 30, _LAB, log=True),
    KnownKind("length of stay, days", r"length of stay|los", 0, 30, "hospital stays", log=True),
    KnownKind(
        "yearly income, USD or EUR", r"income|annual income|salary|einkommen",
        10_000, 250_000, "household incomes", log=True,
    ),
    KnownKind(
        "money, USD or EUR",
        r"amount|loan amount|loan amnt|balance|price|cost|costs|charges|payment|limit|betrag|"
        r"revenue|assets|debt",
        100, 100_000, "consumer accounts", log=True,
    ),
    KnownKind("credit score", r"fico|credit score|creditscore", 300, 850, "FICO's scale"),
    KnownKind("interest, % a year", r"interest rate|int rate|apr", 0, 30, "consumer credit"),
    KnownKind("debt to income, %", r"dti|debt to income", 0, 60, "consumer credit"),
    KnownKind("term, months", r"term|loan term|months|duration|tenure", 0, 120, "consumer credit"),
    KnownKind(
        "a count", r"count|number|num|n|no|visits|children|dependents|admissions|accounts",
        0, 20, "small counts", log=True,
    ),
)  # fmt: skip
"""Kinds of columns, the more special first where words are shared."""
_ID = re.compile(r"(^|_)(id|uuid|guid|mrn|iban|ssn|email|phone|name|address|zip|postcode)($|_)")
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")


def known_kind(name: str) -> KnownKind | None:
    """Return the kind of a column by its name, or None.

    The whole name decides, or else its last word, its last two or three: ``patient_age`` is an age,
    ``age_group`` is not.

    Args:
        name: of the column.
    """
    words = words_of(name)
    for start in range(len(words)):
        phrase = " ".join(words[start:])
        for kind in KINDS:
            if re.fullmatch(kind.words, phrase):
                return kind
    # n_visits, num_accounts
    if len(words) > 1 and words[0] in ("n", "num", "nb", "count", "number"):
        return KINDS[-1]
    return None


def words_of(name: str) -> list[str]:
    """Return the words of a column's name in small letters.

    Args:
        name: such as ``heartRate`` or ``heart_rate``.
    """
    spaced = _CAMEL.sub(" ", name).lower()
    return [word for word in re.split(r"[^0-9a-zà-ÿ]+", spaced) if word]


def is_identifier(name: str) -> bool:
    """Whether a column identifies people, by its name.

    Args:
        name: of the column.
    """
    return bool(_ID.search("_".join(words_of(name))))


def declare(found: Columns, names: list[str]) -> None:
    """Declare columns of a known kind; the others are unknown.

    Args:
        found: is extended.
        names: of the columns that are no label, text, site or person.
    """
    for name in names:
        if is_identifier(name):
            found.left_out[name] = "an identifier, by its name"
            continue
        kind = known_kind(name)
        if kind is None:
            found.unknown.append(name)
            continue
        found.numeric[name] = kind.range
        found.notes[name] = f"{kind.name}: {kind.source}"
