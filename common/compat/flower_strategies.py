"""What Flower's strategies keep from round to round.

They keep it in attributes that no page names, and have no method that hands it out. The public way
would be a strategy of Privet's own for each of them.
"""

from __future__ import annotations

from typing import Any

from flwr.serverapp.strategy import FedAdagrad, FedAdam, FedAvgM, FedYogi, Strategy

from privet.common.flat import Arrays

_ADAPTIVE = (FedAdagrad, FedAdam, FedYogi)
_BY_NAME = ("m_t", "v_t")
"""Attributes of Flower's adaptive strategies: dictionaries of arrays, or None before a round."""
_IN_ORDER = "momentum_vector"
"""Attribute of Flower's strategy with momentum: a list of arrays, or None before a round."""


def begin_round(strategy: Strategy) -> None:
    """Let a strategy with momentum start from the model that the sites get in this round.

    It keeps its own copy of the last one otherwise, which a restarted run does not have.
    """
    if isinstance(strategy, FedAvgM):
        strategy.current_arrays = None


def keeps(strategy: Strategy) -> bool:
    """Return whether a strategy of Flower's keeps anything from round to round."""
    has_momentum = isinstance(strategy, FedAvgM) and strategy.server_momentum > 0
    return has_momentum or isinstance(strategy, _ADAPTIVE)


def kept_by(strategy: Strategy) -> Arrays:
    """Return what a strategy of Flower's keeps, by name; nothing before its first round."""
    if not keeps(strategy):
        return {}  # attributes of such a name are a strategy's of the user, and anything
    found: Arrays = {}
    for name in _BY_NAME:
        found |= {
            f"{name}/{key}": one for key, one in (getattr(strategy, name, None) or {}).items()
        }
    kept = getattr(strategy, _IN_ORDER, None) or ()
    return found | {f"{_IN_ORDER}/{place}": one for place, one in enumerate(kept)}


def give_back(strategy: Strategy, state: Arrays) -> None:
    """Give a new strategy of Flower's what :func:`kept_by` returned of another one."""
    grouped: dict[str, dict[str, Any]] = {}
    for name, array in state.items():
        kept, _, key = name.partition("/")
        grouped.setdefault(kept, {})[key] = array
    for name in _BY_NAME:
        if name in grouped:
            setattr(strategy, name, grouped[name])
    if _IN_ORDER in grouped:
        ordered = grouped[_IN_ORDER]
        setattr(strategy, _IN_ORDER, [ordered[str(place)] for place in range(len(ordered))])
