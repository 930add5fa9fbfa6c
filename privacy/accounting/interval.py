"""An interval that holds the true ε, by an accountant that shares no code with ours.

Microsoft's prv-accountant (Gopi, Lee and Wutschitz 2021, Theorem 5.5) bounds its error from
both sides. It can take very long or stop with an error where ε is large, so it runs in a
process of its own that is ended at a time limit. It is optional (``privet[interval]``): without it
there is a reason instead of an interval, never a guess.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from privet.common.errors import InputError
from privet.privacy.accounting.events import (
    Counts,
    DiscreteGaussian,
    Event,
    Gaussian,
    PoissonSampled,
)
from privet.privacy.accounting.units import Relation

ERROR = 0.01
"""Half the width of the interval, about."""
_WORKER = Path(__file__).with_name("interval_worker.py")


@dataclass(frozen=True)
class Interval:
    """The true ε lies between ``low`` and ``high``."""

    low: float
    high: float


@dataclass(frozen=True)
class NoInterval:
    """Why there is no interval. It is false, so that ``if interval:`` reads well."""

    reason: str

    def __bool__(self) -> bool:
        return False


def check_installed() -> None:
    """Refuse where prv-accountant is not installed.

    Raises:
        InputError: with what to install.
    """
    if importlib.util.find_spec("prv_accountant") is None:
        raise InputError(
            "--interval asks prv-accountant, which is not installed: install Privet with the extra "
            "[interval]"
        )


def certified_interval(
    counts: Counts,
    delta: float,
    relation: Relation = Relation.ADD_OR_REMOVE_ONE,
    *,
    seconds: float = 30.0,
) -> Interval | NoInterval:
    """Return an interval that holds the ε of ``counts`` at ``delta``, or why there is none.

    Args:
        counts: events with their counts, as :func:`privet.privacy.accounting.events.group` gives
            them.
        delta: between 0 and 1.
        relation: only ``add_or_remove_one`` is known to the package.
        seconds: the other process is ended after this long.

    Raises:
        InputError: for an impossible δ.
    """
    if not 0 < delta < 1:
        raise InputError(f"delta must lie between 0 and 1, not {delta}")
    counts = tuple((event, count) for event, count in counts if count)
    if not counts:
        return Interval(0.0, 0.0)
    if relation is not Relation.ADD_OR_REMOVE_ONE:
        return NoInterval(f"prv-accountant does not know the relation '{relation}'")
    mechanisms = []
    for event, count in counts:
        if (mechanism := _mechanism(event)) is None:
            return NoInterval(f"prv-accountant does not know {event}")
        mechanisms.append([*mechanism, count])
    return _ask({"mechanisms": mechanisms, "delta": delta, "error": ERROR}, seconds)


def _mechanism(event: Event) -> tuple[str, list[float]] | None:
    match event:
        case PoissonSampled(rate, Gaussian(std, sensitivity)) if rate < 1:
            return "sampled_gaussian", [rate, std / sensitivity]
        case Gaussian(std, sensitivity) | PoissonSampled(_, Gaussian(std, sensitivity)):
            return "gaussian", [std / sensitivity]
        case DiscreteGaussian() if (continuous := event.dominating) is not None:
            return _mechanism(continuous)
        case _:
            return None


def _ask(request: dict[str, Any], seconds: float) -> Interval | NoInterval:
    # -P keeps the worker's folder off the path: other packages would find its "noise" and
    # "events" there.
    command = [sys.executable, "-P", str(_WORKER)]
    try:
        done = subprocess.run(
            command,
            input=json.dumps(request),
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return NoInterval(f"prv-accountant did not finish within {seconds:g} s")
    try:
        answer = json.loads(done.stdout)
    except ValueError:
        last = done.stderr.strip().splitlines()[-1:] or ["no answer"]
        return NoInterval(f"prv-accountant ended with code {done.returncode}: {last[0]}")
    if "reason" in answer:
        return NoInterval(answer["reason"])
    return Interval(answer["low"], answer["high"])
