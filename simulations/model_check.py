"""Check a plan's model without data: how it is clipped, what that costs, what is trained."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from privet.client.training.model_runtime import ModelRuntime
from privet.common.errors import SelfTestError, UnfitModelError
from privet.common.plan import Plan
from privet.common.threads import threads_of
from privet.privacy.mechanism.clipping.engine import AUTOMATIC
from privet.simulations import peak_memory
from privet.simulations.model_step import ModelStep, bounded

_MARGIN = 1.25
"""How much quicker a method must be to go before one that is earlier in the usual order."""


@dataclass(frozen=True)
class ModelCheck:
    """What a check found; the start-up test has passed.

    Attributes:
        way: how per-unit gradients are computed.
        passed_over: methods that do not fit, or were tried before, and why.
        measured: seconds of a step by each method that was measured.
        trained: names of the trained parameters, and how many numbers each has.
        frozen: numbers in parameters that are not trained.
        records: of a measured step.
        plain_seconds: of such a step without privacy.
        peak_bytes, plain_peak_bytes: the most memory of each, over the model's on a CPU; None where
            it is not known.
    """

    way: str
    passed_over: dict[str, str]
    measured: dict[str, float]
    trained: dict[str, int]
    frozen: int
    records: int
    plain_seconds: float
    peak_bytes: int | None
    plain_peak_bytes: int | None

    @property
    def seconds(self) -> float:
        """Of a step with privacy."""
        return self.measured[self.way]

    def to_dict(self) -> dict[str, Any]:
        """Return what ``privet model check --json`` prints."""
        return {
            "clipping": self.way,
            "passed_over": self.passed_over,
            "measured": self.measured,
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


def check_model(
    plan: Plan, tell: Callable[[str], None] = lambda stage: None, *, every: bool = False
) -> ModelCheck:
    """Run the start-up test of a plan's model on generated records, and measure a step.

    Args:
        plan: calibrated or not; its records are not opened.
        tell: called with the name of each stage as it begins.
        every: measure every exact method, and name the quickest; else the plan's method alone.

    Raises:
        UnfitModelError: if the model or its loss is at fault; CoupledRecordsError if its records
            depend on each other.
        SelfTestError: if no exact way to clip it was found.
        InputError: if the plan's task or model cannot be built.
    """
    plan = bounded(plan)
    torch.set_num_threads(threads_of(plan.threads))
    tell("start-up test")
    runtime = _tested(plan)
    way, passed_over = runtime.engine.mode, dict(runtime.engine.refused)
    private = ModelStep(runtime)
    tell("steps with privacy")
    measured, peak = {way: private.seconds(private.clipped)}, private.peak
    tell("steps without privacy")
    plain_seconds = private.seconds(private.plain)
    plain_peak = private.peak
    if every:
        for method in AUTOMATIC:
            if method not in measured and method not in passed_over:
                tell(f"steps by {method}")
                _measure(plan, method, measured, passed_over)
        enough = _MARGIN * min(measured.values())
        way = next(method for method in AUTOMATIC if measured.get(method, math.inf) <= enough)
    if torch.device(plan.device).type == "cpu":
        tell("memory")
        found = peak_memory.peaks(plan.changed(training={"clipping": way}))
        peak, plain_peak = found or (None, None)
    trained = {name: parameter.numel() for name, parameter in runtime.engine.named.items()}
    numbers = sum(parameter.numel() for parameter in runtime.engine.model.parameters())
    return ModelCheck(
        way=way, passed_over=passed_over, measured=measured, trained=trained,
        frozen=numbers - sum(trained.values()), records=private.records,
        plain_seconds=plain_seconds, peak_bytes=peak, plain_peak_bytes=plain_peak,
    )  # fmt: skip


def _tested(plan: Plan) -> ModelRuntime:
    runtime = ModelRuntime(plan)
    runtime.self_tests  # noqa: B018 - raises what is wrong
    return runtime


def _measure(
    plan: Plan, method: str, measured: dict[str, float], passed_over: dict[str, str]
) -> None:
    """Add a method's seconds, or why it does not fit."""
    try:
        step = ModelStep(_tested(plan.changed(training={"clipping": method})))
    except UnfitModelError:
        raise
    except SelfTestError as fault:
        passed_over[method] = str(fault)
        return
    measured[method] = step.seconds(step.clipped, at_most=2 * min(measured.values()))
