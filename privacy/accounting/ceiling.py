"""The Rényi ceiling of ε: a rigorous upper bound in closed form, whatever the history.

Orders are integers, so each divergence is a finite sum: Mironov, Talwar and Zhang 2019,
section 3.3 (Poisson-sampled Gaussian), Canonne, Kamath and Steinke 2020, Proposition 12
(conversion). What has no formula of its own is bounded from above, as in
privacy/accounting/renyi_filter.py.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from scipy.special import gammaln, logsumexp

from privet.privacy.accounting.events import (
    Counts,
    DiscreteGaussian,
    Event,
    Gaussian,
    PoissonSampled,
)
from privet.privacy.accounting.units import Relation

ORDERS = (*range(2, 65), 72, 80, 96, 112, 128, 160, 192, 256, 384, 512)

Floats = npt.NDArray[np.float64]
_ALPHA: Floats = np.array(ORDERS, dtype=np.float64)
_K: Floats = np.arange(2, ORDERS[-1] + 1, dtype=np.float64)
with np.errstate(invalid="ignore"):
    _LOG_CHOOSE: Floats = np.where(
        _K[None] <= _ALPHA[:, None],
        gammaln(_ALPHA[:, None] + 1)
        - gammaln(_K[None] + 1)
        - gammaln(np.maximum(_ALPHA[:, None] - _K[None], 0) + 1),
        -np.inf,
    )


def epsilon(counts: Counts, delta: float, relation: Relation) -> float:
    """Return an upper bound of ε of all charges; infinity if there is none.

    Args:
        counts: the events, each with its number.
        delta: δ at which ε is bounded.
        relation: between neighbouring data sets.
    """
    if not counts:
        return 0.0
    bounds = _total(counts, relation) + np.log((_ALPHA - 1) / _ALPHA)
    bounds -= (math.log(delta) + np.log(_ALPHA)) / (_ALPHA - 1)
    return max(0.0, float(bounds.min()))


def delta(counts: Counts, epsilon: float, relation: Relation) -> float:
    """Return an upper bound of δ of all charges, at most 1.

    Args:
        counts: the events, each with its number.
        epsilon: ε at which δ is bounded.
        relation: between neighbouring data sets.
    """
    if not counts:
        return 0.0
    logs = (_ALPHA - 1) * (_total(counts, relation) - epsilon) - np.log(_ALPHA - 1)
    logs += _ALPHA * np.log1p(-1 / _ALPHA)
    return math.exp(min(0.0, float(logs.min())))


def order_two(event: Event) -> float:
    """Return the Rényi divergence of order 2 of one run under add or remove, or its bound."""
    return float(_rho(event, Relation.ADD_OR_REMOVE_ONE)[0])


def _total(counts: Counts, relation: Relation) -> Floats:
    total = np.zeros_like(_ALPHA)
    for event, count in counts:
        total = total + count * _rho(event, relation)
    return total


@lru_cache(maxsize=4096)
def _rho(event: Event, relation: Relation) -> Floats:
    """Return the Rényi divergence of one run at each order, or an upper bound."""
    add = relation is Relation.ADD_OR_REMOVE_ONE
    match event:
        # The discrete one diverges no more (Canonne, Kamath and Steinke 2020, Theorem 14).
        case Gaussian(std, sensitivity) | DiscreteGaussian(std, sensitivity):
            return _ALPHA * (relation.moves * sensitivity / std) ** 2 / 2
        case PoissonSampled(rate, Gaussian() as inner) if add and rate < 1:
            return _sampled(rate, inner.sensitivity / inner.standard_deviation)
        case PoissonSampled(_, Gaussian() as inner):
            return _rho(inner, relation)
    return np.full_like(_ALPHA, np.inf)


def _sampled(rate: float, mu: float) -> Floats:
    """Return ρ(α) = ln(1 + Σ_{k≥2} C(α,k) (1−q)^{α−k} q^k (e^{(k²−k)μ²/2} − 1)) / (α−1)."""
    with np.errstate(over="ignore", divide="ignore"):
        growth = (_K * _K - _K) * mu * mu / 2
        log_growth = np.where(
            growth < 30,
            np.log(np.expm1(np.minimum(growth, 30))),
            growth + np.log1p(-np.exp(-growth)),
        )
    if not np.isfinite(growth).all():
        return np.full_like(_ALPHA, np.inf)
    rest = np.maximum(_ALPHA[:, None] - _K[None], 0) * math.log1p(-rate)
    terms = _LOG_CHOOSE + _K[None] * math.log(rate) + rest + log_growth[None]
    return np.asarray(np.logaddexp(0.0, logsumexp(terms, axis=1)) / (_ALPHA - 1))
