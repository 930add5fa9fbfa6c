"""A user's own measure goes through the gate, and is tried before anything is paid for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from privet.client.training.model_runtime import ModelRuntime
from privet.common.errors import SelfTestError
from privet.common.plan import Plan

OWN = """
import numpy as np
import torch
from privet.common.tasks.measure import Measure

RANGE = 4.0
NAMES = ("absolute_error",)


def figures(scores, labels):
    return {"absolute_error": float(np.abs(scores[:, 0] - labels).mean())}


def cells(scores, labels, shape):
    return (np.abs(scores[:, 0] - labels) / RANGE * shape[1]).clip(0, shape[1] - 1).astype(int)


def read(table):
    table = np.maximum(table, 0)[0]
    return {"absolute_error": float(table @ (np.arange(len(table)) + 0.5)) * RANGE / len(table)}


class Guess:
    def __init__(self, spec):
        self.spec = spec
        self.measure = Measure(
            "absolute_error", NAMES, True, figures, HOSTILE.get(spec.options.get("fault"), cells),
            lambda plan: (1, plan.metrics.bins), read,
        )

    def encode(self, frame):
        rows = torch.tensor(frame[["x1", "x2"]].to_numpy(), dtype=torch.float32)
        return {"x": rows, "label": torch.tensor(frame["y"].to_numpy(), dtype=torch.float32)}

    def loss(self, model, batch):
        return (model(batch["x"])[:, 0] - batch["label"]) ** 2

    def scores(self, model, batch):
        found = model(batch["x"])
        return found - found.mean(0) if self.spec.options.get("fault") == "batch" else found

    def random_batch(self, records, seed):
        generator = torch.Generator().manual_seed(seed)
        return {
            "x": torch.randn((records, 2), generator=generator),
            "label": torch.rand(records, generator=generator),
        }


HOSTILE = {
    "kind": lambda scores, labels, shape: 1e6 * (scores[:, 0] - labels) ** 2,
    "beyond": lambda scores, labels, shape: np.array([10**6]),
    "raises": lambda scores, labels, shape: scores["x"],
}


def task(spec):
    return Guess(spec)


def model(spec):
    net = torch.nn.Linear(2, 1)
    torch.nn.init.zeros_(net.weight)  # all scores are alike before it is trained
    return net
"""


@pytest.fixture
def own_plan(
    tmp_path: Path, plan_value: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Plan]:
    """A plan whose task and measure are a user's own: a regression."""
    (tmp_path / "guess_of_ours.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)

    def make(**options: Any) -> Plan:
        return Plan.parse(
            plan_value(
                task={
                    "kind": "guess_of_ours:task", "classes": [], "numeric": {}, "categorical": {},
                    "options": options,
                },
                model={"kind": "guess_of_ours:model"},
                metrics={"source": "gate", "noise_multiplier": 0.25},
                privacy={"epsilon": 60},
            )
        )  # fmt: skip

    return make


def test_a_measure_of_ones_own_goes_through_the_gate(
    own_plan: Callable[..., Plan], federation: Callable[..., Any]
) -> None:
    plan = own_plan().to_dict()
    fed = federation(**{name: plan[name] for name in ("task", "model", "metrics", "privacy")})
    outcome = fed.run()
    tables = list(outcome.progress[-1].histograms.values())
    assert {table.shape for table in tables} == {(1, 10)}
    assert all(np.array_equal(table * 2**20, np.rint(table * 2**20)) for table in tables)
    assert fed.verdict().ok


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("kind", "no cell for any generated record"),
        ("beyond", "no cell for any generated record"),
        ("raises", "for the first it fails"),
        ("batch", "H6: the scores of a record depend on the records beside it"),
    ],
)
def test_a_faulty_measure_is_found_before_anything_is_paid_for(
    own_plan: Callable[..., Plan], fault: str, said: str
) -> None:
    assert ModelRuntime(own_plan()).self_tests  # the control
    with pytest.raises(SelfTestError, match=said):
        ModelRuntime(own_plan(fault=fault)).self_tests  # noqa: B018
