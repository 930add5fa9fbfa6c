"""Classification of table rows. Every constant of the encoding is declared in the plan (H12)."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import torch

from privet.common.cells import Codes, number_of
from privet.common.errors import DataError
from privet.common.sections.task import Numeric, TabularTaskSpec
from privet.common.tasks import Batch
from privet.common.tasks.augment import chain, hide
from privet.common.tasks.classification import Classification, encode_labels
from privet.common.tasks.encoding import Faults


class TabularTask(Classification):
    """Rows become ``numeric`` [B, F], ``missing`` [B, F] and ``categorical`` [B, G].

    A category that is not declared, or a missing one, is number 0; the declared ones
    follow from 1.
    """

    def __init__(self, spec: TabularTaskSpec) -> None:
        self.spec = spec
        # By name: the digest of a plan does not tell the order of its features.
        self.numeric = dict(sorted(spec.numeric.items()))
        self.categorical = dict(sorted(spec.categorical.items()))
        self.augment = chain(*[hide for _ in spec.augment])

    def encode_rows(self, frame: pd.DataFrame) -> tuple[Batch, Faults]:
        """See :class:`privet.common.tasks.encoding.EncodesRows`.

        Columns outside the plan are ignored. A cell of a numeric column that is no number makes the
        record unusable.
        """
        wanted = [*self.numeric, *self.categorical]
        if absent := [name for name in wanted if name not in frame.columns]:
            raise DataError(
                f"the column '{absent[0]}' is missing"
                + (f" (and {len(absent) - 1} more)" if len(absent) > 1 else "")
                + "; the plan declares it as a feature"
            )
        faults = Faults()
        numeric = np.empty((len(frame), len(self.numeric)), dtype=np.float32)
        for j, (name, feature) in enumerate(self.numeric.items()):
            numeric[:, j] = scaled(numbers_of(frame, name, faults), feature)
        missing = np.isnan(numeric)
        categorical = np.zeros((len(frame), len(self.categorical)), dtype=np.int64)
        for j, (name, values) in enumerate(self.categorical.items()):
            found = Codes(values).find_each(frame[name].tolist())
            categorical[:, j] = [0 if place is None else place + 1 for place in found]
        batch = {
            "numeric": torch.from_numpy(np.where(missing, np.float32(0), numeric)),
            "missing": torch.from_numpy(missing.astype(np.float32)),
            "categorical": torch.from_numpy(categorical),
            "label": encode_labels(frame, self.spec.label, self.spec.classes, faults),
        }
        return batch, faults

    def random_batch(self, records: int, seed: int) -> Batch:
        """See :class:`privet.common.tasks.Task`.

        Args:
            records: number B of records.
            seed: the same seed gives the same records.
        """
        generator = torch.Generator().manual_seed(seed)
        shape = (records, len(self.numeric))
        categorical = torch.zeros((records, len(self.categorical)), dtype=torch.int64)
        for j, values in enumerate(self.categorical.values()):
            categorical[:, j] = torch.randint(0, len(values) + 1, (records,), generator=generator)
        return {
            "numeric": torch.randn(shape, generator=generator).clamp(-4, 4),
            "missing": (torch.rand(shape, generator=generator) < 0.2).float(),
            "categorical": categorical,
            "label": torch.randint(0, len(self.spec.classes), (records,), generator=generator),
        }


def numbers_of(frame: pd.DataFrame, name: str, faults: Faults) -> np.ndarray:
    """Return a column's numbers [N] as doubles; NaN for a missing or unreadable one.

    Args:
        frame: the records.
        name: of the column.
        faults: extended by the records whose cell is not a number.
    """
    values = np.full(len(frame), np.nan)
    for row, cell in enumerate(frame[name].tolist()):
        try:
            values[row] = number_of(cell)
        except ValueError:
            faults.setdefault(
                row,
                f"{str(cell)[:40]!r} in the numeric column '{name}' is not a number; declare the "
                "column as categorical or leave the cell empty",
            )
    return values


def scaled(values: np.ndarray, feature: Numeric) -> np.ndarray:
    """Scale numbers for the model: the declared range becomes [-2, 2], clipped to [-4, 4].

    Args:
        values: numbers [N].
        feature: declares the range, and whether it is logarithmic.
    """
    low, high = feature.low, feature.high
    if feature.log:
        values = np.log1p(np.maximum(values, min(low, 0.0)))
        low, high = math.log1p(low), math.log1p(high)
    # In units of the range first: what is far outside must not overflow.
    with np.errstate(over="ignore"):
        found: np.ndarray = np.clip(4 * ((values - low) / (high - low)) - 2, -4, 4)
    return found
