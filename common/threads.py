"""How many threads a computation takes."""

from __future__ import annotations

import os

VARIABLE = "OMP_NUM_THREADS"


def threads_of(asked: int) -> int:
    """Return how many threads to compute with: as many as a plan asks for, within the environment.

    The user or service that starts a process knows what else the machine has to do, and sets
    ``OMP_NUM_THREADS``.

    Args:
        asked: of the plan.
    """
    said = os.environ.get(VARIABLE, "")
    return max(1, min(asked, int(said))) if said.isascii() and said.isdigit() else asked


__all__ = ["VARIABLE", "threads_of"]
