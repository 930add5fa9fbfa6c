"""Transformer blocks shared by the models: pre-norm attention and feed-forward."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from privet.common.errors import PlanError


class Attention(nn.Module):
    """Multi-head self-attention over [B, T, d], with plain linear layers for Opacus."""

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
        """Attend; ``mask`` [B, 1, 1, T] is True where a token may be read."""
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
        """Map [B, T, d] to [B, T, d]."""
        x = x + self.attention(self.norm1(x), mask)
        return x + self.down(functional.gelu(self.up(self.norm2(x))))  # type: ignore[no-any-return]
