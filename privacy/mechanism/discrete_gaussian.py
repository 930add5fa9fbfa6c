"""Exact draws from the discrete Gaussian over the integers (H15).

P(x) ∝ exp(−x²/2σ²) for every integer x. The algorithms are those of Canonne, Kamath and Steinke
2020, "The Discrete Gaussian for Differential Privacy", section 5: Algorithm 1 (a coin of chance
exp(−γ)), Algorithm 2 (the discrete Laplace distribution) and Algorithm 3 (the discrete Gaussian, by
rejection from the discrete Laplace). Every decision compares uniform 64-bit words with a quotient
of Python integers, for as many words as it takes, so no number is rounded and the distribution is
exactly the one that is accounted.

How long a draw takes depends on what was drawn, as in every sampler by rejection; time is outside
the guarantee (H30).
"""

from __future__ import annotations

from privet.common.errors import InputError
from privet.privacy.mechanism.noise import Stream

_WORD_BITS = 64
_WORDS_AT_ONCE = 4096


def discrete_gaussian(standard_deviation: int, count: int, stream: Stream) -> list[int]:
    """Return ``count`` independent draws.

    Args:
        standard_deviation: σ of the formula above, an integer from 1. The standard deviation of
            the draws is at most σ, and within 1e-6 of it.
        count: how many.
        stream: randomness.

    Raises:
        InputError: if σ is not an integer from 1.
    """
    if type(standard_deviation) is not int or standard_deviation < 1:
        raise InputError("the standard deviation of a discrete Gaussian is an integer from 1")
    coins = _Coins(stream)
    return [_gaussian(standard_deviation, coins) for _ in range(count)]


def _gaussian(sigma: int, coins: _Coins) -> int:
    """Return one draw: Algorithm 3, with t = ⌊σ⌋ + 1.

    A draw y of the discrete Laplace of scale t is kept with chance exp(−(|y| − σ²/t)²/2σ²), which
    is exp(−(|y|t − σ²)²/2σ²t²).
    """
    scale, variance = sigma + 1, sigma * sigma
    denominator = 2 * variance * scale * scale
    while True:
        drawn = _laplace(scale, coins)
        distance = abs(drawn) * scale - variance
        if coins.exp_minus(distance * distance, denominator):
            return drawn


def _laplace(scale: int, coins: _Coins) -> int:
    """Return one draw of P(y) ∝ exp(−|y|/scale): Algorithm 2, with s = 1."""
    while True:
        low = coins.below(scale)
        if not coins.exp_minus(low, scale):
            continue
        high = 0
        while coins.exp_minus(1, 1):
            high += 1
        size = low + scale * high
        negative = coins.below(2)
        if negative and not size:
            continue  # else zero would come twice as often
        return -size if negative else size


class _Coins:
    """Exact coins and uniform integers from the words of a stream."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._left: list[int] = []

    def _word(self) -> int:
        if not self._left:
            self._left = self._stream.words(_WORDS_AT_ONCE).tolist()
        return self._left.pop()

    def below(self, bound: int) -> int:
        """Return a uniform integer of 0 … bound − 1; words that would favour some are rejected."""
        bits = (bound - 1).bit_length()
        if not bits:
            return 0
        words = -(-bits // _WORD_BITS)
        while True:
            drawn = self._word()
            for _ in range(words - 1):
                drawn = drawn << _WORD_BITS | self._word()
            drawn >>= words * _WORD_BITS - bits
            if drawn < bound:
                return drawn

    def chance(self, numerator: int, denominator: int) -> bool:
        """Return True with chance numerator / denominator, which lies between 0 and 1.

        The digits of the quotient to the base 2⁶⁴ are compared with random ones until they differ.
        """
        if numerator >= denominator:
            return True
        while True:
            digit, numerator = divmod(numerator << _WORD_BITS, denominator)
            drawn = self._word()
            if drawn != digit:
                return drawn < digit

    def exp_minus(self, numerator: int, denominator: int) -> bool:
        """Return True with chance exp(−numerator / denominator): Algorithm 1."""
        while numerator > denominator:
            if not self._exp_minus_fraction(1, 1):
                return False
            numerator -= denominator
        return self._exp_minus_fraction(numerator, denominator)

    def _exp_minus_fraction(self, numerator: int, denominator: int) -> bool:
        """The same for quotients up to 1: the alternating series of the exponential function."""
        draws = 1
        while self.chance(numerator, denominator * draws):
            draws += 1
        return draws % 2 == 1
