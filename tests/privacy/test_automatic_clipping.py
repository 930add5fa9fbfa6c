"""Automatic clipping: no unit passes the bound, whatever the size of its gradient."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dp_kit import BOOK, FUNCTORCH, HOOKS, QUIET, norm
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from privet.client.data.records import site_data
from privet.client.data.tables import read_table
from privet.client.training.model_runtime import ModelRuntime
from privet.client.training.trainer import mechanism, usable_records
from privet.common.errors import PlanError
from privet.common.plan import Plan
from privet.privacy.mechanism.clipping import GradientEngine, methods
from privet.privacy.mechanism.clipping.methods import STABILITY, AutomaticBound, clip_factors
from privet.privacy.mechanism.dpsgd import DpSgd, PlainSgd
from privet.privacy.policy import DataSet
from privet.simulations import scenarios
from privet.simulations.planning import without_privacy

pytestmark = [pytest.mark.filterwarnings(quiet) for quiet in QUIET]
Make = Callable[..., Any]
MODES = (BOOK, HOOKS, FUNCTORCH, "vmap", "one-by-one")
C = 0.5


def output(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """A loss whose gradient is the input."""
    return model(batch["x"]).flatten(1).sum(1)  # type: ignore[no-any-return]


def total_of(mode: str, x: Tensor, bound: methods.Bound, owner: list[int] | None = None) -> Any:
    model = nn.Linear(x.shape[-1], 1, bias=False)
    nn.init.zeros_(model.weight)
    engine = GradientEngine(model, output, mode=mode)
    units = np.arange(len(x)) if owner is None else np.array(owner)
    found = engine.clipped_sum({"x": x}, units, int(units[-1]) + 1, bound)
    engine.close()
    return found


# the bound


@given(
    st.floats(min_value=1e-150, max_value=1e150),
    st.sampled_from([1e-3, 0.5, 1.0, 1e3]),
)
def test_no_factor_passes_the_bound(size: float, limit: float) -> None:
    factor = float(
        clip_factors(torch.tensor([size**2], dtype=torch.float64), AutomaticBound(limit))
    )
    assert factor * size <= limit
    if 1e-20 < size < 1e20:
        assert factor * size == pytest.approx(limit * size / (size + STABILITY), rel=1e-5)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", [1e-9, 1e-4, 0.01, 1.0, 1e4, 1e15])
def test_a_unit_gives_as_much_as_its_norm_says(mode: str, size: float) -> None:
    x = torch.randn(1, 700, generator=torch.Generator().manual_seed(0))
    x *= size / x.norm()
    found = total_of(mode, x, AutomaticBound(C))
    assert found.clip == C
    assert norm(found.tensors) <= C
    assert norm(found.tensors) == pytest.approx(C * size / (size + STABILITY), rel=1e-4)


def test_a_planted_factor_passes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: what the tests above must notice."""

    def planted(squared_norms: Tensor, clip: AutomaticBound) -> Tensor:
        return clip.limit / squared_norms.double().sqrt().add(STABILITY) * 1.001

    monkeypatch.setattr(methods, "clip_factors", planted)
    assert norm(total_of(BOOK, torch.ones(1, 700) * 1e4, AutomaticBound(C)).tensors) > C


def test_rounding_errors_are_not_lifted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A record that has nothing to say gives nothing; without γ its last digits would fill C."""
    x = torch.full((1, 700), 1e-12)
    assert norm(total_of(BOOK, x, AutomaticBound(C)).tensors) < 1e-8
    monkeypatch.setattr(methods, "STABILITY", 0.0)
    assert norm(total_of(BOOK, x, AutomaticBound(C)).tensors) > 0.99 * C


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e38])
def test_a_gradient_without_a_norm_gives_nothing(mode: str, bad: float) -> None:
    good = torch.ones(2, 8)
    with_bad = torch.cat([good, torch.full((1, 8), bad)])
    if bad == 1e38:  # its sum is beyond float32 in some ways; its share is within the bound in all
        assert norm(total_of(mode, with_bad[2:], AutomaticBound(C)).tensors) <= C
        return
    want = total_of(mode, good, AutomaticBound(C)).tensors
    got = total_of(mode, with_bad, AutomaticBound(C)).tensors
    for one, other in zip(want, got, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("mode", MODES)
def test_a_persons_records_share_one_bound(mode: str) -> None:
    x = torch.randn(9, 30, generator=torch.Generator().manual_seed(1)) * 40
    whole = total_of(mode, x, AutomaticBound(C), [0, 0, 0, 0, 1, 1, 1, 2, 2]).tensors
    without = total_of(mode, x[[0, 1, 2, 3, 7, 8]], AutomaticBound(C), [0, 0, 0, 0, 1, 1]).tensors
    moved = norm([one - other for one, other in zip(whole, without, strict=True)])
    assert 0.9 * C < moved <= C * (1 + 1e-6)


# from the file to the sum, and the event


def plan_of(plan_value: Make, rule: str = "automatic", **changes: Any) -> Plan:
    training = {"clip_rule": rule, **changes.pop("training", {})}
    return Plan.parse(plan_value(training=training, **changes))


@pytest.mark.parametrize("unit", ["record", "person"])
def test_one_unit_more_in_the_file_moves_the_sum_by_c(
    unit: str, plan_value: Make, frame_of: Make, tmp_path: Path
) -> None:
    privacy = {"unit": unit, "clip": C, **({"max_records": 3} if unit == "person" else {})}
    plan = plan_of(plan_value, privacy=privacy)
    bench = ModelRuntime(plan)
    frame = frame_of(30, 3, persons=9)
    left_out = frame["patient"].eq(frame["patient"].iloc[0])
    if unit == "record":
        left_out &= ~left_out.shift(fill_value=False).cummax()
    sums = []
    for name, part in (("whole", frame), ("without", frame[~left_out])):
        part.to_csv(tmp_path / f"{name}.csv", index=False)
        data = DataSet(
            population="p", nominal_size=10, person_column="patient" if unit == "person" else None
        )
        site = site_data(read_table(tmp_path / f"{name}.csv"), data, plan, f"{name}.csv")
        used = usable_records(bench, site.train)
        owner = np.empty(len(next(iter(used.examples.values()))), np.int64)
        order = used.units.records
        sizes = np.diff(used.units.starts)
        owner = np.repeat(np.arange(len(sizes)), sizes)
        rows = {n: tensor[torch.as_tensor(order)] for n, tensor in used.examples.items()}
        made = bench.engine.clipped_sum(rows, owner, len(sizes), mechanism(plan).bound)
        sums.append(made.tensors)
    moved = norm([one - other for one, other in zip(*sums, strict=True)])
    assert moved <= C * (1 + 1e-6)
    kept = site_data(read_table(tmp_path / "whole.csv"), data, plan, "whole.csv").train
    if len(kept) > len(site.train):  # the record was one to train on, and not held out
        assert moved > 0.5 * C


def test_event_and_noise_are_those_of_plain_clipping(plan_value: Make) -> None:
    one, other = (mechanism(plan_of(plan_value, rule)) for rule in ("bound", "automatic"))
    assert isinstance(one, DpSgd) and isinstance(other, DpSgd)
    assert one.event == other.event
    assert one.bound == one.clip and other.bound == AutomaticBound(other.clip)


def test_without_privacy_the_rule_stays(plan_value: Make) -> None:
    plain = mechanism(plan_of(plan_value, privacy=None, training={"clip": 0.3}))
    assert isinstance(plain, PlainSgd) and plain.bound == AutomaticBound(0.3)


@pytest.mark.parametrize("name", scenarios.names())
def test_every_scenario_has_its_run_without_privacy(name: str) -> None:
    """Where that run has no bound, there is none to come near."""
    plan = scenarios.get(name).make_plan().changed(training={"clip_rule": "automatic"})
    plain = without_privacy(plan)
    assert plain.training.is_automatic == (plain.training.clip is not None)


@pytest.mark.parametrize("changes", [{"privacy": None}])
def test_a_rule_that_bounds_nothing_is_refused(plan_value: Make, changes: dict[str, Any]) -> None:
    with pytest.raises(PlanError, match="clip_rule"):
        plan_of(plan_value, **changes)


def test_plans_of_before_keep_their_digest(plan_value: Make) -> None:
    plan = Plan.parse(plan_value())
    assert "clip_rule" not in plan.to_dict()["training"]
    assert plan_of(plan_value, "bound").digest == plan.digest
    changed = plan_of(plan_value)
    assert changed.digest != plan.digest
    assert Plan.parse(changed.to_dict()).digest == changed.digest
