"""What :mod:`privet.common.compat.torch` relies on: each part against torch's public way."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from privet.common.compat import torch as compat
from privet.common.compat.torch import (
    DispatchMode,
    buffers_of,
    convolution_input_gradient,
    convolve,
    layer_norm,
    layer_norm_input_gradient,
    parameters_of,
    unsafe_view,
    version_of,
)


def numbers(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def close(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, rtol=1e-5, atol=1e-6)


def test_a_version_counts_changes_in_place_and_nothing_else() -> None:
    tensor = nn.Parameter(numbers(3))
    first = version_of(tensor)
    _ = tensor + 1
    assert version_of(tensor) == first
    with torch.no_grad():
        tensor.add_(1)
    assert version_of(tensor) == first + 1
    assert version_of(tensor.detach()) == first + 1


def test_a_tensor_within_vmap_is_known_and_no_other() -> None:
    seen = []

    def one(row: torch.Tensor) -> torch.Tensor:
        seen.append(compat.is_transformed(row))
        return row.sum()

    rows = torch.ones(3, 2)
    torch.vmap(one)(rows)
    torch.vmap(torch.func.grad(lambda row: one(row * 2)))(rows)
    one(rows)
    assert seen == [True, True, False]


def test_a_module_is_not_converted_within_a_transform_and_is_afterwards() -> None:
    layer = nn.Linear(2, 2)
    before = layer.weight.data_ptr()
    for convert in (lambda: layer.to(torch.float32), layer.float, lambda: layer.to("cpu")):
        with pytest.raises(RuntimeError, match="Linear is converted"), compat.without_conversion():
            convert()
    assert layer.weight.data_ptr() == before
    assert layer.to(torch.float64).weight.dtype == torch.float64


def test_a_module_reads_its_parameters_from_its_table() -> None:
    layer = nn.Linear(2, 3)
    own, other = layer.weight, numbers(3, 2)
    assert parameters_of(layer)["weight"] is own
    with pytest.raises(TypeError):
        layer.weight = other  # the public way takes no plain tensor
    parameters_of(layer)["weight"] = other
    assert layer.weight is other
    assert close(layer(numbers(4, 2)), functional.linear(numbers(4, 2), other, layer.bias))
    parameters_of(layer)["weight"] = own
    assert layer.weight is own and list(layer.parameters())[0] is own


def test_a_module_reads_its_buffers_from_its_table() -> None:
    layer = nn.BatchNorm1d(2)
    own, other = layer.running_mean, torch.ones(2)
    assert buffers_of(layer)["running_mean"] is own
    buffers_of(layer)["running_mean"] = other
    assert layer.running_mean is other and dict(layer.named_buffers())["running_mean"] is other


def test_a_forward_of_the_module_itself_goes_before_that_of_its_class() -> None:
    """How book-keeping takes a layer's place while a pass runs."""
    layer = nn.Linear(2, 3)
    plain = layer(numbers(4, 2))
    layer.__dict__["forward"] = lambda x: x + 1
    assert torch.equal(layer(numbers(4, 2)), numbers(4, 2) + 1)
    del layer.__dict__["forward"]
    assert torch.equal(layer(numbers(4, 2)), plain)


class _Turned(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, view: Any) -> Tensor:
        made: Tensor = view(x * 2, [3, 2])
        return made

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        return 2 * g.reshape(6), None


def test_what_unsafe_view_returns_may_be_changed_in_place() -> None:
    x = numbers(6).requires_grad_()
    made = _Turned.apply(x, unsafe_view)  # type: ignore[no-untyped-call]
    assert torch.equal(made, (x * 2).view(3, 2)) and not made._is_view()
    made.relu_().sum().backward()
    assert x.grad is not None and torch.equal(x.grad, 2.0 * (x > 0))
    assert numbers(6).view(3, 2)._is_view()


@pytest.mark.parametrize(
    ("kind", "shape"),
    [
        (nn.Conv1d(4, 6, 3, stride=2, padding=1, groups=2), (5, 4, 9)),
        (nn.Conv2d(4, 6, 3, padding=2, dilation=2), (5, 4, 8, 7)),
        (nn.Conv2d(4, 6, (3, 1), stride=(1, 2), bias=False), (5, 4, 8, 7)),
    ],
)
def test_a_convolution_and_the_gradient_of_its_input(kind: Any, shape: tuple[int, ...]) -> None:
    x = numbers(*shape).requires_grad_()
    weight = torch.randn_like(kind.weight)
    public = functional.conv1d if len(shape) == 3 else functional.conv2d
    y = public(x, weight, kind.bias, kind.stride, kind.padding, kind.dilation, kind.groups)  # type: ignore[operator]
    assert close(convolve(kind, x, weight, kind.bias), y)
    g = torch.randn_like(y)
    (expected,) = torch.autograd.grad(y, x, g)
    assert close(convolution_input_gradient(kind, g, x.detach(), weight), expected)


@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_norm_its_moments_and_the_gradient_of_its_input(bias: bool) -> None:
    x, weight = numbers(2, 3, 5).requires_grad_(), numbers(5)
    added = numbers(5) + 1 if bias else None
    y = functional.layer_norm(x, [5], weight, added, 1e-5)
    with torch.no_grad():
        ours, mean, scale = layer_norm(x, [5], weight, added, 1e-5)
    assert close(ours, y)
    assert close(mean, x.mean(-1, keepdim=True))
    assert close(scale, (x.var(-1, unbiased=False, keepdim=True) + 1e-5).rsqrt())
    g = torch.randn_like(y)
    (expected,) = torch.autograd.grad(y, x, g)
    found = layer_norm_input_gradient(g, x.detach(), [5], (mean, scale), (weight, added))
    assert close(found, expected)


class _Seen(DispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.types: set[torch.dtype] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if isinstance(made, Tensor):
            self.types.add(made.dtype)
        return made


def test_a_dispatch_mode_sees_what_is_computed_inside_a_module_and_backwards() -> None:
    class Narrow(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x.float() * 2).double()

    seen, x = _Seen(), numbers(3).double().requires_grad_()
    with seen:
        (x * 2).sum().backward()
    assert seen.types == {torch.float64}
    with seen:
        Narrow()(x).sum().backward()
    assert seen.types == {torch.float64, torch.float32}
    torch.ones(2, dtype=torch.bfloat16)
    assert torch.bfloat16 not in seen.types, "nothing is seen afterwards"


def test_flops_are_counted() -> None:
    """``privet.privacy.mechanism.batch_coupling`` counts what a batch costs."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        nn.Linear(4, 6)(numbers(5, 4))
    assert counter.get_total_flops() == 2 * 5 * 4 * 6


@pytest.mark.parametrize(
    ("call", "names"),
    [
        (lambda x: x[x > 0], ("index", *compat.BY_VALUE)),
        (lambda x: (x > 0).nonzero(), compat.BY_VALUE),
        (lambda x: torch.where(x > 0), compat.BY_VALUE),
        (lambda x: x.masked_select(x > 0), compat.BY_VALUE),
        (lambda x: x.unique(), compat.BY_VALUE),
        (lambda x: x.sort(), compat.ORDERS),
        (lambda x: x.argsort(stable=True), compat.ORDERS),
        (lambda x: x.topk(2), compat.ORDERS),
        (lambda x: x[torch.tensor([2, 0])], compat.INDEXED),
        (lambda x: x.index_put((torch.tensor([2]),), torch.tensor([1.0])), compat.INDEXED),
        (lambda x: x.index_select(0, torch.tensor([2, 0])), compat.BY_INDEX),
        (lambda x: x.gather(0, torch.tensor([2, 0])), compat.BY_INDEX),
        (lambda x: x.index_add(0, torch.tensor([2, 0, 1]), x), compat.BY_INDEX),
        (lambda x: x.index_copy(0, torch.tensor([2, 0, 1]), x), compat.BY_INDEX),
        (lambda x: x.scatter(0, torch.tensor([2, 0, 1]), x), compat.BY_INDEX),
    ],
)
def test_operators_that_rearrange_rows_are_seen_by_name(call: Any, names: tuple[str, ...]) -> None:
    seen = []

    class Seeing(compat.DispatchMode):  # type: ignore[misc]
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            seen.append(compat.operator_name(func))
            return func(*args, **(kwargs or {}))

    with Seeing():
        call(torch.tensor([3.0, -1.0, 2.0]))
    assert set(seen) & set(names), seen


Maker = Any


@pytest.mark.parametrize(
    ("own", "public"),
    [
        (lambda p: compat.sgd(p, 0.1, 0.0), lambda p: torch.optim.SGD(p, lr=0.1)),
        (lambda p: compat.sgd(p, 0.1, 0.9), lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9)),
        (lambda p: compat.adam(p, 0.1), lambda p: torch.optim.Adam(p, lr=0.1)),
    ],
    ids=["sgd", "momentum", "adam"],
)
def test_an_optimizer_takes_the_steps_of_torchs_own(own: Maker, public: Maker) -> None:
    def steps(make: Maker) -> Sequence[Tensor]:
        parameters = [nn.Parameter(numbers(3, 2)), nn.Parameter(numbers(5))]
        optimizer = make(parameters)
        for _ in range(4):
            for parameter in parameters:
                parameter.grad = parameter.detach().sin() + 0.1
            optimizer.step()
            assert not any(parameter.grad_fn for parameter in parameters)
            optimizer.zero_grad(set_to_none=True)
            assert all(parameter.grad is None for parameter in parameters)
        assert torch.is_grad_enabled()
        return [parameter.detach() for parameter in parameters]

    found, expected = steps(own), steps(public)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert not torch.equal(found[0], numbers(3, 2))


_STEP = """
import sys, torch
from privet.common.compat import torch as compat

class Seeing(compat.DispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))

parameter = torch.nn.Parameter(torch.ones(2))
with Seeing():
    (parameter * 2).sum().backward()
for optimizer in OPTIMIZERS:
    optimizer.step()
    optimizer.zero_grad()
print("torch._dynamo" in sys.modules)
"""


@pytest.mark.parametrize(
    ("optimizers", "loaded"),
    [
        ("(compat.sgd([parameter], 0.1, 0.9), compat.adam([parameter], 0.1))", "False"),
        ("(torch.optim.SGD([parameter], 0.1),)", "True"),
    ],
    ids=["own", "control"],
)
def test_neither_loads_torchs_compiler(optimizers: str, loaded: str) -> None:
    """It takes seconds, in each process that trains. The control says when torch has mended it."""
    code = _STEP.replace("OPTIMIZERS", optimizers)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [loaded]


@pytest.mark.parametrize(
    ("first", "spins"), [("import privet", 0), ("pass", 300_000)], ids=["privet", "control"]
)
def test_threads_that_wait_sleep(first: str, spins: int) -> None:
    """Where a core is busy, a step takes twenty times as long beside threads that spin."""
    said = subprocess.run(
        [sys.executable, "-c", f"{first}; import torch"], text=True, capture_output=True, check=True,
        env={k: v for k, v in os.environ.items() if not k.startswith("OMP_")}
        | {"OMP_DISPLAY_ENV": "verbose"},
    ).stderr  # fmt: skip
    if "GOMP_SPINCOUNT" not in said:
        pytest.skip("torch's threads are of another OpenMP here")
    assert f"GOMP_SPINCOUNT = '{spins}'" in said
