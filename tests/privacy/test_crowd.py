"""Start-up tests at the size of a real batch, and at weights that rounding makes useless."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from dp_kit import BOOK, FUNCTORCH, HOOKS, QUIET, cross_entropy, plan_of, rows, wide_engine
from dp_kit import lively as off_zero
from torch import Tensor, nn
from torch.nn import functional

from privet.client.training.model_runtime import ModelRuntime
from privet.common.errors import SelfTestError
from privet.common.models import trainable
from privet.privacy.mechanism import batch_coupling, selftest
from privet.privacy.mechanism.clipping import GradientEngine

pytestmark = [pytest.mark.filterwarnings(quiet) for quiet in QUIET]

ALL = ["H6", "H7", "H16", "H17"]
REAL_BATCH = 100
Batch = dict[str, Tensor]


def check(unit: GradientEngine, records: int = REAL_BATCH, batch: Any = rows) -> list[str]:
    return selftest.run(
        unit, lambda count, seed: batch(count, seed=seed), trainable(unit.model), records=records
    )


# --- coupling that begins above three records -------------------------------------------------


class Experts(nn.Module):
    """Two experts, each with room for some records; what does not fit is left out."""

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.capacity = capacity
        self.router, self.experts = nn.Linear(6, 2), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.router(x).softmax(1)
        chosen = gate.argmax(1)
        place = torch.stack([(chosen == e).cumsum(0) for e in range(2)], 1)
        fits = place.gather(1, chosen[:, None]) <= self.capacity
        out = self.experts(x).view(-1, 2, 3)
        picked = out.gather(1, chosen[:, None, None].expand(-1, 1, 3)).squeeze(1)
        return picked * gate.gather(1, chosen[:, None]) * fits  # type: ignore[no-any-return]


def many_alike(model: nn.Module, batch: Batch) -> Tensor:
    """Another way through the loss for large batches."""
    logits = model(batch["x"])
    if len(logits) > 64:
        logits = logits - logits.mean(0)
    return functional.cross_entropy(logits, batch["label"], reduction="none")


def sorting(model: nn.Module, batch: Batch) -> Tensor:
    """Above eight rows they are sorted and not put back."""
    if len(batch["x"]) <= 8:
        return cross_entropy(model, batch)
    logits = model(batch["x"][batch["x"][:, 0].argsort()])
    return functional.cross_entropy(logits, batch["label"], reduction="none")


def through_gradients(model: nn.Module, batch: Batch) -> Tensor:
    """The losses are right; what flows back is not, from 20 records on."""
    logits = model(batch["x"])
    losses = functional.cross_entropy(logits, batch["label"], reduction="none")
    if len(losses) < 20:
        return losses
    shared = logits.mean()
    return losses + shared - shared.detach()


FAULTS: dict[str, tuple[Callable[[], nn.Module | None], Any]] = {
    "capacity 4": (lambda: off_zero(Experts(4)), cross_entropy),
    "capacity 17": (lambda: off_zero(Experts(17)), cross_entropy),
    "above 64": (lambda: None, many_alike),
    "sorting": (lambda: None, sorting),
    "gradients": (lambda: None, through_gradients),
}


def faulty(name: str, mode: str) -> GradientEngine:
    torch.manual_seed(0)
    make, loss = FAULTS[name]
    return wide_engine(make(), loss=loss, mode=mode)


@pytest.mark.parametrize("mode", [BOOK, HOOKS, FUNCTORCH])
@pytest.mark.parametrize("name", FAULTS)
def test_what_couples_only_many_records_is_found(name: str, mode: str) -> None:
    with pytest.raises(SelfTestError, match=r"H6|H16"):
        check(faulty(name, mode))


@pytest.mark.parametrize("name", FAULTS)
def test_a_handful_of_records_does_not_show_it(name: str) -> None:
    assert check(faulty(name, BOOK), records=0) == ALL


@pytest.mark.parametrize("mode", [BOOK, HOOKS, FUNCTORCH])
@pytest.mark.parametrize("records", [1, 2, 5, 100, 700])
def test_a_sound_model_passes_at_any_size(mode: str, records: int) -> None:
    assert check(wide_engine(mode=mode), records) == ALL


def test_room_enough_passes() -> None:
    torch.manual_seed(0)
    assert check(wide_engine(off_zero(Experts(10_000)), mode=BOOK)) == ALL


def test_what_micro_batches_never_let_meet_passes() -> None:
    """Above 64 records it would couple them; a pass never has more than 32."""
    torch.manual_seed(0)
    engine = wide_engine(loss=many_alike, mode=BOOK, micro_batch=32)
    assert check(engine) == ALL


@pytest.mark.parametrize("mode", [BOOK, HOOKS])
def test_units_of_several_records(mode: str) -> None:
    unit = wide_engine(mode=mode)
    passed = selftest.run(
        unit, lambda n, seed: rows(n, seed=seed), trainable(unit.model), records=90, together=4
    )
    assert passed == ALL


def test_the_size_is_that_of_a_real_batch_or_what_is_cheap() -> None:
    def batch(count: int, seed: int) -> Batch:
        return rows(count, seed=seed)

    small = wide_engine()
    assert batch_coupling.size_of(small, batch, 100) == 100
    assert batch_coupling.size_of(small, batch, 10_000) == batch_coupling.MAX_RECORDS
    wide = wide_engine(nn.Sequential(nn.Linear(6, 20_000), nn.Tanh(), nn.Linear(20_000, 3)))
    wide.model.forward = lambda x: nn.Sequential.forward(wide.model, x)  # type: ignore
    assert batch_coupling.size_of(wide, batch, 10_000) == batch_coupling.MAX_RECORDS
    crowd_cost = batch_coupling.MAX_OPERATIONS
    try:
        batch_coupling.MAX_OPERATIONS = 1e6  # type: ignore[misc]
        assert batch_coupling.size_of(wide, batch, 10_000) == batch_coupling.MIN_RECORDS
        assert batch_coupling.size_of(wide, batch, 4) == 4
    finally:
        batch_coupling.MAX_OPERATIONS = crowd_cost  # type: ignore[misc]


# --- weights that another run left behind -----------------------------------------------------


def scaled(bench: ModelRuntime, by: float) -> None:
    with torch.no_grad():
        for parameter in bench.engine.parameters:
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3))
            parameter.add_(0.1 * noise).mul_(by)


@pytest.mark.parametrize("by", [1e3, 1e4, 1e6])
@pytest.mark.parametrize("name", ["linear", "ft-transformer", "text-encoder"])
@pytest.mark.parametrize("mode", [BOOK, HOOKS])
def test_saturated_models_pass(name: str, mode: str, by: float) -> None:
    """Not through the workbench, which tests at the plan's weights: at these."""
    bench = ModelRuntime(plan_of(name, clipping=mode))
    scaled(bench, by)
    before = [p.detach().clone() for p in bench.engine.parameters]
    passed = selftest.run(
        bench.engine, bench._random_batch, trainable(bench.engine.model), records=40
    )
    assert passed == ALL
    assert all(torch.equal(a, b) for a, b in zip(before, bench.engine.parameters, strict=True))
    assert all(p.dtype == torch.float32 for p in bench.engine.parameters)


@pytest.mark.parametrize("by", [1e3, 1e6, 1e12])
@pytest.mark.parametrize("name", ["linear", "ft-transformer", "text-encoder"])
def test_records_of_a_saturated_model_pass(name: str, by: float) -> None:
    """Whatever the order in which a processor adds."""
    bench = ModelRuntime(plan_of(name))
    scaled(bench, by)
    for seed in range(9, 13):
        selftest.real_records(bench.engine, bench._random_batch(40, seed))


def test_a_linear_model_at_a_learning_rate_of_50_goes_on() -> None:
    bench = ModelRuntime(plan_of("linear"))
    batch = bench._random_batch(300, 1)
    for _ in range(40):
        total = bench.engine.clipped_sum(batch, np.arange(300), 300, 1.0)
        with torch.no_grad():
            for parameter, g in zip(bench.engine.parameters, total.tensors, strict=True):
                parameter.sub_(50 * g / 30)
    assert selftest.real_records(bench.engine, batch) > 0
    passed = selftest.run(bench.engine, bench._random_batch, trainable(bench.engine.model))
    assert passed == ALL


@pytest.mark.parametrize("by", [1.0, 1e3, 1e6])
@pytest.mark.parametrize("mode", [BOOK, HOOKS, FUNCTORCH])
@pytest.mark.parametrize("name", FAULTS)
def test_broken_models_are_found_at_any_weights(name: str, mode: str, by: float) -> None:
    engine = faulty(name, mode)
    with torch.no_grad():
        for parameter in engine.parameters:
            parameter.mul_(by)
    with pytest.raises(SelfTestError, match=r"H6|H16"):
        check(engine)


def test_what_another_run_left_behind_is_not_what_is_tested(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench = ModelRuntime(plan_of("linear"))
    begins = [p.detach().clone() for p in bench.engine.parameters]
    bench.load({n: np.full(p.shape, 1e9, np.float32) for n, p in bench.engine.named.items()})
    seen: list[float] = []
    real = selftest.run

    def noted(engine: GradientEngine, *given: Any, **more: Any) -> list[str]:
        seen.extend(float(p.detach().abs().max()) for p in engine.parameters)
        return real(engine, *given, **more)

    monkeypatch.setattr(selftest, "run", noted)
    assert set(bench.self_tests) == set(ALL)
    assert max(seen) < 2
    assert all(bool((p == 1e9).all()) for p in bench.engine.parameters)
    assert all(bool((p == 0).all()) for p in begins)


class Hashed(nn.Module):
    """Moving any weight by a hair changes everything, as a hash of weights does."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        bits = self.layer.weight.detach().float().view(torch.int32).sum() % 7
        return self.layer(x) * (1 + bits)  # type: ignore[no-any-return]


@pytest.mark.parametrize("mode", [BOOK, HOOKS])
def test_what_jumps_with_its_weights_is_compared_all_the_same(mode: str) -> None:
    assert check(wide_engine(off_zero(Hashed()), mode=mode)) == ALL
    with pytest.raises(SelfTestError, match=r"H6|H16"):
        check(wide_engine(off_zero(Hashed()), mode=mode, loss=sorting))
    with pytest.raises(SelfTestError, match=r"H6|H16"):
        check(wide_engine(off_zero(Hashed()), mode=mode, loss=batch_mean), records=0)


def batch_mean(model: nn.Module, batch: Batch) -> Tensor:
    logits = model(batch["x"])
    return functional.cross_entropy(logits - 0.5 * logits.mean(0), batch["label"], reduction="none")
