"""Classification of images with a column for each pixel."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch

from privet.common.errors import DataError
from privet.common.plan import TaskSpec
from privet.common.tasks import Batch
from privet.common.tasks.augment import chain, flip, shift
from privet.common.tasks.classification import Classification, encode_labels
from privet.common.tasks.encoding import Faults
from privet.common.tasks.tabular import numbers_of


class ImageTask(Classification):
    """Pixels become ``pixels`` [B, C, H, W] in [-1, 1]."""

    def __init__(self, spec: TaskSpec) -> None:
        assert spec.image is not None
        self.spec, self.image = spec, spec.image
        self.augment = chain(*[{"shift": shift, "flip": flip}[name] for name in spec.augment])

    def encode_rows(self, frame: pd.DataFrame) -> tuple[Batch, Faults]:
        """See :class:`privet.common.tasks.encoding.EncodesRows`; a record needs every pixel."""
        image = self.image
        columns = list(image.columns)
        if absent := [name for name in columns if name not in frame.columns]:
            raise DataError(f"the pixel column '{absent[0]}' is missing")
        faults = Faults()
        pixels = np.stack([numbers_of(frame, name, faults) for name in columns], 1)
        for row in np.flatnonzero(np.isnan(pixels).any(1)).tolist():
            faults.setdefault(row, "a pixel is missing")
        pixels = np.nan_to_num(pixels, nan=image.low)
        scaled = np.clip(2 * ((pixels - image.low) / (image.high - image.low)) - 1, -1, 1)
        shape = (len(frame), image.channels, image.height, image.width)
        batch = {
            "pixels": torch.from_numpy(scaled.astype(np.float32)).view(shape),
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
        image = self.image
        shape = (records, image.channels, image.height, image.width)
        return {
            "pixels": torch.randn(shape, generator=generator).clamp(-1, 1),
            "label": torch.randint(0, len(self.spec.classes), (records,), generator=generator),
        }
