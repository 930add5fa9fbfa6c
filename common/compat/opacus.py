"""What Opacus hangs on parameters and modules.

Its pages name ``grad_sample``; what else it keeps is private.
The public way is its ``PrivacyEngine``, which draws the batch and adds the noise itself.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from opacus.grad_sample import GradSampleModule
from torch import Tensor, nn


def hooked(model: nn.Module, *, functorch: bool) -> Any:
    """Return a model that Opacus's hooks watch; ``force_functorch`` since 1.4."""
    return GradSampleModule(model, loss_reduction="sum", strict=False, force_functorch=functorch)


def sample_of(parameter: Tensor) -> Tensor | list[Tensor] | None:
    """Return the per-sample gradients that a pass left; a list if it left several."""
    return getattr(parameter, "grad_sample", None)


def clear(parameters: Iterable[Tensor]) -> None:
    """Take what a pass left off the parameters."""
    for parameter in parameters:
        parameter.grad = None
        parameter.grad_sample = None  # type: ignore[attr-defined]


def forget(model: nn.Module, parameters: Iterable[Tensor]) -> None:
    """Take away what a pass that was broken off left on the modules and parameters."""
    for parameter in parameters:
        parameter._forward_counter = 0  # type: ignore[attr-defined]
    for module in model.modules():
        _drop(module, "activations", "max_batch_len")


def unhook(wrapped: Any, model: nn.Module) -> None:
    """Remove the hooks, and every attribute that Opacus gave the parameters."""
    with suppress(ValueError):  # there are none
        wrapped.remove_hooks()
    for parameter in model.parameters():
        _drop(parameter, "grad_sample", "_forward_counter")


def _drop(holder: Any, *names: str) -> None:
    for name in names:
        if hasattr(holder, name):
            delattr(holder, name)
