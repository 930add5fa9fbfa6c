"""Classification of images whose pixels stand in columns."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch

from privet.common.errors import DataError
from privet.common.plan import TaskSpec
from privet.common.tasks import Batch
from privet.common.tasks.augment import chain, flip, shift
from privet.common.tasks.classification import Classification, encode_labels


class ImageTask(Classification):
    """Pixels become ``pixels`` [B, C, H, W] in [-1, 1]."""

    def __init__(self, spec: TaskSpec) -> None:
        assert spec.image is not None
        self.spec, self.image = spec, spec.image
        self.augment = chain(*[{"shift": shift, "flip": flip}[name] for name in spec.augment])

    def encode(self, frame: pd.DataFrame) -> Batch:
        """See :class:`privet.common.tasks.Task`; a missing pixel is an error."""
        image = self.image
        columns = list(image.columns)
        if absent := [name for name in columns if name not in frame.columns]:
            raise DataError(f"the pixel column '{absent[0]}' is missing")
        try:
            cells = frame[columns].to_numpy(dtype=np.float32)
        except (TypeError, ValueError):
            raise DataError(
                f"a cell of the pixel columns {columns[0]} to {columns[-1]} is not a number"
            ) from None
        if not np.isfinite(cells).all():
            row = int(np.flatnonzero(~np.isfinite(cells).all(1))[0])
            raise DataError(f"a pixel of row {row} is missing")
        scaled = np.clip(2 * (cells - image.low) / (image.high - image.low) - 1, -1, 1)
        shape = (len(frame), image.channels, image.height, image.width)
        return {
            "pixels": torch.from_numpy(scaled.astype(np.float32)).view(shape),
            "label": encode_labels(frame, self.spec.label, self.spec.classes),
        }

    def random_batch(self, records: int, seed: int) -> Batch:
        """See :class:`privet.common.tasks.Task`."""
        generator = torch.Generator().manual_seed(seed)
        image = self.image
        shape = (records, image.channels, image.height, image.width)
        return {
            "pixels": torch.randn(shape, generator=generator).clamp(-1, 1),
            "label": torch.randint(0, len(self.spec.classes), (records,), generator=generator),
        }
