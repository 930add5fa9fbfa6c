"""What :mod:`privet.common.compat.opacus` relies on: against a loop over single records."""

from __future__ import annotations

import warnings

import pytest
import torch
from opacus.validators import ModuleValidator
from torch import Tensor, nn

from privet.common.compat import opacus as compat

pytestmark = pytest.mark.filterwarnings("ignore:In CPU autocast:UserWarning")


class Net(nn.Module):
    """Layers that Opacus has samplers for; one of them may be used twice."""

    def __init__(self, times: int = 1) -> None:
        super().__init__()
        self.times = times
        self.table = nn.Embedding(7, 4)
        self.again = nn.Linear(4, 4)
        self.norm = nn.LayerNorm(4)
        self.head = nn.Linear(4, 1)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.table(ids)
        for _ in range(self.times):
            x = torch.tanh(self.again(x))
        made: Tensor = self.head(self.norm(x).mean(1)).squeeze(1)
        return made


def made(times: int = 1) -> Net:
    torch.manual_seed(3)
    return Net(times)


IDS = torch.tensor([[0, 1, 2], [3, 3, 4], [6, 5, 0], [1, 1, 1]])


def singles(net: Net) -> list[list[Tensor]]:
    trained = [p for p in net.parameters() if p.requires_grad]
    return [list(torch.autograd.grad(net(row[None]).square().sum(), trained)) for row in IDS]


@pytest.mark.parametrize(("functorch", "times"), [(False, 1), (False, 2), (True, 1)])
def test_hooks_leave_each_records_gradient_on_the_parameters(functorch: bool, times: int) -> None:
    net, expected = made(times), singles(made(times))
    trained = [p for p in net.parameters() if p.requires_grad]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = compat.hooked(net, functorch=functorch)
    compat.clear(trained)
    wrapped(IDS).square().sum().backward()
    for place, parameter in enumerate(trained):
        sample = compat.sample_of(parameter)
        sample = torch.stack(sample).sum(0) if isinstance(sample, list) else sample
        assert isinstance(sample, Tensor)
        ours = torch.stack([one[place] for one in expected])
        assert torch.allclose(sample, ours, atol=1e-5), place
    compat.clear(trained)
    assert all(p.grad is None and compat.sample_of(p) is None for p in trained)


def test_hooks_that_are_paused_leave_nothing_and_go_on_afterwards() -> None:
    net = made()
    trained = [p for p in net.parameters() if p.requires_grad]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = compat.hooked(net, functorch=False)
    wrapped.disable_hooks()
    compat.clear(trained)
    wrapped(IDS).square().sum().backward()
    assert all(compat.sample_of(p) is None and p.grad is not None for p in trained)
    wrapped.enable_hooks()
    compat.clear(trained)
    wrapped(IDS).square().sum().backward()
    assert all(compat.sample_of(p) is not None for p in trained)


def test_a_pass_that_was_broken_off_leaves_nothing_for_the_next() -> None:
    net, expected = made(), singles(made())
    trained = [p for p in net.parameters() if p.requires_grad]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = compat.hooked(net, functorch=False)
    wrapped(IDS)  # no backward pass
    assert any(getattr(p, "_forward_counter", 0) for p in trained)
    compat.forget(net, trained)
    compat.clear(trained)
    wrapped(IDS).square().sum().backward()
    found = torch.as_tensor(compat.sample_of(trained[-1])).flatten(1).norm(dim=1)
    ours = torch.stack([one[-1].norm() for one in expected])
    assert torch.allclose(found.float(), ours, atol=1e-5)


def test_a_model_is_as_it_was_when_opacus_lets_go() -> None:
    net = made()
    before = [set(vars(p)) for p in net.parameters()]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = compat.hooked(net, functorch=False)
    wrapped(IDS).square().sum().backward()
    compat.forget(net, net.parameters())
    compat.unhook(wrapped, net)
    assert [set(vars(p)) for p in net.parameters()] == before
    hooks = [m for m in net.modules() if m._forward_hooks or m._backward_hooks]
    assert not hooks
    assert not [m for m in net.modules() if {"activations", "max_batch_len"} & set(vars(m))]


def test_what_mixes_records_is_named() -> None:
    faults = ModuleValidator.validate(
        nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)), strict=False
    )
    assert faults and "BatchNorm" in str(faults[0])
    assert not ModuleValidator.validate(made(), strict=False)
