"""Classification of texts. One record is one sequence: units are never packed together."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd
import torch

from privet.common.errors import PlanError
from privet.common.models.text import text_inputs
from privet.common.sections.model import ModelSpec
from privet.common.sections.task import TextTaskSpec
from privet.common.tasks import Batch
from privet.common.tasks.augment import chain, drop
from privet.common.tasks.classification import Classification, encode_labels
from privet.common.tasks.cleaning import cleaner, texts_of
from privet.common.tasks.encoding import Faults


class TextTask(Classification):
    """Texts become the model's input: ``tokens`` [B, T], or frozen ``features`` [B, D]."""

    def __init__(self, spec: TextTaskSpec, model: ModelSpec) -> None:
        self.spec = spec
        self._inputs = text_inputs(model, spec.max_tokens)
        self._clean = cleaner(spec.clean, spec.clean_region)
        if spec.augment and not self._inputs.tokens:
            raise PlanError("task.augment: a head on frozen features reads no tokens")
        self.augment = chain(*[drop("tokens", self._inputs.tokens) for _ in spec.augment])

    def encode_rows(self, frame: pd.DataFrame) -> tuple[Batch, Faults]:
        """See :class:`privet.common.tasks.encoding.EncodesRows`; an empty text is allowed."""
        faults = Faults()
        texts = [self.cleaned(text) for text in texts_of(frame, self.spec.text)]
        labels = encode_labels(frame, self.spec.label, self.spec.classes, faults)
        return {**self._inputs.encode(texts), "label": labels}, faults

    def read_ahead(self, frame: pd.DataFrame, tell: Callable[[int, int], None]) -> None:
        """Do now what takes long in encoding records, and say how far it is.

        Args:
            frame: records, with the text column.
            tell: called with how many texts are done, and their number.
        """
        texts = [self.cleaned(text) for text in texts_of(frame, self.spec.text)]
        self._inputs.read_ahead(texts, tell)

    def cleaned(self, text: object) -> str:
        """Return a text as the model reads it; anything else becomes an empty one."""
        return self._clean(text) if isinstance(text, str) else ""

    def sizes(self, batch: Batch) -> torch.Tensor | None:
        """Return how many tokens each record has, [B]; None for frozen features."""
        return self._inputs.sizes(batch)

    def random_batch(self, records: int, seed: int) -> Batch:
        """See :class:`privet.common.tasks.Task`.

        Args:
            records: number B of records.
            seed: the same seed gives the same records.
        """
        generator = torch.Generator().manual_seed(seed)
        labels = torch.randint(0, len(self.spec.classes), (records,), generator=generator)
        return {**self._inputs.random(records, generator), "label": labels}
