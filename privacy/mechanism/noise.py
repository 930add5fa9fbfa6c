"""Randomness for privacy: an AES-256-CTR stream, and normals made from it (H14).

The key comes from the operating system, is new for each release, is never stored and is
not shared with a forked process. Normals come from 52-bit uniforms that are never zero,
by the Box-Muller transform (Box and Muller 1958) in double precision, so the tail
reaches 8.5 σ.

A noised number is a multiple of a public power of two, :func:`grid_of`: its low bits, which would
tell apart sums that lie next to each other (Mironov 2012), are not there. Guarantees hold in the
real-arithmetic model all the same (H15): normals in double precision are not exactly normal.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Self

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from privet.common.errors import PrivacyError

if TYPE_CHECKING:
    from torch import Tensor

_BLOCK = 1 << 16
"""Values transformed at once: the work set stays in cache."""
_ON_DEVICE = 1 << 24
"""Values made at once on a device; each such part has a key of its own."""
_ZEROS = memoryview(bytes(8 * _BLOCK))
_GRID_BITS = 20
"""The grid of noised numbers is this many powers of two finer than their standard deviation."""
_SCALES = 1e-100, 1e100
"""Standard deviations whose square and grid neither underflow nor overflow in double precision."""
_MANTISSA, _ONE = np.uint64((1 << 52) - 1), np.uint64(0x3FF << 52)


def grid_of(standard_deviation: float) -> float:
    """Return the power of two that all numbers noised with a standard deviation are multiples of.

    2^(floor(log2 σC) - 20): the standard deviation is 2^20 to 2^21 of its steps.

    Raises:
        PrivacyError: if the standard deviation is not within 1e-100 and 1e100: its square would be
            zero or infinite in double precision, and the noise with it.
    """
    low, high = _SCALES
    if not low <= standard_deviation <= high:
        raise PrivacyError(f"noise of standard deviation {standard_deviation} cannot be computed")
    return 2.0 ** (math.frexp(standard_deviation)[1] - 1 - _GRID_BITS)


class Stream:
    """A stream of random words for sampling and noise. Not safe to share between threads.

    Attributes:
        reproducible: True when the key was derived from a seed. Such a stream protects
            nobody, and every claim made with it is ``none``.
    """

    def __init__(self, key: bytes, *, reproducible: bool) -> None:
        self.reproducible = reproducible
        self._process = os.getpid()
        self._cipher = Cipher(algorithms.AES256(key), modes.CTR(bytes(16))).encryptor()

    @classmethod
    def fresh(cls) -> Self:
        """Return a stream under a new key from the operating system."""
        return cls(os.urandom(32), reproducible=False)

    @classmethod
    def seeded(cls, *seed: int | str) -> Self:
        """Return the stream that ``seed`` names, for simulations and tests only."""
        text = "\x1f".join(str(part) for part in seed)
        return cls(
            hashlib.sha256(b"privet seeded stream\0" + text.encode()).digest(), reproducible=True
        )

    def words(self, count: int) -> npt.NDArray[np.uint64]:
        """Return ``count`` uniform 64-bit words.

        Raises:
            PrivacyError: in a process forked after the stream was made; two processes
                must never draw the same noise.
        """
        self._require_own_process()
        return np.frombuffer(self._cipher.update(bytes(8 * count)), dtype="<u8")

    def uniform(self, count: int) -> npt.NDArray[np.float64]:
        """Return ``count`` doubles in (0, 1], multiples of 2^-53 off by half a step, never 0."""
        return ((self.words(count) >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53

    def bernoulli(self, count: int, rate: float) -> npt.NDArray[np.bool_]:
        """Return ``count`` independent draws that are True with probability ``rate``."""
        if rate >= 1.0:
            return np.ones(count, dtype=bool)
        return self.words(count) < np.uint64(int(rate * 2.0**64))

    def normal(self, count: int) -> npt.NDArray[np.float64]:
        """Return ``count`` independent standard normals."""
        result = np.empty(count)
        for start, radius, cosine, sine in self._polar(count, 1.0):
            both = np.concatenate([cosine.mul_(radius).numpy(), sine.mul_(radius).numpy()])
            result[start : start + len(both)] = both[: count - start]
        return result

    def add_normal(self, values: Tensor, standard_deviation: float) -> None:
        """Add independent normals to every number of ``values``, in place, and round the sums.

        Values and noise are added in double precision. The sum is rounded to :func:`grid_of` the
        standard deviation, and that to the tensor's type. On CUDA all of this is done there, with
        noise from a key of this stream; see :mod:`.device_noise`.

        Args:
            values: of a floating type.
            standard_deviation: of the noise, the same for every number.

        Raises:
            PrivacyError: if the numbers are not real ones, or the standard deviation is so small
                or so large that there would be no noise.
        """
        import torch

        if not values.is_floating_point():
            raise PrivacyError(f"noise cannot be added to numbers of type {values.dtype}")
        grid = grid_of(standard_deviation)
        if values.dtype == torch.float16:  # its range is too small to be scaled in
            wide = values.float()
            self.add_normal(wide, standard_deviation)
            values.copy_(wide)
            return
        flat = values.view(-1)
        # In steps of the grid: scaling by a power of two is exact, and torch.round is at any size.
        # Adding and taking away 1.5 · 2^52 steps is exact below 2^51 steps only, and no faster.
        scale = standard_deviation / grid
        zero = torch.zeros((), dtype=values.dtype)  # added, so that no zero has a sign
        if values.device.type == "cpu":
            kept = torch.empty(min(_BLOCK, flat.numel() + 1), dtype=torch.float64)
            for start, radius, cosine, sine in self._polar(flat.numel(), scale):
                part, sums = flat[start : start + _BLOCK], kept[: 2 * len(radius)]
                sums[: len(part)].copy_(part.mul_(1 / grid))
                sums[: len(radius)].addcmul_(cosine, radius)
                sums[len(radius) :].addcmul_(sine, radius)
                part.copy_(sums[: len(part)].round_())
                torch.add(zero, part, alpha=grid, out=part)
            return
        from privet.privacy.mechanism.device_noise import normals

        for start in range(0, flat.numel(), _ON_DEVICE):
            part = flat[start : start + _ON_DEVICE]
            sums = normals(self.key(), part.numel(), part.device).mul_(scale)
            part.copy_(sums.add_(part.mul_(1 / grid)).round_())
            part.copy_(torch.add(zero, part, alpha=grid))

    def key(self) -> bytes:
        """Return 32 bytes of this stream, to key another one on a device."""
        return self.words(4).tobytes()

    def _polar(
        self, count: int, standard_deviation: float
    ) -> Iterator[tuple[int, Tensor, Tensor, Tensor]]:
        """Yield (start, radius, cosine, sine) of blocks that stay in cache; valid until the next.

        Normals are ``radius · cosine``, and after them ``radius · sine``; of an odd number the last
        is one too many. torch computes logarithm, sine and cosine some four times as fast as numpy.
        """
        import torch

        most = max(2, min(_BLOCK, count + count % 2))
        words = np.empty(most, np.uint64)
        drawn = torch.from_numpy(words.view(np.float64))
        cosines = torch.empty(most // 2, dtype=torch.float64)
        for start in range(0, count, most):
            half = (min(most, count - start) + 1) // 2
            self._draw(words[: 2 * half])
            # 52 random bits as those of a double in [1, 2).
            np.bitwise_and(words[: 2 * half], _MANTISSA, out=words[: 2 * half])
            np.bitwise_or(words[: 2 * half], _ONE, out=words[: 2 * half])
            # Exact: half a step above a multiple of 2^-52, so never 0 and never 1.
            radius, angle = drawn[:half].sub_(1.0 - 2.0**-53), drawn[half : 2 * half]
            radius.log_().mul_(-2.0 * standard_deviation**2).sqrt_()
            angle.mul_(2.0 * math.pi)  # in [2π, 4π)
            torch.cos(angle, out=cosines[:half])
            yield start, radius, cosines[:half], angle.sin_()

    def _draw(self, words: npt.NDArray[np.uint64]) -> None:
        """Fill ``words`` from the key stream."""
        self._require_own_process()
        self._cipher.update_into(_ZEROS[: words.nbytes], words.view(np.uint8).data)

    def _require_own_process(self) -> None:
        if os.getpid() != self._process:
            raise PrivacyError("a noise stream was used across a fork; make a fresh one")
