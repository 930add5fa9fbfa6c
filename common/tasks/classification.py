"""The common part of all classification tasks: labels, cross-entropy, probabilities."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional

from privet.common.cells import Codes, is_missing, text_of
from privet.common.errors import DataError
from privet.common.printable import shortened
from privet.common.schema import did_you_mean
from privet.common.tasks import Batch
from privet.common.tasks.encoding import Faults, RowEncoding


def encode_labels(
    frame: pd.DataFrame, column: str, classes: Sequence[str], faults: Faults
) -> Tensor:
    """Return class numbers [N] of the declared ``classes``; 0 for a record without one.

    Args:
        frame: the records.
        column: name of the label's column.
        classes: as declared; :class:`privet.common.cells.Codes` says which cells match.
        faults: extended by the records whose label is empty or not declared.

    Raises:
        DataError: if the column is missing.
    """
    if column not in frame.columns:
        meant = did_you_mean(column, map(str, frame.columns))
        raise DataError(
            f"the label column '{column}' is missing; there are {_some(frame.columns)}{meant}"
        )
    codes, cells = Codes(classes), frame[column].tolist()
    places = codes.find_each(cells)
    for row, place in enumerate(places):
        if place is None:
            said = "no label" if is_missing(cells[row]) else f"the label {_quoted(cells[row])}"
            faults.setdefault(row, f"{said} in '{column}'; declared are {_some(classes)}")
    return torch.tensor([place or 0 for place in places], dtype=torch.int64)


def _quoted(cell: object) -> str:
    return repr(shortened(text_of(cell).strip()))


def _some(names: Sequence[str] | pd.Index) -> str:
    shown = [f"'{name}'" for name in list(names)[:8]]
    return ", ".join(shown) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


class Classification(RowEncoding):
    """Loss and scores of a model that maps the batch's inputs to logits [B, K]."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the cross-entropy of each record, [B].

        Args:
            model: maps the batch's inputs to logits [B, K].
            batch: inputs, and ``label`` [B].
        """
        inputs = {name: tensor for name, tensor in batch.items() if name != "label"}
        return functional.cross_entropy(model(**inputs), batch["label"], reduction="none")

    def scores(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return class probabilities [B, K].

        Args:
            model: maps the batch's inputs to logits [B, K].
            batch: inputs, and ``label`` [B].
        """
        inputs = {name: tensor for name, tensor in batch.items() if name != "label"}
        logits: Tensor = model(**inputs)
        return logits.softmax(-1)
