"""Joining updates: public weights, site order, and Flower's own strategies as reference."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import (
    FedAdagrad,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedProx,
    FedYogi,
)

from privet.common.errors import RunError
from privet.common.flat import Arrays, digest_arrays
from privet.common.flower.wire import to_record
from privet.common.mapped import Draft, Mapped
from privet.common.plan import Plan
from privet.server.aggregate import Aggregator, mean_of
from privet.server.snapshot import Snapshot, Snapshots
from privet.simulations.grid import InProcessGrid

Make = Callable[..., Any]

OPTIONS: dict[str, dict[str, float]] = {
    "fedavg": {},
    "fedprox": {},
    "fedavgm": {"server_learning_rate": 0.7, "server_momentum": 0.9},
    "fedadam": {"eta": 0.05, "beta_1": 0.9, "beta_2": 0.99, "tau": 1e-2},
    "fedyogi": {"eta": 0.05, "beta_1": 0.9, "beta_2": 0.99, "tau": 1e-2},
    "fedadagrad": {"eta": 0.05, "tau": 1e-2},
}
FLOWERS: dict[str, Any] = {
    "fedavg": FedAvg, "fedprox": FedProx, "fedavgm": FedAvgM, "fedadam": FedAdam,
    "fedyogi": FedYogi, "fedadagrad": FedAdagrad,
}  # fmt: skip
WEIGHTS = {"North": 60, "East": 30, "South": 10}


@pytest.fixture
def grid() -> InProcessGrid:
    """A grid of three nodes that are never asked."""
    return InProcessGrid(lambda message, context: message, 3)  # type: ignore[arg-type]


def random_arrays(seed: int) -> Arrays:
    generator = np.random.default_rng(seed)
    return {
        "head.weight": generator.normal(size=(2, 7)).astype(np.float32),
        "head.bias": generator.normal(size=2).astype(np.float32),
    }


def updates_of(arrays: dict[str, Arrays]) -> dict[str, tuple[Message, Arrays]]:
    """Return updates with the replies that brought them."""
    nodes = {name: number + 1 for number, name in enumerate(WEIGHTS)}
    asked = {name: Message(RecordDict(), nodes[name], "train") for name in arrays}
    return {
        name: (Message(RecordDict(), reply_to=asked[name]), value) for name, value in arrays.items()
    }


def by_hand(model: Arrays, updates: dict[str, Arrays], weights: dict[str, float]) -> Arrays:
    """The weighted mean of model + update, added in the order of ``weights``, in float32."""
    total = sum(weights[name] for name in weights if name in updates)
    joined: Arrays = {}
    for name, weight in weights.items():
        for key in model if name in updates else ():
            part = (model[key] + updates[name][key]) * (weight / total)
            joined[key] = joined[key] + part if key in joined else part
    return joined


def test_fedavg_is_the_mean_weighted_by_public_sizes(
    plan_value: Make, grid: InProcessGrid, same: Callable[..., bool]
) -> None:
    aggregator = Aggregator(Plan.parse(plan_value()))
    model = random_arrays(0)
    updates = {name: random_arrays(seed + 1) for seed, name in enumerate(WEIGHTS)}
    aggregator.configure(1, model, grid)
    joined = aggregator.aggregate(1, model, updates_of(updates))
    assert same(joined, by_hand(model, updates, WEIGHTS))
    exact = {
        key: model[key].astype(float)
        + sum(WEIGHTS[n] * updates[n][key].astype(float) for n in WEIGHTS) / 100
        for key in model
    }
    for key in model:
        np.testing.assert_allclose(joined[key], exact[key], atol=1e-6)
    # Other weights, or another order of adding, would not pass for the same.
    assert not same(joined, by_hand(model, updates, {"North": 61, "East": 30, "South": 10}))
    assert not same(joined, by_hand(model, updates, dict.fromkeys(WEIGHTS, 1)))
    assert not same(joined, by_hand(model, updates, dict(reversed(WEIGHTS.items()))))


def test_the_mean_of_some_sites_is_over_their_weights(
    plan_value: Make, grid: InProcessGrid, same: Callable[..., bool]
) -> None:
    aggregator = Aggregator(Plan.parse(plan_value()))
    model = random_arrays(0)
    updates = {name: random_arrays(seed) for seed, name in enumerate(["South", "North"], 5)}
    aggregator.configure(1, model, grid)
    joined = aggregator.aggregate(1, model, updates_of(updates))
    assert same(joined, by_hand(model, updates, WEIGHTS))


def test_updates_in_any_order_give_the_same_bits(
    plan_value: Make, grid: InProcessGrid, same: Callable[..., bool]
) -> None:
    model = random_arrays(0)
    updates = {name: random_arrays(seed + 1) for seed, name in enumerate(WEIGHTS)}
    results = []
    for names in (list(WEIGHTS), list(reversed(WEIGHTS)), ["East", "South", "North"]):
        aggregator = Aggregator(Plan.parse(plan_value()))
        aggregator.configure(1, model, grid)
        results.append(
            aggregator.aggregate(1, model, updates_of({name: updates[name] for name in names}))
        )
    assert same(results[0], results[1])
    assert same(results[0], results[2])


@pytest.mark.parametrize("kind", list(FLOWERS))
def test_zero_updates_leave_the_model_where_it_is(
    plan_value: Make, grid: InProcessGrid, kind: str
) -> None:
    plan = Plan.parse(plan_value(strategy={"kind": kind, "options": OPTIONS[kind]}))
    aggregator = Aggregator(plan)
    model = random_arrays(0)
    zero = {key: np.zeros_like(array) for key, array in model.items()}
    aggregator.configure(1, model, grid)
    joined = aggregator.aggregate(1, model, updates_of(dict.fromkeys(WEIGHTS, zero)))
    for key in model:
        np.testing.assert_allclose(joined[key], model[key], atol=1e-6)
        assert joined[key].dtype == np.float32


def flowers_own(
    strategy: Any, grid: InProcessGrid, model: Arrays, rounds: Iterable[dict[str, Arrays]]
) -> Arrays:
    """Run Flower's class as its own documentation says, replies in site order."""
    for number, updates in enumerate(rounds, 1):
        messages = strategy.configure_train(number, to_record(model), ConfigRecord(), grid)
        assert len(list(messages)) == 3
        replies = []
        for message, reply in ((m, u) for m, u in updates_of(updates).values()):
            moved = {key: model[key] + reply[key] for key in model}
            replies.append((message, moved))
        content = [
            Message(
                RecordDict({
                    "arrays": to_record(moved),
                    "metrics": MetricRecord({"num-examples": float(weight)}),
                }),
                reply_to=message,
            )
            for (message, moved), weight in zip(replies, WEIGHTS.values(), strict=True)
        ]  # fmt: skip
        arrays, _ = strategy.aggregate_train(number, content)
        assert isinstance(arrays, ArrayRecord)
        model = {key: arrays[key].numpy().astype(np.float32) for key in model}
    return model


@pytest.mark.parametrize("kind", list(FLOWERS))
def test_strategies_give_what_flowers_classes_give(
    plan_value: Make, grid: InProcessGrid, same: Callable[..., bool], kind: str
) -> None:
    rounds = [
        {name: random_arrays(10 * number + seed) for seed, name in enumerate(WEIGHTS)}
        for number in range(1, 4)
    ]
    plan = Plan.parse(plan_value(strategy={"kind": kind, "options": OPTIONS[kind]}))
    aggregator = Aggregator(plan)
    model = random_arrays(0)
    for number, updates in enumerate(rounds, 1):
        aggregator.configure(number, model, grid)
        model = aggregator.aggregate(number, model, updates_of(updates))
    options = {**OPTIONS[kind], **({"proximal_mu": 0.0} if kind == "fedprox" else {})}
    reference = FLOWERS[kind](fraction_evaluate=0.0, **options)
    assert same(model, flowers_own(reference, grid, random_arrays(0), rounds))
    if OPTIONS[kind]:
        # The options reach the strategy: with its defaults it goes elsewhere.
        plain = FLOWERS[kind](fraction_evaluate=0.0)
        assert not same(model, flowers_own(plain, grid, random_arrays(0), rounds))


def test_a_strategy_of_ones_own_is_used(
    plan_value: Make, grid: InProcessGrid, same: Callable[..., bool]
) -> None:
    kind = "flwr.serverapp.strategy:FedMedian"
    options = {"min_train_nodes": 1.0, "min_available_nodes": 1.0}
    aggregator = Aggregator(Plan.parse(plan_value(strategy={"kind": kind, "options": options})))
    model = random_arrays(0)
    updates = {name: random_arrays(seed + 1) for seed, name in enumerate(WEIGHTS)}
    aggregator.configure(1, model, grid)
    joined = aggregator.aggregate(1, model, updates_of(updates))
    middle = {
        key: np.median([model[key] + updates[name][key] for name in WEIGHTS], axis=0)
        for key in model
    }
    assert same(joined, {key: array.astype(np.float32) for key, array in middle.items()})


def test_no_update_is_an_error(plan_value: Make, grid: InProcessGrid) -> None:
    aggregator = Aggregator(Plan.parse(plan_value()))
    aggregator.configure(1, random_arrays(0), grid)
    with pytest.raises(RunError, match="no site released an update"):
        aggregator.aggregate(1, random_arrays(0), {})


@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_a_model_that_is_not_finite_is_an_error(plan_value: Make, grid: InProcessGrid) -> None:
    aggregator = Aggregator(Plan.parse(plan_value()))
    huge = {key: np.full_like(array, 3e38) for key, array in random_arrays(0).items()}
    aggregator.configure(1, huge, grid)
    with pytest.raises(RunError, match="finite"):
        aggregator.aggregate(1, huge, updates_of(dict.fromkeys(WEIGHTS, huge)))


def test_the_mean_of_models_is_their_mean() -> None:
    models = [random_arrays(seed) for seed in range(4)]
    mean = mean_of(models)
    for key in mean:
        expected = np.mean([model[key].astype(float) for model in models], axis=0)
        np.testing.assert_array_equal(mean[key], expected.astype(np.float32))


@pytest.mark.parametrize("kind", list(OPTIONS))
def test_a_model_that_is_joined_in_blocks_is_the_same_bits(
    kind: str,
    grid: InProcessGrid,
    plan_value: Make,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """Moments over several rounds, blocks that end within an array, sites that stay away."""
    plan = Plan.parse(plan_value(strategy={"kind": kind, "options": OPTIONS[kind]}))
    models = []
    for size, scratch in ((1 << 20, None), (5, None), (5, tmp_path)):
        monkeypatch.setattr("privet.server.aggregate.BLOCK", size)
        aggregator, model = Aggregator(plan, scratch), random_arrays(0)
        for number in (1, 2, 3):
            aggregator.configure(number, model, grid)
            arrays = {name: random_arrays(10 * number + k) for k, name in enumerate(WEIGHTS)}
            if number == 2:
                del arrays["East"]
            model = aggregator.aggregate(number, model, updates_of(arrays))
        models.append(model)
        assert len(aggregator._strategies) == (1 if size > 16 else 4)
        assert isinstance(model, Mapped) is (scratch is not None)
    assert len({digest_arrays(model) for model in models}) == 1
    assert not list(tmp_path.iterdir())  # its files have no names


def test_a_snapshot_is_read_where_it_lies(tmp_path: Path) -> None:
    """It is what was stored, to the last bit, also once the next one has replaced its file."""
    first, second, third = (random_arrays(k) for k in range(3))
    snapshots = Snapshots(tmp_path)
    snapshots.store(Snapshot(1, first, {"a": 1}, (second, third)))
    read = snapshots.latest()
    assert read is not None
    snapshots.store(Snapshot(2, third, {}))
    assert isinstance(read.arrays, Mapped)
    assert (read.round, read.record) == (1, {"a": 1})
    for made, found in zip((first, second, third), (read.arrays, *read.earlier), strict=True):
        assert list(made) == list(found)
        assert digest_arrays(made) == digest_arrays(found)
    with pytest.raises(ValueError, match="read-only"):
        read.arrays["head.bias"][...] = 0


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc")
def test_memory_is_given_back_while_a_file_is_read(tmp_path: Path) -> None:
    """Reading 64 MB of a mapped model leaves less than 32 MB of it in memory."""
    draft = Draft(tmp_path, {"w": np.zeros(1 << 24, np.float32)})
    draft.arrays["w"][...] = 1.0
    model = draft.seal()
    before = _resident()
    digest_arrays(model)
    assert _resident() - before < 32 << 20
    assert float(model["w"].sum()) == 1 << 24
    assert _resident() - before > 48 << 20  # read by one that does not give back


def test_a_disk_without_room_is_an_error_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mapped file that has no blocks yet ends the process where the disk is full (SIGBUS)."""

    def full(descriptor: int, offset: int, size: int) -> None:
        raise OSError(errno.ENOSPC, "no room")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="no room"):
        Draft(tmp_path, {"w": np.zeros(8, np.float32)})


def _resident() -> int:
    text = Path("/proc/self/statm").read_text()
    return int(text.split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_a_mean_in_blocks_is_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    given = [random_arrays(k) for k in range(3)]
    whole = mean_of(given)
    monkeypatch.setattr("privet.server.aggregate.BLOCK", 3)
    parts = mean_of(given)
    assert all(np.array_equal(whole[name], parts[name]) for name in whole)
