"""Rules of parameters that are indexed or used as they are: embeddings, positions, tokens."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from privet.common.compat.transformers import position_bias, position_table
from privet.privacy.mechanism.clipping.parameter_gradients import ParameterGradients
from privet.privacy.mechanism.clipping.per_unit_gradients import PerUnitGradients
from privet.privacy.mechanism.clipping.rules import Rule, Unsupported


class _Embedding(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, ids: Tensor, shared: Tensor | None, rule: EmbeddingRule
    ) -> Tensor:
        ctx.rule, ctx.ids, ctx.shared = rule, ids, shared
        return functional.embedding(ids, weight)

    @staticmethod
    def backward(ctx: Any, backprops: Tensor) -> tuple[None, None, None, None]:
        ctx.rule.on_backward(ctx.ids, ctx.shared, backprops)
        return None, None, None, None


class EmbeddingRule(Rule):
    """``nn.Embedding``: row i_k of a table [V, n] at each place k.

    With ids i [U, K] and backprops e [U, K, n]::

        G_u = Σ_k 1_{i_k} e_ukᵀ   [V, n], or its ghost

    Positions are read once for all records, at ids [1, K]: each record then has the same ids,
    and backprops of its own. Padding has no gradient.
    """

    def __init__(
        self, module: nn.Module, per_unit: PerUnitGradients, own: dict[str, ParameterGradients]
    ) -> None:
        if not isinstance(module, nn.Embedding):
            raise Unsupported(f"{type(module).__name__} is not a table")
        if module.max_norm is not None or module.scale_grad_by_freq or module.sparse:
            raise Unsupported("a table with max_norm, scale_grad_by_freq or sparse")
        super().__init__(module, per_unit, own)
        self.table = own["weight"]

    def forward(self, ids: Tensor) -> Tensor:
        """As the layer's own."""
        records = self.per_unit.records
        shared = None
        if ids.shape[0] == 1 and records > 1 and ids.dim() > 1:
            shared, ids = ids.flatten(), ids.expand(records, *ids.shape[1:])
        if ids.shape[0] != records:
            raise Unsupported(f"a table is read at {tuple(ids.shape)}, not of {records} records")
        return _Embedding.apply(self.module.weight, ids, shared, self)  # type: ignore[no-any-return]

    def _for_each(self, x: Tensor) -> Tensor:
        assert self.axes is not None
        if self.axes.inputs[0].room == 1:  # [T, 1] among [T, B]
            return self.forward(x.transpose(0, 1)).transpose(0, 1)
        return self.forward(x if self.axes.inputs[0].room == 0 else x.unsqueeze(0))

    def record(self, ids: Tensor, shared: Tensor | None, backprops: Tensor) -> None:
        """Add G_u of the table.

        Args:
            ids: [B, ...].
            shared: ids [K] of every record, where all have the same; else None.
            backprops: [B, ..., n].
        """
        records, group = self.per_unit.records, self.per_unit.group_by_unit
        e = backprops.reshape(records, -1, backprops.shape[-1])
        padding = self.module.padding_idx
        if shared is not None and padding is None:
            # A unit's records meet at each position: their backprops are added first.
            each = group(e.unsqueeze(1)).view(self.per_unit.units, -1, *e.shape[1:])
            self.table.add_shared_lookup(shared, each.sum(1) if each.shape[1] > 1 else each[:, 0])
            return
        ids = ids.reshape(records, -1)
        if padding is not None:
            e = torch.where((ids == padding).unsqueeze(2), 0.0, e)
        self.table.add_lookup(group(ids.unsqueeze(2)).squeeze(2), group(e))


class RelativePositionBias:
    """Relative positions: a table that is read once and added to the scores of all records.

    The bias [1, heads, queries, keys] is computed by the module's own code (T5's attention, MPNet's
    encoder), which shows at which ids it
    reads the table. It is then read at those ids for each record, [B, heads, queries, keys], so
    that the backprops of each record are its own and :class:`EmbeddingRule` applies.

    Args:
        module: that has the table.
        method: name of the method that makes the bias.
        table: the table's rule.
    """

    def __init__(self, module: nn.Module, method: str, table: EmbeddingRule) -> None:
        self.module, self.method, self.table = module, method, table

    def __call__(self, *given: Any, **more: Any) -> Tensor:
        """Return the bias of each record, [B, heads, queries, keys], in place of [1, ...]."""
        table = position_table(self.module)
        asked: list[Tensor] = []

        def read(ids: Tensor) -> Tensor:
            asked.append(ids)
            return functional.embedding(ids, table.weight.detach())

        replaced = table.__dict__.get("forward")
        table.__dict__["forward"] = read
        try:
            plain = position_bias(self.module, self.method, *given, **more)
        finally:
            if replaced is None:
                del table.__dict__["forward"]
            else:
                table.__dict__["forward"] = replaced
        if len(asked) != 1 or plain.shape[1:] != (table.weight.shape[1], *asked[0].shape):
            raise Unsupported("a position bias that is not of queries and keys alone")
        values = self.table.forward(asked[0].unsqueeze(0))
        return values.permute(0, 3, 1, 2)


class _Expanded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, parameter: Tensor, rule: ExpandedParameterRule) -> Tensor:
        ctx.rule = rule
        return parameter.expand(rule.per_unit.records, *rule.shape)

    @staticmethod
    def backward(ctx: Any, backprops: Tensor) -> tuple[None, None]:
        ctx.rule.on_backward(backprops)
        return None, None


class ExpandedParameterRule:
    """A parameter of a module that is not known: each record sees a copy of its own.

    The backprops of the copies [B, ...] are the per-sample gradients::

        G_u = Σ_{r of u} g_r

    Args:
        name: of the parameter in its module.
        own: its gradients.
        per_unit: where they go.
        in_place_of_one: the parameter is [1, ...] and its copies take the first dimension.
    """

    def __init__(
        self,
        name: str,
        own: ParameterGradients,
        per_unit: PerUnitGradients,
        *,
        in_place_of_one: bool = False,
    ) -> None:
        self.name, self.own, self.per_unit = name, own, per_unit
        self.shape = own.parameter.shape[1:] if in_place_of_one else own.parameter.shape

    def copies(self) -> Tensor:
        """Return the copies, [B, ...]."""
        return _Expanded.apply(self.own.parameter, self)  # type: ignore[no-any-return]

    def on_backward(self, backprops: Tensor) -> None:
        """Record G_u, unless it is another pass than the engine's; backprops are [B, ...]."""
        if not self.per_unit.recording:
            return
        rows = backprops.reshape(self.per_unit.records, 1, -1)
        g = self.per_unit.group_by_unit(rows).sum(1)
        self.own.add_gradient(g.view(self.per_unit.units, *self.own.parameter.shape))
