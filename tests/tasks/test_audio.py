"""Recordings: lists, WAV files, structs; what is cut, and what costs its record."""

from __future__ import annotations

import io
import wave
from array import array
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sequence_kit import SAMPLES, sequence_plan, sounds, tone, wav

from privet.common.errors import DataError, PlanError
from privet.common.plan import Plan
from privet.common.tasks import build_task
from privet.common.tasks.audio import AudioTask, samples_of
from privet.common.tasks.encoding import encode_records

RATE = 16000
SHORT = [0.0, 0.25, -0.5, 1.0]


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    return sequence_plan("audio", tmp_path_factory.mktemp("audio"))


@pytest.fixture
def task(plan: Plan) -> AudioTask:
    found = build_task(plan)
    assert isinstance(found, AudioTask)
    return found


@pytest.mark.parametrize(
    "cell",
    [
        SHORT,
        tuple(SHORT),
        array("d", SHORT),
        np.array(SHORT, dtype=np.float32),
        wav(SHORT),
        bytearray(wav(SHORT)),
        wav(SHORT, channels=2),
        {"bytes": wav(SHORT), "path": "/etc/passwd"},
        {"bytes": wav(SHORT)},
    ],
)
def test_a_recording_in_any_form(cell: Any) -> None:
    assert samples_of(cell, RATE) == pytest.approx(SHORT, abs=1e-4)


def test_stereo_is_averaged() -> None:
    stream = io.BytesIO()
    with wave.open(stream, "wb") as file:
        file.setnchannels(2)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes(np.array([100, 300, -32768, 32767], dtype="<i2").tobytes())
    assert samples_of(stream.getvalue(), RATE).tolist() == [200 / 32768, -0.5 / 32768]


def test_a_little_beyond_is_clipped() -> None:
    assert samples_of([1.5, -1.01, 0.5], RATE).tolist() == [1.0, -1.0, 0.5]


BAD: list[tuple[Any, str]] = [
    (None, "is empty"),
    (float("nan"), "is empty"),
    ({"bytes": None, "path": "/etc/passwd"}, "is empty"),
    ({"path": "/etc/passwd"}, "is empty"),
    ([], "has no samples"),
    (array("d"), "has no samples"),
    (wav([]), "has no samples"),
    ([0.0, float("nan")], "no finite number"),
    ([0.0, None], "no finite number"),
    (array("d", [float("inf")]), "no finite number"),
    ([10**400], "no finite number"),
    ([0.1, 3000.0], "divide 16-bit numbers by 32768"),
    (array("q", [1, 30000]), "divide 16-bit numbers"),
    ("0.1 0.2", "neither a list of numbers nor a WAV file"),
    (0.5, "neither a list of numbers"),
    ({"bytes": "text"}, "neither a list of numbers"),
    ([[0.1], [0.2]], "lists something that is no number"),
    (["0.1"], "lists something that is no number"),
    (np.zeros((2, 2)), "lists something that is no number"),
    (b"", "cannot be read as a WAV file"),
    (b"RIFF" + b"\0" * 40, "cannot be read as a WAV file"),
    (wav(SHORT)[:30], "cannot be read as a WAV file"),
    (wav(SHORT, rate=8000), "has 8000 samples per second, and 'rate' is 16000"),
    (wav(SHORT, channels=3), "must be a WAV file of 16 bits, mono or stereo"),
    (wav(SHORT, width=1), "must be a WAV file of 16 bits"),
]


@pytest.mark.parametrize(("cell", "said"), BAD)
def test_a_bad_cell_costs_its_own_record(task: AudioTask, cell: Any, said: str) -> None:
    good = sounds(2, 0)
    audio = pd.Series([good["audio"][0], cell, good["audio"][1]], dtype=object)
    frame = pd.DataFrame({"audio": audio, "label": [good["label"][0], "low", good["label"][1]]})
    found = encode_records(task, frame)
    assert list(found.faults) == [1] and said in found.faults[1]
    alone = task.encode(good)
    assert all(torch.equal(found.batch[name], alone[name]) for name in alone)
    with pytest.raises(DataError, match="row 1: 'audio' "):
        task.encode(frame)


def test_a_file_that_ends_early_has_what_is_there() -> None:
    assert len(samples_of(wav(SHORT)[:-3], RATE)) == 2


def test_a_path_is_never_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(wav(SHORT))
    opened: list[object] = []
    monkeypatch.setattr("builtins.open", lambda *given, **_: opened.append(given))
    for cell in (str(path), {"bytes": None, "path": str(path)}, path):
        with pytest.raises(ValueError, match="empty|neither"):
            samples_of(cell, RATE)
    assert not opened


def test_recordings_are_cut_and_padded(task: AudioTask) -> None:
    frame = pd.DataFrame({"audio": [tone(0.3, 1000, 0), tone(0.3, 100, 1)], "label": "low"})
    waves = task.encode(frame)["waveform"]
    assert waves.shape == (2, SAMPLES) and waves.dtype == torch.float32
    assert torch.allclose(waves[0], torch.tensor(frame["audio"][0][:SAMPLES]))
    assert waves[1, :100].any() and not waves[1, 100:].any()


def test_labels_are_as_elsewhere(task: AudioTask) -> None:
    frame = pd.DataFrame({"audio": [SHORT] * 3, "label": ["high", "loud", None]})
    found = encode_records(task, frame)
    assert found.batch["label"].tolist() == [1] and set(found.faults) == {1, 2}
    with pytest.raises(DataError, match="the column 'audio' is missing"):
        task.encode(frame.drop(columns="audio"))


def test_generated_records_have_any_length(task: AudioTask) -> None:
    waves = task.random_batch(8, 0)["waveform"]
    ends = [int(row.nonzero().max()) + 1 if row.any() else 0 for row in waves]
    assert min(ends) == 0 and len(set(ends)) > 4 and waves.abs().max() <= 1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"samples": 3}, "task.samples: must be at least 16"),
        ({"samples": 1 << 23}, "task.samples: must be at most"),
        ({"rate": 0}, "task.rate: must be at least 1"),
        ({"max_tokens": 9}, "task.max_tokens: belongs to kind"),
    ],
)
def test_the_section_is_checked(plan: Plan, change: dict[str, int], said: str) -> None:
    with pytest.raises(PlanError, match=said):
        plan.changed(task=change)
