"""The section of a task that classifies recordings."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from privet.common.sections.task_base import LabelledTask


class AudioTaskSpec(LabelledTask):
    """A class from a recording.

    Attributes:
        audio: column of the recordings, in a Parquet file: lists of samples, or WAV files.
        samples: recordings are cut, or padded with silence, to this many samples.
        rate: samples per second; a WAV file of another rate cannot be used.
    """

    reads = ("audio", "label")
    nested = ("audio",)
    kind: Literal["audio"]
    audio: str = "audio"
    samples: Annotated[int, Field(ge=16, le=1 << 22)]
    rate: Annotated[int, Field(ge=1, le=1_000_000)] = 16_000
