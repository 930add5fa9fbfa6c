"""What Opacus hangs on parameters and modules, and its tables of samplers.

Its pages name ``grad_sample``; what else it keeps, and how its ghost clipping computes, is private.
The public way is its ``PrivacyEngine``, which draws the batch and adds the noise itself.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from opacus.grad_sample import GradSampleModule
from opacus.grad_sample.functorch import ft_compute_per_sample_gradient
from opacus.grad_sample.grad_sample_module_fast_gradient_clipping import (
    GradSampleModuleFastGradientClipping,
)
from torch import Tensor, nn


def hooked(model: nn.Module, *, functorch: bool) -> Any:
    """Return a model that Opacus's hooks watch; ``force_functorch`` since 1.4."""
    return GradSampleModule(model, loss_reduction="sum", strict=False, force_functorch=functorch)


def ghost(model: nn.Module) -> Any:
    """Return a model whose hooks compute norms of gradients, in double precision; since 1.5.

    Opacus computes norms in the gradients' type: its samplers are replaced by ones that see
    doubles.
    """
    wrapped = GradSampleModuleFastGradientClipping(
        model, loss_reduction="sum", max_grad_norm=1.0, strict=False
    )
    wrapped.NORM_SAMPLERS = {k: _widened(s) for k, s in wrapped.NORM_SAMPLERS.items()}
    wrapped.GRAD_SAMPLERS = _WideSamplers(wrapped.GRAD_SAMPLERS)
    return wrapped


def sample_of(parameter: Tensor) -> Tensor | list[Tensor] | None:
    """Return the per-sample gradients that a pass left; a list if it left several."""
    return getattr(parameter, "grad_sample", None)


def norms_of(parameter: Tensor) -> Tensor | None:
    """Return the per-sample norms [B] that a pass of ghost clipping left."""
    norms: Tensor | None = parameter._norm_sample  # type: ignore[attr-defined]
    return norms


def clear(parameters: Iterable[Tensor]) -> None:
    """Take what a pass left off the parameters."""
    for parameter in parameters:
        parameter.grad = None
        parameter.grad_sample = None  # type: ignore[attr-defined]
        parameter._norm_sample = None  # type: ignore[attr-defined]


def forget(model: nn.Module, parameters: Iterable[Tensor]) -> None:
    """Take away what a pass that was broken off left on the modules and parameters."""
    for parameter in parameters:
        parameter._forward_counter = 0  # type: ignore[attr-defined]
    for module in model.modules():
        _drop(module, "activations", "max_batch_len")


def unhook(wrapped: Any, model: nn.Module) -> None:
    """Remove the hooks, and every attribute that Opacus gave the parameters."""
    wrapped.remove_hooks()
    for parameter in model.parameters():
        _drop(parameter, "grad_sample", "_norm_sample", "_forward_counter")


def _drop(holder: Any, *names: str) -> None:
    for name in names:
        if hasattr(holder, name):
            delattr(holder, name)


class _WideSamplers(dict[type, Any]):
    """Opacus's samplers of gradients, which it takes norms of; functorch for any other layer."""

    def __contains__(self, kind: object) -> bool:
        return True

    def __getitem__(self, kind: type) -> Any:
        sampler = self.get(kind, ft_compute_per_sample_gradient)

        def wide(*given: Any) -> dict[Tensor, Tensor]:
            return {parameter: made.double() for parameter, made in sampler(*given).items()}

        return wide


def _widened(sampler: Any) -> Any:
    """Return a sampler of norms that reads doubles."""

    def wide(layer: nn.Module, activations: list[Tensor], backprops: Tensor) -> Any:
        read = [x.double() if x.is_floating_point() else x for x in activations]
        return sampler(layer, read, backprops.double())

    return wide
