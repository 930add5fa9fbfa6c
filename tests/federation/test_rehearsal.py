"""What the plan alone shows to be wrong is found before anything is paid for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from privet.client.training import rehearsal
from privet.client.training.model_runtime import model_runtime
from privet.client.training.rehearsal import rehearse
from privet.common.errors import InputError, PlanError
from privet.common.flat import digest_arrays
from privet.common.models import initial_model
from privet.common.order import Order, Status
from privet.common.plan import Plan
from privet.server.rehearsal import rehearse as rehearse_coordinator
from privet.simulations import run as simulation

Make = Callable[..., Any]
Orders = Callable[..., Order]

OWN = '''
import numpy as np
import torch
from privet.common.tasks.measure import Measure


class Base:
    def __init__(self, spec):
        self.options = spec.options

    def encode(self, frame):
        x = torch.tensor(frame[["x1", "x2"]].to_numpy(dtype="float32"))
        return {"numeric": x, "label": self.labels(torch.tensor(frame["y"].to_numpy(dtype="int64")))}

    def labels(self, y):
        return y

    def random_batch(self, records, seed):
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(records, 2, generator=generator)
        return {"numeric": x, "label": self.labels(torch.arange(records) % 2)}

    def loss(self, model, batch):
        wanted = batch["label"].float().reshape(len(batch["label"]), -1)[:, :1]
        return (model(batch["numeric"])[:, :1] - wanted).square().mean(1)

    def scores(self, model, batch):
        return model(batch["numeric"]).softmax(1)


class Fine(Base):
    pass


class Regression(Base):
    """Labels are numbers, and a score is one number: it needs a measure, and has none."""

    def labels(self, y):
        return y.float() * 1.5

    def scores(self, model, batch):
        return model(batch["numeric"])[:, :1]


def _mae(scores, labels):
    return {"mae": float(np.abs(scores[:, 0] - labels).mean())}


class Measured(Regression):
    """The same with a measure of its own."""

    measure = Measure("mae", ("mae",), True, _mae, lambda s, l, h: np.zeros(len(s), np.int64),
                      lambda plan: (1, plan.metrics.bins), lambda t: {})


class MultiLabel(Base):
    def labels(self, y):
        return torch.stack([y, 1 - y, y], 1)


class FlatScores(Base):
    def scores(self, model, batch):
        return model(batch["numeric"])[:, 0]


class ThirdClass(Base):
    def labels(self, y):
        return y + 1


class BadFigures(Base):
    measure = Measure(
        "mae", ("mae",), True, lambda s, l: [0.5], lambda s, l, h: np.zeros(len(s), np.int64),
        lambda plan: (1, plan.metrics.bins), lambda t: {}
    )


class ManyBatches(Base):
    def random_batch(self, records, seed):
        return super().random_batch(records + 1, seed)


def net(spec, **options):
    return torch.nn.Linear(2, 2)


def strategy(**options):
    raise ValueError("no such thing")


class NoModel:
    pass
'''


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plan_value: Make) -> Make:
    """A plan of a task in a module of the user's."""
    (tmp_path / "own_rehearsed.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(rehearsal, "_fault", rehearsal._fault.__wrapped__)

    def changes(task: str, **more: Any) -> dict[str, Any]:
        return {
            "task": {"kind": f"own_rehearsed:{task}", "classes": [], "numeric": {},
                     "categorical": {}},
            "model": {"kind": "own_rehearsed:net"},
            **more,
        }  # fmt: skip

    return changes


WRONG = [
    ("Regression", "public", r"its labels are float32 of the shape \[4\].*attribute 'measure'"),
    ("Regression", "gate", r"its labels are float32 of the shape \[4\].*attribute 'measure'"),
    ("MultiLabel", "public", r"its labels are int64 of the shape \[4, 3\]"),
    ("MultiLabel", "gate", r"its labels are int64 of the shape \[4, 3\]"),
    ("FlatScores", "public", "scores"),
    ("ThirdClass", "gate", "it scores 2 classes, and its labels go from 1 to 2"),
    ("BadFigures", "public", "'figures' must return numbers"),
    ("ManyBatches", "off", r"random_batch\(4, seed\) must make tensors"),
]


@pytest.mark.parametrize(("task", "source", "why"), WRONG)
def test_what_a_task_cannot_do_is_found_before_a_site_pays(
    federation: Make, order_for: Orders, own: Make, task: str, source: str, why: str
) -> None:
    fed = federation(**own(task, metrics={"source": source}))
    with pytest.raises(PlanError, match=why):
        rehearse(fed.plan)
    model = initial_model(fed.plan)
    answer = fed.sites[0].answer(order_for(fed, "North", model), model)
    assert answer.status is Status.REFUSED_SELF_TEST
    assert fed.kinds("North") == ["refused"]
    assert fed.ledger("North").history() == []
    assert fed.opened == []


@pytest.mark.parametrize(("task", "source", "why"), [w for w in WRONG[:2] if w[1] != "gate"])
def test_without_a_rehearsal_the_site_pays(
    federation: Make, order_for: Orders, own: Make, monkeypatch: pytest.MonkeyPatch,
    task: str, source: str, why: str,
) -> None:  # fmt: skip
    """The control: the old start-up tests, which saw neither scores nor labels."""
    monkeypatch.setattr(rehearsal, "rehearse", lambda plan: None)
    fed = federation(**own(task, metrics={"source": source}))
    model = initial_model(fed.plan)
    fed.sites[0].answer(order_for(fed, "North", model), model)
    assert fed.charged("North") == 1


@pytest.mark.parametrize("task", ["Fine", "Measured"])
@pytest.mark.parametrize("source", ["public", "off"])
def test_what_can_run_passes_and_leaves_the_model_as_it_was(
    own: Make, plan_value: Make, task: str, source: str
) -> None:
    plan = Plan.parse(plan_value(**own(task, metrics={"source": source})))
    rehearse(plan)
    named = model_runtime(plan).engine.named
    now = {name: p.detach().numpy() for name, p in named.items()}
    assert digest_arrays(now) == digest_arrays(initial_model(plan))


@pytest.mark.parametrize("how", [{"kind": "int8"}, {"kind": "top-k", "share": 0.5}])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("source", ["public", "gate", "off"])
def test_built_in_plans_pass(
    plan_value: Make, tmp_path: Path, how: dict[str, Any], optimizer: str, source: str
) -> None:
    plan = Plan.parse(
        plan_value(compression=how, training={"optimizer": optimizer}, metrics={"source": source})
    )
    rehearse(plan)
    rehearse_coordinator(plan, initial_model(plan), tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"kind": "own_nowhere:strategy"}, "cannot import 'own_nowhere'"),
        ({"kind": "own_rehearsed:strategy"}, "no such thing"),
        ({"kind": "own_rehearsed:NoModel"}, "NoModel"),
    ],
)
def test_a_strategy_that_cannot_be_made_is_found_by_the_coordinator(
    plan_value: Make, own: Make, tmp_path: Path, changes: dict[str, Any], why: str
) -> None:
    plan = Plan.parse(plan_value(strategy=changes))
    with pytest.raises(PlanError, match=why):
        rehearse_coordinator(plan, initial_model(plan), tmp_path / "snapshots")


def test_a_folder_that_cannot_be_written_is_found(plan_value: Make, tmp_path: Path) -> None:
    plan = Plan.parse(plan_value())
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="exists|Not a directory"):
        rehearse_coordinator(plan, initial_model(plan), tmp_path / "file")


def test_a_simulation_ends_before_it_has_a_folder(
    own: Make, plan_value: Make, tmp_path: Path, frame_of: Make
) -> None:
    value = plan_value(**own("Regression", metrics={"source": "public"}))
    for number, site in enumerate(value["sites"]):
        frame_of(60, number).to_csv(tmp_path / f"{number}.csv", index=False)
        site["path"] = f"{number}.csv"
    setting = simulation.Setting(base=tmp_path)
    with pytest.raises(InputError, match="its labels are float32"):
        simulation.run_plan(Plan.parse(value), setting, tmp_path / "run")
    assert not (tmp_path / "run").exists()
