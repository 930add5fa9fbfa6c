"""What every classification task shares: labels, cross-entropy, probabilities."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional

from privet.common.errors import DataError
from privet.common.plan import canonical_label
from privet.common.tasks import Batch


def encode_labels(frame: pd.DataFrame, column: str, classes: Sequence[str]) -> Tensor:
    """Return class numbers [N] of the declared ``classes``.

    Numbers are compared by value, so that ``1``, ``1.0`` and ``True`` match class "1".

    Raises:
        DataError: if the column is missing, or a label is empty or not declared.
    """
    if column not in frame.columns:
        raise DataError(f"the label column '{column}' is missing; there are {_some(frame.columns)}")
    known = {_canonical(name): number for number, name in enumerate(classes)}
    cells = [_canonical(cell) for cell in frame[column].tolist()]
    numbers = np.array([known.get(cell, -1) for cell in cells], dtype=np.int64)
    if len(numbers) and numbers.min() < 0:
        row = int(np.flatnonzero(numbers < 0)[0])
        raise DataError(
            f"label {cells[row]!r} in row {row} of '{column}' is not a declared class; "
            f"declared are {_some(classes)}"
        )
    return torch.from_numpy(numbers)


def _canonical(cell: object) -> str:
    if cell is None or (isinstance(cell, float) and np.isnan(cell)) or cell is pd.NA:
        return ""
    return canonical_label(bool(cell) if isinstance(cell, np.bool_) else cell)


def _some(names: Sequence[str] | pd.Index) -> str:
    shown = [f"'{name}'" for name in list(names)[:8]]
    return ", ".join(shown) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


class Classification:
    """Loss and scores of a model that maps the batch's inputs to logits [B, K]."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the cross-entropy of each record, [B]."""
        inputs = {name: tensor for name, tensor in batch.items() if name != "label"}
        return functional.cross_entropy(model(**inputs), batch["label"], reduction="none")

    def scores(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return class probabilities [B, K]."""
        inputs = {name: tensor for name, tensor in batch.items() if name != "label"}
        logits: Tensor = model(**inputs)
        return logits.softmax(-1)
