"""The start-up tests pass a model whatever its initial weights are: what is zero is rounding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from families_kit import SMALL, plan_for

from privet.client.workbench import Workbench
from privet.common.errors import SelfTestFailed
from privet.common.models import huggingface
from privet.privacy import selftest
from privet.privacy.clipping import GradientEngine


def bert(seed: int, layers: int = 1) -> Any:
    import transformers

    torch.manual_seed(seed)
    config = transformers.BertConfig(
        vocab_size=200, hidden_size=32, num_hidden_layers=layers, num_attention_heads=2,
        intermediate_size=64, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        num_labels=2, max_position_embeddings=32,
    )  # fmt: skip
    return huggingface.Wrapped(transformers.BertForSequenceClassification(config), "text")


def loss(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    logits = model(tokens=batch["tokens"])
    return torch.nn.functional.cross_entropy(logits, batch["label"], reduction="none")


def made_up(records: int, seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "tokens": torch.randint(1, 200, (records, 12), generator=generator),
        "label": torch.randint(0, 2, (records,), generator=generator),
    }


@pytest.mark.parametrize("seed", range(12))
def test_a_bert_in_full_passes(seed: int) -> None:
    model = bert(seed, layers=1 + seed % 2)
    engine = GradientEngine(model, loss, mode="bookkeeping")
    assert selftest.run(engine, made_up, engine.named) == ["H6", "H7", "H16", "H17"]


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
