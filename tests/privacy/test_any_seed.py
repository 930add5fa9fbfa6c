"""The start-up tests pass a model whatever its initial weights are: what is zero is rounding."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest
from families_kit import plan_for

from privet.client.training.model_runtime import ModelRuntime
from privet.common.errors import SelfTestError
from privet.privacy.mechanism import selftest

BERT = """
import torch
from transformers import BertConfig, BertForSequenceClassification

class Bert(torch.nn.Module):
    def __init__(self, layers, classes):
        super().__init__()
        self.bert = BertForSequenceClassification(BertConfig(
            vocab_size=30522, hidden_size=32, num_hidden_layers=layers, num_attention_heads=2,
            intermediate_size=64, max_position_embeddings=64, num_labels=classes,
            hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0))

    def forward(self, tokens):
        return self.bert(input_ids=tokens, attention_mask=(tokens != 0).long()).logits

def make(task, layers):
    return Bert(layers, len(task.classes))
"""

MIXING = """
from torch import nn

class Mixing(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.table = nn.Embedding(30522, 8)
        self.head = nn.Linear(8, classes)

    def forward(self, tokens):
        found = self.table(tokens).mean(1)
        return self.head(found - found.mean(0))

def make(task):
    return Mixing(len(task.classes))
"""


@pytest.mark.parametrize("seed", range(6))
def test_a_bert_in_full_passes(seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bert_of_ours.py").write_text(BERT)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "bert_of_ours", raising=False)
    importlib.invalidate_caches()
    plan = plan_for(
        "text", {"kind": "bert_of_ours:make", "options": {"layers": 2}}, tmp_path,
        seed=seed, training={"clipping": "bookkeeping"},
    )  # fmt: skip
    assert ModelRuntime(plan).self_tests == ("H6", "H7", "H16", "H17")


def test_a_refusal_is_the_same_for_every_site(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model is tried once, and not again for each site."""
    (tmp_path / "mixing_of_ours.py").write_text(MIXING)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    calls, real = [], selftest.run

    def counted(*given: Any, **more: Any) -> Any:
        calls.append(1)
        return real(*given, **more)

    monkeypatch.setattr(selftest, "run", counted)
    bench = ModelRuntime(plan_for("text", {"kind": "mixing_of_ours:make"}, tmp_path))
    said = set()
    for _ in range(3):
        with pytest.raises(SelfTestError, match="H6.*depends on the other records") as caught:
            assert bench.self_tests
        said.add(str(caught.value))
    assert len(said) == 1 and len(calls) == 1
