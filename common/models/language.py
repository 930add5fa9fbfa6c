"""Language models from scratch: a decoder, two encoder-decoders, and a masked encoder.

The encoder-decoders are those of transformers, with random weights and a plan's options.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from privet.common.errors import PlanError
from privet.common.models.blocks import TokenStack


class Decoder(TokenStack):
    """Transformer blocks under a causal mask; the output shares its weights with the input.

    Args:
        vocabulary: number V of tokens.
        max_tokens: longest sequence T.
        width, heads, layers: size of the Transformer.
    """

    def __init__(
        self, vocabulary: int, max_tokens: int, *, width: int = 128, heads: int = 4, layers: int = 2
    ) -> None:
        super().__init__(vocabulary, max_tokens, width=width, heads=heads, layers=layers)
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.words.weight

    def forward(self, tokens: Tensor) -> Tensor:
        """Map token numbers [B, T] to logits of the tokens that follow, [B, T, V]."""
        length = tokens.shape[1]
        # Padding is behind the text, where no token that counts can read it.
        mask = torch.ones(length, length, dtype=torch.bool, device=tokens.device).tril()
        return self.head(self.states(tokens.clamp(min=0), mask))  # type: ignore[no-any-return]


class MaskedEncoder(nn.Module):
    """An encoder with a head that predicts masked tokens (Devlin et al. 2019).

    Args:
        encoder: maps token numbers to states.
        words: its token embedding [V, d], which the head shares.
        states: calls the encoder with token numbers [B, T], and returns states [B, T, d].
    """

    def __init__(
        self,
        encoder: nn.Module,
        words: nn.Embedding,
        states: Callable[[nn.Module, Tensor], Tensor] = lambda encoder, tokens: encoder(tokens),
    ) -> None:
        super().__init__()
        vocabulary, width = words.weight.shape
        self.encoder = encoder
        self._states = states
        self.turn = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)
        self.output = nn.Linear(width, vocabulary)
        self.output.weight = words.weight
        nn.init.eye_(self.turn.weight)
        nn.init.zeros_(self.turn.bias)
        nn.init.zeros_(self.output.bias)

    def forward(self, tokens: Tensor, places: Tensor) -> Tensor:
        """Map tokens [B, T] to logits [B, P, V] at some positions.

        Args:
            tokens: token numbers [B, T], with masked ones.
            places: positions [B, P] to predict.
        """
        states = self._states(self.encoder, tokens)
        chosen = states.gather(1, places.unsqueeze(2).expand(-1, -1, states.shape[2]))
        return self.output(self.norm(functional.gelu(self.turn(chosen))))  # type: ignore[no-any-return]


class EncoderDecoder(nn.Module):
    """An encoder-decoder of transformers, called with source and target; token 0 is padding."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        """Map sources and targets to logits of the targets, [B, S, V].

        Args:
            source: token numbers [B, T]; 0 is padding.
            target: token numbers [B, S], which the decoder reads shifted by one.
        """
        before = functional.pad(target[:, :-1], (1, 0), value=0)
        return self.inner(  # type: ignore[no-any-return]
            input_ids=source, attention_mask=(source != 0).long(), decoder_input_ids=before
        ).logits

    def write(self, source: Tensor, beams: int) -> Tensor:
        """Generate texts by beam search.

        Args:
            source: token numbers [B, T] of the sources.
            beams: width of the search.

        Returns:
            Token numbers [B, S] with at most T new tokens.
        """
        found: Tensor = self.inner.generate(
            input_ids=source, attention_mask=(source != 0).long(), num_beams=beams,
            max_new_tokens=source.shape[1], early_stopping=True,
        )  # fmt: skip
        return found


def t5(
    vocabulary: int, max_tokens: int, *, width: int = 128, heads: int = 4, layers: int = 2
) -> EncoderDecoder:
    """Return a T5 (Raffel et al. 2020; gated as in version 1.1) with random weights.

    Args:
        vocabulary: number V of tokens.
        max_tokens: unused, because its positions are relative.
        width: size d of the states, a multiple of ``heads``.
        heads: of each attention.
        layers: of the encoder, and of the decoder.

    Raises:
        PlanError: if ``heads`` does not divide ``width``.
    """
    del max_tokens  # its positions are relative
    from transformers import T5Config, T5ForConditionalGeneration

    _divides(width, heads)
    config = T5Config(
        vocab_size=vocabulary, d_model=width, d_kv=width // heads, d_ff=2 * width,
        num_layers=layers, num_heads=heads, dropout_rate=0.0, feed_forward_proj="gated-gelu",
        pad_token_id=0, eos_token_id=1, decoder_start_token_id=0,
    )  # fmt: skip
    return EncoderDecoder(T5ForConditionalGeneration(config))


def encoder_decoder(
    vocabulary: int, max_tokens: int, *, width: int = 128, heads: int = 4, layers: int = 2
) -> EncoderDecoder:
    """Return the encoder-decoder of Vaswani et al. (2017), as in Marian, with random weights.

    Args:
        vocabulary: number V of tokens.
        max_tokens: longest sequence T.
        width: size d of the states, a multiple of ``heads``.
        heads: of each attention.
        layers: of the encoder, and of the decoder.

    Raises:
        PlanError: if ``heads`` does not divide ``width``.
    """
    from transformers import MarianConfig, MarianMTModel

    _divides(width, heads)
    config = MarianConfig(
        vocab_size=vocabulary, d_model=width, encoder_layers=layers, decoder_layers=layers,
        encoder_attention_heads=heads, decoder_attention_heads=heads, encoder_ffn_dim=4 * width,
        decoder_ffn_dim=4 * width, max_position_embeddings=max(2, max_tokens + 1), dropout=0.0,
        attention_dropout=0.0, activation_dropout=0.0, activation_function="gelu",
        scale_embedding=True, pad_token_id=0, eos_token_id=1, decoder_start_token_id=0,
        forced_eos_token_id=None, init_std=width**-0.5,
    )  # fmt: skip
    return EncoderDecoder(MarianMTModel(config))


def _divides(width: int, heads: int) -> None:
    if width < 1 or heads < 1 or width % heads:
        raise PlanError(f"model.options: width {width} is not a multiple of heads {heads}")
