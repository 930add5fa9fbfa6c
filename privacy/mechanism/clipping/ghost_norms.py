"""Ghost norms: squared norms and inner products of per-unit gradients that are never made.

Notation, for one unit u: a linear layer gives activations a [T, p] and backprops g [T, n], and has
the gradient gᵀ a [n, p]; an embedding gives token ids i [K] and backprops e [K, n], and has the
gradient Σ_k 1_{i_k} e_kᵀ [V, n], where 1_i is the i-th of V unit vectors. Then

    ‖gᵀ a‖²            = Σ_{s,t} (a_s · a_t) (g_s · g_t)              two uses of one layer, too
    ‖Σ_k 1_{i_k} e_kᵀ‖² = Σ_{k,l} [i_k = i_l] (e_k · e_l)
    ⟨gᵀ a, Σ_k 1_{i_k} e_kᵀ⟩ = Σ_{t,k} g_t[i_k] (a_t · e_k)           tied weights

The norm of a sum has cross terms: a parameter that is used several times in a pass has ‖A + B‖² =
‖A‖² + 2 ⟨A, B⟩ + ‖B‖², not the sum of its squares.

**Why cancellation matters, and what is done.** Where a gradient is instantiated, its norm is that
of the very numbers that are added, however they were rounded. With a ghost norm the norm and the
sum are two computations of the same gᵀ a, and both must be near the true one, or c_u ‖gᵀ a‖ is not
the length of what is added. Rounding is of the size of the terms, not of the result. With the
yardstick

    m² = Σ_t ‖a_t‖² ‖g_t‖²      (:func:`uncorrelated`: the diagonal of the double sum)

a float32 product of T rows is wrong by up to T u Σ_t ‖a_t‖ ‖g_t‖ ≤ T u √T m, u = 2⁻²⁴. Two records
of one person, nearly equal and with opposite labels, leave ‖gᵀ a‖ far below m: for features of 1e5
a person contributed 62 times the bound. Therefore

- every Gram matrix is a product of doubles, which divides the error of the norm by 2²⁹;
- where ‖gᵀ a‖² < m² / 16 (:data:`CANCELLATION`) the weighted sum of that unit is made of doubles as
  well, and its squared norm is taken to be larger by what rounding may have hidden of it
  (:func:`rounding_share`). The same holds for the rows of an embedding that are read several times,
  and for both together. Elsewhere m ≤ 4 ‖gᵀ a‖, so that the sum is wrong by 4 T u √T of the clipped
  gradient at most, the rounding of any other product of T rows.
"""

from __future__ import annotations

import torch
from torch import Tensor

from privet.privacy.mechanism.clipping.methods import squared_row_norms

CANCELLATION = 1 / 16
"""A squared norm below this share of :func:`uncorrelated` comes of terms that cancel."""
_CONVERTED = 1 << 22
"""Numbers that are converted to double at once for a Gram matrix."""

Linear = tuple[Tensor, Tensor]
"""Activations [U, T, p] and backprops [U, T, n] of one use of a linear layer."""
Lookup = tuple[Tensor, Tensor]
"""Token ids [U, K] and backprops [U, K, n] of one use of an embedding."""


def gram(x: Tensor, y: Tensor) -> Tensor:
    """Return x yᵀ for each unit in double precision, [U, T, K].

    Args:
        x: rows [U, T, m].
        y: rows [U, K, m]; ``x`` itself for its own Gram matrix.
    """
    step = max(1, _CONVERTED // max(1, len(x) * (x.shape[1] + y.shape[1])))
    if x.shape[2] <= step:
        first = x.double()
        return torch.bmm(first, (first if y is x else y.double()).mT)
    total = torch.zeros(*x.shape[:2], y.shape[1], device=x.device, dtype=torch.float64)
    for start in range(0, x.shape[2], step):
        one = x[..., start : start + step].double()
        two = one if y is x else y[..., start : start + step].double()
        total.baddbmm_(one, two.mT)
    return total


def uncorrelated(activations: Tensor, backprops: Tensor) -> Tensor:
    """Return m² = Σ_t ‖a_t‖² ‖g_t‖², [U]: ‖gᵀ a‖² if no two rows had anything in common.

    For T = 1 it is the squared norm itself (Goodfellow 2015).

    Args:
        activations: a [U, T, p].
        backprops: g [U, T, n].
    """
    of_rows = (
        squared_row_norms(rows.flatten(0, 1)).view(rows.shape[:2])
        for rows in (activations, backprops)
    )
    read, written = of_rows
    return (read * written).sum(1)


def uncorrelated_lookups(backprops: Tensor) -> Tensor:
    """Return m² = Σ_k ‖e_k‖² of an embedding, [U].

    Args:
        backprops: e [U, K, n].
    """
    of_rows = squared_row_norms(backprops.flatten(0, 1)).view(backprops.shape[:2])
    return of_rows.sum(1)


def rounding_share(rows: int, width: int) -> float:
    """Return how far a ghost squared norm may be from the true one, as a share of m².

    A Gram entry of doubles is a sum of ``width`` products at most, wrong by width · 2⁻⁵³ of the
    lengths of its two rows; the sum of T² entries adds T² · 2⁻⁵³ of (Σ_t ‖a_t‖ ‖g_t‖)² ≤ T m²
    (Higham 2002, 3.1; terms of second order are far below that).

    Args:
        rows: T, of all uses together.
        width: p + n at most.
    """
    return rows * (width + rows * rows) * 2.0**-53


def linear_product(one: Linear, two: Linear) -> Tensor:
    """Return ⟨gᵀ a, hᵀ b⟩ = Σ_{s,t} (a_s · b_t) (g_s · h_t), [U]; a squared norm for one use.

    Args:
        one: a [U, T, p] and g [U, T, n].
        two: b [U, K, p] and h [U, K, n], another use of the same layer, or ``one`` itself.
    """
    (a, g), (b, h) = one, two
    return (gram(a, b) * gram(g, h)).sum((1, 2))


def lookup_linear_product(lookup: Lookup, linear: Linear) -> Tensor:
    """Return ⟨gᵀ a, Σ_k 1_{i_k} e_kᵀ⟩ = Σ_{t,k} g_t[i_k] (a_t · e_k), [U], of tied weights.

    Args:
        lookup: ids i [U, K] and backprops e [U, K, p] of the embedding.
        linear: a [U, T, p] and g [U, T, V] of the output layer.
    """
    (ids, e), (a, g) = lookup, linear
    chosen = torch.gather(g, 2, ids.unsqueeze(1).expand(-1, g.shape[1], -1))
    return (chosen.double() * gram(a, e)).sum((1, 2))


def lookup_squared_norm(ids: Tensor, backprops: Tensor) -> Tensor:
    """Return Σ_{k,l} [i_k = i_l] (e_k · e_l), [U], the squared norm of an embedding's gradient.

    Args:
        ids: i [U, K].
        backprops: e [U, K, n].
    """
    return (_by_gram if backprops.is_cuda else _by_adding)(ids, backprops)


def _by_gram(ids: Tensor, backprops: Tensor) -> Tensor:
    same = ids.unsqueeze(2) == ids.unsqueeze(1)
    return torch.where(same, gram(backprops, backprops), 0.0).sum((1, 2))


def _by_adding(ids: Tensor, backprops: Tensor) -> Tensor:
    """The same by adding rows of equal ids first: less arithmetic, but the host has to wait."""
    units, most = len(ids), int(ids.max()) + 1 if ids.numel() else 1
    own = ids + most * torch.arange(units, device=ids.device).unsqueeze(1)
    found, place = torch.unique(own, return_inverse=True)
    device, width = backprops.device, backprops.shape[2]
    added = torch.zeros(len(found), width, device=device, dtype=torch.float64)
    added.index_add_(0, place.flatten(), backprops.flatten(0, 1).double())
    total = torch.zeros(units, device=device, dtype=torch.float64)
    return total.index_add_(0, found // most, added.square_().sum(1))
