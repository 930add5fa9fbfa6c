"""A run that was stopped goes on with what its strategy kept, and ends with the same model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord
from flwr.serverapp.strategy import FedAvg
from test_aggregation import OPTIONS, WEIGHTS, random_arrays, updates_of

from privet.common.errors import PlanError, RunError
from privet.common.flat import Arrays
from privet.common.plan import Plan
from privet.server.aggregate import Aggregator
from privet.server.rehearsal import rehearse as rehearse_coordinator
from privet.server.snapshot import Snapshot, Snapshots
from privet.simulations.grid import InProcessGrid

Make = Callable[..., Any]
KEEPS = [kind for kind in OPTIONS if kind not in ("fedavg", "fedprox")]


class Doubling(FedAvg):
    """A strategy of the user's: it adds what the rounds before came to."""

    def __init__(self, *, weighted_by_key: str, kept: Any = None) -> None:
        super().__init__(weighted_by_key=weighted_by_key, fraction_evaluate=0.0, min_train_nodes=1)
        self.total = np.zeros(1)

    def aggregate_train(self, server_round: int, replies: Any) -> Any:
        arrays, metrics = super().aggregate_train(server_round, replies)
        assert arrays is not None
        self.total = self.total + server_round
        added = self.total.astype("f4")
        found = {key: Array(array.numpy() + added) for key, array in arrays.items()}
        return ArrayRecord(found), metrics


class Kept(Doubling):
    def state_dict(self) -> dict[str, Any]:
        return {"total": self.total}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.total = state["total"]


class Wrong(Doubling):
    def state_dict(self) -> Any:
        return {"total": "much"}


def played(
    plan: Plan, rounds: list[int], model: Arrays, before: Snapshot | None = None
) -> tuple[Arrays, Aggregator]:
    """Do rounds with updates that depend on the round alone, from a snapshot or the beginning."""
    aggregator = Aggregator(plan)
    if before is not None:
        aggregator.restore(before.state)
    grid: Any = InProcessGrid(lambda message, context: message, 3)  # type: ignore[arg-type]
    for number in rounds:
        updates = {name: random_arrays(10 * number + k) for k, name in enumerate(WEIGHTS)}
        aggregator.configure(number, model, grid)
        model = dict(aggregator.aggregate(number, model, updates_of(updates)))
    return model, aggregator


@pytest.mark.parametrize("block", [1 << 20, 5], ids=["whole", "in blocks"])
@pytest.mark.parametrize("kind", [*OPTIONS, f"{__name__}:Kept"], ids=lambda kind: str(kind)[-12:])
def test_a_restarted_strategy_makes_the_same_models(
    plan_value: Make, tmp_path: Path, same: Callable[..., bool], kind: str, block: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("privet.server.aggregate.BLOCK", block)
    options = OPTIONS.get(kind, {})
    plan = Plan.parse(plan_value(strategy={"kind": kind, "options": options}))
    start = random_arrays(0)
    expected, _ = played(plan, [1, 2, 3, 4], start)
    half, aggregator = played(plan, [1, 2], start)
    snapshots = Snapshots(tmp_path)
    earlier = (random_arrays(7),)
    snapshots.store(Snapshot(2, half, {"a": 1}, earlier, aggregator.state()))
    kept = snapshots.latest()
    assert kept is not None
    assert same(kept.arrays, half) and same(kept.earlier[0], earlier[0])
    assert same(played(plan, [3, 4], dict(kept.arrays), kept)[0], expected)
    # The control: without what it kept the strategy makes another model, where it keeps anything.
    assert same(played(plan, [3, 4], half)[0], expected) is (kind in ("fedavg", "fedprox"))


def test_what_is_kept_must_be_arrays(plan_value: Make) -> None:
    plan = Plan.parse(plan_value(strategy={"kind": f"{__name__}:Wrong"}))
    _, aggregator = played(plan, [1], random_arrays(0))
    with pytest.raises(RunError, match="'total' as <U4: use float16, float32 or float64"):
        aggregator.state()


class Raises(Doubling):
    def state_dict(self) -> Any:
        raise KeyError("total")


class NoWayBack(Doubling):
    def state_dict(self) -> Any:
        return {"total": self.total}


class Own(Doubling):
    """It happens to call things of its own as Flower's strategies do."""

    def aggregate_train(self, server_round: int, replies: Any) -> Any:
        self.m_t, self.v_t, self.momentum_vector = np.zeros(3), 0.5, {"a": "b"}
        return super().aggregate_train(server_round, replies)


@pytest.mark.parametrize(
    ("kind", "why"),
    [("Wrong", "'total' as <U4"), ("Raises", "gives no arrays"), ("NoWayBack", "load_state_dict")],
)
def test_a_state_that_cannot_be_kept_is_found_before_anybody_pays(
    plan_value: Make, tmp_path: Path, kind: str, why: str
) -> None:
    plan = Plan.parse(plan_value(strategy={"kind": f"{__name__}:{kind}"}))
    with pytest.raises(PlanError, match=why):
        rehearse_coordinator(plan, random_arrays(0), tmp_path)


def test_attributes_of_a_strategy_of_the_users_are_left_alone(
    plan_value: Make, tmp_path: Path
) -> None:
    plan = Plan.parse(plan_value(strategy={"kind": f"{__name__}:Own"}))
    rehearse_coordinator(plan, random_arrays(0), tmp_path)
    assert played(plan, [1], random_arrays(0))[1].state() == {}


def test_no_name_of_a_parameter_stands_in_a_snapshots_way(
    tmp_path: Path, same: Callable[..., bool]
) -> None:
    names = ("w", "0/w", "strategy:0/m_t/w", "~0/w")
    model, earlier = ({name: random_arrays(n)["head.bias"] for name in names} for n in (1, 2))
    state = random_arrays(3)
    state = {"0/m_t/w": state["head.weight"]}
    snapshots = Snapshots(tmp_path)
    snapshots.store(Snapshot(1, model, {}, (earlier,), state))
    kept = snapshots.latest()
    assert kept is not None
    assert same(kept.arrays, model) and same(kept.earlier[0], earlier) and same(kept.state, state)


def test_a_strategy_that_begins_anew_says_so(
    plan_value: Make, caplog: pytest.LogCaptureFixture
) -> None:
    for kind, says in (("fedadam", True), ("fedavgm", True), ("fedavg", False)):
        caplog.clear()
        options = OPTIONS[kind]
        Aggregator(Plan.parse(plan_value(strategy={"kind": kind, "options": options}))).restore({})
        assert ("it restarts" in caplog.text) is says


def test_a_snapshot_of_an_earlier_version_has_no_state(tmp_path: Path) -> None:
    snapshots = Snapshots(tmp_path)
    snapshots.store(Snapshot(1, random_arrays(0), {}))
    kept = snapshots.latest()
    assert kept is not None and kept.state == {}
