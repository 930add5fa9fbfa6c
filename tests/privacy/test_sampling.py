from __future__ import annotations

import numpy as np
import pytest
from dp_kit import FALSE_ALARM, examples, rate_fits
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from privet.common.errors import InputError
from privet.privacy.mechanism.noise import Stream
from privet.privacy.mechanism.sampling import PoissonSampler

UNITS, STEPS, RATE = 1000, 400, 0.1


def table(draw) -> np.ndarray:
    """Return which unit was in which step's batch, [STEPS, UNITS]."""
    batches = np.zeros((STEPS, UNITS), dtype=bool)
    for step in range(STEPS):
        batches[step, draw(step)] = True
    return batches


def dispersion_fits(counts: np.ndarray, trials: int, rate: float) -> bool:
    """Whether counts vary as independent binomials do: no less, no more."""
    law = stats.chi2(len(counts))
    total = float(((counts - trials * rate) ** 2).sum() / (trials * rate * (1 - rate)))
    return bool(2 * min(law.cdf(total), law.sf(total)) > FALSE_ALARM)


def pairs_fit(together: int, pairs: int, rate: float) -> bool:
    """Whether neighbours meet as often as independent draws do (chains of pairs)."""
    variance = pairs * (rate**2 - rate**4) + 2 * pairs * (rate**3 - rate**4)
    return bool(abs(together - pairs * rate**2) < 6 * variance**0.5)


def faults(batches: np.ndarray, rate: float) -> set[str]:
    """Name everything that a Poisson sampler of ``rate`` would not do."""
    steps, units = batches.shape
    after, beside = batches[1:] & batches[:-1], batches[:, 1:] & batches[:, :-1]
    checks = {
        "rate": rate_fits(int(batches.sum()), batches.size, rate),
        "size": dispersion_fits(batches.sum(1), units, rate),
        "turns": dispersion_fits(batches.sum(0), steps, rate),
        "steps": pairs_fit(int(after.sum()), after.size, rate),
        "units": pairs_fit(int(beside.sum()), beside.size, rate),
    }
    return {name for name, fits in checks.items() if not fits}


@pytest.fixture(scope="module")
def batches():
    stream = Stream.seeded("poisson")
    return table(lambda step: PoissonSampler(RATE).draw(UNITS, stream))


def test_poisson_batches(batches):
    assert faults(batches, RATE) == set()


@pytest.mark.parametrize("factor", [2 / 3, 3 / 2])
def test_another_rate_is_rejected(batches, factor):
    assert "rate" in faults(batches, RATE * factor)


@pytest.mark.parametrize("rate", [0.001, 0.5, 0.999])
def test_extreme_rates(rate):
    drawn = Stream.seeded("extreme").bernoulli(1_000_000, rate).sum()
    assert rate_fits(int(drawn), 1_000_000, rate)


def test_a_fixed_batch_size_is_rejected():
    chance = np.random.default_rng(0)
    size = int(UNITS * RATE)
    fixed = table(lambda step: chance.choice(UNITS, size, replace=False))
    assert faults(fixed, RATE) >= {"size"}


def test_shuffled_epochs_are_rejected():
    chance, size = np.random.default_rng(0), int(UNITS * RATE)
    orders = [chance.permutation(UNITS) for _ in range(STEPS // 10)]
    shuffled = table(lambda s: orders[s // 10][s % 10 * size :][:size])
    assert faults(shuffled, RATE) >= {"size", "turns", "steps"}


def test_batches_that_stay_are_rejected():
    stream = Stream.seeded("sticky")
    drawn = [PoissonSampler(RATE).draw(UNITS, stream) for _ in range(STEPS // 2)]
    assert faults(table(lambda step: drawn[step // 2]), RATE) >= {"steps", "turns"}


def test_units_that_come_together_are_rejected():
    stream = Stream.seeded("couples")

    def couples(step):
        chosen = PoissonSampler(RATE).draw(UNITS // 2, stream)
        return np.concatenate([2 * chosen, 2 * chosen + 1])

    assert faults(table(couples), RATE) >= {"size", "units"}


def test_weights_are_rejected():
    stream = Stream.seeded("weights")
    weight = np.where(np.arange(UNITS) % 2, 1.8, 0.2)
    weighted = table(lambda step: np.flatnonzero(stream.uniform(UNITS) < RATE * weight))
    assert faults(weighted, RATE) >= {"turns"}


def test_without_sampling_everyone_is_in():
    assert (PoissonSampler(1.0).draw(7, Stream.fresh()) == np.arange(7)).all()


def test_nobody_to_draw_from():
    for rate in (0.5, 1.0):
        assert PoissonSampler(rate).draw(0, Stream.fresh()).shape == (0,)


def test_an_empty_batch_is_a_batch():
    drawn = PoissonSampler(1e-12).draw(100, Stream.fresh())
    assert drawn.shape == (0,)
    assert drawn.dtype == np.int64


@examples(50)
@given(st.integers(0, 300), st.floats(0.001, 1.0), st.integers())
def test_numbers_are_sorted_single_and_in_range(population, rate, seed):
    drawn = PoissonSampler(rate).draw(population, Stream.seeded(seed))
    assert (np.diff(drawn) > 0).all()
    assert ((drawn >= 0) & (drawn < population)).all()


@pytest.mark.parametrize("rate", [0.0, -0.1, 1.0001, float("nan"), float("inf")])
def test_impossible_rates(rate):
    with pytest.raises(InputError, match="sample_rate"):
        PoissonSampler(rate)
