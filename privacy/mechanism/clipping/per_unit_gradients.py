"""What one pass over a micro-batch leaves: each unit's gradient, or what its norm is made of.

::

    layers ── Page.linear / lookup / vector ──► Book ── squares ──► factors ── add_to
              (during the backward pass)         │
                                                 ├── instantiated: a kept matrix [U, n]
                                                 └── ghost: the pass's own tensors

A page is of one parameter, and takes any number of contributions: weights may be shared. All
that comes is of shape [U, L, width]: the L rows of a unit are those of all its records.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from privet.common.errors import SelfTestFailed
from privet.privacy.mechanism.clipping.cost import ghost_is_cheaper
from privet.privacy.mechanism.clipping.methods import squares_of, wide_type

_SMALL = 1 << 11
"""Parameters of at most so many numbers share one matrix."""
_CANCELLED = 1 / 16
"""A square below this share of what its rows have alone is made of numbers that cancel."""
_WIDENED = 1 << 22
"""Numbers that are widened at once for products of rows."""
_FEW = 4
"""A table of at most so many times as many rows as are looked up is instantiated."""


class ParameterGradients:
    """One parameter's page.

    Args:
        name: of the parameter.
        parameter: itself.
        dense: whether to instantiate; None for what costs less, at first use.
    """

    def __init__(self, name: str, parameter: Tensor, *, dense: bool | None = None) -> None:
        self.name = name
        self.parameter = parameter
        self.dense = self._wanted = dense
        self.transposed = False
        """Its shape is [inputs, outputs], not [outputs, inputs]."""
        self.used = False
        self._matrix: GradientBuffer | None = None
        self._place = 0
        self._view: tuple[Tensor, int, Tensor] | None = None
        self._linear: list[tuple[Tensor, Tensor]] = []
        self._lookup: list[tuple[Tensor, Tensor]] = []
        self._shared: list[tuple[Tensor, Tensor]] = []
        self._cancelling: Tensor | None = None

    def lies_in(self, matrix: GradientBuffer, place: int) -> None:
        """Instantiate into ``matrix``, from column ``place`` on."""
        self._matrix, self._place = matrix, place

    def begin(self) -> None:
        """Forget the last pass, and what was cheaper for it: units may have more rows now."""
        self.used = False
        self.dense = self._wanted
        self._linear.clear()
        self._lookup.clear()
        self._shared.clear()
        self._cancelling = None

    def linear(self, x: Tensor, g: Tensor) -> None:
        """Take x [U, L, p] and g [U, L, n] of a map whose gradient is Σ g xᵀ."""
        if self.dense is None:
            self.dense = not ghost_is_cheaper(x.shape[1], x.shape[2], g.shape[2], x)
        if not self.dense:
            self._linear.append((x, g))
            self.used = True
            return
        one, two = (x.mT, g) if self.transposed else (g.mT, x)
        held = self._held(len(x))
        if x.dtype != held.dtype:
            self._put(torch.bmm(one, two).to(held.dtype))
        elif self.used:
            held.baddbmm_(one, two)
        else:
            torch.bmm(one, two, out=held)
        self.used = True

    def lookup(self, ids: Tensor, g: Tensor) -> None:
        """Take ids [U, L] and g [U, L, n] of rows that were looked up."""
        rows = self.parameter.shape[0]
        if self.dense is None:
            self.dense = rows <= _FEW * ids.shape[1]
        if not self.dense:
            self._lookup.append((ids, g))
            self.used = True
            return
        held = self._held(len(ids))
        if not self.used:
            held.zero_()
        ids = ids.unsqueeze(2).expand(g.shape)
        held.scatter_add_(1, ids, g.to(held.dtype))
        self.used = True

    def shared_lookup(self, ids: Tensor, g: Tensor) -> None:
        """Take ids [L] and g [U, L, n] of rows that all units looked up, such as positions."""
        alone = not (self.used and self._shared)  # two such lookups may meet in a row
        # On CUDA the count of different rows would have to be waited for.
        here = self.dense is not True and alone and not g.is_cuda
        if here and len(torch.unique(ids)) == len(ids):
            self.dense = False
            self._shared.append((ids, g))
            self.used = True
        else:
            self.lookup(ids.expand(len(g), -1), g)

    def rows(self, g: Tensor) -> None:
        """Take [U, L, n] of which the sum over the L rows is each unit's gradient."""
        self._instantiate()
        held = self._held(len(g)).view(len(g), -1)
        if self.used or g.dtype != held.dtype:
            self._put(g.sum(1).view(len(g), *self.parameter.shape))
        else:
            torch.sum(g, 1, out=held)
        self.used = True

    def vector(self, g: Tensor) -> None:
        """Take each unit's gradient [U, *shape] as it is."""
        self._instantiate()
        self._put(g)
        self.used = True

    def _instantiate(self) -> None:
        """Take gradients as they are, which do not go together with ghosts of the same pass."""
        if self.is_ghost:
            raise SelfTestFailed(
                f"parameter '{self.name}' is shared by layers of two kinds: use clipping = "
                "'functorch' (H17)"
            )
        self.dense = True

    def _put(self, g: Tensor) -> None:
        held = self._held(len(g))
        if self.used:
            held.add_(g)
        else:
            held.copy_(g)

    def _held(self, units: int) -> Tensor:
        assert self._matrix is not None
        kept = self._matrix.reserve(units)
        # At small sizes making a view costs as much as filling it.
        if self._view is None or self._view[0] is not kept or self._view[1] != units:
            width = self.parameter.numel()
            rows = kept[:units, self._place : self._place + width]
            self._view = kept, units, rows.view(units, *self.parameter.shape)
        return self._view[2]

    def gradients(self, units: int) -> Tensor:
        """Return the instantiated gradients [U, *shape]; they are overwritten by the next pass."""
        return self._held(units)

    # ghost

    @property
    def is_ghost(self) -> bool:
        """Whether this pass left no gradients but what they are made of."""
        return self.used and not self.dense

    def squares(self) -> Tensor:
        """Return the squared norms [U] of gradients that are not there, in double precision."""
        if self._shared and (self._lookup or self._linear):
            self._lookup += [(ids.expand(len(g), -1), g) for ids, g in self._shared]
            self._shared.clear()
        if not self._linear:
            return self._lookup_terms().clamp(min=0.0)
        # What rounding is measured by: the squares of all products one by one.
        alone = torch.stack([_alone(x, g) for x, g in self._linear]).sum(0)
        first = self._linear[0][0]
        if len(self._linear) == 1 and not self._lookup and first.shape[1] == 1:
            return alone  # one row a unit
        total = self._lookup_terms()
        for i, one in enumerate(self._linear):
            total = total + _linear_linear(one, one)
            for other in self._linear[:i]:
                total = total + 2 * _linear_linear(one, other)
            for looked in self._lookup:
                total = total + 2 * _lookup_linear(looked, one)
        cancelling = ~(total >= _CANCELLED * alone)
        if bool(cancelling.any()):
            self._cancelling = cancelling.nonzero().squeeze(1)
        return total.clamp(min=0.0)

    def _lookup_terms(self) -> Tensor:
        """Return the squared norms of what was looked up, by itself."""
        total = torch.zeros((), device=self.parameter.device, dtype=torch.float64)
        for _, g in self._shared:
            total = total + squares_of(g.flatten(1))
        if self._lookup:
            ids, g = (torch.cat(parts, 1) for parts in zip(*self._lookup, strict=True))
            total = total + (_rows_by_gram if g.is_cuda else _rows_by_sorting)(ids, g)
        return total

    def add_to(self, total: Tensor, factors: Tensor, keep: Tensor | None) -> None:
        """Add Σ factor · gradient to ``total``; ``keep`` [U] marks units that count."""
        wide = factors
        if self._cancelling is not None:
            # What cancels is added in double precision: rounding would be larger than the bound.
            self._add_exactly(total, self._cancelling, factors, keep)
            factors = factors.index_fill(0, self._cancelling, 0.0)
        for x, g in self._linear:
            # In the total's type: rounding the factor or the product would pass the bound.
            x, g = _kept(x, keep).to(total.dtype), _weighed(g, factors, keep, total.dtype)
            one, two = (x, g) if self.transposed else (g, x)
            total.addmm_(one.flatten(0, 1).mT, two.flatten(0, 1))
        factors = wide
        for ids, g in self._shared:
            weight = factors.to(total.dtype)
            added = torch.tensordot(weight, _kept(g, keep).to(total.dtype), dims=1)
            total.index_add_(0, ids, added)
        for ids, g in self._lookup:
            g = _weighed(g, factors, keep, total.dtype)
            total.index_add_(0, ids.flatten(), g.flatten(0, 1))

    def _add_exactly(
        self, total: Tensor, chosen: Tensor, factors: Tensor, keep: Tensor | None
    ) -> None:
        for x, g in self._linear:
            x, g = x[chosen].double(), g[chosen].double() * factors[chosen].double()[:, None, None]
            if keep is not None:
                x, g = _kept(x, keep[chosen]), _kept(g, keep[chosen])
            one, two = (x, g) if self.transposed else (g, x)
            total.add_((one.flatten(0, 1).mT @ two.flatten(0, 1)).to(total.dtype))


@dataclass
class GradientBuffer:
    """Kept memory: the gradients of some parameters, a row a unit."""

    pages: list[ParameterGradients]
    rows: Tensor = field(default_factory=lambda: torch.empty(0, 0))

    @property
    def width(self) -> int:
        """Numbers a unit."""
        return sum(page.parameter.numel() for page in self.pages)

    def reserve(self, units: int) -> Tensor:
        """Have room for ``units`` rows; what lies there is lost where there was not."""
        like = self.pages[0].parameter
        kind = wide_type(like)
        kept = self.rows.device == like.device and self.rows.dtype == kind
        if len(self.rows) < units or not kept:
            self.rows = torch.empty(units, self.width, device=like.device, dtype=kind)
        return self.rows


class PerUnitGradients:
    """The pages of all trained parameters, and how a micro-batch's records belong to units.

    Args:
        pages: in the order of the parameters.
    """

    def __init__(self, pages: Sequence[ParameterGradients]) -> None:
        self.pages = list(pages)
        small = [page for page in pages if page.parameter.numel() <= _SMALL]
        large = [page for page in pages if page.parameter.numel() > _SMALL]
        groups: dict[tuple[torch.dtype, torch.device], list[ParameterGradients]] = {}
        for page in small:
            key = page.parameter.dtype, page.parameter.device
            groups.setdefault(key, []).append(page)
        self.matrices = [GradientBuffer(group) for group in groups.values()]
        self.matrices += [GradientBuffer([page]) for page in large]
        for matrix in self.matrices:
            place = 0
            for page in matrix.pages:
                page.lies_in(matrix, place)
                place += page.parameter.numel()
        self.records = self.units = 0
        self._most = 1
        self._slots: Tensor | None = None
        self.listens = False
        """Whether gradients are of the pass: a loss may take gradients of its own."""
        self.coarse = False
        """Whether a layer computed in less than single precision."""

    def begin(self, records: int, counts: Tensor | None) -> None:
        """Begin a pass over ``records`` records.

        Args:
            records: B.
            counts: [U] records of each unit, which follow each other; None for one each.
        """
        self.records, self._slots, self._most = records, None, 1
        self.listens = False
        self.units = records if counts is None else len(counts)
        if counts is not None and records:
            self._most = int(counts.max())
            if bool((counts != self._most).any()):
                starts = torch.repeat_interleave(counts.cumsum(0) - counts, counts)
                unit = torch.repeat_interleave(torch.arange(len(counts)), counts)
                self._slots = unit * self._most + torch.arange(records) - starts
        for page in self.pages:
            page.begin()

    def by_unit(self, x: Tensor) -> Tensor:
        """Return [B, L, n] as [U, most · L, n], with zeros where a unit has fewer records."""
        if self._most == 1:
            return x
        if self._slots is not None:
            room = x.new_zeros(self.units * self._most, *x.shape[1:])
            x = room.index_copy_(0, self._slots.to(x.device), x)
        return x.reshape(self.units, -1, *x.shape[2:])

    def squares(self) -> Tensor:
        """Return the squared norms [U] over all parameters, in double precision.

        Raises:
            SelfTestFailed: if a parameter's page is empty, so that it would escape clipping (H17).
        """
        for page in self.pages:
            if not page.used or page.parameter.grad is not None:
                why = "no per-unit gradient" if not page.used else "a gradient outside its layer"
                raise SelfTestFailed(
                    f"parameter '{page.name}' has {why} in a batch: freeze it if no record uses "
                    "it, use its layer for every record, or use clipping = 'functorch' (H17)"
                )
        parts = [page.squares() for page in self.pages if page.is_ghost]
        parts += [squares_of(rows) for _, rows in self._instantiated()]
        return torch.stack(parts).sum(0)

    def add_to(self, totals: list[Tensor], factors: Tensor, keep: Tensor | None) -> None:
        """Add Σ factor · gradient of the pass to ``totals``, one of a matrix or a ghost's page.

        Args:
            totals: of :meth:`zeros`.
            factors: [U].
            keep: [U] units that count; None for all.
        """
        found = {id(matrix): total for matrix, total in zip(self.matrices, totals, strict=True)}
        for matrix, rows in self._instantiated():
            if keep is not None:
                rows = torch.where(keep[:, None], rows, 0.0)
            found[id(matrix)].addmv_(rows.t(), factors.to(rows.dtype))
        for matrix in self.matrices:
            total = found[id(matrix)]
            for page, part in zip(matrix.pages, _parts(matrix, total), strict=True):
                if page.is_ghost:
                    page.add_to(part, factors, keep)

    def zeros(self) -> list[Tensor]:
        """Return zeros to add to, one flat tensor for each matrix."""
        first = [matrix.pages[0].parameter for matrix in self.matrices]
        return [
            like.new_zeros(matrix.width, dtype=wide_type(like))
            for matrix, like in zip(self.matrices, first, strict=True)
        ]

    def of_parameters(self, totals: list[Tensor]) -> list[Tensor]:
        """Return totals as tensors of the parameters' shapes, in their order."""
        found: dict[int, Tensor] = {}
        for matrix, total in zip(self.matrices, totals, strict=True):
            for page, part in zip(matrix.pages, _parts(matrix, total), strict=True):
                found[id(page)] = part
        return [found[id(page)] for page in self.pages]

    def _instantiated(self) -> list[tuple[GradientBuffer, Tensor]]:
        """Return each matrix that holds gradients; a ghost among small parameters is zero there."""
        found = []
        for matrix in self.matrices:
            if all(page.is_ghost for page in matrix.pages):
                continue
            for page in matrix.pages:
                if page.is_ghost:
                    page.gradients(self.units).zero_()
            found.append((matrix, matrix.rows[: self.units]))
        return found


def _parts(matrix: GradientBuffer, total: Tensor) -> list[Tensor]:
    sizes = [page.parameter.numel() for page in matrix.pages]
    return [
        part.view(page.parameter.shape)
        for page, part in zip(matrix.pages, torch.split(total, sizes), strict=True)
    ]


def _kept(x: Tensor, keep: Tensor | None) -> Tensor:
    return x if keep is None else torch.where(keep.view(-1, *[1] * (x.dim() - 1)), x, 0.0)


def _weighed(g: Tensor, factors: Tensor, keep: Tensor | None, dtype: torch.dtype) -> Tensor:
    return _kept(g, keep).to(dtype) * factors.to(dtype)[:, None, None]


def _gram(x: Tensor, y: Tensor) -> Tensor:
    """Return all products of rows [U, L, M] and [U, K, M] in double precision, [U, L, K]."""
    step = max(1, _WIDENED // max(1, len(x) * (x.shape[1] + y.shape[1])))
    if x.shape[2] <= step:
        first = x.double()
        return torch.bmm(first, (first if y is x else y.double()).mT)
    total = torch.zeros(*x.shape[:2], y.shape[1], device=x.device, dtype=torch.float64)
    for start in range(0, x.shape[2], step):
        one = x[..., start : start + step].double()
        two = one if y is x else y[..., start : start + step].double()
        total.baddbmm_(one, two.mT)
    return total


def _alone(x: Tensor, g: Tensor) -> Tensor:
    """Return Σ ‖x‖² ‖g‖² over rows: the squared norm if no two rows had anything in common."""
    read, written = (squares_of(rows.flatten(0, 1)).view(rows.shape[:2]) for rows in (x, g))
    return (read * written).sum(1)


def _linear_linear(one: tuple[Tensor, Tensor], two: tuple[Tensor, Tensor]) -> Tensor:
    """⟨Σ g xᵀ, Σ h yᵀ⟩ = Σ (x·y)(g·h) over all pairs of rows (Goodfellow 2015; Li et al. 2022)."""
    (x, g), (y, h) = one, two
    return (_gram(x, y) * _gram(g, h)).sum((1, 2))


def _rows_by_gram(ids: Tensor, g: Tensor) -> Tensor:
    """Squared norms of what was looked up: rows of a table meet where they are the same row."""
    same = ids.unsqueeze(2) == ids.unsqueeze(1)
    return torch.where(same, _gram(g, g), 0.0).sum((1, 2))


def _rows_by_sorting(ids: Tensor, g: Tensor) -> Tensor:
    """The same by adding equal rows first: less arithmetic, and the host waits for a number."""
    units, most = len(ids), int(ids.max()) + 1 if ids.numel() else 1
    own = ids + most * torch.arange(units, device=ids.device).unsqueeze(1)
    found, place = torch.unique(own, return_inverse=True)
    added = torch.zeros(len(found), g.shape[2], device=g.device, dtype=torch.float64)
    added.index_add_(0, place.flatten(), g.flatten(0, 1).double())
    total = torch.zeros(units, device=g.device, dtype=torch.float64)
    return total.index_add_(0, found // most, added.square_().sum(1))


def _lookup_linear(looked: tuple[Tensor, Tensor], linear: tuple[Tensor, Tensor]) -> Tensor:
    """The cross term of a table that is also a linear map's weight: Σ g[t, id] (x[t] · e)."""
    (ids, e), (x, g) = looked, linear
    chosen = torch.gather(g, 2, ids.unsqueeze(1).expand(-1, g.shape[1], -1))
    return (chosen.double() * _gram(x, e)).sum((1, 2))
