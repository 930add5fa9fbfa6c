"""Which of a site's units are trained on, and which are held out."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from pandas.util import hash_array

from privet.common.plan import Split

PERSON = "person"
"""Column that names the person, where the unit is a person."""


def split_by_unit(frame: pd.DataFrame, shares: Split, seed: int) -> pd.Series:
    """Return ``train``, ``validation`` or ``test`` for each row, from its unit alone.

    SipHash, keyed by ``seed``, of the person's name, or of the row's content where there is
    no column ``person``. Shares are met on average; equal rows go together.
    """
    if PERSON in frame.columns:
        names = frame[PERSON].map(_text).tolist()
    else:
        columns = [
            [f"{column}\x1f{text}\x1e" if (text := _text(cell)) else "" for cell in frame[column]]
            for column in sorted(frame.columns)
        ]
        names = ["".join(cells) for cells in zip(*columns, strict=True)]
    hashes = hash_array(np.array(names, dtype=object), hash_key=f"{seed:016x}", categorize=False)
    place = hashes / 2.0**64
    part = np.where(place < shares.test + shares.validation, "validation", "train")
    return pd.Series(np.where(place < shares.test, "test", part), index=frame.index)


def _text(cell: object) -> str:
    """Return a cell as text that does not depend on how the rest of its column was read.

    A single odd cell makes a column of whole numbers one of decimals, or one of texts.
    """
    text = str(cell).strip().casefold()
    try:
        number = float(text)
    except ValueError:
        return "" if text in ("none", "<na>", "nat") else text
    return "" if math.isnan(number) else repr(number)
