"""Norms are computed in double precision in every way to clip: nobody passes the bound."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from dp_kit import BOOK, FUNCTORCH, HOOKS, QUIET, norm
from torch import Tensor, nn

from privet.privacy.mechanism.clipping import (
    GradientEngine,
    ghost_norms,
    methods,
    parameter_gradients,
    per_unit_gradients,
)

pytestmark = [pytest.mark.filterwarnings(quiet) for quiet in QUIET]
MODES = (BOOK, HOOKS, FUNCTORCH)
VERY_MANY = 20_000_000


def in_single(rows: Tensor) -> Tensor:
    """As it was: a norm in the gradients' own type."""
    return torch.linalg.vector_norm(rows, dim=1).double().square()


def output(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """A loss whose gradient is the input."""
    return model(batch["x"]).flatten(1).sum(1)  # type: ignore[no-any-return]


def shares(mode: str, x: Tensor, clip: float, **options: Any) -> float:
    """The norm of one record's contribution, in units of the bound."""
    model = nn.Linear(x.shape[-1], 1, bias=False)
    nn.init.zeros_(model.weight)
    engine = GradientEngine(model, output, mode=mode)
    for one in options.get("ghost", []) and engine._method._layers.per_unit.parameters:  # type: ignore
        one._requested = False
    total = engine.clipped_sum({"x": x}, np.arange(len(x)), len(x), clip)
    engine.close()
    return norm(total.tensors) / clip


def planted(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (methods, ghost_norms, parameter_gradients, per_unit_gradients):
        monkeypatch.setattr(module, "squared_row_norms", in_single)


@pytest.mark.parametrize("mode", MODES)
def test_a_layer_with_very_many_numbers_does_not_pass_the_bound(mode: str) -> None:
    x = torch.full((1, VERY_MANY), 0.1)
    assert 1 - 3e-6 < shares(mode, x, 1.0) <= 1.0


@pytest.mark.parametrize("mode", [BOOK, HOOKS, FUNCTORCH])
def test_it_would_in_single_precision(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    planted(monkeypatch)
    assert shares(mode, torch.full((1, VERY_MANY), 0.1), 1.0) > 1.001


@pytest.mark.parametrize("rows", [1, 2])
def test_a_wide_ghost_does_not_pass_the_bound(rows: int) -> None:
    x = torch.full((1, rows, VERY_MANY // 4), 0.1)
    assert 1 - 3e-6 < shares(BOOK, x, 1.0, ghost=True) <= 1.0


@pytest.mark.parametrize("scale", [1e-22, 1e-30, 1.0, 1e20, 1e30])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("rows", [None, 3])
def test_numbers_whose_squares_float32_cannot_hold(
    mode: str, scale: float, rows: int | None
) -> None:
    shape = (1, 40) if rows is None else (1, rows, 40)
    x = torch.rand(shape, generator=torch.Generator().manual_seed(1)) * scale
    clip = float(x.double().flatten(0, -2).sum(0).norm()) / 2
    assert 1 - 3e-6 < shares(mode, x, clip) <= 1 + 1e-9


@pytest.mark.parametrize("scale", [1e-30, 1e20])
@pytest.mark.parametrize("mode", [BOOK, HOOKS, FUNCTORCH])
def test_float32_would_not_hold_them(
    mode: str, scale: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    planted(monkeypatch)
    clip = scale * 40**0.5 / 4
    found = shares(mode, torch.full((1, 40), scale), clip)
    assert found > 1.9 or found == 0.0  # passes the bound, or the record is left out


def test_a_factor_that_float32_would_round_far_adds_nothing() -> None:
    factors = methods.clip_factors(
        torch.tensor([1e76, 1e70, 4.0, np.inf], dtype=torch.float64), 1e-2
    )
    assert factors.tolist()[0] == 0.0 == factors.tolist()[3]
    assert factors[1] > 0 and float(factors[2]) == pytest.approx(5e-3, rel=2e-6)


@pytest.mark.parametrize("mode", [HOOKS, FUNCTORCH])
def test_bfloat16_gradients_are_clipped_and_added_in_float32(mode: str) -> None:
    model = nn.Linear(40, 1, bias=False).to(torch.bfloat16)
    engine = GradientEngine(model, output, mode=mode)
    x = torch.rand(300, 40, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    total = engine.clipped_sum({"x": x}, np.arange(300), 300, 0.1)
    assert total.tensors[0].dtype == torch.float32
    wide = x.double()
    want = (wide / wide.norm(dim=1, keepdim=True)).sum(0) * 0.1
    assert float((total.tensors[0].double() - want).norm()) < 1e-4 * float(want.norm())


# the error of the sum itself


@pytest.mark.parametrize("mode", [BOOK, HOOKS])
def test_rounding_of_a_sum_is_within_its_bound(mode: str) -> None:
    units, clip = 1000, 1.0
    x = torch.rand(units, 50, generator=torch.Generator().manual_seed(0)) + 0.5
    model = nn.Linear(50, 1, bias=False)
    engine = GradientEngine(model, output, mode=mode, micro_batch=16)
    total = engine.clipped_sum({"x": x}, np.arange(units), units, clip).tensors[0]
    factors = methods.clip_factors(methods.squared_row_norms(x), clip)
    exact = (x.double() * factors[:, None]).sum(0)
    lost = float((total.double() - exact).norm())
    assert 0 < lost <= methods.rounding_bound(units, clip)


def test_the_bound_on_rounding() -> None:
    assert methods.rounding_bound(0, 1.0) == 0.0
    assert methods.rounding_bound(100, 2.0) == pytest.approx(100 * 101 * 2**-24 * 2, rel=1e-4)
    assert methods.rounding_bound(100, 1.0, torch.float64) < 1e-11
    assert methods.rounding_bound(1 << 25, 1.0) == float("inf")
