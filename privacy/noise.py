"""Randomness for privacy: an AES-256-CTR stream, and normals made from it (H14).

The key comes from the operating system, is new for each release, is never stored and is
not shared with a forked process. Normals come from 53-bit uniforms that are never zero,
by the Box-Muller transform (Box and Muller 1958) in double precision, so the tail
reaches 8.6 σ. Guarantees hold in the real-arithmetic model (H15): the low bits of
floating-point noise are not hidden.
"""

from __future__ import annotations

import hashlib
import os
from typing import Self

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from privet.common.errors import PrivacyFault

_BLOCK = 1 << 16
"""Values transformed at once: the work set stays in cache."""


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
            PrivacyFault: in a process forked after the stream was made; two processes
                must never draw the same noise.
        """
        if os.getpid() != self._process:
            raise PrivacyFault("a noise stream was used across a fork; make a fresh one")
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
        result = np.empty(count + count % 2)
        for start in range(0, len(result), _BLOCK):
            part = result[start : start + _BLOCK]
            half = len(part) // 2
            radius = np.sqrt(-2.0 * np.log(self.uniform(half)))
            angle = self.uniform(half) * (2.0 * np.pi)
            part[:half] = radius * np.cos(angle)
            part[half:] = radius * np.sin(angle)
        return result[:count]
