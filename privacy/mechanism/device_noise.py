"""Normals made on a device, from a ChaCha20 key stream that is computed there.

The key comes from a release's own stream, and is used for one call: the counter begins at 0 and
never comes again under that key. ChaCha20 is that of RFC 8439 with a nonce of zeros; every word of
its state is a tensor over all blocks, so a device runs all of them at once. Uniforms are of 53
bits and never zero, and the transform is that of :mod:`.noise`, in double precision.
"""

from __future__ import annotations

import math
import struct

import torch
from torch import Tensor

_CONSTANTS = struct.unpack("<4i", b"expand 32-byte k")
_ROUNDS = 10
_COLUMNS = ((0, 4, 8, 12), (1, 5, 9, 13), (2, 6, 10, 14), (3, 7, 11, 15))
_DIAGONALS = ((0, 5, 10, 15), (1, 6, 11, 12), (2, 7, 8, 13), (3, 4, 9, 14))
_NORMALS_A_BLOCK = 8
"""A block is of 16 words of 32 bits; a normal takes two of them."""


def words(key: bytes, blocks: int, device: torch.device) -> Tensor:
    """Return the key stream as int32 words [blocks, 16], in the stream's order.

    Args:
        key: 32 bytes.
        blocks: at most 2^31, counted from 0.
        device: where it is computed.
    """
    counter = torch.arange(blocks, dtype=torch.int32, device=device)
    known = (*_CONSTANTS, *struct.unpack("<8i", key))
    first = [torch.full_like(counter, word) for word in known]
    first += [counter, *(torch.zeros_like(counter) for _ in range(3))]
    state = [word.clone() for word in first]
    for _ in range(_ROUNDS):
        for places in (*_COLUMNS, *_DIAGONALS):
            _quarter(state, *places)
    return torch.stack([word + begun for word, begun in zip(state, first, strict=True)], dim=1)


def _quarter(state: list[Tensor], a: int, b: int, c: int, d: int) -> None:
    for one, two, three, by in ((a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)):
        state[one].add_(state[two])
        state[three] = _turned(state[three].bitwise_xor_(state[one]), by)


def _turned(word: Tensor, by: int) -> Tensor:
    """Return a word of 32 bits, turned to the left; int32 shifts its sign to the right."""
    low = (word >> (32 - by)).bitwise_and_((1 << by) - 1)
    return (word << by).bitwise_or_(low)


def uniforms(key: bytes, count: int, device: torch.device) -> Tensor:
    """Return ``count`` doubles in (0, 1], multiples of 2^-53 off by half a step, never 0."""
    blocks = -(-count // _NORMALS_A_BLOCK)
    stream = words(key, blocks, device).view(-1)
    long = stream.view(torch.int64)[:count]
    return ((long >> 11) & ((1 << 53) - 1)).double().add_(0.5).mul_(2.0**-53)


def normals(key: bytes, count: int, device: torch.device) -> Tensor:
    """Return ``count`` independent standard normals, as doubles.

    Args:
        key: 32 bytes, for this call only.
        count: how many.
        device: where they are made.
    """
    half = (count + 1) // 2
    drawn = uniforms(key, 2 * half, device)
    radius = drawn[:half].log().mul_(-2.0).sqrt_()
    angle = drawn[half:].mul_(2.0 * math.pi)
    return torch.cat([radius * angle.cos(), radius * angle.sin()])[:count]
