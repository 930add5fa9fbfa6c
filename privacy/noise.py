"""Randomness for privacy: an AES-256-CTR stream, and normals made from it (H14).

The key comes from the operating system, is new for each release, is never stored and is
not shared with a forked process. Normals come from 53-bit uniforms that are never zero,
by the Box-Muller transform (Box and Muller 1958) in double precision, so the tail
reaches 8.6 σ. Guarantees hold in the real-arithmetic model (H15): the low bits of
floating-point noise are not hidden.
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

from privet.common.errors import PrivacyFault

if TYPE_CHECKING:
    from torch import Tensor

_BLOCK = 1 << 16
"""Values transformed at once: the work set stays in cache."""
_ON_DEVICE = 1 << 24
"""Values made at once on a device; each such part has a key of its own."""
_ZEROS = memoryview(bytes(8 * _BLOCK))


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
        for start, part in self._blocks(count):
            result[start : start + len(part)] = part.numpy()
        return result

    def add_normal(self, values: Tensor, standard_deviation: float) -> None:
        """Add independent normals to every number of ``values``, in place.

        They are drawn and scaled in double precision, and rounded to the tensor's type when they
        are added. On CUDA they are made there, from the same words; see :mod:`.device_noise`.
        """
        if not values.is_floating_point():
            raise PrivacyFault(f"noise cannot be added to numbers of type {values.dtype}")
        flat = values.view(-1)
        if values.device.type != "cpu":
            from privet.privacy.device_noise import normals

            for start in range(0, flat.numel(), _ON_DEVICE):
                part = flat[start : start + _ON_DEVICE]
                noise = normals(self.key(), part.numel(), part.device)
                part.add_(noise.mul_(standard_deviation).to(part.dtype))
            return
        for start, part in self._blocks(flat.numel(), standard_deviation):
            flat[start : start + len(part)].add_(part.to(flat.dtype))

    def key(self) -> bytes:
        """Return 32 bytes of this stream, to key another one on a device."""
        return self.words(4).tobytes()

    def _blocks(self, count: int, standard_deviation: float = 1.0) -> Iterator[tuple[int, Tensor]]:
        """Yield normals in blocks that stay in cache, each with its place; valid until the next.

        torch computes logarithm, sine and cosine some four times as fast as numpy.
        """
        import torch

        most = max(2, min(_BLOCK, count + count % 2))
        words = np.empty(most, np.uint64)
        uniforms, made = (torch.empty(most, dtype=torch.float64) for _ in "ab")
        for start in range(0, count, most):
            size = min(most, count - start)
            half, whole = (size + 1) // 2, size + size % 2
            self._draw(words[:whole])
            drawn = uniforms[:whole]
            np.copyto(drawn.numpy(), words[:whole].view(np.int64))
            drawn.add_(0.5)
            radius, angle = drawn[:half].mul_(2.0**-53), drawn[half:].mul_(2.0**-52 * math.pi)
            radius.log_().mul_(-2.0 * standard_deviation**2).sqrt_()
            torch.mul(torch.cos(angle, out=made[:half]), radius, out=made[:half])
            torch.mul(angle.sin_(), radius, out=made[half:whole])
            yield start, made[:size]

    def _draw(self, words: npt.NDArray[np.uint64]) -> None:
        """Fill ``words`` with numbers of 53 bits from the key stream."""
        self._require_own_process()
        self._cipher.update_into(_ZEROS[: words.nbytes], words.view(np.uint8).data)
        np.right_shift(words, np.uint64(11), out=words)

    def _require_own_process(self) -> None:
        if os.getpid() != self._process:
            raise PrivacyFault("a noise stream was used across a fork; make a fresh one")
