"""Events: the mathematical description of what a mechanism did.

The vocabulary follows dp-accounting's and is append-only: a kind is never redefined, and
an unknown kind is read as :class:`NonPrivate`. A Gaussian or Laplace event records its
noise and its sensitivity, never a bare multiplier, because accountants differ in what a
multiplier means under another relation.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import dp_accounting as dp

from privet.common.errors import InputError


@dataclass(frozen=True)
class Gaussian:
    """Gaussian noise of ``standard_deviation`` on a value of L2 ``sensitivity``."""

    standard_deviation: float
    sensitivity: float


@dataclass(frozen=True)
class Laplace:
    """Laplace noise of ``scale`` on a value of L1 ``sensitivity``."""

    scale: float
    sensitivity: float


@dataclass(frozen=True)
class PoissonSampled:
    """``event`` on a batch that each unit entered independently with ``sample_rate``."""

    sample_rate: float
    event: Event


@dataclass(frozen=True)
class Repeated:
    """``event``, ``count`` times, adaptively."""

    event: Event
    count: int


@dataclass(frozen=True)
class NonPrivate:
    """Something without a guarantee happened; ε is infinite from here on."""

    reason: str


Event = Gaussian | Laplace | PoissonSampled | Repeated | NonPrivate


def group(events: Iterable[Event]) -> tuple[tuple[Event, int], ...]:
    """Count equal events, with repetitions multiplied out, in order of first appearance.

    Composition of mechanisms whose parameters are fixed in advance does not depend on
    their order, so a history of many rounds becomes a few (event, count) pairs.
    """
    counts: Counter[Event] = Counter()
    for event in events:
        times = 1
        while isinstance(event, Repeated):
            times *= event.count
            event = event.event
        if times:
            counts[event] += times
    return tuple(counts.items())


def to_dp_event(event: Event) -> dp.DpEvent:
    """Translate to dp-accounting's vocabulary, with the noise multiplier of add or remove."""
    match event:
        case Gaussian(std, sensitivity):
            return dp.GaussianDpEvent(std / sensitivity)
        case Laplace(scale, sensitivity):
            return dp.LaplaceDpEvent(scale / sensitivity)
        case PoissonSampled(rate, inner):
            return dp.PoissonSampledDpEvent(rate, to_dp_event(inner))
        case Repeated(inner, count):
            return dp.SelfComposedDpEvent(to_dp_event(inner), count)
        case NonPrivate():
            return dp.NonPrivateDpEvent()


def to_json(event: Event) -> dict[str, Any]:
    """Return the event as JSON values; :func:`from_json` reads it back."""
    match event:
        case Gaussian(std, sensitivity):
            return {"type": "gaussian", "standard_deviation": std, "sensitivity": sensitivity}
        case Laplace(scale, sensitivity):
            return {"type": "laplace", "scale": scale, "sensitivity": sensitivity}
        case PoissonSampled(rate, inner):
            return {"type": "poisson_sampled", "sample_rate": rate, "event": to_json(inner)}
        case Repeated(inner, count):
            return {"type": "repeated", "count": count, "event": to_json(inner)}
        case NonPrivate(reason):
            return {"type": "non_private", "reason": reason}


_FIELDS = {
    "gaussian": {"standard_deviation", "sensitivity"},
    "laplace": {"scale", "sensitivity"},
    "poisson_sampled": {"sample_rate", "event"},
    "repeated": {"event", "count"},
    "non_private": {"reason"},
}


def from_json(value: Any) -> Event:
    """Read an event from JSON values; one of an unknown type is non-private.

    Raises:
        InputError: if a known type has the wrong fields or impossible numbers.
    """
    if not isinstance(value, dict) or not isinstance(value.get("type"), str):
        raise InputError("an event is an object with a 'type'")
    kind = value["type"]
    if kind not in _FIELDS:
        return NonPrivate(f"unknown event type '{kind}'")
    if set(value) != _FIELDS[kind] | {"type"}:
        raise InputError(f"event '{kind}' has exactly the fields {sorted(_FIELDS[kind])}")
    match kind:
        case "gaussian":
            return Gaussian(_positive(value, "standard_deviation"), _positive(value, "sensitivity"))
        case "laplace":
            return Laplace(_positive(value, "scale"), _positive(value, "sensitivity"))
        case "poisson_sampled":
            rate = _positive(value, "sample_rate")
            if rate > 1:
                raise InputError("event: 'sample_rate' is above 1")
            return PoissonSampled(rate, from_json(value["event"]))
        case "repeated":
            count = value["count"]
            if type(count) is not int or count < 0:
                raise InputError("event: 'count' must be an integer from 0")
            return Repeated(from_json(value["event"]), count)
        case _:
            return NonPrivate(str(value["reason"]))


def _positive(value: dict[str, Any], key: str) -> float:
    number = value[key]
    if isinstance(number, bool) or not isinstance(number, int | float):
        raise InputError(f"event: '{key}' must be a number")
    if not 0 < number <= sys.float_info.max:
        raise InputError(f"event: '{key}' must be positive and finite")
    return float(number)
