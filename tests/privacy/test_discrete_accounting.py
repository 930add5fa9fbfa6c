"""What a discrete Gaussian costs: the bounds hold against exact sums over the integers."""

from __future__ import annotations

import itertools
import math

import pytest
from scipy.stats import norm

from privet.common.errors import InputError
from privet.privacy.accounting import ceiling
from privet.privacy.accounting import renyi_filter as renyi
from privet.privacy.accounting.events import (
    MAX_INTEGER,
    DiscreteGaussian,
    Event,
    Gaussian,
    NonPrivate,
    PoissonSampled,
    Repeated,
    from_json,
    gate_release,
    to_json,
)
from privet.privacy.accounting.interval import _mechanism
from privet.privacy.accounting.noise_calibration import calibrate_noise
from privet.privacy.accounting.pld import delta_at, epsilon
from privet.privacy.accounting.units import Relation
from privet.privacy.audit.verify.cost import accounting as verifier
from privet.privacy.audit.verify.formats.events import read_event

ADD, REPLACE = Relation.ADD_OR_REMOVE_ONE, Relation.REPLACE_ONE


def chances(sigma: float, reach: int) -> dict[int, float]:
    weights = {x: math.exp(-x * x / (2 * sigma**2)) for x in range(-reach, reach + 1)}
    total = math.fsum(weights.values())
    return {x: weight / total for x, weight in weights.items()}


def exact_delta(sigma: float, shift: tuple[int, ...], eps: float) -> float:
    """δ(ε) of discrete Gaussian noise on a table that a neighbour moves by ``shift``."""
    line = chances(sigma, math.ceil(14 * sigma))
    parts = []
    for point in itertools.product(line, repeat=len(shift)):
        here = math.prod(line[x] for x in point)
        there = math.prod(line.get(x - s, 0.0) for x, s in zip(point, shift, strict=True))
        parts.append(max(0.0, here - math.exp(eps) * there))
    return math.fsum(parts)


def continuous_delta(sigma: float, size: float, eps: float) -> float:
    """δ(ε) of the Gaussian mechanism (Balle and Wang 2018, theorem 8)."""
    half, slope = size / (2 * sigma), eps * sigma / size
    return float(norm.cdf(half - slope) - math.exp(eps) * norm.cdf(-half - slope))


def bound(sigma: float, size: float, cells: int, smoothing: float, eps: float) -> float:
    """The δ(ε) that the docstring of ``dominating`` proves, for any σ above ``smoothing``."""
    e = 2 * math.fsum(math.exp(-2 * (math.pi * smoothing * k) ** 2) for k in range(1, 5))
    eta = cells * math.log((1 + e) / (1 - e))
    reduced = math.sqrt(sigma**2 - smoothing**2)
    return math.exp(eta) * continuous_delta(reduced, size, eps - 2 * eta)


CASES = [
    (4.0, (1,), 3.0), (4.0, (5,), 3.0), (3.2, (1,), 3.0), (1.0, (1,), 0.6), (1.5, (2,), 1.0),
    (2.0, (1, 1), 1.0), (1.2, (1, 2), 0.8), (30.0, (10,), 3.0),
]  # fmt: skip


@pytest.mark.parametrize(("sigma", "shift", "smoothing"), CASES)
@pytest.mark.parametrize("eps", [0.0, 0.1, 0.5, 1.0, 2.5])
def test_no_exact_delta_is_above_the_bound(
    sigma: float, shift: tuple[int, ...], smoothing: float, eps: float
) -> None:
    exact = exact_delta(sigma, shift, eps)
    assert exact <= bound(sigma, math.hypot(*shift), len(shift), smoothing, eps) + 1e-15


def test_the_bound_could_be_missed() -> None:
    """The control: with noise as much larger as the bound takes it to be smaller, δ is above."""
    missed = [
        exact_delta(sigma, shift, eps)
        > continuous_delta(math.sqrt(sigma**2 + smoothing**2), math.hypot(*shift), eps) + 1e-12
        for sigma, shift, smoothing in CASES
        for eps in (0.1, 0.5, 1.0)
    ]
    assert sum(missed) > len(missed) * 0.9


@pytest.mark.parametrize("sigma", [0.3, 1.0, 4.0, 30.0])
@pytest.mark.parametrize("shift", [1, 3])
@pytest.mark.parametrize("order", [2, 8, 32])
def test_no_renyi_divergence_is_above_that_of_the_continuous_one(
    sigma: float, shift: int, order: int
) -> None:
    reach = math.ceil(14 * sigma + order * shift)
    # ln Σ p(x)^α q(x)^(1-α), with the exponents added up before anything is exponentiated.
    terms = [
        -(order * x * x + (1 - order) * (x - shift) ** 2) / (2 * sigma**2)
        for x in range(-reach, reach + 1)
    ]
    most = max(terms)
    total = math.fsum(math.exp(-x * x / (2 * sigma**2)) for x in range(-reach, reach + 1))
    moment = most + math.log(math.fsum(math.exp(t - most) for t in terms)) - math.log(total)
    exact = moment / (order - 1)
    limit = order * shift**2 / (2 * sigma**2)
    assert exact <= limit * (1 + 1e-12)
    if sigma >= 1:
        assert exact > 0.97 * limit  # less noise by 2 % would be noticed


@pytest.mark.parametrize(("sigma", "shift"), [(1000, 300), (1500, 2000)])
@pytest.mark.parametrize("relation", [ADD, REPLACE])
def test_the_number_of_record_is_above_the_exact_one(
    sigma: int, shift: int, relation: Relation
) -> None:
    event = DiscreteGaussian(sigma, shift)
    size = shift if relation is ADD else 2 * shift
    for delta in (1e-3, 1e-6):
        eps = epsilon([event], delta, relation)
        assert exact_delta(sigma, (size,), eps) <= delta
        assert exact_delta(sigma, (size,), 0.99 * eps) > delta  # and it is not far above


EVENTS: list[Event] = [
    gate_release(20.0), gate_release(10 / 3), DiscreteGaussian(1000, 300),
    DiscreteGaussian(MAX_INTEGER, 2**51),
]  # fmt: skip


@pytest.mark.parametrize("event", EVENTS)
@pytest.mark.parametrize("relation", [ADD, REPLACE])
def test_writer_verifier_and_continuous_gaussian_agree(event: DiscreteGaussian, relation: Relation):
    ratio = event.standard_deviation / event.sensitivity
    near = epsilon([Repeated(Gaussian(ratio, 1.0), 3)], 1e-5, relation)
    ours = epsilon([event] * 3, 1e-5, relation)
    theirs, ceiling, remark = verifier.epsilon(
        [read_event(to_json(Repeated(event, 3)))], 1e-5, str(relation)
    )
    assert ours == pytest.approx(near, rel=2e-5) and theirs == pytest.approx(ours, rel=1e-9)
    assert not remark and ceiling >= theirs
    rho = renyi.rho(event, relation)
    assert rho == pytest.approx(renyi.rho(Gaussian(ratio, 1.0), relation), rel=1e-12)
    found = [verifier.rho(read_event(to_json(event)).mechanism, o, str(relation)) for o in (2, 64)]
    assert found == pytest.approx([rho[0], rho[renyi.ORDERS.index(64)]], rel=1e-12)


def test_the_dominating_gaussian_never_has_more_noise() -> None:
    for sigma in (1000, 1001, 2**20, 3**20, MAX_INTEGER):
        dominating = DiscreteGaussian(sigma, 7).dominating
        assert dominating is not None and dominating.sensitivity == 7.0
        # In integers: the square of a double is a multiple of a power of two.
        top, bottom = dominating.standard_deviation.as_integer_ratio()
        assert top**2 <= (sigma**2 - 9) * bottom**2
        assert dominating.standard_deviation > sigma * (1 - 1e-5)


def test_little_noise_is_known_by_renyi_divergences_alone() -> None:
    event = DiscreteGaussian(999, 300)
    assert event.dominating is None
    assert epsilon([event], 1e-5) == ceiling.epsilon(
        ((event, 1),), 1e-5, Relation("add_or_remove_one")
    )
    assert 0 < epsilon([event], 1e-5, accountant="rdp") < math.inf
    value, bound, remark = verifier.epsilon([read_event(to_json(event))], 1e-5, "add_or_remove_one")
    assert value == bound and "Rényi ceiling" in remark
    assert 0 < verifier.delta_at([read_event(to_json(event))], 5.0, "add_or_remove_one") < 1e-9


@pytest.mark.parametrize("accountant", ["pld", "rdp"])
def test_a_sampled_one_is_refused(accountant: str) -> None:
    event = PoissonSampled(0.1, DiscreteGaussian(2000, 1000))
    with pytest.raises(InputError, match="is known for"):
        epsilon([event], 1e-5, accountant=accountant)  # type: ignore[arg-type]
    assert renyi.rho(event) == (math.inf,) * len(renyi.ORDERS)
    assert read_event(to_json(event)).mechanism.type == "none"


def test_calibration_and_delta() -> None:
    noise = calibrate_noise(0.5, 1e-5, lambda at: [gate_release(at)])
    assert 0.49 < epsilon([gate_release(noise)], 1e-5) <= 0.5
    assert epsilon([gate_release(noise - 2e-4)], 1e-5) > 0.5
    assert delta_at([gate_release(noise)], 0.5) <= 1e-5


def test_another_accountant_is_asked_as_of_the_continuous_one() -> None:
    kind, (ratio,) = _mechanism(gate_release(20.0))  # type: ignore[misc]
    assert kind == "gaussian" and ratio == pytest.approx(20.0)
    assert _mechanism(DiscreteGaussian(10, 1)) is None


# --- as JSON ------------------------------------------------------------------------------


def test_its_numbers_are_json_integers() -> None:
    event = gate_release(20.0)
    value = {"type": "discrete_gaussian", "standard_deviation": 20971520, "sensitivity": 1048576}
    assert to_json(event) == value and from_json(value) == event
    assert read_event(value).mechanism.scale == 20971520.0


@pytest.mark.parametrize("number", [0, -1, 1.0, 1.5, "20971520", "1.0", True, None, 2**53, [1]])
@pytest.mark.parametrize("field", ["standard_deviation", "sensitivity"])
def test_no_other_number_is_read(field: str, number: object) -> None:
    value = {**to_json(gate_release(20.0)), field: number}
    with pytest.raises(InputError, match=f"'{field}' must be an integer"):
        from_json(value)
    with pytest.raises(ValueError, match=f"'{field}' of an event must be an integer"):
        read_event(value)


def test_an_older_reader_takes_it_for_nothing_private() -> None:
    """As ADR 0003 has it: an unknown event is infinite, and never under-reports."""
    assert isinstance(from_json({**to_json(gate_release(1.0)), "type": "unheard-of"}), NonPrivate)


@pytest.mark.parametrize("noise", [0.0, -1.0, math.inf, math.nan, 1e10])
def test_a_gate_without_noise_has_no_event(noise: float) -> None:
    with pytest.raises(InputError):
        gate_release(noise)
