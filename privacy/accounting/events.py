"""Events: the mathematical description of what a mechanism did.

The vocabulary follows dp-accounting's and is append-only: a kind is never redefined, and
an unknown kind is read as :class:`NonPrivate`. A Gaussian event records its noise and its
sensitivity, never a bare multiplier, because accountants differ in what a multiplier means
under another relation. As JSON an integer is a JSON integer, and every other
number is a decimal string, the shortest that reads back as the same 64-bit float.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from privet.common.errors import InputError

GATE_WEIGHT = 1 << 20
"""The weight that one unit may add to a table of metrics, at most; public and fixed."""
MAX_INTEGER = 2**53 - 1
"""The largest integer that a JSON number holds exactly (RFC 8785, RFC 7493)."""


@dataclass(frozen=True)
class Gaussian:
    """Gaussian noise of ``standard_deviation`` on a value of L2 ``sensitivity``."""

    standard_deviation: float
    sensitivity: float


@dataclass(frozen=True)
class DiscreteGaussian:
    """Noise P(x) ∝ exp(−x²/2σ²) over the integers, on each number of a table of integers.

    ``standard_deviation`` is σ, ``sensitivity`` the L2 sensitivity of the whole table; both are
    integers from 1 to :data:`MAX_INTEGER`, and the table may be of any size.

    *Rényi.* D_α ≤ αΔ²/2σ², as for the continuous Gaussian of the same numbers (Canonne, Kamath and
    Steinke 2020, Theorems 4 and 14).
    """

    standard_deviation: int
    sensitivity: int

    @property
    def dominating(self) -> Gaussian | None:
        """Return a continuous Gaussian that costs at least as much; None below σ = 1000.

        It has standard deviation √(σ² − 9) and the same sensitivity. Its output x can be turned
        into the discrete one without reading the data again, by drawing y from the discrete
        Gaussian of parameter r = 3 over the integers, centred at x: P(y) ∝ exp(−(y − x)²/2r²). By
        Poisson summation the sum that normalises it is r√2π(1 ± e) whatever x is, with
        e = 2 Σ_k exp(−2π²r²k²) (k ≥ 1), so each outcome of d numbers has the chance that the
        discrete mechanism gives it, to a factor within ((1 + e)/(1 − e))^d: the convolution theorem
        of Peikert 2010, "An Efficient and Parallel Gaussian Sampler for Lattices", Theorem 3.1.
        Post-processing never costs, and both neighbours have integer tables, so an (ε, δ) of the
        continuous mechanism is an (ε + 2η, e^η δ) of the discrete one, η = d ln((1 + e)/(1 − e)).
        For r = 3 and a million numbers η is below 1e-70, far below the rounding of any accountant,
        and so is it times any number of releases.

        Below 1000, r would be felt: there the Rényi bound alone is used.
        """
        if self.standard_deviation < _MIN_DOMINATED:
            return None
        reduced = math.sqrt(self.standard_deviation**2 - _SMOOTHING**2)
        # Rounded down: the nearest double may lie above the root.
        return Gaussian(math.nextafter(reduced, 0.0), float(self.sensitivity))


_SMOOTHING = 3
_MIN_DOMINATED = 1000


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


Event = Gaussian | DiscreteGaussian | PoissonSampled | Repeated | NonPrivate
Counts = tuple[tuple[Event, int], ...]
"""Different events, none of them repeated, with how often each happens; see :func:`group`."""


def gate_release(noise_multiplier: float) -> DiscreteGaussian:
    """Return the event of one release of the metrics mechanism: a table of integer weights.

    A unit moves the table by :data:`GATE_WEIGHT` at most; σ is ``noise_multiplier`` times that,
    rounded up to an integer.

    Args:
        noise_multiplier: noise by sensitivity, above 0.

    Raises:
        InputError: if the noise is not above 0, or too large to be written.
    """
    if not 0 < noise_multiplier < math.inf:
        raise InputError("the noise multiplier of the metrics must be above 0 and finite")
    sigma = math.ceil(Fraction(noise_multiplier) * GATE_WEIGHT)
    if sigma > MAX_INTEGER:
        raise InputError(f"metrics.noise_multiplier {noise_multiplier:g} is above 8e9")
    return DiscreteGaussian(sigma, GATE_WEIGHT)


def group(events: Iterable[Event]) -> Counts:
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


def within(counts: Counts, planned: Counts) -> bool:
    """Whether every event of ``counts`` is planned, at least as often."""
    limit = dict(planned)
    return all(count <= limit.get(event, 0) for event, count in counts)


def covers(reserved: Event, ran: Event) -> bool:
    """Whether ``ran`` is the reserved mechanism, run as often as reserved or less."""
    return within(group([ran]), group([reserved]))


def to_json(event: Event) -> dict[str, Any]:
    """Return the event as JSON values; :func:`from_json` reads it back."""
    match event:
        case Gaussian(std, sensitivity):
            return {
                "type": "gaussian",
                "standard_deviation": decimal(std),
                "sensitivity": decimal(sensitivity),
            }
        case DiscreteGaussian(sigma, bound):
            return {"type": "discrete_gaussian", "standard_deviation": sigma, "sensitivity": bound}
        case PoissonSampled(rate, inner):
            return {
                "type": "poisson_sampled",
                "sample_rate": decimal(rate),
                "event": to_json(inner),
            }
        case Repeated(inner, count):
            return {"type": "repeated", "count": count, "event": to_json(inner)}
        case NonPrivate(reason):
            return {"type": "non_private", "reason": reason}


_FIELDS = {
    "gaussian": {"standard_deviation", "sensitivity"},
    "discrete_gaussian": {"standard_deviation", "sensitivity"},
    "poisson_sampled": {"sample_rate", "event"},
    "repeated": {"event", "count"},
    "non_private": {"reason"},
}


def from_json(value: Any) -> Event:
    """Read an event from JSON values; one of an unknown type is non-private.

    Numbers are decimal strings as :func:`to_json` writes them, or JSON numbers.

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
        case "discrete_gaussian":
            return DiscreteGaussian(
                _integer(value, "standard_deviation"), _integer(value, "sensitivity")
            )
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


def decimal(number: float) -> str:
    """Return the shortest decimal that reads back as the same 64-bit float."""
    return repr(float(number))


def _number(value: Any, key: str) -> float:
    """Read a decimal string as :func:`decimal` writes it, or a JSON number."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise InputError(f"event: '{key}' must be a number")
    try:
        number = float(value)
    except (ValueError, OverflowError):
        raise InputError(f"event: '{key}' must be a finite number") from None
    if not math.isfinite(number):
        raise InputError(f"event: '{key}' must be a finite number")
    if isinstance(value, str) and value != decimal(number):
        raise InputError(f"event: '{key}' must be the shortest decimal, '{decimal(number)}'")
    return number


def _integer(value: dict[str, Any], key: str) -> int:
    number = value[key]
    if type(number) is not int or not 1 <= number <= MAX_INTEGER:
        raise InputError(f"event: '{key}' must be an integer from 1 to 2^53 - 1")
    return number


def _positive(value: dict[str, Any], key: str) -> float:
    number = _number(value[key], key)
    if number <= 0:
        raise InputError(f"event: '{key}' must be positive and finite")
    return number
