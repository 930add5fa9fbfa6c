"""Convert a strategy's state to arrays, so that a snapshot can hold it.

Flower's adaptive strategies keep moments in attributes, and have no method that returns them.
Without the moments a restarted run would continue from another state than that in which it was
stopped, and end with another model. A strategy of the user's returns its state by ``state_dict``
and restores it by ``load_state_dict``, as torch's optimizers do.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from flwr.serverapp.strategy import FedAdagrad, FedAdam, FedAvgM, FedYogi, Strategy

from privet.common.errors import RunError
from privet.common.flat import Arrays

KINDS = ("<f2", "<f4", "<f8")
"""Types of numbers that a state may have."""
_ADAPTIVE = (FedAdagrad, FedAdam, FedYogi)
_BY_NAME = ("m_t", "v_t")
"""Attributes of Flower's adaptive strategies: dictionaries of arrays, or None before a round."""
_IN_ORDER = "momentum_vector"
"""Attribute of Flower's strategy with momentum: a list of arrays, or None before a round."""


def begin_round(strategy: Strategy) -> None:
    """Make a strategy with momentum start from the model that the sites get in this round.

    Otherwise the strategy uses its own copy of the last model, which a restarted run does not have.
    """
    if isinstance(strategy, FedAvgM):
        strategy.current_arrays = None


def keeps(strategy: Strategy) -> bool:
    """Return whether a strategy of Flower's keeps a state from round to round."""
    has_momentum = isinstance(strategy, FedAvgM) and strategy.server_momentum > 0
    return has_momentum or isinstance(strategy, _ADAPTIVE)


def state_of(strategy: Strategy) -> Arrays:
    """Return a strategy's state, by name; empty before its first round.

    Raises:
        RunError: if a strategy of the user's returns anything but arrays of floats.
    """
    own = getattr(strategy, "state_dict", None)
    if callable(own):
        try:
            return _checked(own())
        except RunError:
            raise
        except Exception as error:
            raise RunError(f"the strategy's state_dict gives no arrays: {error!r}") from error
    if not keeps(strategy):
        return {}  # attributes of such a name are a strategy's of the user, and anything
    found: Arrays = {}
    for name in _BY_NAME:
        found |= {
            f"{name}/{key}": one for key, one in (getattr(strategy, name, None) or {}).items()
        }
    kept = getattr(strategy, _IN_ORDER, None) or ()
    return found | {f"{_IN_ORDER}/{place}": one for place, one in enumerate(kept)}


def restore(strategy: Strategy, state: Arrays) -> None:
    """Set a new strategy's state to what :func:`state_of` returned of another instance.

    Args:
        strategy: that has done no round yet; it is changed in place.
        state: arrays by name; empty for a strategy without a state.

    Raises:
        RunError: if a strategy of the user's cannot restore it.
    """
    own = getattr(strategy, "load_state_dict", None)
    if callable(own):
        try:
            own(state)
        except Exception as error:
            raise RunError(f"the strategy cannot take back its state: {error!r}") from error
        return
    if callable(getattr(strategy, "state_dict", None)):
        raise RunError("the strategy has a state_dict, and no load_state_dict to take it back")
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


def _checked(state: Any) -> Arrays:
    found = {str(name): np.asarray(value) for name, value in dict(state).items()}
    for name, array in found.items():
        if array.dtype.newbyteorder("<").str not in KINDS:
            raise RunError(
                f"the strategy's state_dict gives '{name}' as {array.dtype}: use float16, float32 "
                "or float64"
            )
    return found
