"""Who is protected: the privacy unit, the neighbouring relation, and an ε that carries both.

An ε alone says nothing (H27). :class:`PrivacyLoss` is the only form in which Privet
holds one for people to read: it prints δ, unit and relation each time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
import numpy.typing as npt


class Unit(StrEnum):
    """What one person's contribution is; ``site``, all its records, in simulations alone."""

    RECORD = "record"
    PERSON = "person"
    SITE = "site"


class Relation(StrEnum):
    """Neighbouring relation: how two data sets differ by one unit."""

    ADD_OR_REMOVE_ONE = "add_or_remove_one"
    REPLACE_ONE = "replace_one"

    @property
    def moves(self) -> int:
        """How many sensitivities a value moves at most: one unit goes, and another may come."""
        return {Relation.ADD_OR_REMOVE_ONE: 1, Relation.REPLACE_ONE: 2}[self]


_RELATION_WORDS = {
    Relation.ADD_OR_REMOVE_ONE: "add or remove one",
    Relation.REPLACE_ONE: "replace one",
}


@dataclass(frozen=True)
class PrivacyLoss:
    """An (ε, δ) guarantee together with its unit and relation.

    ``epsilon`` is ``inf`` where nothing is guaranteed. There is no ``float()`` of it.
    ``remark`` says what is to be known about it, such as that it is a ceiling; or "".
    """

    epsilon: float
    delta: float
    unit: Unit
    relation: Relation
    remark: str = ""

    def __post_init__(self) -> None:
        if math.isnan(self.epsilon) or self.epsilon < 0:
            raise ValueError("epsilon must be at least 0")
        if not 0 < self.delta < 1:
            raise ValueError("delta must lie between 0 and 1")

    @property
    def terms(self) -> str:
        """δ, unit and relation in words, for a heading that stands over many ε."""
        return f"δ {self.delta:g}, per {self.unit}, {_RELATION_WORDS[self.relation]}"

    @property
    def figure(self) -> str:
        """ε alone, rounded up; only below a heading that shows :attr:`terms`."""
        return rounded_up(self.epsilon)

    def __str__(self) -> str:
        terms = "; ".join(filter(None, (self.terms, self.remark)))
        return f"ε {self.figure} ({terms})"

    def __format__(self, spec: str) -> str:
        return format(str(self), spec)

    def to_dict(self) -> dict[str, Any]:
        """Return all four values as JSON; an infinite ε becomes null.

        A key ``remark`` is added where there is one.
        """
        value: dict[str, Any] = {
            "epsilon": finite(self.epsilon),
            "delta": self.delta,
            "unit": str(self.unit),
            "relation": str(self.relation),
        }
        if self.remark:
            value["remark"] = self.remark
        return value


def cap_in_words(epsilon: float | None) -> str:
    """Return a cap without its terms; None is no cap."""
    return "no cap" if epsilon is None else f"ε {epsilon:g}"


def finite(value: float) -> float | None:
    """Return a number as JSON may have it: None stands for infinity."""
    return value if math.isfinite(value) else None


def rounded_up(epsilon: float) -> str:
    """Return an ε that was spent, or is claimed, with three decimals and never too small."""
    if not math.isfinite(epsilon):
        return "∞"
    return f"{math.ceil(epsilon * 1000 - 1e-6) / 1000:.3f}"


def rounded_down(epsilon: float) -> str:
    """Return an ε that is left of a budget with three decimals, never too large nor below 0."""
    return f"{math.floor(max(0.0, epsilon) * 1000 + 1e-6) / 1000:.3f}"


@dataclass(frozen=True)
class UnitIndex:
    """Which records belong to which unit.

    ``records[starts[i] : starts[i + 1]]`` are the record numbers of unit ``i``.
    """

    starts: npt.NDArray[np.int64]
    records: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.starts) - 1

    @classmethod
    def by_record(cls, count: int) -> UnitIndex:
        """Each of ``count`` records is a unit."""
        return cls(np.arange(count + 1), np.arange(count))

    @classmethod
    def by_person(cls, persons: npt.NDArray[Any], max_records: int) -> UnitIndex:
        """Each distinct value of ``persons`` is a unit; its first ``max_records`` records count.

        Which records are kept depends on that person's records alone, so one person's
        presence never changes another's contribution (H20).
        """
        order = np.argsort(persons, kind="stable")
        _, first, counts = np.unique(persons[order], return_index=True, return_counts=True)
        kept = np.minimum(counts, max_records)
        starts = np.concatenate([[0], np.cumsum(kept)]).astype(np.int64)
        if not len(kept):
            return cls(np.zeros(1, np.int64), np.empty(0, np.int64))
        picks = [order[a : a + k] for a, k in zip(first, kept, strict=True)]
        return cls(starts, np.concatenate(picks).astype(np.int64))

    def gather(self, units: npt.NDArray[np.int64]) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        """Return the record numbers of ``units`` and, for each, its unit's place in ``units``."""
        sizes = self.starts[units + 1] - self.starts[units]
        owner = np.repeat(np.arange(len(units)), sizes)
        offset = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        return self.records[self.starts[units][owner] + offset], owner
