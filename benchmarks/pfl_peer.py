"""Apple's pfl as a peer: the same model and data, in its own simulation.

It has dependencies that Privet does not want, so it is found in another environment:

    python -m venv other && other/bin/pip install pfl
    python benchmarks/central.py --pfl other/lib/python3.11/site-packages
"""

from __future__ import annotations

import copy
import itertools
import json
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from privet.client.training.model_runtime import model_runtime
from privet.common.models import initial_model
from privet.common.plan import Plan


def find(folder: Path) -> None:
    """Make pfl importable; packages that are here already are used as they are.

    Args:
        folder: ``site-packages`` of an environment that has pfl.
    """
    sys.path.append(str(folder))
    import pfl  # noqa: F401

    # It says so for each array of each user.
    warnings.filterwarnings("ignore", message="To copy construct from a tensor")


class PflModel(nn.Module):
    """A plan's model with its task's loss, as pfl wants them.

    Args:
        plan: names both.
    """

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        bench = model_runtime(plan)
        self.model, self._task = copy.deepcopy(bench.engine.model), bench.task
        # The runtime is kept, and has the weights of what it computed last.
        begins = initial_model(plan)
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter.copy_(torch.from_numpy(np.array(begins[name])))

    def loss(self, **batch: Tensor) -> Tensor:
        """Return the mean loss of a batch."""
        return self._task.loss(self.model, batch).mean()

    def metrics(self, **batch: Tensor) -> dict[str, Any]:
        """Return nothing: the model is measured elsewhere."""
        return {}


def train(
    plan: Plan,
    datasets: list[dict[str, Tensor]],
    *,
    batch: int | None,
    steps: int,
    mechanism: tuple[float, float] | None = None,
    seed: int = 0,
    after: Callable[[nn.Module], None] = lambda model: None,
) -> nn.Module:
    """Train by pfl's federated averaging, and return the plan's model.

    Args:
        plan: gives model, rounds, sites of a round and learning rate.
        datasets: the encoded records of each user.
        batch: records of a step; None takes all of a user's.
        steps: of a user in a round: epochs where ``batch`` is None.
        mechanism: clip and noise multiplier of central noise; None adds none.
        seed: of weights and noise.
        after: called after each round.
    """
    from pfl.aggregate.simulate import SimulatedBackend
    from pfl.algorithm.base import NNAlgorithmParams
    from pfl.algorithm.federated_averaging import FederatedAveraging
    from pfl.callback.base import TrainingProcessCallback
    from pfl.data.federated_dataset import FederatedDataset
    from pfl.data.pytorch import PyTorchTensorDataset
    from pfl.data.sampling import get_user_sampler
    from pfl.hyperparam.base import NNTrainHyperParams
    from pfl.metrics import Metrics
    from pfl.model.pytorch import PyTorchModel
    from pfl.privacy.gaussian_mechanism import GaussianMechanism
    from pfl.privacy.privacy_mechanism import CentrallyAppliedPrivacyMechanism

    class Observer(TrainingProcessCallback):  # type: ignore[misc]
        def after_central_iteration(self, metrics: Any, model: Any, **_: Any) -> Any:
            after(model.pytorch_model.model)
            return False, Metrics()

    np.random.seed(seed)
    torch.manual_seed(seed)
    module = PflModel(plan)
    model = PyTorchModel(module, torch.optim.SGD, torch.optim.SGD(module.parameters(), lr=1.0))
    # Users in turns, as in the plan; each cycle has the same order.
    users = list(np.random.permutation(len(datasets)))
    data = FederatedDataset(
        lambda user: PyTorchTensorDataset(datasets[user]), get_user_sampler("minimize_reuse", users)
    )
    noise = []
    if mechanism is not None:
        noise = [CentrallyAppliedPrivacyMechanism(GaussianMechanism(*mechanism))]
    backend = SimulatedBackend(training_data=data, val_data=data, postprocessors=noise)
    FederatedAveraging().run(
        algorithm_params=NNAlgorithmParams(
            central_num_iterations=plan.training.rounds, evaluation_frequency=10**9,
            train_cohort_size=plan.sites_in_a_round, val_cohort_size=0,
        ),
        backend=backend,
        model=model,
        model_train_params=NNTrainHyperParams(
            local_batch_size=batch, local_num_epochs=None if batch else steps,
            local_num_steps=steps if batch else None,
            local_learning_rate=plan.training.learning_rate,
        ),
        callbacks=[Observer()],
        send_metrics_to_platform=False,
    )  # fmt: skip
    return module.model


def in_a_process(folder: Path, text: str, clients: int, number: int) -> list[float]:
    """Return what :func:`rounds` does in a process of its own, which pfl wants to be the main one.

    Args:
        folder: as :func:`find`.
        text: the plan.
        clients: of a round.
        number: of rounds.
    """
    words = [sys.executable, __file__, str(folder), str(clients), str(number)]
    done = subprocess.run(words, input=text, capture_output=True, text=True, check=True)
    found: list[float] = json.loads(done.stdout.splitlines()[-1])
    return found


def rounds(text: str, clients: int, number: int) -> list[float]:
    """Return the seconds of rounds of plain clients.

    Args:
        text: the plan.
        clients: of a round.
        number: of rounds.
    """
    from simulation_peers import BATCH, RECORDS, STEPS, plan_from

    plan = plan_from(text)
    plan = plan.changed(training={"rounds": number})
    task, at = model_runtime(plan).task, []
    datasets = [task.random_batch(RECORDS, seed) for seed in range(clients)]
    train(plan, datasets, batch=BATCH, steps=STEPS, after=lambda _: at.append(time.perf_counter()))
    return [end - start for start, end in itertools.pairwise(at)]


if __name__ == "__main__":
    find(Path(sys.argv[1]))
    torch.set_num_threads(1)
    print(json.dumps(rounds(sys.stdin.read(), int(sys.argv[2]), int(sys.argv[3]))))
