"""Rules of layers that are linear in activations and weight: linear layers and convolutions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from privet.privacy.mechanism.clipping.parameter_gradients import ParameterGradients
from privet.privacy.mechanism.clipping.per_unit_gradients import PerUnitGradients
from privet.privacy.mechanism.clipping.rules import Rule, Unsupported, by_record, compute_type


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, rule: LinearRule
    ) -> Tensor:
        ctx.rule = rule
        ctx.save_for_backward(compute_type(x) if rule.weight is not None else None, weight)
        flat = x.reshape(-1, x.shape[-1])
        turned = weight if rule.transposed else weight.t()
        y = flat @ turned if bias is None else torch.addmm(bias, flat, turned)
        # No view: what follows may change it in place.
        whole: Tensor = torch.ops.aten._unsafe_view(y, [*x.shape[:-1], turned.shape[1]])
        return whole

    @staticmethod
    def backward(ctx: Any, backprops: Tensor) -> tuple[Tensor | None, None, None, None]:
        activations, weight = ctx.saved_tensors
        ctx.rule.on_backward(activations, backprops)
        back = None
        if ctx.needs_input_grad[0]:
            weight = weight.to(backprops.dtype)
            back = backprops @ (weight.mT if ctx.rule.transposed else weight)
        return back, None, None, None


class LinearRule(Rule):
    """``nn.Linear``, s = a Wᵀ + b, and ``Conv1D`` of transformers, s = a W + b.

    With activations a [U, T, p] and backprops g [U, T, n]::

        G_u(W) = g_uᵀ a_u  [n, p]   (a_uᵀ g_u [p, n] for Conv1D), or its ghost
        G_u(b) = Σ_t g_ut  [n]
    """

    def __init__(
        self, module: nn.Module, per_unit: PerUnitGradients, own: dict[str, ParameterGradients]
    ) -> None:
        super().__init__(module, per_unit, own)
        self.transposed = not isinstance(module, nn.Linear)
        if self.weight is not None:
            self.weight.transposed = self.transposed

    def forward(self, x: Tensor) -> Tensor:
        """As the layer's own."""
        module: Any = self.module
        return _Linear.apply(x, module.weight, module.bias, self)  # type: ignore[no-any-return]

    def record(self, activations: Tensor | None, backprops: Tensor) -> None:
        """Add G_u of weight and bias.

        Args:
            activations: [m · B, ..., p]; None where the weight is frozen.
            backprops: [m · B, ..., n].
        """
        records, group = self.per_unit.records, self.per_unit.group_by_unit
        g = group(by_record(backprops, records))
        if self.weight is not None and activations is not None:
            self.weight.add_linear(group(by_record(activations, records)), g)
        if self.bias is not None:
            self.bias.add_row_sum(g)


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, rule: ConvolutionRule
    ) -> Tensor:
        ctx.rule = rule
        x = compute_type(x)
        ctx.save_for_backward(x, weight)
        return rule.convolve(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, backprops: Tensor) -> tuple[Tensor | None, None, None, None]:
        x, weight = ctx.saved_tensors
        ctx.rule.on_backward(x, backprops)
        back = None
        if ctx.needs_input_grad[0]:
            back = ctx.rule.input_gradient(backprops, x, weight.to(backprops.dtype))
        return back, None, None, None


class ConvolutionRule(Rule):
    """``nn.Conv1d`` and ``nn.Conv2d`` with zeros around: linear in the patches of its input.

    Unfolding gives one row of p = (channels / groups) · kernel numbers for each place of the output
    and each group. With patches a [U, T, groups, p] and backprops g [U, T, groups, n / groups]::

        G_u(W)[group] = Σ_t g_ut,group a_ut,groupᵀ   [n / groups, p], always instantiated
        G_u(b)        = Σ_t g_ut                     [n]
    """

    def __init__(
        self, module: nn.Module, per_unit: PerUnitGradients, own: dict[str, ParameterGradients]
    ) -> None:
        if not isinstance(module, nn.Conv1d | nn.Conv2d):
            raise Unsupported(f"{type(module).__name__} is not a convolution in one or two ways")
        if isinstance(module.padding, str) or module.padding_mode != "zeros":
            raise Unsupported("a convolution pads with something else than a number of zeros")
        super().__init__(module, per_unit, own)

    def forward(self, x: Tensor) -> Tensor:
        """As the layer's own."""
        return _Convolution.apply(x, self.module.weight, self.module.bias, self)  # type: ignore[no-any-return]

    def convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return the layer's output.

        Args:
            x: images [B, channels, height, width] or signals [B, channels, length].
            weight: of the layer.
            bias: of the layer.
        """
        found: Tensor = self.module._conv_forward(x, weight, bias)
        return found

    def input_gradient(self, backprops: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        """Return the gradient of the input, of its shape.

        Args:
            backprops: of the output's shape.
            x: the input.
            weight: in the backprops' type.
        """
        m: Any = self.module
        found: tuple[Tensor, ...] = torch.ops.aten.convolution_backward(
            backprops, x, weight, None, m.stride, m.padding, m.dilation, False,
            [0] * (x.dim() - 2), m.groups, [True, False, False],
        )  # fmt: skip
        return found[0]

    def record(self, x: Tensor, backprops: Tensor) -> None:
        """Add G_u of weight and bias.

        Args:
            x: images [B, channels, height, width] or signals [B, channels, length].
            backprops: [B, n, ...].
        """
        records, group = self.per_unit.records, self.per_unit.group_by_unit
        if len(x) != records:
            raise Unsupported(f"a convolution reads {len(x)} images of {records} records")
        g = backprops.reshape(records, backprops.shape[1], -1)
        if self.bias is not None:
            self.bias.add_gradient(group(g.sum(2).unsqueeze(1)).sum(1))
        if self.weight is None:
            return
        units, groups = self.per_unit.units, self.module.groups
        columns = self._patches(x)
        of_group = columns.shape[1] // groups
        a = group(columns.mT).view(units, -1, groups, of_group)
        g = group(g.mT).view(units, -1, groups, g.shape[1] // groups)
        made = torch.einsum("utgn,utgp->ugnp", g, a)
        self.weight.add_gradient(made.reshape(units, *self.weight.parameter.shape))

    def _patches(self, x: Tensor) -> Tensor:
        """Return what the kernel sees at each place, [B, channels · kernel, places]."""
        m = self.module
        padding = cast("tuple[int, ...]", m.padding)
        return functional.unfold(
            x.unsqueeze(2) if x.dim() == 3 else x,
            _height_and_width(m.kernel_size, 1),
            dilation=_height_and_width(m.dilation, 1),
            padding=_height_and_width(padding, 0),
            stride=_height_and_width(m.stride, 1),
        )


def _height_and_width(value: Sequence[int], height: int) -> tuple[int, int]:
    """Return a size along (height, width); a signal is an image of height 1."""
    return (height, value[0]) if len(value) == 1 else (value[0], value[1])
