"""Check a plan's model without data: how it is clipped, what that costs, what is trained."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from privet.client.training.model_runtime import ModelRuntime
from privet.common.plan import Plan

_STEPS = 3
"""Steps of which the median is reported; one before them is not counted."""
_MAX_RECORDS = 64
"""Records of a measured step, at most."""


@dataclass(frozen=True)
class ModelCheck:
    """What a check found; the start-up test has passed.

    Attributes:
        way: how per-unit gradients are computed.
        passed_over: ways that ``auto`` tried before, and why each does not fit.
        trained: names of the trained parameters, and how many numbers each has.
        frozen: numbers in parameters that are not trained.
        records: of a measured step.
        seconds: of such a step with privacy.
        plain_seconds: of the same without.
        peak_bytes, plain_peak_bytes: the most memory of each on a CUDA device; None on a CPU.
    """

    way: str
    passed_over: dict[str, str]
    trained: dict[str, int]
    frozen: int
    records: int
    seconds: float
    plain_seconds: float
    peak_bytes: int | None
    plain_peak_bytes: int | None

    def to_dict(self) -> dict[str, Any]:
        """Return what ``privet model check --json`` prints."""
        return {
            "clipping": self.way,
            "passed_over": self.passed_over,
            "trained": self.trained,
            "trained_numbers": sum(self.trained.values()),
            "frozen_numbers": self.frozen,
            "step": {
                "records": self.records,
                "seconds": self.seconds,
                "without_privacy": self.plain_seconds,
                "ratio": self.seconds / self.plain_seconds,
                "peak_bytes": self.peak_bytes,
                "peak_bytes_without_privacy": self.plain_peak_bytes,
            },
        }


def check_model(plan: Plan, tell: Callable[[str], None] = lambda stage: None) -> ModelCheck:
    """Run the start-up test of a plan's model on generated records, and measure a step.

    Args:
        plan: calibrated or not; its records are not opened.
        tell: called with the name of each stage as it begins.

    Raises:
        UnfitModelError: if the model or its loss is at fault; CoupledRecordsError if its records
            depend on each other.
        SelfTestError: if no exact way to clip it was found.
        InputError: if the plan's task or model cannot be built.
    """
    if plan.privacy is None and plan.training.clip is None:
        plan = plan.changed(training={"clip": 1.0})  # else no gradient would be bounded
    torch.set_num_threads(plan.threads or torch.get_num_threads())
    tell("building the model")
    runtime = ModelRuntime(plan)
    tell("start-up test")
    runtime.self_tests  # noqa: B018 - raises what is wrong
    engine = runtime.engine
    records = min(_MAX_RECORDS, engine.max_records)
    batch = {
        name: tensor.to(plan.device)
        for name, tensor in runtime.task.random_batch(records, 0).items()
    }
    owner = np.arange(records)
    tell("steps with privacy")
    seconds, peak = _step(plan.device, lambda: engine.clipped_sum(batch, owner, records, 1.0))
    tell("steps without privacy")
    plain_seconds, plain_peak = _step(plan.device, lambda: engine.plain_sum(batch))
    trained = {name: parameter.numel() for name, parameter in engine.named.items()}
    every = sum(parameter.numel() for parameter in engine.model.parameters())
    return ModelCheck(
        way=engine.mode,
        passed_over=dict(engine.refused),
        trained=trained,
        frozen=every - sum(trained.values()),
        records=records,
        seconds=seconds,
        plain_seconds=plain_seconds,
        peak_bytes=peak,
        plain_peak_bytes=plain_peak,
    )


def _step(device: str, work: Callable[[], object]) -> tuple[float, int | None]:
    """Return the median seconds of a step, and the most memory that it took on a device."""
    is_cuda = torch.device(device).type == "cuda"
    taken = []
    for _ in range(_STEPS + 1):
        if is_cuda:
            torch.cuda.reset_peak_memory_stats(device)
            torch.cuda.synchronize(device)
        began = time.perf_counter()
        work()
        if is_cuda:
            torch.cuda.synchronize(device)
        taken.append(time.perf_counter() - began)
    peak = int(torch.cuda.max_memory_allocated(device)) if is_cuda else None
    return statistics.median(taken[1:]), peak
