"""The page of the Hub's models says what the code does: some of its rows are tried again."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import get_args

import pytest

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "benchmarks"))

import hub
import models

from privet.common.sections.model import Adapter

PAGE = (ROOT / "docs" / "reference" / "hub-models.md").read_text(encoding="utf-8")
FAMILY = re.compile(r"^\| (\w\S*) \| (\w+) \| ([^|]*) \| ([^|]*) \| ([^|]*) \| ([^|]*) \|$", re.M)
ADAPTER = re.compile(r"^\| `(\S+)` \| (.*) \|$", re.M)
TRIED = ("distilbert", "roberta", "gpt2", "llama", "t5", "fnet", "xlnet", "vit")
KNOWN = {trial.name: trial for trial in hub.trials("", quick=False)}


def families() -> dict[tuple[str, str], tuple[str, ...]]:
    return {(m[1], m[2]): (m[3], m[4], m[5], m[6].strip()) for m in FAMILY.finditer(PAGE)
            if m[1] != "family"}  # fmt: skip


def adapters() -> dict[str, list[str]]:
    return {m[1]: [cell.strip() for cell in m[2].split("|")] for m in ADAPTER.finditer(PAGE)
            if m[1] != "tuning"}  # fmt: skip


def test_the_page_has_every_adapter_and_most_families() -> None:
    assert set(adapters()) == set(get_args(Adapter))
    tried = {(trial.family, trial.kind) for trial in KNOWN.values()}
    assert set(families()) <= tried
    # Few of transformers' own configurations cannot be made tiny and saved.
    assert len(families()) >= 0.95 * len(tried) >= 100


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", TRIED)
def test_a_family_does_what_its_row_says(family: str) -> None:
    (kind, row), *_ = ((kind, row) for (name, kind), row in families().items() if name == family)
    trial = KNOWN[f"{family}, {kind}, lora"]
    found = models.in_a_process(lambda: hub.tried(trial))
    assert found["error"] <= models.EXACT and found["error_of_sum"] <= models.EXACT
    layers = ", ".join(f"`{name}`" for name in found["layers"])
    assert (hub.method_of(found), layers, found["padding"]) == row[1:]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("tuning", ["dora", "prompt", "tinylora"])
def test_an_adapter_does_what_its_row_says(tuning: str) -> None:
    trial = KNOWN[f"bert, SequenceClassification, {tuning}"]
    found = models.in_a_process(lambda: hub.tried(trial))
    assert found["error"] <= models.EXACT
    assert hub.method_of(found) == adapters()[tuning][list(hub.ADAPTED).index("bert")]
