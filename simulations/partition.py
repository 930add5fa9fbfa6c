"""Split a table into sites, and each site's units into train, validation and test.

Private records are split as a site splits them (:mod:`privet.client.data.split`): a keyed hash of
the unit decides, so that no unit's presence moves another one, as the accounting assumes. The
scenarios, which are benchmarks on open records, use :func:`split_in_proportion`: exact shares in
each stratum, by a permutation in which every unit's place depends on the others. Both are the same
on every machine and for every row of a comparison.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pandas as pd

from privet.client.data.split import PERSON, split_by_unit
from privet.common.plan import Split

SITE = "site"
PART = "part"
"""Column that a scenario may bring with a fixed split: train, validation or test."""


def split_in_proportion(
    frame: pd.DataFrame, shares: Split, seed: int, *, strata: Iterable[str]
) -> pd.Series:
    """Return ``train``, ``validation`` or ``test`` for each row of open records.

    Args:
        frame: rows of all sites. With a column ``person`` all rows of a person go together; with a
            column ``part``, rows marked ``test`` stay test and the others are split into train and
            validation.
        shares: sizes of test and validation.
        seed: selects the split, a non-negative integer.
        strata: columns whose combinations are split separately, for equal shares.
    """
    generator = np.random.default_rng([seed, 0x5EED])
    part = pd.Series("train", index=frame.index)
    fixed, test_share = pd.Series(False, index=frame.index), shares.test
    if PART in frame.columns:
        fixed, test_share = frame[PART] == "test", 0.0
    part[fixed] = "test"
    free = frame[~fixed]
    by_person = PERSON in free.columns
    key = free[PERSON].astype(str) if by_person else pd.Series(free.index, index=free.index)
    # A person belongs to the stratum of the first row, so that all rows move together.
    first = free.assign(_key=key.to_numpy()).drop_duplicates("_key").sort_values("_key")
    for _, group in first.groupby([first[name].astype(str) for name in strata], sort=True):
        shuffled = group["_key"].to_numpy()[generator.permutation(len(group))]
        tests = round(len(shuffled) * test_share)
        validations = round(len(shuffled) * shares.validation)
        part[key.index[key.isin(shuffled[:tests])]] = "test"
        part[key.index[key.isin(shuffled[tests : tests + validations])]] = "validation"
    return part


def deal(count: int, sites: int, seed: int) -> np.ndarray:
    """Assign rows to sites at random, as evenly as possible.

    Args:
        count: number of rows.
        sites: number of sites.
        seed: selects the assignment, a non-negative integer.

    Returns:
        The site of each row, [count] integers from 0.
    """
    generator = np.random.default_rng([seed, 0xDEA1])
    return generator.permutation(np.arange(count) % sites)


__all__ = ["PART", "PERSON", "SITE", "deal", "split_by_unit", "split_in_proportion"]
