"""Rules of normalisation layers, x̂ · γ + β with x̂ the normalised input; γ and β are vectors [n].

With T rows a unit, normalised rows x̂ [U, T, n] and backprops g [U, T, n]::

    G_u(γ) = Σ_t g_ut ⊙ x̂_ut   [n]
    G_u(β) = Σ_t g_ut          [n]

Vectors are always instantiated. A layer that normalises over records is refused before (H6).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from privet.privacy.mechanism.clipping.methods import accumulation_dtype
from privet.privacy.mechanism.clipping.parameter_gradients import ParameterGradients
from privet.privacy.mechanism.clipping.per_unit_gradients import PerUnitGradients
from privet.privacy.mechanism.clipping.rules import Rule, Unsupported, by_record


class _Scale(torch.autograd.Function):
    """``x̂ · weight + bias`` along one dimension."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, rule: ScaleRule
    ) -> Tensor:
        ctx.rule = rule
        ctx.save_for_backward(x if rule.weight is not None else None, weight)
        shape = rule.broadcast_shape(x)
        y = x * weight.view(shape)
        return y if bias is None else y + bias.view(shape)

    @staticmethod
    def backward(ctx: Any, backprops: Tensor) -> tuple[Tensor | None, None, None, None]:
        x, weight = ctx.saved_tensors
        ctx.rule.on_backward(x, backprops)
        back = None
        if ctx.needs_input_grad[0]:
            back = backprops * weight.view(ctx.rule.broadcast_shape(backprops))
        return back, None, None, None


class ScaleRule(Rule):
    """Group norms and root-mean-square norms: torch makes x̂, and the scale has the parameters.

    x̂ is [B, n, ...] for a group norm, whose T are the places of an image, and [B, ..., n] else.
    """

    def __init__(
        self, module: nn.Module, per_unit: PerUnitGradients, own: dict[str, ParameterGradients]
    ) -> None:
        super().__init__(module, per_unit, own)
        self._channels_first = isinstance(module, nn.GroupNorm)
        if isinstance(module, nn.RMSNorm) and len(module.normalized_shape) != 1:
            raise Unsupported("a norm over more than one dimension")

    def broadcast_shape(self, x: Tensor) -> list[int]:
        """Return the shape in which the weight [n] meets ``x``."""
        return [1, -1, *[1] * (x.dim() - 2)] if self._channels_first else [-1]

    def forward(self, x: Tensor) -> Tensor:
        """As the layer's own."""
        m: Any = self.module
        if isinstance(m, nn.GroupNorm):
            normed = functional.group_norm(x, m.num_groups, None, None, m.eps)
        elif isinstance(m, nn.RMSNorm):
            normed = functional.rms_norm(x, m.normalized_shape, None, m.eps)
        else:  # those of transformers, in single precision or wider
            wide = x.to(accumulation_dtype(x))
            normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + m.variance_epsilon)
            normed = normed.to(x.dtype)
        return _Scale.apply(normed, m.weight, getattr(m, "bias", None), self)  # type: ignore[no-any-return]

    def record(self, normed: Tensor | None, backprops: Tensor) -> None:
        """Add G_u of weight and bias.

        Args:
            normed: x̂, of the output's shape; None where the weight is frozen.
            backprops: g, of the output's shape.
        """
        if self.weight is not None and normed is not None:
            self.weight.add_gradient(self._sum_by_unit(backprops * normed))
        if self.bias is not None:
            self.bias.add_gradient(self._sum_by_unit(backprops))

    def _sum_by_unit(self, x: Tensor) -> Tensor:
        """Return the sum over a unit's rows, [U, n]."""
        if self._channels_first:
            x = x.flatten(2).sum(2).unsqueeze(1) if x.dim() > 2 else x.unsqueeze(1)
        return self.per_unit.group_by_unit(by_record(x, self.per_unit.records)).sum(1)


class _LayerNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, rule: LayerNormRule
    ) -> Tensor:
        ctx.rule = rule
        if torch.is_autocast_enabled(x.device.type):
            x = x.float()
        y, mean, scale = torch.native_layer_norm(x, rule.shape, weight, bias, rule.eps)
        ctx.save_for_backward(x, weight, bias, mean, scale)
        return y

    @staticmethod
    def backward(ctx: Any, backprops: Tensor) -> tuple[Tensor | None, None, None, None]:
        x, weight, bias, mean, scale = ctx.saved_tensors
        ctx.rule.on_backward(x, mean, scale, backprops)
        back = None
        if ctx.needs_input_grad[0]:
            back = torch.ops.aten.native_layer_norm_backward(
                backprops, x, ctx.rule.shape, mean, scale, weight, bias, [True, False, False]
            )[0]
        return back, None, None, None


class LayerNormRule(Rule):
    """``nn.LayerNorm`` over the last dimension: x̂ = r (x - μ), μ and r = 1 / √(σ² + eps) of a row.

    x̂ is not made again: r is a number a row, so the sum over rows is a product with r [U, T]::

        G_u(γ) = Σ_t r_ut (x_ut - μ_ut) ⊙ g_ut
    """

    def __init__(
        self, module: nn.Module, per_unit: PerUnitGradients, own: dict[str, ParameterGradients]
    ) -> None:
        if not isinstance(module, nn.LayerNorm) or len(module.normalized_shape) != 1:
            raise Unsupported("a norm over more than one dimension")
        super().__init__(module, per_unit, own)
        self.shape, self.eps = list(module.normalized_shape), module.eps

    def forward(self, x: Tensor) -> Tensor:
        """As the layer's own."""
        return _LayerNorm.apply(x, self.module.weight, self.module.bias, self)  # type: ignore[no-any-return]

    def record(self, x: Tensor, mean: Tensor, scale: Tensor, backprops: Tensor) -> None:
        """Add G_u of weight and bias.

        Args:
            x: the input [m · B, ..., n].
            mean: μ [m · B, ..., 1].
            scale: r [m · B, ..., 1].
            backprops: g [m · B, ..., n].
        """
        records, group = self.per_unit.records, self.per_unit.group_by_unit
        g = group(by_record(backprops, records))
        if self.weight is not None:
            centred = (x - mean).reshape(records, -1, x.shape[-1])
            products = group(centred).mul_(g)
            scales = group(scale.reshape(records, -1, 1))
            self.weight.add_gradient(torch.bmm(scales.mT, products).squeeze(1))
        if self.bias is not None:
            self.bias.add_row_sum(g)
