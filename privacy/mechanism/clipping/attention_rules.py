"""The rule of ``nn.MultiheadAttention``, whose projections are one packed weight.

torch computes it by one function that reads the weights of the layer and of its child ``out_proj``,
past any layer's forward. Here it is written out in its parts (Vaswani et al. 2017, 3.2): three
projections, attention, and ``out_proj`` as the layer that it is. torch's fused inference path is
not taken.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from privet.privacy.mechanism.clipping.parameter_gradients import ParameterGradients
from privet.privacy.mechanism.clipping.per_unit_gradients import PerUnitGradients
from privet.privacy.mechanism.clipping.rules import Rule, Unsupported, by_record, compute_type


class _Projection(torch.autograd.Function):
    """``x Wᵀ + b`` with some rows of a packed weight, W [3E, E]."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, rows: slice, rule: AttentionRule
    ) -> Tensor:
        ctx.rule, ctx.rows = rule, rows
        ctx.save_for_backward(compute_type(x), weight)
        return functional.linear(x, weight[rows], None if bias is None else bias[rows])

    @staticmethod
    def backward(ctx: Any, backprops: Tensor) -> tuple[Tensor | None, None, None, None, None]:
        x, weight = ctx.saved_tensors
        ctx.rule.on_backward(x, ctx.rows, backprops)
        back = None
        if ctx.needs_input_grad[0]:
            back = backprops @ weight[ctx.rows].to(backprops.dtype)
        return back, None, None, None, None


class AttentionRule(Rule):
    """``nn.MultiheadAttention`` with queries, keys and values of one width.

    With x [U, T, E] what is projected and g [U, T, n] the backprops of the rows R of the packed
    weight that project it::

        G_u(W)[R] = g_uᵀ x_u   [n, E];   G_u(b)[R] = Σ_t g_ut   [n]

    Rows that do not project x have backprops of zero. ``out_proj`` has a rule of its own.
    """

    def __init__(
        self, module: nn.Module, per_unit: PerUnitGradients, own: dict[str, ParameterGradients]
    ) -> None:
        if not isinstance(module, nn.MultiheadAttention):
            raise Unsupported(f"{type(module).__name__} is not an attention layer")
        if module.in_proj_weight is None or module.bias_k is not None or module.add_zero_attn:
            raise Unsupported("attention whose keys or values have another width or a bias")
        super().__init__(module, per_unit, {})
        self.weight, self.bias = own.get("in_proj_weight"), own.get("in_proj_bias")

    def __call__(self, *given: Any, **named: Any) -> Any:
        """As the layer's own forward."""
        self._require_same("in_proj_weight", self.weight)
        self._require_same("in_proj_bias", self.bias)
        return self._attend(*given, **named)

    def _attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Return the output, of the query's shape, and the weights or None.

        Args:
            query: [T, B, E], or [B, T, E] if the layer is ``batch_first``.
            key: as ``query``, with S places.
            value: as ``key``.
            key_padding_mask: [B, S], true (or -inf) where a key is padding.
            need_weights: whether to return the weights.
            attn_mask: [T, S] or [B · heads, T, S].
            average_attn_weights: whether to return their mean over heads.
            is_causal: whether ``attn_mask`` is the causal one.
        """
        m: Any = self.module
        if query.dim() != 3:
            raise Unsupported("attention without a dimension of records")
        if is_causal and attn_mask is None:
            raise Unsupported("causal attention needs its mask")
        if self.axes is not None and self.axis_of(query) != (not m.batch_first):
            raise Unsupported("attention reads records in another dimension than it says")
        if not m.batch_first:
            turned = {id(x): x.transpose(0, 1) for x in (query, key, value)}
            query, key, value = (turned[id(x)] for x in (query, key, value))
        q, k, v = (self._heads(x) for x in self._projected(query, key, value))
        mask = self._mask(q, k, key_padding_mask, attn_mask)
        dropout = m.dropout if m.training else 0.0
        weights = None
        if need_weights:
            scores = (q / math.sqrt(m.head_dim)) @ k.mT
            weights = torch.softmax(scores if mask is None else scores + mask, -1)
            weights = functional.dropout(weights, dropout, m.training)
            attended = weights @ v
        else:
            attended = functional.scaled_dot_product_attention(q, k, v, mask, dropout)
        output = m.out_proj(attended.transpose(1, 2).flatten(2))
        if dropout:  # in torch's order of memory, in which a dropout that follows draws its chance
            output = output.transpose(0, 1).contiguous().transpose(0, 1)
        if weights is not None and average_attn_weights:
            weights = weights.mean(1)
        return output if m.batch_first else output.transpose(0, 1), weights

    def record(self, x: Tensor, rows: slice, backprops: Tensor) -> None:
        """Add G_u of some rows of weight and bias.

        Args:
            x: what is projected [B, T, E].
            rows: of the packed weight.
            backprops: [B, T, n].
        """
        records, group = self.per_unit.records, self.per_unit.group_by_unit
        width = self.module.in_proj_weight.shape[0]
        g = functional.pad(backprops, (rows.start, width - rows.stop))
        g = group(by_record(g, records))
        if self.weight is not None:
            self.weight.add_linear(group(by_record(x, records)), g)
        if self.bias is not None:
            self.bias.add_row_sum(g)

    def _projected(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
        """Return queries, keys and values; equal inputs are projected by one product."""
        width = self.module.embed_dim
        if query is key and key is value:
            return self._project(query, 0, 3 * width).chunk(3, -1)
        first = self._project(query, 0, width)
        if key is value:
            return (first, *self._project(key, width, 3 * width).chunk(2, -1))
        second = self._project(key, width, 2 * width)
        return first, second, self._project(value, 2 * width, 3 * width)

    def _project(self, x: Tensor, start: int, stop: int) -> Tensor:
        m: Any = self.module
        rows = slice(start, stop)
        apply: Any = _Projection.apply
        made: Tensor = apply(x, m.in_proj_weight, m.in_proj_bias, rows, self)
        return made

    def _heads(self, x: Tensor) -> Tensor:
        """Return [B, T, E] as [B, heads, T, E / heads]."""
        return x.view(*x.shape[:2], self.module.num_heads, -1).transpose(1, 2)

    def _mask(
        self, q: Tensor, k: Tensor, padding: Tensor | None, mask: Tensor | None
    ) -> Tensor | None:
        """Return both masks as numbers that are added to the scores, or None."""
        total = None
        if mask is not None:
            total = _as_numbers(mask, q)
            if mask.dim() == 3:
                total = total.view(len(q), self.module.num_heads, *mask.shape[1:])
        if padding is not None:
            extra = _as_numbers(padding, q).view(len(q), 1, 1, k.shape[2])
            total = extra if total is None else total + extra
        return total


def _as_numbers(mask: Tensor, like: Tensor) -> Tensor:
    """Return a mask with -inf where it is true; one of numbers as it is."""
    if mask.dtype != torch.bool:
        return mask.to(like.dtype)
    return torch.zeros_like(mask, dtype=like.dtype).masked_fill_(mask, float("-inf"))
