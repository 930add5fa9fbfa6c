"""Tiny models of transformers with random weights, and records for the tasks that they can do."""

from __future__ import annotations

import io
import struct
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from privet.common.plan import Plan

NAMES = ("Ada", "Bo", "Cy", "Di", "Ed", "Flo")
TOWNS = ("Rom", "Ulm", "Bern", "Oslo", "Wien", "Graz")
FILLERS = ("saw", "left", "for", "yesterday", "and", "then")
TAGS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
MAX_TOKENS = 16
SAMPLES = 640
SMALL = {
    "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16,
}  # fmt: skip


def write_tokenizer(folder: Path) -> None:
    """Write a word-level tokenizer that frames texts as BERT's does; a long word has pieces."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "who", "where", "is", "?", "##s", "##ville"]
    vocabulary = {word: k for k, word in enumerate([*pieces, *NAMES, *TOWNS, *FILLERS])}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))  # type: ignore[arg-type]
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()  # type: ignore[assignment]
    tokenizer.post_processor = processors.TemplateProcessing(  # type: ignore[assignment]
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]",
        sep_token="[SEP]",
    ).save_pretrained(folder)  # fmt: skip


def model_folder(kind: str, folder: Path) -> Path:
    """Return a folder with a tiny random model for a kind of task."""
    import transformers as hf

    if kind == "audio":
        config: Any = hf.Wav2Vec2Config(
            **SMALL, conv_dim=(8, 8), conv_stride=(5, 4), conv_kernel=(10, 8), num_labels=2,
            num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2, classifier_proj_size=8,
            num_feat_extract_layers=2, mask_time_prob=0.0, feat_extract_norm="layer",
        )  # fmt: skip
        hf.Wav2Vec2ForSequenceClassification(config).save_pretrained(folder)
        return folder
    config = hf.BertConfig(**SMALL, vocab_size=64, max_position_embeddings=64, pad_token_id=0)
    if kind == "token-classification":
        config.num_labels = 3  # of another scheme: the head is replaced
    made = {
        "token-classification": hf.BertForTokenClassification,
        "question-answering": hf.BertForQuestionAnswering,
    }
    made[kind](config).save_pretrained(folder)
    write_tokenizer(folder)
    return folder


def tagged(count: int, seed: int) -> pd.DataFrame:
    """Return sentences with the people and places in them."""
    chance = np.random.default_rng([seed, 1])
    rows = []
    for _ in range(count):
        words, tags = [], []
        for _ in range(int(chance.integers(1, 4))):
            kind = int(chance.integers(3))
            drawn = chance.integers(0, 6, 2)
            words += [(FILLERS, NAMES, TOWNS)[kind][k] for k in drawn]
            tags += (("O", "O"), ("B-PER", "I-PER"), ("B-LOC", "I-LOC"))[kind]
        rows.append({"text": words, "label": tags})
    return pd.DataFrame(rows)


def questions(count: int, seed: int) -> pd.DataFrame:
    """Return questions about the person or the place of a sentence."""
    chance = np.random.default_rng([seed, 2])
    rows = []
    for _ in range(count):
        name, town = NAMES[chance.integers(6)], TOWNS[chance.integers(6)]
        text = f"then {name} left for {town}"
        who = bool(chance.integers(2))
        question = "who is ?" if who else "where is ?"
        answer = name if who else town
        rows.append(
            {"question": question, "text": text, "answer": answer, "at": text.index(answer)}
        )
    return pd.DataFrame(rows)


def tone(frequency: float, count: int, seed: int) -> list[float]:
    """Return samples of a tone in noise."""
    chance = np.random.default_rng(seed)
    found = 0.5 * np.sin(np.arange(count) * frequency) + 0.01 * chance.normal(size=count)
    return [float(x) for x in found.astype(np.float32)]


def wav(samples: list[float], rate: int = 16000, channels: int = 1, width: int = 2) -> bytes:
    """Return the bytes of a WAV file; each channel has the same samples."""
    stream = io.BytesIO()
    with wave.open(stream, "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(rate)
        whole = [round(x * 32767) for x in samples for _ in range(channels)]
        file.writeframes(struct.pack(f"<{len(whole)}h", *whole))
    return stream.getvalue()


def sounds(count: int, seed: int, form: str = "list") -> pd.DataFrame:
    """Return recordings of low and high tones, of different lengths.

    Args:
        count: records.
        seed: of the draws.
        form: ``list``, ``wav`` or ``struct``.
    """
    chance = np.random.default_rng([seed, 3])
    cells: list[Any] = []
    labels = []
    for number in range(count):
        high = int(chance.integers(2))
        samples = tone((0.2, 1.2)[high], int(chance.integers(300, 900)), number)
        said: dict[str, Any] = {"list": samples, "wav": wav(samples)}
        said["struct"] = {"bytes": said["wav"], "path": "/nowhere/a.wav"}
        cells.append(said[form])
        labels.append(("low", "high")[high])
    return pd.DataFrame({"audio": cells, "label": labels})


RECORDS = {"token-classification": tagged, "question-answering": questions, "audio": sounds}
TASKS: dict[str, dict[str, Any]] = {
    "token-classification": {"classes": TAGS, "max_tokens": MAX_TOKENS},
    "question-answering": {"answer_start": "at", "max_tokens": MAX_TOKENS},
    "audio": {"classes": ["low", "high"], "samples": SAMPLES},
}


def write_parquet(frame: pd.DataFrame, path: Path) -> Path:
    """Write records as a Parquet file with lists and structs as they are."""
    columns = {name: pa.array(frame[name].tolist()) for name in frame.columns}
    pq.write_table(pa.table(columns), path)
    return path


def sequence_plan(kind: str, folder: Path, records: int = 40, **changes: Any) -> Plan:
    """Write a model and the Parquet files of two sites; return a plan for them.

    Args:
        kind: of the task.
        folder: for the files.
        records: of each site.
        changes: of the plan's sections.
    """
    paths = [write_parquet(RECORDS[kind](records, n), folder / f"site-{n}.parquet") for n in (1, 2)]
    model = folder / "model"
    if not model.exists():
        model_folder(kind, model)
    value: dict[str, Any] = {
        "name": "sequence",
        "threads": 1,
        "task": {"kind": kind, **TASKS[kind]},
        "model": {"kind": "huggingface", "options": {"folder": str(model)}},
        "training": {"rounds": 1, "steps": 2, "sample_rate": 0.5, "micro_batch": 16},
        "privacy": {"epsilon": 8, "delta": 1e-3},
        "sites": [
            {"name": f"Site {n}", "nominal_size": 30, "path": str(path)}
            for n, path in enumerate(paths, 1)
        ],
    }
    for key, change in changes.items():
        value[key] = {**value.get(key, {}), **change} if isinstance(change, dict) else change
    return Plan.parse(value, where="sequence")
