"""Transformer blocks shared by the models: attention, feed-forward, and a stack over tokens."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from privet.common.errors import PlanError


class Attention(nn.Module):
    """Multi-head self-attention over [B, T, d], in plain linear layers for Opacus."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if width < 1 or heads < 1:
            raise PlanError("model.options: width and heads must be at least 1")
        if width % heads:
            raise PlanError(f"model.options: width {width} is not a multiple of heads {heads}")
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Map [B, T, d] to [B, T, d].

        Args:
            x: states [B, T, d].
            mask: [B, 1, 1, T], True where a token may be read; None allows all.
        """
        batch, length, width = x.shape
        parts = self.qkv(x).view(batch, length, 3, self.heads, width // self.heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return self.out(mixed.transpose(1, 2).reshape(batch, length, width))  # type: ignore[no-any-return]


class Block(nn.Module):
    """Pre-norm Transformer block (Xiong et al. 2020), GELU, no dropout."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Map [B, T, d] to [B, T, d].

        Args:
            x: states [B, T, d].
            mask: as for :meth:`Attention.forward`.
        """
        x = x + self.attention(self.norm1(x), mask)
        return x + self.down(functional.gelu(self.up(self.norm2(x))))  # type: ignore[no-any-return]


class TokenStack(nn.Module):
    """Token and position embeddings, Transformer blocks, and a norm.

    Args:
        vocabulary: number V of tokens.
        max_tokens: longest sequence T.
        width, heads, layers: size of the Transformer.
    """

    def __init__(
        self, vocabulary: int, max_tokens: int, *, width: int, heads: int, layers: int
    ) -> None:
        super().__init__()
        self.words = nn.Embedding(vocabulary, width)
        self.places = nn.Embedding(max_tokens, width)
        self.blocks = nn.ModuleList(Block(width, heads, 4 * width) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        nn.init.normal_(self.words.weight, std=width**-0.5)
        nn.init.normal_(self.places.weight, std=0.1 * width**-0.5)

    def states(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Map token numbers [B, T] to states [B, T, d].

        Args:
            tokens: int64 [B, T], each from 0 to V - 1.
            mask: broadcast to [B, heads, T, T], True where a token may be read.
        """
        batch, length = tokens.shape
        # Expanded to [B, T]: Opacus counts the first dimension as records.
        places = torch.arange(length, device=tokens.device).repeat(batch, 1)
        x = self.words(tokens) + self.places(places)
        for block in self.blocks:
            x = block(x, mask)
        return self.norm(x)  # type: ignore[no-any-return]
