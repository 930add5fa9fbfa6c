"""Events: the mathematical description of what was released.

An event is read into a :class:`Mechanism` and how often it runs. A mechanism of an unknown
type, or a combination that no accountant here knows, is not private.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from privet.privacy.audit.verify.formats.strict import Malformed, decimal, obj

REPLACE = "replace_one"
RELATIONS = ("add_or_remove_one", REPLACE)
_DEPTH = 8
_MAX_INTEGER = 2**53 - 1
_PARTS = 1000
_GATE_WEIGHT = 1 << 20


@dataclass(frozen=True)
class Mechanism:
    """One private mechanism.

    Attributes:
        type: ``gaussian``, ``discrete`` (a Gaussian over the integers), ``laplace``, ``mixture``
            or ``none`` (not private).
        scale: standard deviation of the Gaussian, or scale of the Laplace distribution.
        sensitivities: L2 (Gaussian) or L1 (Laplace); more than one only for a mixture.
        probabilities: of a mixture's sensitivities.
        rate: Poisson sampling rate; 1 if not sampled.
    """

    type: str
    scale: float = 0.0
    sensitivities: tuple[float, ...] = ()
    probabilities: tuple[float, ...] = ()
    rate: float = 1.0


NON_PRIVATE = Mechanism("none")


@dataclass(frozen=True)
class Event:
    """``count`` independent runs of ``mechanism``."""

    mechanism: Mechanism
    count: int = 1

    def covers(self, other: Event) -> bool:
        """Return whether ``other`` is this event, run as often or less often."""
        return self.mechanism == other.mechanism and other.count <= self.count


def gaussian(standard_deviation: float, sensitivity: float, rate: float = 1.0) -> Mechanism:
    """Return a (Poisson-sampled) Gaussian mechanism.

    Args:
        standard_deviation: of the noise.
        sensitivity: L2, of what it is added to.
        rate: of Poisson sampling; 1: none.
    """
    return Mechanism("gaussian", standard_deviation, (sensitivity,), (), rate)


def gate(noise: float) -> Mechanism:
    """Return the mechanism of an evaluation by the metrics mechanism with noise ``noise``.

    The table has integer weights, 2^20 to a unit; the noise is ``noise`` times that, rounded up
    to an integer. Noise too large to be written so was only ever a continuous Gaussian.
    """
    sigma = math.ceil(Fraction(noise) * _GATE_WEIGHT)
    if sigma > _MAX_INTEGER:
        return gaussian(noise, 1.0)
    return Mechanism("discrete", float(sigma), (float(_GATE_WEIGHT),))


def _integer(value: object, what: str) -> float:
    if type(value) is not int or not 1 <= value <= _MAX_INTEGER:
        raise Malformed(f"'{what}' of an event must be an integer from 1")
    return float(value)


def _positive(value: object, what: str) -> float:
    try:
        number = decimal(value)
    except Malformed as error:
        raise Malformed(f"'{what}' of an event {error}") from None
    if number <= 0:
        raise Malformed(f"'{what}' of an event must be above 0")
    return number


def _mixture(value: dict[str, Any]) -> Mechanism:
    obj(value, "a mixture", "type", "standard_deviation", "sensitivities", "probabilities")
    parts, weights = value["sensitivities"], value["probabilities"]
    if (
        not isinstance(parts, list) or not isinstance(weights, list)
        or not 0 < len(parts) == len(weights) <= _PARTS
    ):  # fmt: skip
        raise Malformed("a mixture needs as many sensitivities as probabilities")
    sizes, shares = tuple(map(decimal, parts)), tuple(map(decimal, weights))
    if min(sizes) < 0 or min(shares) < 0 or abs(sum(shares) - 1) > 1e-9:
        raise Malformed("the probabilities of a mixture must sum to 1, nothing may be negative")
    scale = _positive(value["standard_deviation"], "standard_deviation")
    return Mechanism("mixture", scale, sizes, shares)


def read_event(value: object, depth: int = _DEPTH) -> Event:
    """Read an event; one of an unknown type is not private.

    Args:
        value: the JSON object.
        depth: how deep events may still be nested in it.

    Raises:
        Malformed: if a known type lacks a field, has one too many or an impossible value.
    """
    if not isinstance(value, dict) or not isinstance(value.get("type"), str):
        raise Malformed("an event must be an object with a type")
    if depth == 0:
        raise Malformed("an event is nested too deeply")
    kind = value["type"]
    if kind in _MECHANISMS:
        return Event(_MECHANISMS[kind](value))
    if kind in _NESTED:
        return _NESTED[kind](value, depth)
    if kind == "non_private":
        obj(value, "a non-private event", "type", "reason")
        if not isinstance(value["reason"], str):
            raise Malformed("'reason' of an event must be a text")
    return Event(NON_PRIVATE)


def _gaussian(value: dict[str, Any]) -> Mechanism:
    obj(value, "a gaussian", "type", "standard_deviation", "sensitivity")
    scale = _positive(value["standard_deviation"], "standard_deviation")
    return gaussian(scale, _positive(value["sensitivity"], "sensitivity"))


def _discrete(value: dict[str, Any]) -> Mechanism:
    obj(value, "a discrete gaussian", "type", "standard_deviation", "sensitivity")
    scale = _integer(value["standard_deviation"], "standard_deviation")
    return Mechanism("discrete", scale, (_integer(value["sensitivity"], "sensitivity"),))


def _laplace(value: dict[str, Any]) -> Mechanism:
    obj(value, "a laplace", "type", "scale", "sensitivity")
    scale = _positive(value["scale"], "scale")
    return Mechanism("laplace", scale, (_positive(value["sensitivity"], "sensitivity"),))


def _repeated(value: dict[str, Any], depth: int) -> Event:
    obj(value, "a repeated event", "type", "event", "count")
    inner, count = read_event(value["event"], depth - 1), value["count"]
    if type(count) is not int or count < 1 or count * inner.count > _MAX_INTEGER:
        raise Malformed("'count' of an event must be an integer from 1")
    return Event(inner.mechanism, count * inner.count)


def _sampled(value: dict[str, Any], depth: int) -> Event:
    obj(value, "a sampled event", "type", "sample_rate", "event")
    rate = _positive(value["sample_rate"], "sample_rate")
    if rate > 1:
        raise Malformed("'sample_rate' of an event must be at most 1")
    inner = read_event(value["event"], depth - 1)
    part = inner.mechanism
    if inner.count != 1 or part.type not in ("gaussian", "laplace") or part.rate != 1:
        return Event(NON_PRIVATE)
    return Event(Mechanism(part.type, part.scale, part.sensitivities, (), rate))


_MECHANISMS: dict[str, Callable[[dict[str, Any]], Mechanism]] = {
    "gaussian": _gaussian, "discrete_gaussian": _discrete, "laplace": _laplace,
    "mixture_of_gaussians": _mixture,
}  # fmt: skip
_NESTED: dict[str, Callable[[dict[str, Any], int], Event]] = {
    "repeated": _repeated, "poisson_sampled": _sampled,
}  # fmt: skip
