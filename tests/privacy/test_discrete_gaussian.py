"""The sampler draws the discrete Gaussian: exactly at small σ, and like a normal at the gate's σ."""

from __future__ import annotations

import math
import os
from collections import Counter

import numpy as np
import pytest
from dp_kit import FALSE_ALARM
from scipy import stats

from privet.common.errors import InputError, PrivacyError
from privet.privacy.accounting.events import gate_release
from privet.privacy.mechanism.discrete_gaussian import (
    _Coins,
    _gaussian,
    _laplace,
    discrete_gaussian,
)
from privet.privacy.mechanism.noise import Stream

DRAWS = 60_000
GATE = gate_release(20.0).standard_deviation


def chances(sigma: float) -> dict[int, float]:
    """The closed form, of all integers that are ever drawn."""
    most = math.ceil(12 * sigma) + 3
    weight = {x: math.exp(-x * x / (2 * sigma * sigma)) for x in range(-most, most + 1)}
    total = math.fsum(weight.values())
    return {x: w / total for x, w in weight.items()}


def fits(values: list[int], expected: dict[int, float]) -> bool:
    """χ² test of counts against chances; the rarest values are one."""
    counts, total = Counter(values), len(values)
    common = sorted(expected, key=lambda x: -expected[x])
    common = [x for x in common if expected[x] * total >= 5][:-1]
    seen = [counts[x] for x in common]
    wanted = [expected[x] * total for x in common]
    seen.append(total - sum(seen))
    wanted.append(total - sum(wanted))
    statistic = sum((s - w) ** 2 / w for s, w in zip(seen, wanted, strict=True))
    return bool(stats.chi2.sf(statistic, len(seen) - 1) > FALSE_ALARM)


@pytest.mark.parametrize("sigma", [1, 2, 3, 7])
def test_small_ones_have_the_chances_of_the_formula(sigma: int) -> None:
    values = discrete_gaussian(sigma, DRAWS, Stream.seeded("discrete", sigma))
    assert fits(values, chances(sigma))
    # Controls: a σ that is wrong by 3 %, and a normal that is rounded.
    for wrong in (1.03 * sigma, 0.97 * sigma):
        assert not fits(values, chances(wrong))
    if sigma == 1:
        rounded = np.rint(np.random.default_rng(0).normal(0, sigma, DRAWS)).astype(int)
        assert not fits(rounded.tolist(), chances(sigma))


def test_at_the_gates_sigma_they_are_like_a_normal() -> None:
    values = np.array(discrete_gaussian(GATE, DRAWS, Stream.seeded("gate"))) / GATE
    spread = float((values**2).sum())

    def scale_fits(factor: float) -> bool:
        tail = stats.chi2.cdf(spread / factor**2, DRAWS)
        return bool(FALSE_ALARM < tail < 1 - FALSE_ALARM)

    assert scale_fits(1.0)
    assert not scale_fits(1.03) and not scale_fits(0.97)
    assert stats.kstest(values, "norm").pvalue > FALSE_ALARM
    # The controls of this test, which sees less of the scale than the one before.
    assert stats.kstest(values, "norm", (0, 1.06)).pvalue < FALSE_ALARM
    assert stats.kstest(values + 0.03, "norm").pvalue < FALSE_ALARM


@pytest.mark.parametrize("sigma", [GATE, GATE + 1, 2**52 + 1])
def test_the_low_digits_are_uniform(sigma: int) -> None:
    values = np.array(discrete_gaussian(sigma, DRAWS, Stream.seeded("digits", sigma)))
    for modulus in (2, 3, 16):
        found = np.bincount(values % modulus, minlength=modulus)
        assert stats.chisquare(found).pvalue > FALSE_ALARM
    assert stats.chisquare(np.bincount(values // 8 * 8 % 16, minlength=16)[::8]).pvalue > 1e-8


@pytest.mark.parametrize("scale", [1, 2, 5])
def test_the_discrete_laplace_has_its_chances(scale: int) -> None:
    coins = _Coins(Stream.seeded("laplace", scale))
    values = [_laplace(scale, coins) for _ in range(DRAWS)]
    factor = (math.exp(1 / scale) - 1) / (math.exp(1 / scale) + 1)
    expected = {x: factor * math.exp(-abs(x) / scale) for x in range(-200, 201)}
    assert fits(values, expected)
    # The control: zero, where its two signs are not taken for one, comes twice as often.
    twice = {x: chance * (2 if x == 0 else 1) / (1 + factor) for x, chance in expected.items()}
    assert not fits(values, twice)


@pytest.mark.parametrize(("numerator", "denominator"), [(0, 1), (1, 7), (1, 1), (5, 2), (9, 2)])
def test_a_coin_of_chance_exp(numerator: int, denominator: int) -> None:
    coins = _Coins(Stream.seeded("coin", numerator, denominator))
    heads = sum(coins.exp_minus(numerator, denominator) for _ in range(DRAWS))
    chance = math.exp(-numerator / denominator)
    if chance == 1:
        assert heads == DRAWS
        return
    assert stats.binomtest(heads, DRAWS, chance).pvalue > FALSE_ALARM
    for wrong in (min(1.0, 1.2 * chance), 0.8 * chance):
        assert stats.binomtest(heads, DRAWS, wrong).pvalue < 1e-4


class Scripted(Stream):
    """A stream of given words."""

    def __init__(self, *words: int) -> None:
        super().__init__(bytes(32), reproducible=True)
        self.left = list(words)

    def words(self, count: int) -> np.ndarray:  # type: ignore[override]
        return np.array([self.left.pop(0)], np.uint64)


def test_a_coin_is_decided_by_as_many_words_as_it_takes() -> None:
    """1/3 is 0.5555… to the base 16; a word that equals its digits leaves all open."""
    same = 0x5555555555555555
    assert _Coins(Scripted(same - 1)).chance(1, 3)
    assert not _Coins(Scripted(same + 1)).chance(1, 3)
    assert _Coins(Scripted(same, same, same - 1)).chance(1, 3)
    assert not _Coins(Scripted(same, same, same + 1)).chance(1, 3)
    # A chance below 2^-64, which no comparison with one word knows.
    assert not _Coins(Scripted(1)).chance(1, 2**70)
    assert _Coins(Scripted(0, 0)).chance(1, 2**70)
    assert _Coins(Scripted(0, 2**58 - 1)).chance(1, 2**70)
    assert not _Coins(Scripted(0, 2**58 + 1)).chance(1, 2**70)


@pytest.mark.parametrize("bound", [1, 2, 3, 10, 2**64, 2**64 + 1])
def test_integers_below_a_bound_are_uniform(bound: int) -> None:
    coins = _Coins(Stream.seeded("below", bound))
    values = [coins.below(bound) for _ in range(20_000)]
    assert min(values) >= 0 and max(values) < bound
    parts = min(bound, 10)
    found = np.bincount([value * parts // bound for value in values], minlength=parts)
    assert parts == 1 or stats.chisquare(found).pvalue > FALSE_ALARM


def test_nothing_is_rounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """No floating-point number takes part: a draw from exact integers is an exact integer."""
    coins = _Coins(Stream.seeded("types"))
    kinds = set()
    monkeypatch.setattr(
        _Coins,
        "chance",
        lambda self, a, b, whole=_Coins.chance: (kinds.update([type(a), type(b)]), whole(self, a, b))[1],
    )  # fmt: skip
    drawn = [_gaussian(GATE, coins) for _ in range(100)]
    assert kinds == {int} and {type(value) for value in drawn} == {int}


def test_a_fresh_stream_gives_fresh_draws_and_a_seed_the_same() -> None:
    one, two = (discrete_gaussian(GATE, 50, Stream.fresh()) for _ in "ab")
    assert not set(one) & set(two)
    again = [discrete_gaussian(GATE, 50, Stream.seeded("same")) for _ in "ab"]
    assert again[0] == again[1]


@pytest.mark.parametrize("sigma", [0, -1, 1.0, 2.5, True, None])
def test_only_whole_positive_sigmas(sigma: object) -> None:
    with pytest.raises(InputError, match="integer from 1"):
        discrete_gaussian(sigma, 1, Stream.fresh())  # type: ignore[arg-type]


def test_no_draw_in_a_forked_process(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Stream.fresh()
    monkeypatch.setattr(os, "getpid", lambda: -1)
    with pytest.raises(PrivacyError, match="fork"):
        discrete_gaussian(GATE, 1, stream)
