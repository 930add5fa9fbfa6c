"""The guarantee starts at the file for lists and recordings, too: one more record moves no other."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sequence_kit import RECORDS, SAMPLES, TAGS, sequence_plan, tone, wav

from privet.client.data.records import site_data
from privet.client.data.tables import Table, read_table
from privet.client.training.model_runtime import ModelRuntime
from privet.client.training.trainer import usable_records
from privet.common.tasks.answering import AnsweringTask
from privet.common.tasks.audio import AudioTask
from privet.common.tasks.tagging import TaggingTask
from privet.privacy.policy import DataSet

Rows = list[dict[str, Any]]
STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
SCHEMAS: dict[str, dict[str, pa.DataType]] = {
    "token-classification": {"text": pa.list_(pa.string()), "label": pa.list_(pa.string())},
    "question-answering": {
        "question": pa.string(), "text": pa.string(), "answer": pa.string(), "at": pa.int64(),
    },
    "audio": {"audio": pa.list_(pa.float64()), "label": pa.string()},
    "files": {"audio": STRUCT, "label": pa.string()},
}  # fmt: skip
KINDS = {**{name: name for name in RECORDS}, "files": "audio"}
WORDS = st.sampled_from(
    ["Ada", "saw", "Romville", "Bos", "", " ", "日本", "a b", "[PAD]", "x" * 300]
)
FLOATS = st.floats(-1, 1) | st.sampled_from([float("nan"), float("inf"), 9e9, 1e300, -0.0])
SAMPLE_LISTS = st.none() | st.lists(FLOATS | st.none(), max_size=8) | st.just([0.1] * 5000)
FILES = st.sampled_from(
    [None, b"", b"RIFF", wav([0.1] * 9), wav([0.5] * 900), wav([0.1], rate=8000)]
)
LABELS = st.sampled_from(["low", "high", "", "loud", None])
EXTRA: dict[str, st.SearchStrategy[dict[str, Any]]] = {
    "token-classification": st.fixed_dictionaries(
        {"text": st.none() | st.lists(st.none() | WORDS, max_size=30),
         "label": st.none() | st.lists(st.none() | st.sampled_from([*TAGS, "B-X"]), max_size=30)}
    ),
    "question-answering": st.fixed_dictionaries(
        {"question": WORDS | st.just("who " * 50), "text": st.lists(WORDS, max_size=40).map(" ".join),
         "answer": WORDS, "at": st.none() | st.integers(-3, 90)}
    ),
    "audio": st.fixed_dictionaries({"audio": SAMPLE_LISTS, "label": LABELS}),
    "files": st.fixed_dictionaries(
        {"audio": st.none() | FILES.map(lambda data: {"bytes": data, "path": "/etc/passwd"}),
         "label": LABELS}
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def benches(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ModelRuntime]:
    return {
        kind: ModelRuntime(sequence_plan(kind, tmp_path_factory.mktemp(kind), 2))
        for kind in RECORDS
    }


def written(form: str, rows: Rows, path: Path, kind: str) -> Table:
    """Write rows as a Parquet file of declared types; read it as the plan does."""
    schema = SCHEMAS[form]
    columns = {name: pa.array([row[name] for row in rows], schema[name]) for name in schema}
    pq.write_table(pa.table(columns), path)
    nested = {"token-classification": ("text", "label"), "audio": ("audio",)}.get(kind, ())
    return read_table(path, nested=nested)


def rows_of(table: Table, bench: ModelRuntime) -> dict[tuple[str, int], dict[str, torch.Tensor]]:
    """The tensors of each usable record, by part and by its place in the file."""
    site = site_data(table, DataSet(population="p", nominal_size=10), bench.plan, "f.parquet")
    found = {}
    for part, frame in (("train", site.train), ("held_out", site.held_out)):
        used = usable_records(bench, frame)
        kept = [place for row, place in enumerate(frame.index) if row not in used.faults]
        for row, place in enumerate(kept):
            found[part, place] = {name: tensor[row] for name, tensor in used.examples.items()}
    return found


def moved(
    form: str, rows: Rows, extra: dict[str, Any], at: int, bench: ModelRuntime, folder: Path
) -> int:
    """Return how many records one more record changes, adds beside itself, or removes."""
    kind = bench.plan.task.kind
    before = rows_of(written(form, rows, folder / "a.parquet", kind), bench)
    table = written(form, [*rows[:at], extra, *rows[at:]], folder / "b.parquet", kind)
    # The places behind it move by one, and nothing else does.
    table.frame.index = pd.Index(
        [-1 if place == at + 1 else place - (place > at + 1) for place in table.frame.index]
    )
    after = {key: row for key, row in rows_of(table, bench).items() if key[1] != -1}
    count = len(before.keys() ^ after.keys())
    for key in before.keys() & after.keys():
        count += any(not torch.equal(before[key][name], after[key][name]) for name in before[key])
    return count


def rows_for(form: str) -> Rows:
    if form == "files":
        return [
            {"audio": {"bytes": wav(tone(0.3, length, 0)), "path": None}, "label": "low"}
            for length in (90, 400, SAMPLES + 50)
        ]
    found: Rows = RECORDS[form](4, 5).to_dict("records")
    return found


SETTINGS = settings(
    max_examples=25, deadline=None, database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip


@pytest.mark.parametrize("form", SCHEMAS)
def test_one_more_record_of_any_cells_moves_no_other(
    form: str, benches: dict[str, ModelRuntime], tmp_path: Path
) -> None:
    bench, rows = benches[KINDS[form]], rows_for(form)

    @SETTINGS
    @given(EXTRA[form], st.integers(0, len(rows)))
    def check(extra: dict[str, Any], at: int) -> None:
        assert moved(form, rows, extra, at, bench, tmp_path) == 0

    check()
    # What is compared is there.
    assert len(rows_of(written(form, rows, tmp_path / "a.parquet", KINDS[form]), bench)) == len(
        rows
    )


def _padded_to_the_longest(real: Callable[..., Any]) -> Callable[..., Any]:
    def encode_rows(self: Any, frame: pd.DataFrame) -> Any:
        batch, faults = real(self, frame)
        longest = int((batch["tags"] >= 0).sum(1).amax()) if len(frame) else 0
        return {**batch, "tags": batch["tags"].where(batch["tags"] >= 0, -1 - longest)}, faults

    return encode_rows


def _scaled_by_the_loudest(real: Callable[..., Any]) -> Callable[..., Any]:
    def encode_rows(self: Any, frame: pd.DataFrame) -> Any:
        batch, faults = real(self, frame)
        waves = batch["waveform"]
        loudest = waves.abs().amax() if len(frame) else 1.0
        return {**batch, "waveform": waves / loudest}, faults

    return encode_rows


def _room_by_the_longest(real: Callable[..., Any]) -> Callable[..., Any]:
    def encode_rows(self: Any, frame: pd.DataFrame) -> Any:
        batch, faults = real(self, frame)
        longest = int((batch["context"] == 0).sum(1).amin()) if len(frame) else 0
        return {**batch, "types": batch["types"] + longest}, faults

    return encode_rows


def test_an_encoding_that_depends_on_the_others_is_found(
    benches: dict[str, ModelRuntime], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: values that follow from the longest record, samples scaled by the loudest."""
    long = {"text": ["Ada"] * 14, "label": ["B-PER"] * 14}
    wordy = {"question": "who", "text": "Ada " * 40, "answer": "Ada", "at": None}
    loud = {"audio": [1.0] * 40, "label": "low"}
    for form, extra, kind, wrong in (
        ("token-classification", long, TaggingTask, _padded_to_the_longest),
        ("question-answering", wordy, AnsweringTask, _room_by_the_longest),
        ("audio", loud, AudioTask, _scaled_by_the_loudest),
    ):
        # In a part with others: training, by its content.
        rows, bench = rows_for(form), copy.copy(benches[form])
        assert moved(form, rows, extra, 0, bench, tmp_path) == 0
        monkeypatch.setattr(kind, "encode_rows", wrong(kind.encode_rows))
        assert moved(form, rows, extra, 0, bench, tmp_path) > 0
