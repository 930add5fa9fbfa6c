"""Classification of table rows. Every constant of the encoding is declared in the plan (H12)."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import torch

from privet.common.errors import DataError
from privet.common.plan import Numeric, TaskSpec
from privet.common.tasks import Batch
from privet.common.tasks.augment import chain, hide
from privet.common.tasks.classification import Classification, encode_labels


class TabularTask(Classification):
    """Rows become ``numeric`` [B, F], ``missing`` [B, F] and ``categorical`` [B, G].

    A category that is not declared, or a missing one, is number 0; the declared ones
    follow from 1.
    """

    def __init__(self, spec: TaskSpec) -> None:
        self.spec = spec
        # By name: the digest of a plan does not tell the order of its features.
        self.numeric = dict(sorted(spec.numeric.items()))
        self.categorical = dict(sorted(spec.categorical.items()))
        self.augment = chain(*[hide for _ in spec.augment])

    def encode(self, frame: pd.DataFrame) -> Batch:
        """See :class:`privet.common.tasks.Task`; columns outside the plan are ignored."""
        wanted = [*self.numeric, *self.categorical]
        if absent := [name for name in wanted if name not in frame.columns]:
            raise DataError(
                f"the column '{absent[0]}' is missing"
                + (f" (and {len(absent) - 1} more)" if len(absent) > 1 else "")
                + "; the plan declares it as a feature"
            )
        numeric = np.empty((len(frame), len(self.numeric)), dtype=np.float32)
        for j, (name, feature) in enumerate(self.numeric.items()):
            numeric[:, j] = _scaled(frame[name], feature)
        missing = np.isnan(numeric)
        categorical = np.zeros((len(frame), len(self.categorical)), dtype=np.int64)
        for j, (name, values) in enumerate(self.categorical.items()):
            numbers = {_text(value): i + 1 for i, value in enumerate(values)}
            categorical[:, j] = [numbers.get(_text(cell), 0) for cell in frame[name].tolist()]
        return {
            "numeric": torch.from_numpy(np.where(missing, np.float32(0), numeric)),
            "missing": torch.from_numpy(missing.astype(np.float32)),
            "categorical": torch.from_numpy(categorical),
            "label": encode_labels(frame, self.spec.label, self.spec.classes),
        }

    def random_batch(self, records: int, seed: int) -> Batch:
        """See :class:`privet.common.tasks.Task`."""
        generator = torch.Generator().manual_seed(seed)
        shape = (records, len(self.numeric))
        columns = [
            torch.randint(0, len(values) + 1, (records,), generator=generator)
            for values in self.categorical.values()
        ]
        return {
            "numeric": torch.randn(shape, generator=generator).clamp(-4, 4),
            "missing": (torch.rand(shape, generator=generator) < 0.2).float(),
            "categorical": torch.stack(columns, 1)
            if columns
            else torch.zeros((records, 0), dtype=torch.int64),
            "label": torch.randint(0, len(self.spec.classes), (records,), generator=generator),
        }


_MISSING = ("", "NA", "N/A", "NaN", "nan", "null", "NULL", "None", "?")


def _scaled(column: pd.Series, feature: Numeric) -> np.ndarray:
    values = pd.to_numeric(column, errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
    there = column.notna() & ~column.astype(str).str.strip().isin(_MISSING)
    unreadable = np.isnan(values) & there.to_numpy()
    if unreadable.any():
        row = int(np.flatnonzero(unreadable)[0])
        raise DataError(
            f"'{column.iloc[row]}' in row {row} of the numeric column '{column.name}' is not a "
            "number; declare the column as categorical or leave the cell empty"
        )
    values = np.where(np.isinf(values), np.nan, values)
    low, high = feature.low, feature.high
    if feature.log:
        values = np.log1p(np.maximum(values, min(low, 0.0)))
        low, high = math.log1p(low), math.log1p(high)
    scaled: np.ndarray = np.clip(4 * (values - low) / (high - low) - 2, -4, 4)
    return scaled


def _text(cell: object) -> str:
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return ""
    if isinstance(cell, float) and cell.is_integer():
        return str(int(cell))
    return str(cell).strip()
