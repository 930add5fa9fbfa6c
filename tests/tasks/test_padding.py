"""What a record says is text: it cannot make padding, nor have others' padding cut it (H6)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from families_kit import SMALL, plan_for
from torch import Tensor

from privet.client.training.model_runtime import ModelRuntime
from privet.common.errors import SelfTestError
from privet.common.models import features, language, text, tokens
from privet.common.plan import Plan
from privet.common.sections.model import MiniLmSpec

MODELS = {
    "text": "text-encoder", "causal-text": "decoder", "masked-text": "text-encoder",
    "text-to-text": "encoder-decoder",
}  # fmt: skip
EACH = pytest.mark.parametrize("kind", MODELS)
CLIP = 0.01


def plan_of(kind: str, folder: Path) -> Plan:
    plan = plan_for(kind, {"kind": MODELS[kind], "options": SMALL}, folder)
    return plan.changed(task={"max_tokens": 64})


def most_moved(plan: Plan) -> float:
    """How far one long record moves the sum over records that hold the words of padding."""
    words = [f"form {'[PAD] ' * 20}drug case {number}" for number in range(12)]
    words.append(" ".join(f"word{number}" for number in range(40)))
    frame = pd.DataFrame({"text": words, "spanish": words, "low": 0})
    bench = ModelRuntime(plan)
    with torch.no_grad():
        for number, parameter in enumerate(bench.engine.parameters):
            generator = torch.Generator().manual_seed(number)
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    batch = bench.encode(frame)
    sums = []
    for count in (13, 12):
        part = {name: rows[:count] for name, rows in batch.items()}
        total = bench.engine.clipped_sum(part, np.arange(count), count, CLIP)
        sums.append([tensor.clone() for tensor in total.tensors])
    squares = [float((one - two).square().sum()) for one, two in zip(*sums, strict=True)]
    return sum(squares) ** 0.5 / CLIP


@EACH
def test_a_record_moves_the_sum_by_its_bound_at_most(tmp_path: Path, kind: str) -> None:
    assert most_moved(plan_of(kind, tmp_path)) <= 1.001


def by_count(rows: Tensor, padding: int = 0) -> Tensor:
    """Cut columns by how many hold something, as if padding stood at the end only."""
    longest = int((rows != padding).any(0).sum())
    return rows[:, : max(16, -(-longest // 16) * 16)]


@pytest.fixture
def as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """Columns are counted, and special tokens are read out of a text."""
    for module in (tokens, text):
        monkeypatch.setattr(module, "trimmed", by_count)
    real = tokens._tokenizer

    def special(path: Path) -> Any:
        made = real(path)
        made.encode_special_tokens = False
        return made

    monkeypatch.setattr(tokens, "_tokenizer", special)
    monkeypatch.setattr(tokens.Tokens, "plain", lambda self, ids, frame=(): list(ids))
    assert language  # its models are cut by the same function


@EACH
@pytest.mark.usefixtures("as_it_was")
def test_the_fault_would_be_noticed(tmp_path: Path, kind: str) -> None:
    """The control: holes in a text, cut with the others' padding."""
    from privet.common.models.tokens import TOKENIZER, _tokenizer

    try:
        assert most_moved(plan_of(kind, tmp_path)) > 1.05
    finally:
        _tokenizer(TOKENIZER).encode_special_tokens = True


@EACH
def test_the_start_up_test_has_holes(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (tokens, text):
        monkeypatch.setattr(module, "trimmed", by_count)
    with pytest.raises(SelfTestError, match="H6|H16"):
        assert ModelRuntime(plan_of(kind, tmp_path)).self_tests


def test_special_tokens_are_words_in_a_text() -> None:
    ours = tokens.Tokens(tokens.TOKENIZER, 64)
    rows = ours.numbers(["a [PAD] b", "a"])
    assert int((rows[0] != 0).sum()) == int(rows[0].nonzero().max()) + 1
    minilm = tokens.Tokens(text.minilm_folder() / "tokenizer.json", 64)
    found = minilm.numbers(["a [PAD] [CLS] [SEP] [MASK] b"])[0]
    assert (found == 101).sum() == 1 and (found == 102).sum() == 1 and (found == 103).sum() == 0
    assert int((found != 0).sum()) == int(found.nonzero().max()) + 1


def test_frozen_features_are_of_one_text_alone() -> None:
    texts = ["form [PAD] [PAD] drug case", " ".join(f"word{number}" for number in range(50))]
    features.forget()
    inputs = text.text_inputs(MiniLmSpec(kind="minilm"), 64)
    alone = inputs.encode(texts[:1])["features"][0]
    features.forget()
    together = inputs.encode(texts)["features"][0]
    assert float(alone @ together) > 0.99999
