"""Pseudo-random numbers that depend on nothing but their input."""

from __future__ import annotations

import torch
from torch import Tensor

_STEP = -0x61C8864680B583EB


def mixed(x: Tensor) -> Tensor:
    """Return int64 numbers mixed by SplitMix64's finalizer (Steele et al. 2014)."""
    x = (x ^ ((x >> 30) & 0x3FFFFFFFF)) * -0x40A7B892E31B1A47
    x = (x ^ ((x >> 27) & 0x1FFFFFFFFF)) * -0x6B2FB644ECCEEE15
    return x ^ ((x >> 31) & 0x1FFFFFFFF)


def share(hashes: Tensor) -> Tensor:
    """Map int64 hashes to numbers in [0, 1)."""
    return (hashes & 0xFFFFFFFF).double() / 2.0**32


def shares(words: Tensor, count: int) -> Tensor:
    """Return pseudo-random numbers in [0, 1) for each word, [B, count], by SplitMix64.

    Args:
        words: int64 seeds [B].
        count: numbers for each seed.
    """
    steps = torch.arange(1, count + 1, device=words.device) * _STEP
    return share(mixed(words[:, None] + steps))
