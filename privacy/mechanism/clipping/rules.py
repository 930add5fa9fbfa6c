"""Layers whose per-unit gradients are read off one backward pass, each with its rule.

Each rule is a forward of ours for one layer: the same numbers, and a backward that gives the
page of each parameter what it needs, in place of the gradient itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from privet.common.compat.torch import (
    convolution_input_gradient,
    convolve,
    layer_norm,
    layer_norm_input_gradient,
    unsafe_view,
)
from privet.common.compat.transformers import position_bias, rms_epsilon
from privet.privacy.mechanism.clipping.methods import wide_type
from privet.privacy.mechanism.clipping.per_unit_gradients import (
    ParameterGradients,
    PerUnitGradients,
)

Forward = Callable[..., Tensor]


class Unsupported(Exception):
    """A layer that book-keeping does not know, or is used in a way that it does not."""


def _records_first(x: Tensor, records: int) -> Tensor:
    """Return [m · B, ..., n] as [B, L, n].

    Raises:
        Unsupported: if the first dimension is not of records.
    """
    if records == 1:
        return x.reshape(1, -1, x.shape[-1])  # a model may have squeezed it
    if x.dim() < 2 or x.shape[0] % records:
        raise Unsupported(f"a layer reads {tuple(x.shape)}, which is not of {records} records")
    return x.reshape(records, -1, x.shape[-1])


def _compute_type(x: Tensor) -> Tensor:
    """Return what autocast would compute with."""
    kind = x.device.type
    if torch.is_autocast_enabled(kind):
        return x.to(torch.get_autocast_dtype(kind))
    return x


class Rule:
    """What all rules share: when they read, and of which parameters."""

    weight: ParameterGradients | None = None
    bias: ParameterGradients | None = None

    def __init__(
        self, module: nn.Module, book: PerUnitGradients, pages: dict[str, ParameterGradients]
    ) -> None:
        self.module: Any = module
        self.book = book
        self.weight, self.bias = pages.get("weight"), pages.get("bias")

    def __call__(self, *given: Tensor, **named: Tensor) -> Tensor:
        """As the layer's own forward, whose one argument may have its name.

        Raises:
            Unsupported: if the layer's parameters are others than when the book was made.
        """
        if len(given) + len(named) != 1:
            raise Unsupported(f"a {type(self.module).__name__} is called with several arguments")
        for name, page in (("weight", self.weight), ("bias", self.bias)):
            own: Tensor | None = getattr(self.module, name, None)
            if own is not (page.parameter if page is not None else own) or (
                page is None and own is not None and own.requires_grad
            ):
                raise Unsupported(f"the {name} of a {type(self.module).__name__} was replaced")
        return self.forward(given[0] if given else next(iter(named.values())))

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output."""
        raise NotImplementedError

    def told(self, *given: Any) -> None:
        """Take what a backward pass gives, unless it is another pass than the book's."""
        if self.book.listens:
            self.book.coarse |= given[-1].dtype in (torch.bfloat16, torch.float16)
            self.take(*given)

    def take(self, *given: Any) -> None:
        """Write the pages from a backward pass; the last argument is the output's gradient."""
        raise NotImplementedError


# linear maps


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, rule: LinearRule
    ) -> Tensor:
        ctx.rule = rule
        ctx.save_for_backward(_compute_type(x) if rule.weight is not None else None, weight)
        flat = x.reshape(-1, x.shape[-1])
        turned = weight if rule.transposed else weight.t()
        y = flat @ turned if bias is None else torch.addmm(bias, flat, turned)
        # No view: what follows may change it in place.
        return unsafe_view(y, [*x.shape[:-1], turned.shape[1]])

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, None, None, None]:
        x, weight = ctx.saved_tensors
        ctx.rule.told(x, g)
        back = None
        if ctx.needs_input_grad[0]:
            weight = weight.to(g.dtype)
            back = g @ (weight.mT if ctx.rule.transposed else weight)
        return back, None, None, None


class LinearRule(Rule):
    """``nn.Linear``, and ``Conv1D`` of transformers, whose weight is transposed."""

    def __init__(
        self, module: nn.Module, book: PerUnitGradients, pages: dict[str, ParameterGradients]
    ) -> None:
        super().__init__(module, book, pages)
        self.transposed = not isinstance(module, nn.Linear)
        if self.weight is not None:
            self.weight.transposed = self.transposed

    def forward(self, x: Tensor) -> Tensor:
        """As the layer's own."""
        module: Any = self.module
        return _Linear.apply(x, module.weight, module.bias, self)  # type: ignore[no-any-return]

    def take(self, x: Tensor | None, g: Tensor) -> None:
        """Write both pages from a backward pass."""
        records = self.book.records
        g = self.book.by_unit(_records_first(g, records))
        if self.weight is not None and x is not None:
            self.weight.linear(self.book.by_unit(_records_first(x, records)), g)
        if self.bias is not None:
            self.bias.rows(g)


# convolutions


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, rule: ConvolutionRule
    ) -> Tensor:
        ctx.rule = rule
        x = _compute_type(x)
        ctx.save_for_backward(x, weight)
        return rule.convolve(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, None, None, None]:
        x, weight = ctx.saved_tensors
        ctx.rule.told(x, g)
        back = ctx.rule.back(g, x, weight.to(g.dtype)) if ctx.needs_input_grad[0] else None
        return back, None, None, None


class ConvolutionRule(Rule):
    """``nn.Conv1d`` and ``nn.Conv2d`` with zeros around."""

    def __init__(
        self, module: nn.Module, book: PerUnitGradients, pages: dict[str, ParameterGradients]
    ) -> None:
        if not isinstance(module, nn.Conv1d | nn.Conv2d):
            raise Unsupported(f"{type(module).__name__} is not a convolution in one or two ways")
        if isinstance(module.padding, str) or module.padding_mode != "zeros":
            raise Unsupported("a convolution pads with something else than a number of zeros")
        super().__init__(module, book, pages)

    def forward(self, x: Tensor) -> Tensor:
        """As the layer's own."""
        return _Convolution.apply(x, self.module.weight, self.module.bias, self)  # type: ignore[no-any-return]

    def convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return the layer's output."""
        return convolve(self.module, x, weight, bias)

    def back(self, g: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        """Return the gradient of the input."""
        return convolution_input_gradient(self.module, g, x, weight)

    def take(self, x: Tensor, g: Tensor) -> None:
        """Write both pages from a backward pass."""
        records, book, m = self.book.records, self.book, self.module
        if len(x) != records:
            raise Unsupported(f"a convolution reads {len(x)} images of {records} records")
        g = g.reshape(records, g.shape[1], -1)
        if self.bias is not None:
            self.bias.vector(book.by_unit(g.sum(2).unsqueeze(1)).sum(1))
        if self.weight is None:
            return
        padding = cast("tuple[int, ...]", m.padding)
        columns = functional.unfold(
            x.unsqueeze(2) if x.dim() == 3 else x,
            _two(m.kernel_size, 1),
            dilation=_two(m.dilation, 1),
            padding=_two(padding, 0),
            stride=_two(m.stride, 1),
        )
        groups, width = m.groups, columns.shape[1] // m.groups
        each = book.by_unit(columns.mT).view(book.units, -1, groups, width)
        ours = book.by_unit(g.mT).view(book.units, -1, groups, g.shape[1] // groups)
        made = torch.einsum("ulgo,ulgi->ugoi", ours, each)
        self.weight.vector(made.reshape(book.units, *self.weight.parameter.shape))


def _two(value: Sequence[int], other: int) -> tuple[int, int]:
    """Return a size along (height, width); a signal is an image of height 1."""
    return (other, value[0]) if len(value) == 1 else (value[0], value[1])


# tables


class _Lookup(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, ids: Tensor, shared: Tensor | None, rule: LookupRule
    ) -> Tensor:
        ctx.rule, ctx.ids, ctx.shared = rule, ids, shared
        return functional.embedding(ids, weight)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[None, None, None, None]:
        ctx.rule.told(ctx.ids, ctx.shared, g)
        return None, None, None, None


class LookupRule(Rule):
    """``nn.Embedding``; positions that are looked up once for all records count for each."""

    def __init__(
        self, module: nn.Module, book: PerUnitGradients, pages: dict[str, ParameterGradients]
    ) -> None:
        if not isinstance(module, nn.Embedding):
            raise Unsupported(f"{type(module).__name__} is not a table")
        if module.max_norm is not None or module.scale_grad_by_freq or module.sparse:
            raise Unsupported("a table with max_norm, scale_grad_by_freq or sparse")
        super().__init__(module, book, pages)
        self.table = pages["weight"]

    def forward(self, ids: Tensor) -> Tensor:
        """As the layer's own."""
        records = self.book.records
        shared = None
        if ids.shape[0] == 1 and records > 1 and ids.dim() > 1:
            shared, ids = ids.flatten(), ids.expand(records, *ids.shape[1:])
        if ids.shape[0] != records:
            raise Unsupported(f"a table is read at {tuple(ids.shape)}, not of {records} records")
        return _Lookup.apply(self.module.weight, ids, shared, self)  # type: ignore[no-any-return]

    def take(self, ids: Tensor, shared: Tensor | None, g: Tensor) -> None:
        """Write the page from a backward pass; ``shared`` are the ids of every record."""
        book = self.book
        g = g.reshape(book.records, -1, g.shape[-1])
        if shared is not None and self.module.padding_idx is None:
            every = book.by_unit(g.unsqueeze(1)).view(book.units, -1, *g.shape[1:])
            self.table.shared_lookup(shared, every.sum(1) if every.shape[1] > 1 else every[:, 0])
            return
        ids = ids.reshape(book.records, -1)
        if self.module.padding_idx is not None:
            g = torch.where((ids == self.module.padding_idx).unsqueeze(2), 0.0, g)
        self.table.lookup(book.by_unit(ids.unsqueeze(2)).squeeze(2), book.by_unit(g))


class PositionBias:
    """T5's relative positions: a table that is read once and added to the scores of all records."""

    def __init__(self, module: Any, table: LookupRule) -> None:
        self.module, self.table = module, table

    def __call__(self, *given: Any, **more: Any) -> Tensor:
        """Return the bias of each record, [B, heads, queries, keys], in place of [1, ...]."""
        module, table = self.module, self.module.relative_attention_bias
        asked: list[Tensor] = []

        def read(ids: Tensor) -> Tensor:
            asked.append(ids)
            return functional.embedding(ids, table.weight.detach())

        own = table.__dict__.get("forward")
        table.__dict__["forward"] = read
        try:
            plain = position_bias(module, *given, **more)
        finally:
            if own is None:
                del table.__dict__["forward"]
            else:
                table.__dict__["forward"] = own
        if len(asked) != 1 or plain.shape[1:] != (table.weight.shape[1], *asked[0].shape):
            raise Unsupported("a position bias that is not T5's")
        values = self.table(asked[0].unsqueeze(0))
        return values.permute(0, 3, 1, 2)


# norms


class _Scale(torch.autograd.Function):
    """``x · weight + bias`` along one dimension."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, rule: ScaleRule
    ) -> Tensor:
        ctx.rule = rule
        ctx.save_for_backward(x if rule.weight is not None else None, weight)
        shape = rule.along(x)
        y = x * weight.view(shape)
        return y if bias is None else y + bias.view(shape)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, None, None, None]:
        x, weight = ctx.saved_tensors
        ctx.rule.told(x, g)
        back = g * weight.view(ctx.rule.along(g)) if ctx.needs_input_grad[0] else None
        return back, None, None, None


class ScaleRule(Rule):
    """Group norms and root-mean-square norms: the part that has parameters is a scale."""

    def __init__(
        self, module: nn.Module, book: PerUnitGradients, pages: dict[str, ParameterGradients]
    ) -> None:
        super().__init__(module, book, pages)
        self._channels = isinstance(module, nn.GroupNorm)
        if isinstance(module, nn.RMSNorm) and len(module.normalized_shape) != 1:
            raise Unsupported("a norm over more than one dimension")

    def along(self, x: Tensor) -> list[int]:
        """Return the shape in which the weight meets ``x``."""
        return [1, -1, *[1] * (x.dim() - 2)] if self._channels else [-1]

    def forward(self, x: Tensor) -> Tensor:
        """As the layer's own."""
        m: Any = self.module
        if isinstance(m, nn.GroupNorm):
            normed = functional.group_norm(x, m.num_groups, None, None, m.eps)
        elif isinstance(m, nn.RMSNorm):
            normed = functional.rms_norm(x, m.normalized_shape, None, m.eps)
        else:
            wide = x.to(wide_type(x))
            normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + rms_epsilon(m))
            normed = normed.to(x.dtype)
        return _Scale.apply(normed, m.weight, getattr(m, "bias", None), self)  # type: ignore[no-any-return]

    def take(self, x: Tensor | None, g: Tensor) -> None:
        """Write both pages from a backward pass."""
        if self.weight is not None and x is not None:
            self.weight.vector(self._rows(g * x))
        if self.bias is not None:
            self.bias.vector(self._rows(g))

    def _rows(self, g: Tensor) -> Tensor:
        if self._channels:
            g = g.flatten(2).sum(2).unsqueeze(1) if g.dim() > 2 else g.unsqueeze(1)
        return self.book.by_unit(_records_first(g, self.book.records)).sum(1)


class _LayerNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, rule: LayerNormRule
    ) -> Tensor:
        ctx.rule = rule
        if torch.is_autocast_enabled(x.device.type):
            x = x.float()
        y, mean, scale = layer_norm(x, rule.shape, weight, bias, rule.eps)
        ctx.save_for_backward(x, weight, bias, mean, scale)
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, None, None, None]:
        x, weight, bias, mean, scale = ctx.saved_tensors
        ctx.rule.told(x, mean, scale, g)
        back = None
        if ctx.needs_input_grad[0]:
            back = layer_norm_input_gradient(g, x, ctx.rule.shape, (mean, scale), (weight, bias))
        return back, None, None, None


class LayerNormRule(Rule):
    """``nn.LayerNorm`` over the last dimension."""

    def __init__(
        self, module: nn.Module, book: PerUnitGradients, pages: dict[str, ParameterGradients]
    ) -> None:
        if not isinstance(module, nn.LayerNorm) or len(module.normalized_shape) != 1:
            raise Unsupported("a norm over more than one dimension")
        super().__init__(module, book, pages)
        self.shape, self.eps = list(module.normalized_shape), module.eps

    def forward(self, x: Tensor) -> Tensor:
        """As the layer's own."""
        return _LayerNorm.apply(x, self.module.weight, self.module.bias, self)  # type: ignore[no-any-return]

    def take(self, x: Tensor, mean: Tensor, scale: Tensor, g: Tensor) -> None:
        """Write both pages from a backward pass."""
        book, records = self.book, self.book.records
        g = book.by_unit(_records_first(g, records))
        if self.weight is not None:
            # Σ g (x - mean) · scale over rows: the sum is a product with the row of scales.
            centred = (x - mean).reshape(records, -1, x.shape[-1])
            each = book.by_unit(centred).mul_(g)
            scales = book.by_unit(scale.reshape(records, -1, 1))
            self.weight.vector(torch.bmm(scales.mT, each).squeeze(1))
        if self.bias is not None:
            self.bias.rows(g)


# parameters by themselves


class _Copies(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, parameter: Tensor, rule: CopiesRule) -> Tensor:
        ctx.rule = rule
        return parameter.expand(rule.book.records, *parameter.shape[1:])

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[None, None]:
        ctx.rule.told(g)
        return None, None


class CopiesRule:
    """A parameter [1, ...] of a module that is not known: each record sees a copy of its own."""

    def __init__(self, name: str, page: ParameterGradients, book: PerUnitGradients) -> None:
        if page.parameter.dim() < 2 or page.parameter.shape[0] != 1:
            raise Unsupported(f"'{page.name}' is used in a way that is not known")
        self.name, self.page, self.book = name, page, book

    def copies(self) -> Tensor:
        """Return [B, ...]."""
        return _Copies.apply(self.page.parameter, self)  # type: ignore[no-any-return]

    def told(self, g: Tensor) -> None:
        """Write the page from a backward pass of the book's."""
        if not self.book.listens:
            return
        g = self.book.by_unit(g.reshape(self.book.records, 1, -1)).sum(1)
        self.page.vector(g.view(self.book.units, *self.page.parameter.shape))
