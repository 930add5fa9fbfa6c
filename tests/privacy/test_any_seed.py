"""The start-up tests pass a model whatever its initial weights are: what is zero is rounding."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest
from families_kit import SMALL, plan_for

from privet.client.workbench import Workbench
from privet.common.errors import SelfTestFailed
from privet.privacy import selftest

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
    assert Workbench(plan).self_tests == ("H6", "H7", "H16", "H17")


def test_a_refusal_is_the_same_for_every_site(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def refuse(*_: Any) -> Any:
        calls.append(1)
        raise SelfTestFailed(f"H6: number {len(calls)}")

    monkeypatch.setattr(selftest, "run", refuse)
    model = {"kind": "ft-transformer", "options": SMALL}
    bench = Workbench(plan_for("tabular", model, tmp_path))
    said = []
    for _ in range(3):
        with pytest.raises(SelfTestFailed) as caught:
            assert bench.self_tests
        said.append(str(caught.value))
    assert said == 3 * ["H6: number 2 (by opacus-hooks, after book-keeping failed: H6: number 1)"]
