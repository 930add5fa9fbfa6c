"""What book-keeping and the self-tests use of torch beside what its pages name.

``torch.ops.aten`` and ``torch.native_layer_norm`` are the operators that torch's own layers call.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

__all__ = [
    "BY_INDEX", "BY_VALUE", "INDEXED", "ORDERS", "DispatchMode", "adam", "buffers_of",
    "convolution_input_gradient", "convolve", "is_transformed", "layer_norm",
    "layer_norm_input_gradient", "operator_name", "parameters_of", "sgd", "tree_flatten",
    "tree_leaves", "tree_unflatten", "unsafe_view", "version_of", "without_conversion",
]  # fmt: skip
# tree_flatten and its kin (torch.utils._pytree, since 1.8) take nested arguments apart, as
# torch.func does; classes that libraries register (outputs of transformers) are known there alone.


class DispatchMode(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees each operator that is computed.

    Since 1.11, used by torch's own FlopCounterMode. The public way is hooks of modules, which do
    not see what is computed between two modules.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Leave torch's compiler out, which this would load first: that takes seconds."""
        return False


def sgd(parameters: Sequence[Tensor], rate: float, momentum: float) -> torch.optim.Optimizer:
    """Return torch's SGD, which loads no compiler.

    Args:
        parameters: to train.
        rate: of learning.
        momentum: of steps before.
    """
    return _Sgd(parameters, lr=rate, momentum=momentum)


def adam(parameters: Sequence[Tensor], rate: float) -> torch.optim.Optimizer:
    """Return torch's Adam, which loads no compiler.

    Args:
        parameters: to train.
        rate: of learning.
    """
    return _Adam(parameters, lr=rate)


# Around each of these methods torch keeps its compiler away, and loads it for that.
# ``__wrapped__`` is the method itself. The public way is torch's own classes, seconds later.
_ADD = inspect.unwrap(torch.optim.Optimizer.add_param_group)
_ZERO = inspect.unwrap(torch.optim.Optimizer.zero_grad)


class _Sgd(torch.optim.SGD):
    add_param_group = _ADD
    zero_grad = _ZERO
    step = torch.no_grad()(inspect.unwrap(torch.optim.SGD.step))


class _Adam(torch.optim.Adam):
    add_param_group = _ADD
    zero_grad = _ZERO
    step = torch.no_grad()(inspect.unwrap(torch.optim.Adam.step))


BY_VALUE = (
    "nonzero", "masked_select", "unique", "_unique2", "unique_consecutive", "unique_dim",
)  # fmt: skip
"""Operators whose result has as many rows as the numbers say."""
ORDERS = ("sort", "argsort", "topk", "msort")
"""Operators that order rows by what they hold."""

INDEXED = ("index", "index_put", "index_put_")
"""Operators with a list of indices, one for each of the first dimensions."""
BY_INDEX = (
    "index_select", "gather", "index_add", "index_add_", "index_copy", "index_copy_", "scatter",
    "scatter_", "scatter_add", "scatter_add_", "scatter_reduce", "scatter_reduce_",
)  # fmt: skip
"""Operators with a dimension and an index along it."""


def operator_name(operator: Any) -> str:
    """Return the name of an operator that :data:`DispatchMode` sees, such as ``sort``."""
    return str(operator.overloadpacket).removeprefix("aten.")


def is_transformed(tensor: Tensor) -> bool:
    """Return whether a tensor is within a transform such as ``torch.vmap``: one record's part.

    ``torch._C._functorch.is_functorch_wrapped_tensor``, since 2.1. The public way is to try what
    cannot be done with such a tensor, and to catch the error.
    """
    functorch: Any = torch._C._functorch
    return bool(functorch.is_functorch_wrapped_tensor(tensor))


@contextmanager
def without_conversion() -> Iterator[None]:
    """Raise RuntimeError where a module is converted or moved (``self.layer.to(dtype)``).

    Within ``torch.vmap`` the layer would then hold a tensor of the transform, and to read it later
    ends the process. ``nn.Module._apply`` is what ``to``, ``float`` and ``cuda`` call, since 0.1.
    The public way is to replace all of these in each module.
    """
    kept = nn.Module._apply

    def refuse(self: nn.Module, *given: Any, **named: Any) -> Any:
        raise RuntimeError(
            f"{type(self).__name__} is converted within the model's forward, as by .to(dtype)"
        )

    nn.Module._apply = refuse  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module._apply = kept  # type: ignore[method-assign]


def version_of(tensor: Tensor) -> int:
    """Return how often a tensor's numbers were changed in place, which autograd counts.

    ``_version``, since 0.4. The public way is a digest of all numbers around each step.
    """
    version: int = tensor._version
    return version


def parameters_of(module: nn.Module) -> dict[str, Any]:
    """Return a module's own table of parameters, which may be changed.

    ``_parameters``: the module finds its attributes in it. It may hold a tensor that is no
    parameter; the public ``setattr`` refuses that, and ``torch.func.functional_call`` needs all
    parameters for a whole pass.
    """
    return module._parameters


def buffers_of(module: nn.Module) -> dict[str, Tensor | None]:
    """Return a module's own table of buffers, which may be changed.

    ``_buffers``. The public ``setattr`` and ``named_buffers`` would do, with the full names.
    """
    return module._buffers


def unsafe_view(x: Tensor, shape: list[int]) -> Tensor:
    """Return ``x`` in another shape, which autograd takes for no view: it may be changed in place.

    ``aten._unsafe_view``, as torch's own ``linear`` uses it. The public way is a copy.
    """
    found: Tensor = torch.ops.aten._unsafe_view(x, shape)
    return found


def convolve(module: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return what a convolution gives with another weight and bias.

    ``_conv_forward``, since 1.8. The public way repeats its choice of padding.
    """
    found: Tensor = module._conv_forward(x, weight, bias)
    return found


def convolution_input_gradient(module: Any, g: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """Return the gradient of a convolution's input.

    ``aten.convolution_backward``, since 1.11. The public way, ``torch.nn.grad.conv2d_input``, is
    two functions for the kinds of convolution and calls the same.

    Args:
        module: the convolution, with zeros around.
        g: gradient of its output, [N, ...].
        x: its input.
        weight: in the type of ``g``.
    """
    found: tuple[Tensor, ...] = torch.ops.aten.convolution_backward(
        g, x, weight, None, module.stride, module.padding, module.dilation, False,
        [0] * (x.dim() - 2), module.groups, [True, False, False],
    )  # fmt: skip
    return found[0]


def layer_norm(
    x: Tensor, shape: list[int], weight: Tensor, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return a layer norm of ``x``, with the means and the inverse deviations of its rows.

    ``torch.native_layer_norm``. The public ``layer_norm`` keeps the two to itself: they would be
    computed a second time.
    """
    return torch.native_layer_norm(x, shape, weight, bias, eps)


def layer_norm_input_gradient(
    g: Tensor,
    x: Tensor,
    shape: list[int],
    moments: tuple[Tensor, Tensor],
    parameters: tuple[Tensor, Tensor | None],
) -> Tensor:
    """Return the gradient of a layer norm's input.

    ``aten.native_layer_norm_backward``. The public way is a second forward pass under autograd.

    Args:
        g: gradient of the output.
        x: the input.
        shape: of what is normed.
        moments: means and inverse deviations, of :func:`layer_norm`.
        parameters: weight and bias.
    """
    found: tuple[Tensor, ...] = torch.ops.aten.native_layer_norm_backward(
        g, x, shape, *moments, *parameters, [True, False, False]
    )
    return found[0]
