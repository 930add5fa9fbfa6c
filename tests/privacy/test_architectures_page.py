"""The page of architectures says what the code does: its rows are tried again."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest
from short_kit import short

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "benchmarks"))

import models
from architecture import Architecture
from model_families import architectures

PAGE = ROOT / "docs" / "reference" / "architectures.md"
ROW = re.compile(r"^\| (?P<name>[^|]+) \| (?P<way>[^|]+) \| [^|]*\|$", re.MULTILINE)
BY_NAME = {one.name: one for one in architectures()}
TRIED = (
    *(one.name for one in BY_NAME.values() if one.group == "torch"),
    "bert", "deberta-v2", "mpnet", "bart", "gemma", "llama", "mixtral", "longformer", "swin",
    "wav2vec2", "t5, Seq2SeqLM", "switch_transformers, Seq2SeqLM", "resnet", "BERT, LoraConfig",
    "BERT, LoraConfig, DoRA", "BERT, PromptTuningConfig",
)  # fmt: skip


def rows() -> dict[str, str]:
    found = {m["name"]: m["way"] for m in ROW.finditer(PAGE.read_text(encoding="utf-8"))}
    del found["architecture"]
    return found


def test_the_page_has_every_architecture_and_no_other() -> None:
    assert set(rows()) - {"---"} == set(BY_NAME)
    assert len(BY_NAME) == len(architectures()) >= 120, "names are unique"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", short(TRIED, (*TRIED[::4], *TRIED[-16:])))
def test_a_row_of_the_page_is_what_becomes_of_the_architecture(name: str) -> None:
    one: Architecture = BY_NAME[name]
    found: dict[str, Any] = models.in_a_process(lambda: models.measured(one, with_peer=False))
    assert not models.is_wrong(one, found), found
    assert models._WAYS[found["way"]] == rows()[name], found
