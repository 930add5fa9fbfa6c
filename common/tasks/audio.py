"""Classification of recordings. Rate and length are constants of the plan (H12)."""

from __future__ import annotations

import io
import wave
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from privet.common.errors import DataError
from privet.common.sections.audio_task import AudioTaskSpec
from privet.common.tasks import Batch
from privet.common.tasks.classification import Classification, encode_labels
from privet.common.tasks.encoding import Faults

MAX_AMPLITUDE = 2.0
"""A louder sample is no number from -1 to 1: 16-bit numbers were not scaled."""


class AudioTask(Classification):
    """Recordings become ``waveform`` [B, S] in [-1, 1], cut or padded with silence."""

    def __init__(self, spec: AudioTaskSpec) -> None:
        self.spec = spec

    def encode_rows(self, frame: pd.DataFrame) -> tuple[Batch, Faults]:
        """See :class:`privet.common.tasks.encoding.EncodesRows`."""
        spec = self.spec
        if spec.audio not in frame.columns:
            raise DataError(f"the column '{spec.audio}' is missing, which the plan reads")
        faults = Faults()
        waves = np.zeros((len(frame), spec.samples), dtype=np.float32)
        for row, cell in enumerate(frame[spec.audio].tolist()):
            try:
                found = samples_of(cell, spec.rate)[: spec.samples]
            except ValueError as error:
                faults[row] = f"'{spec.audio}' {error}"
                continue
            waves[row, : len(found)] = found
        labels = encode_labels(frame, spec.label, spec.classes, faults)
        return {"waveform": torch.from_numpy(waves), "label": labels}, faults

    def random_batch(self, records: int, seed: int) -> Batch:
        """See :class:`privet.common.tasks.Task`; from four records on one is silent.

        Args:
            records: number B of records.
            seed: the same seed gives the same records.
        """
        generator = torch.Generator().manual_seed(seed)
        length = self.spec.samples
        ends = torch.randint(length // 2, length + 1, (records, 1), generator=generator)
        if records > 3:
            ends[1] = 0
        waves = torch.randn((records, length), generator=generator).mul(0.3).clamp(-1, 1)
        return {
            "waveform": waves.masked_fill(torch.arange(length) >= ends, 0.0),
            "label": torch.randint(0, len(self.spec.classes), (records,), generator=generator),
        }


def samples_of(cell: Any, rate: int) -> npt.NDArray[np.float32]:
    """Return the samples of a recording, from -1 to 1.

    A cell is a list of numbers, the bytes of a WAV file, or a table with such bytes under
    ``bytes``, as the library `datasets` of Hugging Face stores them; a path in it is not opened.

    Args:
        cell: of the column.
        rate: samples per second that a WAV file must have.

    Raises:
        ValueError: if it is no recording of the rate. The message does not quote the cell.
    """
    if isinstance(cell, dict):
        cell = cell.get("bytes")
    if cell is None or (isinstance(cell, float) and cell != cell):
        raise ValueError("is empty")
    is_file = isinstance(cell, bytes | bytearray)
    found = _of_wav(bytes(cell), rate) if is_file else _of_list(cell)
    if not len(found):
        raise ValueError("has no samples")
    if not np.isfinite(found).all():
        raise ValueError("has a sample that is no finite number")
    if np.abs(found).max() > MAX_AMPLITUDE:
        raise ValueError(
            "has samples far beyond -1 to 1: divide 16-bit numbers by 32768 before they are stored"
        )
    return np.clip(found, -1.0, 1.0).astype(np.float32)


def _of_list(cell: Any) -> npt.NDArray[np.float64]:
    listed = getattr(cell, "tolist", None)  # an array, of numpy or of Python
    items = listed() if callable(listed) else cell
    if not isinstance(items, list | tuple):
        raise ValueError("is neither a list of numbers nor a WAV file")
    if not all(item is None or isinstance(item, int | float) for item in items):
        raise ValueError("lists something that is no number")
    try:
        return np.array(items, dtype=np.float64)
    except OverflowError:  # a whole number beyond all doubles
        raise ValueError("has a sample that is no finite number") from None


def _of_wav(data: bytes, rate: int) -> npt.NDArray[np.float64]:
    try:
        with wave.open(io.BytesIO(data)) as file:
            form = file.getparams()
            frames = file.readframes(form.nframes)
    except Exception:  # whatever it is, it is this cell's alone
        raise ValueError("cannot be read as a WAV file of PCM") from None
    if form.sampwidth != 2 or form.nchannels not in (1, 2):
        raise ValueError("must be a WAV file of 16 bits, mono or stereo")
    if form.framerate != rate:
        raise ValueError(f"has {form.framerate} samples per second, and 'rate' is {rate}")
    whole = len(frames) // (2 * form.nchannels) * form.nchannels
    numbers = np.frombuffer(frames, dtype="<i2", count=whole)
    found: npt.NDArray[np.float64] = numbers.reshape(-1, form.nchannels).mean(1) / 32768.0
    return found
