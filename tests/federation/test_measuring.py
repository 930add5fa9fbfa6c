"""A trained model is measured apart from its training, through the gate, and paid for."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from federation_kit import Federation
from flwr.app import Message

from privet.client.trainer import Trainer
from privet.common.errors import InputError, PlanError, QuorumNotMet
from privet.common.flat import Arrays
from privet.common.models import initial_model
from privet.common.models.start import FOLDERS, offer
from privet.common.order import Status
from privet.common.plan import Plan
from privet.common.tasks.measure import pooled, table_shape
from privet.privacy.accounting import privacy_loss
from privet.privacy.events import Gaussian, Repeated
from privet.privacy.program import calibrated, measuring, planned
from privet.privacy.units import Relation, Unit
from privet.server.recorder import Recorder
from privet.server.snapshot import save_model
from privet.simulations.grid import InProcessGrid

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
            given[key] = {**given[key], **change} if key in given else change
        made: Federation = federation(**given)
        return made

    return make


def test_nothing_is_trained_and_one_table_is_paid_for(
    measured: Make, weights: tuple[str, Arrays], same: Make
) -> None:
    fed = measured(metrics={"noise_multiplier": 1.0})
    outcome = fed.run()
    assert same(outcome.model, weights[1])
    (step,) = outcome.progress
    assert set(step.statuses.values()) == {Status.RELEASED}
    overall, sites = pooled(step.histograms)
    assert set(sites) == {"North", "East", "South"}
    assert overall["accuracy"] is not None and overall["accuracy"] > 0.7
    for name in sites:
        assert fed.kinds(name) == ["reserved", "metric-released"]
        assert fed.ledger(name).history() == [Gaussian(1.0, 1.0)]
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
    with pytest.raises(QuorumNotMet, match=r"0 of 3 sites released a measurement.*3 failed"):
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
    assert event == Gaussian(noise, 1.0)
    assert 0.5 * 0.97 <= cost(noise) <= 0.5 < cost(noise / 2)


def test_a_measurement_above_the_budget_is_refused(plan_value: Make) -> None:
    value = plan_value(
        model={"kind": "linear", "start": "sha256:" + "0" * 64},
        training={"rounds": 0},
        metrics={"source": "gate", "noise_multiplier": 0.5},
        privacy={"epsilon": 1.0},
    )
    with pytest.raises(InputError, match="1 evaluations through the gate cost"):
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


class Silent(InProcessGrid):
    """The first sites receive orders to measure and never answer."""

    many = 1

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        replies = list(super().send_and_receive(messages, timeout=timeout))
        return [
            reply for reply in replies
            if not reply.metadata.message_type.startswith("evaluate")
            or reply.metadata.src_node_id > self.many
        ]  # fmt: skip


class MostlySilent(Silent):
    many = 2


def test_a_quorum_measures(measured: Make) -> None:
    fed = measured()
    outcome = fed.run(fed.grid(Silent))
    assert len(outcome.progress[0].histograms) == 2
    assert fed.verdict().ok


def test_without_a_quorum_there_is_no_figure(measured: Make) -> None:
    fed = measured()
    with pytest.raises(QuorumNotMet, match="1 of 3 sites released a measurement, the quorum is 2"):
        fed.run(fed.grid(MostlySilent))
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
        patched.setattr(Recorder, "close_round", dies)
        with pytest.raises(ConnectionError):
            fed.run()
    fed.run()
    verdict = fed.verdict()
    assert verdict.ok, verdict.faults
    assert [site.charges for site in verdict.sites] == [1, 1, 1]


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
        ({"privacy": "none"}, "need a \\[privacy\\] section"),
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


def test_a_plan_without_privacy_has_no_gate(plan_value: Make) -> None:
    with pytest.raises(InputError, match="no \\[privacy\\] section"):
        measuring(Plan.parse(plan_value(privacy="none")), "sha256:" + "0" * 64, 1.0)


# tables


def test_a_table_that_cannot_be_added_is_left_out() -> None:
    tables = {"a": np.eye(3), "b": 2 * np.eye(3), "c": np.ones((2, 10))}
    overall, sites = pooled(tables)
    assert set(sites) == {"a", "b"} and overall["accuracy"] == 1.0


@pytest.mark.parametrize(
    ("task", "shape"),
    [
        ({}, (2, 10)),
        ({"classes": ["0", "1", "2"]}, (3, 3)),
        ({"kind": "causal-text", "classes": []}, (1, 10)),
        ({"kind": "mine:task"}, None),
    ],
)
def test_the_shape_of_a_table(
    plan_value: Make, task: dict[str, Any], shape: tuple[int, int] | None
) -> None:
    assert table_shape(Plan.parse(plan_value(task=task))) == shape
