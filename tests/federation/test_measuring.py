"""A trained model is measured apart from its training, through the gate, and paid for."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from federation_kit import Federation, Silent

from privet.client.training.trainer import Trainer
from privet.common.canonical import write_json
from privet.common.errors import InputError, PlanError, QuorumError
from privet.common.flat import Arrays
from privet.common.models import build_model, initial_model
from privet.common.models.start import FOLDERS, offer
from privet.common.order import Status
from privet.common.plan import Plan
from privet.common.run_files import figures_path
from privet.common.tasks.measure import pooled, table_shape
from privet.delivery.trained import load
from privet.privacy.accounting.events import DiscreteGaussian, Gaussian, Repeated, gate_release
from privet.privacy.accounting.noise_calibration import calibrated, measuring
from privet.privacy.accounting.plan_events import planned
from privet.privacy.accounting.pld import privacy_loss
from privet.privacy.accounting.units import Relation, Unit
from privet.server.evidence.collector import EvidenceCollector
from privet.server.queue import Run
from privet.server.run import execute_run
from privet.server.snapshot import save_model

Make = Callable[..., Any]
NONE: dict[str, Any] = {"training": {"rounds": 0}, "metrics": {"source": "gate"}}


@pytest.fixture
def weights(
    tmp_path: Path, plan_value: Make, monkeypatch: pytest.MonkeyPatch
) -> tuple[str, Arrays]:
    """The digest of a file of weights that are right on most records, and the weights."""
    monkeypatch.delenv(FOLDERS, raising=False)
    model = initial_model(Plan.parse(plan_value()))
    name = next(name for name, array in model.items() if array.ndim == 2)
    model[name] = np.zeros_like(model[name])
    model[name][:, :2] = [[-4.0, 4.0], [4.0, -4.0]]
    path = tmp_path / "weights" / "model.safetensors"
    save_model(path, model, {})
    return offer(path), model


@pytest.fixture
def measured(federation: Make, weights: tuple[str, Arrays]) -> Callable[..., Federation]:
    """Make a federation that only measures those weights."""

    def make(**changes: Any) -> Federation:
        given = {**NONE, "model": {"start": weights[0]}}
        for key, change in changes.items():
            merged = key in given and key != "model"
            given[key] = {**given[key], **change} if merged else change
        made: Federation = federation(folder=f"run-{next(numbers)}", **given)
        return made

    numbers = itertools.count()

    return make


def test_nothing_is_trained_and_one_table_is_paid_for(
    measured: Make, weights: tuple[str, Arrays], same: Make
) -> None:
    # So little noise that some thirty records show it: at 1.0 one run in six said less.
    fed = measured(metrics={"noise_multiplier": 0.25}, privacy={"epsilon": 30})
    outcome = fed.run()
    assert same(outcome.model, weights[1])
    (step,) = outcome.progress
    assert set(step.statuses.values()) == {Status.RELEASED}
    overall, sites = pooled(step.histograms)
    assert set(sites) == {"North", "East", "South"}
    assert overall["accuracy"] is not None and overall["accuracy"] > 0.7
    for name in sites:
        assert fed.kinds(name) == ["reserved", "metric-released"]
        assert fed.ledger(name).history() == [DiscreteGaussian(2**18, 2**20)]
        assert step.spent[name] == fed.ledger(name).spent().to_dict()
    (round_,) = fed.journal_entries("round")
    told = round_.predicate
    assert told["joined"] == [] and len(told["metrics"]) == 3
    assert told["model"] == told["next"] == told["shown"]
    verdict = fed.verdict()
    assert verdict.ok, verdict.faults
    assert {(site.charges, site.runs) for site in verdict.sites} == {(1, 1)}


def test_what_is_charged_is_what_was_drawn(measured: Make) -> None:
    """A trainer that adds a tenth of the noise says so by its event, and nothing leaves."""
    fed = measured()
    quiet = fed.plan.changed(metrics={"noise_multiplier": fed.plan.metrics.noise_multiplier / 10})
    for site in fed.sites:
        site._trainer = Trainer(quiet, site.name, lambda name=site.name: fed.data(name))
    with pytest.raises(QuorumError, match=r"0 of 3 sites released a measurement.*3 failed"):
        fed.run()
    assert fed.verdict().ok


def test_the_noise_costs_what_was_asked(plan_value: Make, weights: tuple[str, Arrays]) -> None:
    plan = measuring(Plan.parse(plan_value()), weights[0], 0.5)
    assert calibrated(plan) == plan
    (event, count), *others = planned(plan)
    assert (others, count) == ([], 1)

    def cost(noise: float) -> float:
        events = [Repeated(Gaussian(noise, 1.0), 1)]
        return privacy_loss(events, 1e-4, Unit("record"), Relation("add_or_remove_one")).epsilon

    noise = plan.metrics.noise_multiplier
    assert event == gate_release(noise)
    assert 0.5 * 0.97 <= cost(noise) <= 0.5 < cost(noise / 2)


def test_a_measurement_above_the_budget_is_refused(plan_value: Make) -> None:
    value = plan_value(
        model={"kind": "linear", "start": "sha256:" + "0" * 64},
        training={"rounds": 0},
        metrics={"source": "gate", "noise_multiplier": 0.5},
        privacy={"epsilon": 1.0},
    )
    with pytest.raises(InputError, match="1 evaluation costs"):
        calibrated(Plan.parse(value))


def test_no_order_to_train_is_answered(
    measured: Make, order_for: Make, weights: tuple[str, Arrays]
) -> None:
    fed, model = measured(), weights[1]
    for changes in ({}, {"purpose": "evaluate", "round": 2}):
        answer = fed.sites[0].answer(order_for(fed, "North", model, **changes), model)
        assert answer.status is Status.REFUSED_PLAN
    assert fed.ledger("North").history() == []
    assert fed.opened == []
    answer = fed.sites[0].answer(order_for(fed, "North", model, purpose="evaluate"), model)
    assert answer.status is Status.RELEASED


def test_no_other_weights_are_measured(
    measured: Make, order_for: Make, weights: tuple[str, Arrays]
) -> None:
    """A site approved the digest of these: a coordinator cannot have others measured."""
    fed = measured()
    other = {name: array + np.float32(1) for name, array in weights[1].items()}
    order = order_for(fed, "North", other, purpose="evaluate")
    assert fed.sites[0].answer(order, other).status is Status.REFUSED_PARAMETERS
    assert fed.ledger("North").history() == []
    # The control: in a training run a site measures what it is sent.
    trains = measured(training={"rounds": 1}, model={"kind": "linear"})
    order = order_for(trains, "North", other, purpose="evaluate")
    assert trains.sites[0].answer(order, other).status is Status.RELEASED


class Unmeasured(Silent):
    """One site never answers an order to measure; its log is shown."""

    silent_to = ("evaluate",)


class MostlyUnmeasured(Unmeasured):
    nodes = (1, 2)


def test_a_quorum_measures(measured: Make) -> None:
    fed = measured()
    outcome = fed.run(fed.grid(Unmeasured))
    assert len(outcome.progress[0].histograms) == 2
    assert fed.verdict().ok


def test_without_a_quorum_there_is_no_figure(measured: Make) -> None:
    fed = measured()
    with pytest.raises(QuorumError, match="1 of 3 sites released a measurement, the quorum is 2"):
        fed.run(fed.grid(MostlyUnmeasured))
    verdict = fed.verdict()
    assert verdict.ok, verdict.faults
    assert fed.journal_entries("run-closed")[0].predicate["how"] == "failed"


def test_a_coordinator_that_dies_before_its_line_pays_nothing_twice(
    measured: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    fed = measured()

    def dies(*_: Any) -> None:
        raise ConnectionError

    with monkeypatch.context() as patched:
        patched.setattr(EvidenceCollector, "close_round", dies)
        with pytest.raises(ConnectionError):
            fed.run()
    fed.run()
    verdict = fed.verdict()
    assert verdict.ok, verdict.faults
    assert [site.charges for site in verdict.sites] == [1, 1, 1]


def queued(folder: Path, plan: Plan) -> Run:
    """A run as a coordinator has it before its first round."""
    write_json(folder / "plan.json", plan.to_dict())
    status = {"run": folder.name, "state": "queued", "submitted": 1.0, "plan": plan.digest}
    write_json(folder / "status.json", status)
    return Run(folder)


def test_a_coordinator_that_dies_before_it_told_knows_it_afterwards(
    measured: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fed = measured()
    run = queued(tmp_path / "hub", fed.plan)

    def go() -> None:
        execute_run(
            run, fed.grid(), lambda: initial_model(fed.plan),
            lambda: fed.parties.collector(fed.roster),
        )  # fmt: skip

    def dies(*_: Any) -> None:
        raise ConnectionError

    with monkeypatch.context() as patched:
        patched.setattr(EvidenceCollector, "close_round", dies)
        with pytest.raises(ConnectionError):
            go()
    go()
    status = run.status
    assert (status["state"], status["round"], status["measured"]) == ("done", 1, 1)
    assert set(status["spent"]) == set(status["site_metrics"]) == {"North", "East", "South"}


# plans


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"metrics": {"source": "public"}}, "must be 'gate'"),
        ({"metrics": {"source": "off"}}, "must be 'gate'"),
        ({"model": {"kind": "linear"}}, "must name the trained weights"),
        ({"compression": {"kind": "int8"}}, "'compression' has no meaning"),
        ({"strategy": {"average_last": 2}}, "average_last"),
        ({"training": {"rounds": -1}}, "rounds"),
        ({"split": {"test": 0.0}}, "'split.test' holds nothing out"),
        ({"privacy": "none"}, "needs a \\[privacy\\] section"),
    ],
)
def test_plans_that_make_no_sense(plan_value: Make, changes: dict[str, Any], said: str) -> None:
    value = plan_value(**NONE, model={"kind": "linear", "start": "sha256:" + "0" * 64})
    value["privacy"].pop("noise_multiplier")
    Plan.parse(value)
    for key, change in changes.items():
        merged = isinstance(change, dict) and key not in ("model", "compression")
        value[key] = {**value.get(key, {}), **change} if merged else change
    with pytest.raises(PlanError, match=said):
        Plan.parse(value)


def test_weights_of_another_task_are_not_measured(
    tmp_path: Path, plan_value: Make, weights: tuple[str, Arrays]
) -> None:
    part = {name: array for name, array in weights[1].items() if array.ndim == 2}
    path = tmp_path / "part" / "model.safetensors"
    save_model(path, part, {})
    plan = Plan.parse(plan_value(model={"kind": "linear", "start": offer(path)}))
    initial_model(plan)  # to train from, it will do
    with pytest.raises(PlanError, match="weights of another model"):
        initial_model(measuring(plan, offer(path), 1.0))


class Body(torch.nn.Module):
    """Two layers, of which the first may be frozen."""

    def __init__(self, task: Any, *, frozen: bool = False) -> None:
        super().__init__()
        self.body, self.head = torch.nn.Linear(3, 4), torch.nn.Linear(4, len(task.classes))
        self.body.requires_grad_(not frozen)

    def forward(self, numeric: Any, missing: Any, categorical: Any) -> Any:
        return self.head(self.body(torch.cat([numeric, categorical.float()], 1)))


def test_what_an_earlier_run_trained_and_this_one_froze_goes_along(
    tmp_path: Path, plan_value: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(FOLDERS, raising=False)

    def trained(name: str, **model: Any) -> Any:
        plan = Plan.parse(plan_value(model=model))
        moved = {name: array + np.float32(1) for name, array in initial_model(plan).items()}
        save_model(tmp_path / name / "model/model.safetensors", moved, {"plan": plan.digest})
        write_json(tmp_path / name / "plan.json", plan.to_dict())
        return load(tmp_path / name)

    kind = f"{__name__}:Body"
    whole = trained("one", kind=kind)
    assert whole.weights.name == "model.safetensors"
    head = trained("two", kind=kind, options={"frozen": True}, start=offer(whole.weights))
    assert list(head.arrays) == ["head.weight", "head.bias"]

    def same(weights: Path) -> bool:
        plan = measuring(head.plan, offer(weights), 1.0)
        found, right = dict(build_model(plan).named_parameters()), head.network.named_parameters()
        return all(torch.equal(found[name], parameter) for name, parameter in right)

    assert same(head.weights)
    # The control: the file of the trained parameters alone has another body.
    assert not same(tmp_path / "two" / "model" / "model.safetensors")


def test_a_plan_without_privacy_has_no_gate(plan_value: Make) -> None:
    with pytest.raises(InputError, match="no \\[privacy\\] section"):
        measuring(Plan.parse(plan_value(privacy="none")), "sha256:" + "0" * 64, 1.0)


# tables


def test_a_table_that_cannot_be_added_is_left_out() -> None:
    tables = {"a": np.eye(3), "b": 2 * np.eye(3), "c": np.ones((2, 10))}
    overall, sites = pooled(tables)
    assert set(sites) == {"a", "b"} and overall["accuracy"] == 1.0


def test_one_odd_table_does_not_push_out_the_others() -> None:
    tables = {"a": np.zeros((1, 1)), "b": np.eye(3), "c": np.eye(3)}
    assert set(pooled(tables)[1]) == {"b", "c"}


def test_a_table_that_only_its_own_measure_reads_has_no_figures(
    measured: Make, tmp_path: Path
) -> None:
    assert pooled({"a": np.ones((3, 5))}) == ({}, {"a": {}})
    run = queued(tmp_path / "hub", measured().plan)
    run.keep_figures(1, {"a": np.ones((3, 5))})
    assert run.status["metrics"] == {}
    kept = json.loads(figures_path(run.folder, 1).read_text())
    assert kept["tables"] == {"a": np.ones((3, 5)).tolist()}


@pytest.mark.parametrize(
    ("task", "shape"),
    [
        ({}, (2, 10)),
        ({"classes": ["0", "1", "2"]}, (3, 3)),
        (None, (1, 10)),
        ({"kind": "mine:task"}, None),
    ],
)
def test_the_shape_of_a_table(
    plan_value: Make, task: dict[str, Any] | None, shape: tuple[int, int] | None
) -> None:
    value = plan_value(task=task or {})
    value["task"] = value["task"] if task is not None else {"kind": "causal-text"}
    assert table_shape(Plan.parse(value)) == shape
