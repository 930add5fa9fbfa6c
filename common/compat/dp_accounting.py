"""Self-composition by dp-accounting's own steps, keeping what no count changes.

Before a distribution is composed n times, dp-accounting bounds where its mass will lie by
Chernoff's inequality, from the logarithms of the moment generating function at 40 orders. They
belong to one run and not to n, and take nine tenths of the time where n grows round after round.
Here they are kept. All else is dp-accounting 0.6's, to the last bit; a contract test compares the
two.

This module alone touches private parts of dp-accounting.
"""

from __future__ import annotations

import math
from functools import cached_property
from typing import Any

import numpy as np
from dp_accounting.pld import pld_pmf
from dp_accounting.pld import privacy_loss_distribution as pld
from scipy import fft, special

_TAIL = 1e-15
"""Mass that a composition drops and counts as an infinite loss: dp-accounting's default."""
_MAX_SPARSE_COUNT = 64
"""Beyond it no distribution of two points or more stays sparse."""


class SelfComposition:
    """The distribution of one mechanism, composed with itself however often.

    Args:
        once: of one run.
    """

    def __init__(self, once: pld.PrivacyLossDistribution) -> None:
        self._remove = _Part(once._pmf_remove)
        self._add = None if once._symmetric else _Part(once._pmf_add)

    def times(self, count: int) -> pld.PrivacyLossDistribution:
        """Return ``once.self_compose(count)``.

        Args:
            count: how often the mechanism runs, 1 or more.
        """
        if self._add is None:
            return pld.PrivacyLossDistribution(self._remove.times(count))
        return pld.PrivacyLossDistribution(self._remove.times(count), self._add.times(count))


class _Part:
    """One of the two directions of a distribution."""

    def __init__(self, pmf: Any) -> None:
        self._pmf = pmf

    def times(self, count: int) -> Any:
        if self._stays_sparse(count):
            return self._pmf.self_compose(count)
        dense = self._dense
        low, high = self._range(count)
        length = high - low + 1
        whole = fft.next_fast_len(max(length, dense.size))
        transformed = fft.fft(dense._probs, whole) ** count
        probs = np.roll(np.real(fft.ifft(transformed)), -low)[:length]
        infinite = _TAIL - math.expm1(count * math.log1p(-dense._infinity_mass))
        return pld_pmf.DensePLDPmf(
            dense._discretization,
            dense._lower_loss * count + low,
            np.array(probs),
            infinite,
            dense._pessimistic_estimate,
        )

    def _stays_sparse(self, count: int) -> bool:
        size = self._pmf.size
        if isinstance(self._pmf, pld_pmf.DensePLDPmf):
            return False
        if count == 1 or size < 2:
            return True
        most: int = pld_pmf._MAX_PMF_SPARSE_SIZE
        return count <= _MAX_SPARSE_COUNT and size**count <= most

    @cached_property
    def _dense(self) -> Any:
        return self._pmf.to_dense_pmf()

    @cached_property
    def _log_moments(self) -> list[tuple[float, float]]:
        """The orders, and the logarithm of the moment generating function at each."""
        probs = self._dense._probs
        orders = np.concatenate((np.arange(-20, 0), np.arange(1, 21))) / len(probs)
        points = np.arange(len(probs))
        return [(order, special.logsumexp(points * order, b=probs)) for order in orders]

    def _range(self, count: int) -> tuple[int, int]:
        """Return where all but the tail of the mass of ``count`` runs lies (Chernoff)."""
        low, high = 0, (self._dense.size - 1) * count
        for order, log_moment in self._log_moments:
            bound = (count * log_moment + math.log(2 / _TAIL)) / order
            if not math.isfinite(bound):
                continue
            if order > 0:
                high = min(high, math.ceil(bound))
            else:
                low = max(low, math.floor(bound))
        return low, high
