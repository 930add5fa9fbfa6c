"""What :mod:`privet.common.compat.flower_strategies` relies on, and how a strategy is fed."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAdagrad, FedAdam, FedAvg, FedAvgM, FedProx, FedYogi, Strategy

from privet.common.compat.flower import ZeroCopyRecord, claim_identity, number_message
from privet.common.compat.flower_strategies import begin_round, give_back, keeps, kept_by

SHAPES = {"w": (2, 3), "b": (3,)}
KEPT: dict[type[Strategy], set[str]] = {
    FedAvg: set(),
    FedProx: set(),
    FedAvgM: {"momentum_vector/0", "momentum_vector/1"},
    FedAdam: {"m_t/w", "m_t/b", "v_t/w", "v_t/b"},
    FedYogi: {"m_t/w", "m_t/b", "v_t/w", "v_t/b"},
    FedAdagrad: {"m_t/w", "m_t/b", "v_t/w", "v_t/b"},
}


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR, logger="flwr")


def made(kind: type[Strategy]) -> Any:
    more: dict[str, Any] = {FedProx: {"proximal_mu": 0.1}, FedAvgM: {"server_momentum": 0.9}}.get(
        kind, {}
    )
    return kind(
        fraction_evaluate=0.0, min_train_nodes=1, min_evaluate_nodes=0, min_available_nodes=1,
        weighted_by_key="weight", **more,
    )  # fmt: skip


def model(seed: int) -> dict[str, Any]:
    generator = np.random.default_rng(seed)
    return {name: generator.normal(size=shape).astype("float32") for name, shape in SHAPES.items()}


class Nodes:
    """What a strategy asks a grid before it makes messages."""

    def get_node_ids(self) -> list[int]:
        return [1, 2]


def round_of(strategy: Any, number: int, start: dict[str, Any]) -> dict[str, Any]:
    """Have a strategy join two sites' models; return what it makes of them."""
    claim_identity(1)
    begin_round(strategy)
    asked = list(strategy.configure_train(number, ZeroCopyRecord(start), ConfigRecord(), Nodes()))
    replies = []
    for site, message in zip((1, 2), asked, strict=True):
        number_message(message)
        content = {
            "arrays": ZeroCopyRecord(model(10 * number + site)),
            "metrics": MetricRecord({"weight": 10.0 * site}),
        }
        replies.append(Message(RecordDict(content), reply_to=message))
    arrays, _ = strategy.aggregate_train(number, replies)
    return {name: array.numpy() for name, array in arrays.items()}


@pytest.mark.parametrize("kind", KEPT)
def test_what_a_strategy_keeps_is_all_of_its_state(kind: type[Strategy]) -> None:
    """A new one that was given it goes on as the first would, to the last bit."""
    first, restarted, forgetful = made(kind), made(kind), made(kind)
    assert kept_by(first) == {} and keeps(first) == bool(KEPT[kind])
    joined = round_of(first, 1, model(0))
    assert set(kept_by(first)) == KEPT[kind]
    give_back(restarted, kept_by(first))
    after, ours, lost = (round_of(one, 2, joined) for one in (first, restarted, forgetful))
    assert all(np.array_equal(after[name], ours[name]) for name in SHAPES)
    if KEPT[kind]:
        assert not all(np.array_equal(after[name], lost[name]) for name in SHAPES)


def test_a_strategy_without_momentum_keeps_nothing() -> None:
    strategy = FedAvgM(min_train_nodes=1, min_available_nodes=1, weighted_by_key="weight")
    round_of(strategy, 1, model(0))
    assert not keeps(strategy) and kept_by(strategy) == {}


def test_a_round_starts_from_the_model_that_the_sites_got() -> None:
    """Else momentum would go from the model of the last round, whatever became of it."""
    strategy, other = made(FedAvgM), made(FedAvgM)
    round_of(strategy, 1, model(0))
    round_of(other, 1, model(0))
    strategy.configure_train(2, ZeroCopyRecord(model(5)), ConfigRecord(), Nodes())
    assert strategy.current_arrays["w"] is not None
    kept = strategy.current_arrays["w"].numpy()
    assert not np.array_equal(kept, model(5)["w"]), "Flower keeps its own"
    begin_round(other)
    list(other.configure_train(2, ZeroCopyRecord(model(5)), ConfigRecord(), Nodes()))
    assert np.array_equal(other.current_arrays["w"].numpy(), model(5)["w"])
