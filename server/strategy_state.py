"""Convert a strategy's state to arrays, so that a snapshot can hold it.

Flower's adaptive strategies keep moments in attributes, and have no method that returns them.
Without the moments a restarted run would continue from another state than that in which it was
stopped, and end with another model. A strategy of the user's returns its state by ``state_dict``
and restores it by ``load_state_dict``, as torch's optimizers do.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from flwr.serverapp.strategy import Strategy

from privet.common.compat.flower_strategies import give_back, kept_by
from privet.common.errors import RunError
from privet.common.flat import Arrays

KINDS = ("<f2", "<f4", "<f8")
"""Types of numbers that a state may have."""


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
    return kept_by(strategy)


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
    give_back(strategy, state)


def _checked(state: Any) -> Arrays:
    found = {str(name): np.asarray(value) for name, value in dict(state).items()}
    for name, array in found.items():
        if array.dtype.newbyteorder("<").str not in KINDS:
            raise RunError(
                f"the strategy's state_dict gives '{name}' as {array.dtype}: use float16, float32 "
                "or float64"
            )
    return found
