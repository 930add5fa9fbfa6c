"""The per-unit gradients of one parameter, as the backward pass leaves them.

Layers add their contributions in the backward pass. All are of shape [U, T, width], where the T
rows of a unit are those of all its records. A pass may add several, since weights may be shared.
Each is kept in one of two forms:

=============  =========================================  =====================================
form           what is kept                               squared norms [U]
=============  =========================================  =====================================
instantiated   G_u [U, *shape], a slice of a buffer that  of the buffer's rows
               is kept from pass to pass
ghost          activations or ids, and backprops: the     :mod:`.ghost_norms`
               pass's own tensors
=============  =========================================  =====================================
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from privet.common.errors import SelfTestError
from privet.privacy.mechanism.clipping import ghost_norms
from privet.privacy.mechanism.clipping.cost import ghost_is_cheaper
from privet.privacy.mechanism.clipping.ghost_norms import Linear, Lookup
from privet.privacy.mechanism.clipping.methods import accumulation_dtype, squared_row_norms

_SMALL_TABLE = 4
"""An embedding with at most this many times as many rows as are read is instantiated."""


class ParameterGradients:
    """The per-unit gradients G_u of one parameter, instantiated or as a ghost.

    Args:
        name: of the parameter.
        parameter: itself.
        instantiate: whether to instantiate; None for what costs less, decided at first use.

    Attributes:
        instantiate: as given, or as decided in this pass.
        transposed: a linear layer's weight is [inputs, outputs], not [outputs, inputs].
        used: whether this pass added a contribution.
    """

    def __init__(self, name: str, parameter: Tensor, *, instantiate: bool | None = None) -> None:
        self.name = name
        self.parameter = parameter
        self.instantiate = self._requested = instantiate
        self.transposed = False
        self.used = False
        self._buffer: GradientBuffer | None = None
        self._column = 0
        self._view: tuple[Tensor, int, Tensor] | None = None
        self._linear: list[Linear] = []
        self._lookups: list[Lookup] = []
        self._shared_lookups: list[Lookup] = []
        self._cancelling: Tensor | None = None

    def instantiate_always(self) -> None:
        """Instantiate in every pass, whatever it costs."""
        self.instantiate = self._requested = True

    def use_buffer(self, buffer: GradientBuffer, column: int) -> None:
        """Instantiate into ``buffer``, from ``column`` on."""
        self._buffer, self._column = buffer, column

    def begin_pass(self) -> None:
        """Forget the last pass, and what was cheaper for it: units may have more rows now."""
        self.used = False
        self.instantiate = self._requested
        self._linear.clear()
        self._lookups.clear()
        self._shared_lookups.clear()
        self._cancelling = None

    # contributions

    def add_linear(self, activations: Tensor, backprops: Tensor) -> None:
        """Add G_u = g_uᵀ a_u of a linear layer (a_uᵀ g_u if its weight is transposed).

        Args:
            activations: a [U, T, p].
            backprops: g [U, T, n].
        """
        if self.instantiate is None:
            rows, inputs, outputs = (*activations.shape[1:], backprops.shape[2])
            self.instantiate = not ghost_is_cheaper(rows, inputs, outputs, activations)
        if not self.instantiate:
            self._linear.append((activations, backprops))
            self.used = True
            return
        one, two = (activations.mT, backprops) if self.transposed else (backprops.mT, activations)
        held = self.instantiated(len(activations))
        if activations.dtype != held.dtype:
            self._accumulate(torch.bmm(one, two).to(held.dtype))
        elif self.used:
            held.baddbmm_(one, two)
        else:
            torch.bmm(one, two, out=held)
        self.used = True

    def add_lookup(self, ids: Tensor, backprops: Tensor) -> None:
        """Add G_u = Σ_k 1_{i_k} e_kᵀ of an embedding.

        Args:
            ids: i [U, K], rows of the table.
            backprops: e [U, K, n].
        """
        if self.instantiate is None:
            self.instantiate = self.parameter.shape[0] <= _SMALL_TABLE * ids.shape[1]
        if not self.instantiate:
            self._lookups.append((ids, backprops))
            self.used = True
            return
        held = self.instantiated(len(ids))
        if not self.used:
            held.zero_()
        ids = ids.unsqueeze(2).expand(backprops.shape)
        held.scatter_add_(1, ids, backprops.to(held.dtype))
        self.used = True

    def add_shared_lookup(self, ids: Tensor, backprops: Tensor) -> None:
        """Add the same where all units read the same rows, such as positions.

        If no id repeats, no two rows meet, and ‖G_u‖² is the sum of the squares of e_u.

        Args:
            ids: i [K].
            backprops: e [U, K, n].
        """
        alone = not (self.used and self._shared_lookups)  # two such lookups may meet in a row
        # On CUDA the host would have to wait for the count of different rows.
        possible = self.instantiate is not True and alone and not backprops.is_cuda
        if possible and len(torch.unique(ids)) == len(ids):
            self.instantiate = False
            self._shared_lookups.append((ids, backprops))
            self.used = True
        else:
            self.add_lookup(ids.expand(len(backprops), -1), backprops)

    def add_row_sum(self, backprops: Tensor) -> None:
        """Add G_u = Σ_t g_{u,t}, as of a bias.

        Args:
            backprops: g [U, T, n].
        """
        self._require_instantiated()
        held = self.instantiated(len(backprops)).view(len(backprops), -1)
        if self.used or backprops.dtype != held.dtype:
            self._accumulate(backprops.sum(1).view(len(backprops), *self.parameter.shape))
        else:
            torch.sum(backprops, 1, out=held)
        self.used = True

    def add_gradient(self, gradients: Tensor) -> None:
        """Add G_u [U, *shape] as it is."""
        self._require_instantiated()
        self._accumulate(gradients)
        self.used = True

    def _require_instantiated(self) -> None:
        """Refuse gradients beside ghosts of the same pass: their cross term would be left out."""
        if self.is_ghost:
            raise SelfTestError(
                f"H17: parameter '{self.name}' is shared by layers of two kinds, which "
                "book-keeping does not clip: use clipping = 'auto'"
            )
        self.instantiate = True

    def _accumulate(self, gradients: Tensor) -> None:
        held = self.instantiated(len(gradients))
        if self.used:
            held.add_(gradients)
        else:
            held.copy_(gradients)

    def instantiated(self, units: int) -> Tensor:
        """Return the memory of G_u [U, *shape]; the next pass overwrites it."""
        assert self._buffer is not None
        rows = self._buffer.reserve(units)
        # At small sizes making a view costs as much as filling it.
        if self._view is None or self._view[0] is not rows or self._view[1] != units:
            width = self.parameter.numel()
            part = rows[:units, self._column : self._column + width]
            self._view = rows, units, part.view(units, *self.parameter.shape)
        return self._view[2]

    # ghosts

    @property
    def is_ghost(self) -> bool:
        """Whether this pass left activations and backprops, and no gradients."""
        return self.used and not self.instantiate

    @property
    def is_instantiated(self) -> bool:
        """Whether this pass left G_u."""
        return self.used and bool(self.instantiate)

    def ghost_squared_norms(self) -> Tensor:
        """Return ‖G_u‖² [U] in double precision, of gradients that are not instantiated.

        Notes the units whose rows cancel (:mod:`.ghost_norms`) for :meth:`add_weighted_sum`.
        """
        if self._shared_lookups and (self._lookups or self._linear):
            shared = self._shared_lookups
            self._lookups += [(ids.expand(len(e), -1), e) for ids, e in shared]
            shared.clear()
        if not self._linear and not self._lookups:
            return self._lookup_squared_norms()
        yardsticks = [ghost_norms.uncorrelated(a, g) for a, g in self._linear]
        yardsticks += [ghost_norms.uncorrelated_lookups(e) for _, e in self._lookups]
        yardstick = torch.stack(yardsticks).sum(0)
        rows = sum(g.shape[1] for _, g in (*self._linear, *self._lookups))
        if rows == 1:
            return yardstick
        total = self._lookup_squared_norms()
        for i, one in enumerate(self._linear):
            total = total + ghost_norms.linear_product(one, one)
            for other in self._linear[:i]:
                total = total + 2 * ghost_norms.linear_product(one, other)
            for lookup in self._lookups:
                total = total + 2 * ghost_norms.lookup_linear_product(lookup, one)
        # Not "<": a norm that is not a number cancels, too.
        cancelling = ~(total >= ghost_norms.CANCELLATION * yardstick)
        if bool(cancelling.any()):
            self._cancelling = cancelling.nonzero().squeeze(1)
            # What is left may be less than the norm's own rounding: as long as that may be.
            share = ghost_norms.rounding_share(rows, sum(self.parameter.shape))
            total = torch.where(cancelling, total.clamp(min=0.0) + share * yardstick, total)
        return total

    def _lookup_squared_norms(self) -> Tensor:
        """Return the squared norms of all lookups together, without linear layers."""
        total = torch.zeros((), device=self.parameter.device, dtype=torch.float64)
        for _, e in self._shared_lookups:
            total = total + squared_row_norms(e.flatten(1))
        if self._lookups:
            ids, e = (torch.cat(parts, 1) for parts in zip(*self._lookups, strict=True))
            total = total + ghost_norms.lookup_squared_norm(ids, e)
        return total

    def add_weighted_sum(self, total: Tensor, factors: Tensor, finite: Tensor | None) -> None:
        """Add Σ_u c_u G_u to ``total`` without instantiating G_u: the book-keeping step.

        For a linear layer it is Σ_u (c_u g_u)ᵀ a_u, one product of all U · T rows (Bu et al. 2023).
        Factors and products are of the total's type: rounded to bfloat16 they would pass the bound.

        Args:
            total: of the parameter's shape.
            factors: c_u [U].
            finite: [U] units whose norm is finite; None for all.
        """
        other_factors = factors
        if self._cancelling is not None:
            self._add_cancelling(total, self._cancelling, factors, finite)
            other_factors = factors.index_fill(0, self._cancelling, 0.0)
        for a, g in self._linear:
            a = only_finite(a, finite).to(total.dtype)
            g = _weighted(g, other_factors, finite, total.dtype)
            one, two = (a, g) if self.transposed else (g, a)
            total.addmm_(one.flatten(0, 1).mT, two.flatten(0, 1))
        for ids, e in self._shared_lookups:
            weights, wide = factors.to(total.dtype), only_finite(e, finite).to(total.dtype)
            total.index_add_(0, ids, torch.tensordot(weights, wide, dims=1))
        for ids, e in self._lookups:
            e = _weighted(e, other_factors, finite, total.dtype)
            total.index_add_(0, ids.flatten(), e.flatten(0, 1))

    def add_weighted_sums(self, totals: Tensor, factors: Tensor, finite: Tensor | None) -> None:
        """As :meth:`add_weighted_sum`, for units of K clients: a total for each client.

        Args:
            totals: [K, *shape].
            factors: c_u [K · U], those of a client beside each other.
            finite: [K · U] units whose norm is finite; None for all.
        """
        clients = len(totals)
        other_factors = factors
        if self._cancelling is not None:
            self._add_cancelling_by_client(totals, self._cancelling, factors, finite)
            other_factors = factors.index_fill(0, self._cancelling, 0.0)
        for a, g in self._linear:
            a = only_finite(a, finite).to(totals.dtype)
            g = _weighted(g, other_factors, finite, totals.dtype)
            a, g = (x.reshape(clients, -1, x.shape[-1]) for x in (a, g))
            one, two = (a, g) if self.transposed else (g, a)
            totals.baddbmm_(one.mT, two)
        for ids, e in self._shared_lookups:
            weights = factors.to(totals.dtype).view(clients, 1, -1)
            wide = only_finite(e, finite).to(totals.dtype)
            sums = torch.bmm(weights, wide.reshape(clients, -1, wide[0].numel()))
            totals.index_add_(1, ids, sums.view(clients, *wide.shape[1:]))
        for ids, e in self._lookups:
            e = _weighted(e, other_factors, finite, totals.dtype)
            client = torch.arange(clients, device=ids.device).view(-1, 1)
            rows = ids.reshape(clients, -1) + client * totals.shape[1]
            totals.flatten(0, 1).index_add_(0, rows.flatten(), e.flatten(0, 1))

    def _add_cancelling_by_client(
        self, totals: Tensor, units: Tensor, factors: Tensor, finite: Tensor | None
    ) -> None:
        """As :meth:`_add_cancelling`, to the total of each unit's client."""
        client = units // (len(factors) // len(totals))
        for k in sorted(set(client.tolist())):
            self._add_cancelling(totals[k], units[client == k], factors, finite)

    def _add_cancelling(
        self, total: Tensor, units: Tensor, factors: Tensor, finite: Tensor | None
    ) -> None:
        """Add c_u G_u of ``units``: all terms in double precision, and rounded once."""
        exact = torch.zeros(total.shape, device=total.device, dtype=torch.float64)
        here = None if finite is None else finite[units]
        for a, g in self._linear:
            a = only_finite(a[units].double(), here)
            g = _weighted(g[units], factors[units], here, torch.float64)
            one, two = (a, g) if self.transposed else (g, a)
            exact.addmm_(one.flatten(0, 1).mT, two.flatten(0, 1))
        for ids, e in self._lookups:
            e = _weighted(e[units], factors[units], here, torch.float64)
            exact.index_add_(0, ids[units].flatten(), e.flatten(0, 1))
        total.add_(exact.to(total.dtype))


@dataclass
class GradientBuffer:
    """Kept memory [U, width] for the instantiated gradients of some parameters, a row a unit.

    Attributes:
        parameters: that share it, side by side.
        rows: the memory.
    """

    parameters: list[ParameterGradients]
    rows: Tensor = field(default_factory=lambda: torch.empty(0, 0))

    @property
    def width(self) -> int:
        """Numbers in a row."""
        return sum(one.parameter.numel() for one in self.parameters)

    def reserve(self, units: int) -> Tensor:
        """Return the memory with room for ``units`` rows; new memory loses what was there."""
        like = self.parameters[0].parameter
        dtype = accumulation_dtype(like)
        fits = self.rows.device == like.device and self.rows.dtype == dtype
        if len(self.rows) < units or not fits:
            self.rows = torch.empty(units, self.width, device=like.device, dtype=dtype)
        return self.rows

    def split(self, total: Tensor) -> list[Tensor]:
        """Return a flat row as tensors of the parameters' shapes."""
        sizes = [one.parameter.numel() for one in self.parameters]
        return [
            part.view(one.parameter.shape)
            for one, part in zip(self.parameters, torch.split(total, sizes), strict=True)
        ]


def only_finite(x: Tensor, finite: Tensor | None) -> Tensor:
    """Return ``x`` [U, ...] with zeros for units that are not finite: NaN times 0 is NaN.

    Args:
        x: numbers of each unit.
        finite: [U] units whose norm is finite; None for all.
    """
    return x if finite is None else torch.where(finite.view(-1, *[1] * (x.dim() - 1)), x, 0.0)


def _weighted(
    backprops: Tensor, factors: Tensor, finite: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """Return c_u g_u, [U, T, n], in ``dtype``."""
    return only_finite(backprops, finite).to(dtype) * factors.to(dtype)[:, None, None]
