"""A training step on generated records, to be measured."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch

from privet.client.training.model_runtime import ModelRuntime
from privet.common.plan import Plan
from privet.common.threads import threads_of

_STEPS = 5
"""Steps of which the median is reported; one before them is not counted."""
_MAX_RECORDS = 64
"""Records of a measured step, at most."""


def step_of(plan: Plan, *, is_private: bool) -> Callable[[], object]:
    """Return a step on generated records, for a measurement in another process.

    Args:
        plan: names a clipping method that its model has passed.
        is_private: whether gradients are clipped.
    """
    torch.set_num_threads(threads_of(plan.threads))
    runtime = ModelRuntime(bounded(plan))
    runtime.engine.prepare(runtime.task.random_batch)
    step = ModelStep(runtime)
    return step.clipped if is_private else step.plain


def bounded(plan: Plan) -> Plan:
    """Return the plan with a bound of gradients: without one nothing would be clipped."""
    if plan.privacy is None and plan.training.clip is None:
        return plan.changed(training={"clip": 1.0})
    return plan


class ModelStep:
    """A training step on generated records.

    Attributes:
        records: of the step.
        peak: bytes of the steps that were measured last, on a CUDA device; else None.
    """

    def __init__(self, runtime: ModelRuntime) -> None:
        self._engine, self._device = runtime.engine, runtime.plan.device
        self.records = min(_MAX_RECORDS, runtime.engine.max_records)
        self.peak: int | None = None
        made = runtime.task.random_batch(self.records, 0)
        self._batch = {name: tensor.to(self._device) for name, tensor in made.items()}
        self._owner = np.arange(self.records)

    def clipped(self) -> object:
        """Sum clipped gradients, each record a unit."""
        return self._engine.clipped_sum(self._batch, self._owner, self.records, 1.0)

    def plain(self) -> object:
        """Sum gradients as they are."""
        return self._engine.plain_sum(self._batch)

    def seconds(self, work: Callable[[], object], at_most: float = math.inf) -> float:
        """Return the median seconds of a step; of one alone if it takes more than ``at_most``."""
        is_cuda = torch.device(self._device).type == "cuda"
        taken = []
        for _ in range(_STEPS + 1):
            if is_cuda:
                torch.cuda.reset_peak_memory_stats(self._device)
                torch.cuda.synchronize(self._device)
            began = time.perf_counter()
            work()
            if is_cuda:
                torch.cuda.synchronize(self._device)
            taken.append(time.perf_counter() - began)
            if len(taken) > 1 and taken[-1] > at_most:
                break
        if is_cuda:
            self.peak = int(torch.cuda.max_memory_allocated(self._device))
        return statistics.median(taken[1:])
