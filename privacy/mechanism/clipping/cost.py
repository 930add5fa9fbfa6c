"""The choice of mixed ghost clipping: what a norm costs by layer, in arithmetic and bytes.

For a linear layer with T rows a unit, p inputs and n outputs:

=============  ==========================  ============================================
form           operations beyond the       bytes beyond the step without privacy
               step without privacy
=============  ==========================  ============================================
instantiated   none: the product gᵀ a of   12 p n: G_u written, read for its norm, read
               the backward pass, by unit  for the sum
ghost          2 T² (p + n): two Gram      24 T²: the Gram matrices written and read
               matrices, in double         once
=============  ==========================  ============================================

Bu et al. 2022 compare memory alone and take the ghost norm where 2 T² < p n. The rates at which
this machine multiplies and moves bytes say more: they are measured once.
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
    """Return what a device does in a second: floating-point operations, and bytes moved.

    Measured once for each device, type and number of threads, in some 20 milliseconds.

    Args:
        device: where.
        dtype: of the operations.
        threads: that torch computes with; a key of the cache.
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
    """Whether a linear layer's ghost norm costs less time than instantiating its gradients.

    Args:
        length: rows of a unit, T.
        inputs: p.
        outputs: n.
        like: a tensor of the device that it is computed on.
    """
    if length == 1:
        return True  # ‖gᵀ a‖ = ‖a‖ ‖g‖, without a Gram matrix
    operations, moved = rates(like.device, torch.float64, torch.get_num_threads())
    instantiate = 12.0 * inputs * outputs / moved
    ghost = 2.0 * length**2 * (inputs + outputs) / operations + 24.0 * length**2 / moved
    return ghost < instantiate


def max_units_in_memory(instantiated: int, trained: int, device: torch.device) -> int:
    """Return how many units' gradients are instantiated at once.

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


__all__ = ["ghost_is_cheaper", "max_units_in_memory", "rates"]
