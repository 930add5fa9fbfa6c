"""Batch norms mix records; a plan puts other norms in their place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families_kit import plan_for
from torch import Tensor, nn

from privet.client.training.model_runtime import ModelRuntime
from privet.common.errors import CoupledRecordsError, PlanError
from privet.common.models import batch_norms, build_model
from privet.common.plan import Plan
from privet.simulations.run import simulate


class Convolutions(nn.Module):
    """What people write: convolutions with batch norms."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.BatchNorm1d(12),
        )  # fmt: skip
        self.head = nn.Linear(12, 2)
        with torch.no_grad():
            for norm in (self.body[1], self.body[5]):
                norm.running_mean.normal_()
                norm.running_var.uniform_(0.5, 2)

    def forward(self, pixels: Tensor) -> Tensor:
        found: Tensor = self.head(self.body(pixels))
        return found


def convolutions(task: Any) -> nn.Module:
    return Convolutions()


def plan_of(folder: Path, **model: str) -> Plan:
    return plan_for("image", {"kind": f"{__name__}:convolutions", **model}, folder)


def test_a_batch_norm_is_refused_with_what_to_write(tmp_path: Path) -> None:
    with pytest.raises(CoupledRecordsError, match="write batch_norm = 'group' or 'frozen' into"):
        ModelRuntime(plan_of(tmp_path))


@pytest.mark.parametrize("how", ["group", "frozen"])
def test_other_norms_train_with_privacy(how: str, tmp_path: Path) -> None:
    plan = plan_of(tmp_path, batch_norm=how)
    runtime = ModelRuntime(plan)
    assert runtime.self_tests == ("H6", "H7", "H16", "H17")
    kinds = {type(part) for part in runtime.engine.model.modules()}
    assert (nn.GroupNorm in kinds) == (how == "group")
    assert (batch_norms.FrozenBatchNorm in kinds) == (how == "frozen")
    before = {key: value.clone() for key, value in runtime.engine.model.named_buffers()}
    result = simulate(plan, out=tmp_path / "run")
    assert all(np.isfinite(array).all() for array in result.model.values())
    # Statistics of the records are not in the model.
    after = dict(ModelRuntime(plan).engine.model.named_buffers())
    assert all(torch.equal(after[key], value) for key, value in before.items())


def test_a_frozen_norm_computes_what_it_was_trained_for(tmp_path: Path) -> None:
    frozen, plain = build_model(plan_of(tmp_path, batch_norm="frozen")), Convolutions()
    plain.load_state_dict(frozen.state_dict())
    pixels = torch.randn(3, 1, 4, 4)
    assert frozen.training
    assert torch.allclose(frozen(pixels), plain.eval()(pixels))
    # The control: a group norm is another function.
    other = build_model(plan_of(tmp_path, batch_norm="group"))
    assert not torch.allclose(other(pixels), plain(pixels), atol=1e-3)


def test_what_cannot_be_replaced_is_said(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="the model has no batch norm; leave the key out"):
        build_model(plan_for("image", {"kind": "resnet", "batch_norm": "group"}, tmp_path))
    model = nn.Sequential(nn.BatchNorm2d(4, track_running_stats=False))
    with pytest.raises(PlanError, match="'0' keeps no statistics that could be frozen"):
        batch_norms.replaced(model, "frozen")


def test_a_plan_without_the_key_keeps_its_digest(tmp_path: Path) -> None:
    plan, other = plan_of(tmp_path), plan_of(tmp_path, batch_norm="group")
    assert "batch_norm" not in plan.to_dict()["model"]
    assert other.to_dict()["model"]["batch_norm"] == "group"
    assert plan.digest != other.digest == Plan.parse(other.to_dict()).digest
