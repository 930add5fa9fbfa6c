"""The peers of a simulated client update: a loop by hand, and that loop in Flower's simulation.

In a module of its own, which Ray's workers can import.
"""

from __future__ import annotations

import copy
import functools
import itertools
import json
import os
import sys
import time
from collections.abc import Callable

import torch

from privet.client.training.model_runtime import model_runtime
from privet.common.plan import Plan
from privet.common.tasks import Batch

RECORDS, BATCH, STEPS = 32, 8, 4


def batch_of(plan: Plan) -> Batch:
    """Return the records of a step."""
    return model_runtime(plan).task.random_batch(BATCH, 0)


def client_step(plan: Plan) -> Callable[[], None]:
    """Return the local training of a client by hand, from fresh weights."""
    bench = model_runtime(plan)
    start, task, batch = copy.deepcopy(bench.engine.model), bench.task, batch_of(plan)
    privacy = plan.privacy

    def plain() -> None:
        model = copy.deepcopy(start)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(STEPS):
            optimizer.zero_grad()
            task.loss(model, batch).mean().backward()
            optimizer.step()

    def private() -> None:
        from opacus import GradSampleModule
        from opacus.optimizers import DPOptimizer

        assert privacy is not None
        model = GradSampleModule(copy.deepcopy(start))
        optimizer = DPOptimizer(
            torch.optim.SGD(model.parameters(), lr=0.1),
            noise_multiplier=privacy.noise_multiplier or 1.0,
            max_grad_norm=privacy.clip,
            expected_batch_size=BATCH,
        )
        for _ in range(STEPS):
            optimizer.zero_grad()
            task.loss(model, batch).mean().backward()
            optimizer.step()

    return plain if privacy is None else private


def loop(text: str, clients: int) -> list[float]:
    """Return the seconds of rounds by hand."""
    step, taken = client_step(plan_from(text)), []
    for _ in range(4):
        began = time.perf_counter()
        for _ in range(clients):
            step()
        taken.append(time.perf_counter() - began)
    return taken[1:]


def flower(text: str, clients: int, rounds: int) -> list[float]:
    """Return the seconds of rounds of Flower's simulation on Ray: the loop, in its ClientApp."""
    from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
    from flwr.clientapp import ClientApp
    from flwr.serverapp import Grid, ServerApp
    from flwr.serverapp.strategy import FedAvg
    from flwr.simulation import run_simulation

    weights = model_runtime(plan_from(text)).engine.model.state_dict()
    client, server = ClientApp(), ServerApp()
    at: list[float] = []
    answered: list[int] = []

    @client.train()
    def train(message: Message, context: Context) -> Message:
        del context
        client_step(plan_from(text))()
        metrics = MetricRecord({"num-examples": RECORDS})
        content = RecordDict({"arrays": message.content["arrays"], "metrics": metrics})
        return Message(content, reply_to=message)

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        del context
        strategy = FedAvg(fraction_train=1.0, fraction_evaluate=0.0, min_available_nodes=clients)
        done = strategy.start(
            grid, ArrayRecord(weights), num_rounds=rounds,
            evaluate_fn=lambda *_: at.append(time.perf_counter()),
        )  # fmt: skip
        answered.extend(done.train_metrics_clientapp)

    cores = os.cpu_count() or 1
    init = {"num_cpus": cores, "include_dashboard": False, "log_to_driver": False}
    os.environ["PYTHONPATH"] = os.pathsep.join(p for p in sys.path if p)  # the workers' as well
    run_simulation(
        server, client, clients,
        backend_config={"init_args": init, "client_resources": {"num_cpus": 1}},
    )  # fmt: skip
    assert len(answered) == rounds, "Flower's clients failed"
    return [end - start for start, end in itertools.pairwise(at)]


@functools.cache
def plan_from(text: str) -> Plan:
    """Return the plan; the same one in each worker, which has one model."""
    return Plan.parse(json.loads(text), where="benchmark")
