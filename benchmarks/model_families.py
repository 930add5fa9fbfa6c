"""All architectures that are tried, and the larger ones whose steps are timed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from architecture import (
    CLASSES,
    Architecture,
    Batch,
    class_loss,
)
from architectures_of_hub import of_peft, of_transformers
from architectures_of_torch import of_torch
from torch import Tensor, nn


def architectures() -> list[Architecture]:
    """Return all architectures."""
    return [*of_torch(), *of_transformers(), *of_peft()]


def _long_texts(words: int, places: int) -> Callable[[int, int], Batch]:
    def make(count: int, seed: int) -> Batch:
        generator = torch.Generator().manual_seed(seed)
        return {
            "input_ids": torch.randint(3, words, (count, places), generator=generator),
            "attention_mask": torch.ones(count, places, dtype=torch.long),
            "label": torch.randint(0, CLASSES, (count,), generator=generator),
        }

    return make


class Pooled(nn.Module):
    """An embedding, a layer over [B, T, d], the mean over places, and a head of three classes."""

    def __init__(self, words: int, width: int, layer: nn.Module) -> None:
        super().__init__()
        self.table, self.layer = nn.Embedding(words, width), layer
        self.head = nn.Linear(width, CLASSES)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return scores [B, classes]."""
        made = self.layer(self.table(input_ids))
        made = made[0] if isinstance(made, tuple) else made
        return self.head(made.mean(1))  # type: ignore[no-any-return]


def _torch_encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(256, 4, 1024, batch_first=True)
    return Pooled(1000, 256, nn.TransformerEncoder(layer, 4))


def _base(name: str, words: int, layers: int) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        import transformers

        config: Any = transformers.AutoConfig.for_model(
            name, vocab_size=words, hidden_size=768, num_hidden_layers=layers,
            num_attention_heads=12, intermediate_size=3072, num_labels=CLASSES,
        )  # fmt: skip
        if name == "deberta-v2":  # as DeBERTa-v3 is published
            config.relative_attention, config.position_buckets = True, 256
            config.norm_rel_ebd, config.share_att_key = "layer_norm", True
            config.pos_att_type, config.position_biased_input = ["p2c", "c2p"], False
        model: nn.Module = transformers.AutoModelForSequenceClassification.from_config(config)
        return model

    return make


def _timed(name: str, make: Callable[[], nn.Module], words: int, places: int) -> Architecture:
    return Architecture(name, "cost", make, class_loss, _long_texts(words, places))


_LSTM_256 = _timed(
    "LSTM", lambda: Pooled(1000, 256, nn.LSTM(256, 256, 2, batch_first=True)), 1000, 64
)
COSTS: dict[str, tuple[Architecture, int, str, float]] = {
    # model, records, method, goal of the ratio
    "TransformerEncoder": (
        _timed("TransformerEncoder", _torch_encoder, 1000, 128), 32, "bookkeeping", 1.3,
    ),
    "LSTM": (_LSTM_256, 32, "bookkeeping", 3.0),
    "LSTM, one by one": (_LSTM_256, 32, "one-by-one", 1.1),
    "TransformerEncoder, one by one": (
        _timed("TransformerEncoder", _torch_encoder, 1000, 128), 16, "one-by-one", 1.1,
    ),
    "MPNet-base": (_timed("MPNet", _base("mpnet", 30527, 12), 30527, 128), 16, "bookkeeping", 1.6),
    "DeBERTa-v3-small": (
        _timed("DeBERTa", _base("deberta-v2", 128100, 6), 128100, 128), 16, "bookkeeping", 1.6,
    ),
}  # fmt: skip
