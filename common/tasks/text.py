"""Classification of texts. One record is one sequence: units are never packed together."""

from __future__ import annotations

import pandas as pd
import torch

from privet.common.errors import DataError
from privet.common.models.text import text_inputs
from privet.common.plan import ModelSpec, TaskSpec
from privet.common.tasks import Batch
from privet.common.tasks.classification import Classification, encode_labels


class TextTask(Classification):
    """Texts become what the model reads: ``tokens`` [B, T], or frozen ``features`` [B, D]."""

    def __init__(self, spec: TaskSpec, model: ModelSpec) -> None:
        self.spec = spec
        self._inputs = text_inputs(model, spec.max_tokens)

    def encode(self, frame: pd.DataFrame) -> Batch:
        """See :class:`privet.common.tasks.Task`; an empty text is allowed."""
        if self.spec.text not in frame.columns:
            raise DataError(f"the text column '{self.spec.text}' is missing")
        labels = encode_labels(frame, self.spec.label, self.spec.classes)
        texts = [cell if isinstance(cell, str) else "" for cell in frame[self.spec.text].tolist()]
        return {**self._inputs.encode(texts), "label": labels}

    def random_batch(self, records: int, seed: int) -> Batch:
        """See :class:`privet.common.tasks.Task`."""
        generator = torch.Generator().manual_seed(seed)
        labels = torch.randint(0, len(self.spec.classes), (records,), generator=generator)
        return {**self._inputs.random(records, generator), "label": labels}
