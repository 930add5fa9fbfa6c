"""What :mod:`privet.common.compat.transformers` and ``peft`` rely on: classes by name, and what they do."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from torch import nn

from privet.common.compat.peft import plain_name
from privet.common.compat.transformers import (
    _RMS,
    is_conv1d,
    is_rms_norm,
    position_bias,
    position_bias_method,
    position_table,
    rms_epsilon,
)

pytestmark = pytest.mark.filterwarnings("ignore")

WHERE = {
    "LlamaRMSNorm": "llama", "MistralRMSNorm": "mistral", "Qwen2RMSNorm": "qwen2",
    "Qwen3RMSNorm": "qwen3", "T5LayerNorm": "t5", "MT5LayerNorm": "mt5",
}  # fmt: skip


def test_gpt2s_linear_map_is_known_and_transposed() -> None:
    from transformers.pytorch_utils import Conv1D

    layer = Conv1D(5, 3)
    assert is_conv1d(type(layer)) and not is_conv1d(nn.Linear)
    x = torch.randn(2, 4, 3)
    assert torch.allclose(layer(x), x @ layer.weight + layer.bias, atol=1e-6)


def test_every_norm_that_is_known_is_there() -> None:
    assert set(WHERE) == set(_RMS)


@pytest.mark.parametrize("name", _RMS)
def test_a_norm_scales_by_its_weight_as_it_is(name: str) -> None:
    """A norm that adds one to its weight (Gemma's) would give other numbers."""
    module = importlib.import_module(f"transformers.models.{WHERE[name]}.modeling_{WHERE[name]}")
    norm = getattr(module, name)(6)
    assert is_rms_norm(type(norm))
    with torch.no_grad():
        norm.weight.copy_(torch.randn(6))
    x = torch.randn(2, 3, 6)
    scale = torch.rsqrt(x.square().mean(-1, keepdim=True) + rms_epsilon(norm))
    assert torch.allclose(norm(x), norm.weight * (x * scale), atol=1e-6)


def test_a_norm_of_another_kind_is_not_known() -> None:
    from transformers.models.gemma.modeling_gemma import GemmaRMSNorm

    assert not is_rms_norm(GemmaRMSNorm) and not is_rms_norm(nn.RMSNorm)


def t5() -> tuple[nn.Module, dict[str, torch.Tensor], int]:
    import transformers as t

    config = t.T5Config(vocab_size=9, d_model=8, d_kv=4, num_layers=1, num_heads=2, d_ff=8)
    ids = torch.tensor([[1, 2, 3]])
    model = t.T5ForConditionalGeneration(config).eval()
    return model, {"input_ids": ids, "decoder_input_ids": ids}, 2


def mpnet() -> tuple[nn.Module, dict[str, torch.Tensor], int]:
    import transformers as t

    config = t.MPNetConfig(
        vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
    )
    return t.MPNetModel(config).eval(), {"input_ids": torch.tensor([[1, 2, 3]])}, 1


@pytest.mark.parametrize("make", [t5, mpnet])
def test_a_position_table_is_read_once_by_a_forward_of_its_own(make: Any) -> None:
    model, inputs, tables = make()
    found = [(m, name) for m in model.modules() if (name := position_bias_method(m)) is not None]
    assert len(found) == tables, "T5 has one in the encoder, and one in the decoder"
    module, method = found[0]
    table, asked = position_table(module), []

    def read(ids: torch.Tensor) -> torch.Tensor:
        asked.append(ids)
        return nn.functional.embedding(ids, table.weight)

    given = (4, 5) if make is t5 else (torch.zeros(3, 4, 8),)
    places = (4, 5) if make is t5 else (4, 4)
    table.__dict__["forward"] = read
    bias = position_bias(module, method, *given)
    del table.__dict__["forward"]
    assert len(asked) == 1 and asked[0].shape == places and bias.shape[1:] == (2, *places)[-3:]
    expected = table.weight[asked[0]].permute(2, 0, 1)[None].expand_as(bias)
    assert torch.allclose(bias, expected)
    called = []
    module.__dict__[method] = lambda *given, **more: (
        called.append(1) or position_bias(module, method, *given, **more)
    )
    model(**inputs)
    assert called, "the model asks the module, not its class"


def test_a_layer_without_a_table_has_none() -> None:
    assert position_bias_method(nn.Linear(2, 2)) is None


def test_peft_writes_into_names_what_is_taken_out_again() -> None:
    import peft

    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    plain = [name for name, _ in net.named_parameters()]
    wrapped = peft.get_peft_model(net, peft.LoraConfig(r=1, target_modules=["0"]))
    names = [name for name, _ in wrapped.named_parameters() if "lora_" not in name]
    assert names != plain and [plain_name(name) for name in names] == plain
    assert any("lora_A" in name for name, p in wrapped.named_parameters() if p.requires_grad)
