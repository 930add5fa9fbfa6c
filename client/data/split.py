"""Split a site's units: which are trained on, and which are held out."""

from __future__ import annotations

import hashlib
import math
from array import array

import numpy as np
import pandas as pd
from pandas.util import hash_array

from privet.common.cells import number_of, text_of
from privet.common.person_id import PersonId
from privet.common.plan import Split

PERSON = "person"
"""Column that names the person, where the unit is a person."""


def with_person(frame: pd.DataFrame, column: pd.Series, person: PersonId) -> pd.DataFrame:
    """Return the records with the folded ids of their people; None if a cell names nobody.

    Args:
        frame: the records.
        column: the ids as the source has them.
        person: the rule that folds ids.
    """
    ids = pd.Series([person.of(cell) for cell in column], index=frame.index, dtype=object)
    return frame.assign(**{PERSON: ids})


def split_by_unit(frame: pd.DataFrame, shares: Split, seed: int) -> pd.Series:
    """Return ``train``, ``validation`` or ``test`` for each row, from its unit alone.

    The part follows from SipHash, keyed by ``seed``, of the person's folded id, or of the row's
    content if there is no column ``person``. Shares are met on average. Equal rows get the same
    part, and numbers count by value, so that a file and a database of the same records are split
    alike.

    Args:
        frame: the records, with folded ids of people (:func:`with_person`).
        shares: of the units that are held out, each from 0 to 1.
        seed: selects the split, a non-negative 64-bit integer.
    """
    if PERSON in frame.columns:
        names = [PersonId().of(cell) or "" for cell in frame[PERSON]]
    else:
        columns = [
            [f"{name}\x1f{text}\x1e" if (text := _content(cell)) else "" for cell in frame[name]]
            for name in sorted(frame.columns)
        ]
        names = ["".join(cells) for cells in zip(*columns, strict=True)]
    hashes = hash_array(np.array(names, dtype=object), hash_key=f"{seed:016x}", categorize=False)
    place = hashes / 2.0**64
    part = np.where(place < shares.test + shares.validation, "validation", "train")
    return pd.Series(np.where(place < shares.test, "test", part), index=frame.index)


def _content(cell: object) -> str:
    """Return a cell's part of its row's content; its spelling does not matter.

    Recordings are long, and their digest serves as well.
    """
    if isinstance(cell, bytes | array):
        return hashlib.sha256(bytes(cell)).hexdigest()
    try:
        number = number_of(cell)
    except ValueError:
        return text_of(cell).strip()
    return "" if math.isnan(number) else repr(number)
