"""What a way to get a norm costs: arithmetic and bytes, at the rates of the machine at hand.

For a linear map with T rows a unit, p inputs and n outputs (Bu et al. 2023, Book-Keeping):

=============  ==========================  ============================================
way            arithmetic beyond the       bytes beyond the step without privacy
               step without privacy
=============  ==========================  ============================================
instantiate    none: the product of the    12 p n: the unit's gradient written, read for
               backward pass, by unit      its norm, read for the sum
ghost          2 T² (p + n): two Gram      24 T²: the Gram matrices written and read
               matrices, in double         once
=============  ==========================  ============================================
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable

import torch

_SIZE = 512
_BYTES = 1 << 25
_TIMES = 3


@functools.cache
def rates(device: torch.device, dtype: torch.dtype, threads: int) -> tuple[float, float]:
    """Return what a device does: multiplications and additions, and bytes moved, per second.

    Measured once for each device, type and number of threads, in some 20 milliseconds.
    """
    del threads
    one = torch.ones(_SIZE, _SIZE, device=device, dtype=dtype)
    flat = torch.ones(_BYTES // 4, device=device)
    other = torch.empty_like(flat)
    product = _best(device, lambda: one @ one)
    copy = _best(device, lambda: other.copy_(flat))
    return 2.0 * _SIZE**3 / product, 2.0 * _BYTES / copy


def _best(device: torch.device, work: Callable[[], object]) -> float:
    taken = []
    for _ in range(_TIMES + 1):
        began = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        taken.append(time.perf_counter() - began)
    return max(min(taken[1:]), 1e-9)


def ghost_is_cheaper(length: int, inputs: int, outputs: int, like: torch.Tensor) -> bool:
    """Choose the way to a linear map's norm.

    Args:
        length: rows of a unit, T.
        inputs: of the map.
        outputs: of the map.
        like: a tensor of the device that it is computed on.
    """
    if length == 1:
        return True  # the product of two norms
    arithmetic, moved = rates(like.device, torch.float64, torch.get_num_threads())
    instantiate = 12.0 * inputs * outputs / moved
    ghost = 2.0 * length**2 * (inputs + outputs) / arithmetic + 24.0 * length**2 / moved
    return ghost < instantiate


def units_at_once(instantiated: int, trained: int, device: torch.device) -> int:
    """Return how many units' gradients are held at once.

    As much memory is used as four times the model's, which is less than the activations of a
    usual batch; but never less than 128 MB, nor more than 1 GB (2 GB on CUDA).

    Args:
        instantiated: numbers in a unit's gradients that are held.
        trained: numbers in all trained parameters.
        device: where they are.
    """
    most = 1 << 31 if device.type == "cuda" else 1 << 30
    held = min(max(16 * trained, 1 << 27), most)
    return max(1, held // (4 * max(1, instantiated)))


__all__ = ["ghost_is_cheaper", "rates", "units_at_once"]
