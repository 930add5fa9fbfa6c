"""What the tests of the privacy engine share: small models, slow references, statistics."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from hypothesis import HealthCheck, settings
from scipy import stats
from torch import Tensor, nn
from torch.nn import functional

from privet.common.models import build_model
from privet.common.plan import Plan
from privet.common.tasks import Task, build_task
from privet.privacy.mechanism.clipping import GradientEngine
from privet.privacy.mechanism.noise import Stream

FALSE_ALARM = 1e-8
"""Every statistical test refuses below this probability; all of them run on fixed seeds."""

BOOK, HOOKS, FUNCTORCH = "bookkeeping", "opacus-hooks", "functorch"

# Opacus speaks on every first pass of its functorch samplers; transformers on loading.
QUIET = (
    "ignore:In CPU autocast:UserWarning",
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning",
)

Batch = dict[str, Tensor]


def examples(count: int, **more: Any) -> settings:
    """Hypothesis without deadlines and with the same examples each time."""
    return settings(
        max_examples=count,
        deadline=None,
        derandomize=True,
        suppress_health_check=[HealthCheck.too_slow],
        **more,
    )


# --- models -------------------------------------------------------------------------------

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "linear": ("linear", {}),
    "ft-transformer": ("ft-transformer", {"width": 8, "heads": 2, "layers": 1}),
    "text-encoder": ("text-encoder", {"width": 8, "heads": 2, "layers": 1}),
    "minilm-head": ("minilm", {"tuning": "head"}),
    "minilm-lora": ("minilm", {"tuning": "lora", "rank": 2}),
}


def plan_of(name: str, **training: Any) -> Plan:
    """Return a plan without privacy for one of MODELS."""
    kind, options = MODELS[name]
    task: dict[str, Any] = {"kind": "text", "classes": ["a", "b", "c"], "max_tokens": 12}
    if kind in ("linear", "ft-transformer"):
        task = {
            "kind": "tabular",
            "classes": ["a", "b", "c"],
            "numeric": {f"x{i}": {"low": 0, "high": 1} for i in range(4)},
            "categorical": {"colour": ["red", "blue"]},
        }
    return Plan.parse(
        {
            "name": name,
            "threads": 1,
            "task": task,
            "model": {"kind": kind, "options": options},
            "training": {"clip": 1.0, **training},  # else no gradient is bounded
            "privacy": None,
            "sites": [{"name": "here", "nominal_size": 100}],
        }
    )


def lively(model: nn.Module) -> nn.Module:
    """Move the trained parameters off their initial zeros, where gradients vanish."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def built(name: str) -> tuple[nn.Module, Task]:
    plan = plan_of(name)
    return lively(build_model(plan)), build_task(plan)


class Wide(nn.Module):
    """A plain linear map of ``x`` [B, F] to [B, K]: all a test of the noise needs."""

    def __init__(self, features: int = 6, classes: int = 3, *, bias: bool = True) -> None:
        super().__init__()
        self.layer = nn.Linear(features, classes, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)  # type: ignore[no-any-return]


def cross_entropy(model: nn.Module, batch: Batch) -> Tensor:
    return functional.cross_entropy(model(batch["x"]), batch["label"], reduction="none")


def rows(count: int, features: int = 6, classes: int = 3, *, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    return {
        "x": torch.randn((count, features), generator=generator),
        "label": torch.randint(0, classes, (count,), generator=generator),
    }


def wide_model(**size: Any) -> nn.Module:
    model = Wide(**size)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    return lively(model)


def wide_engine(
    model: nn.Module | None = None,
    *,
    loss: Callable[[nn.Module, Batch], Tensor] = cross_entropy,
    mode: str = HOOKS,
    micro_batch: int = 256,
) -> GradientEngine:
    return GradientEngine(model or wide_model(), loss, mode=mode, micro_batch=micro_batch)


# --- references ---------------------------------------------------------------------------


def norm(tensors: Any) -> float:
    return float(sum(float(t.double().square().sum()) for t in tensors) ** 0.5)


def difference(one: Any, two: Any) -> float:
    return norm([a.double() - b.double() for a, b in zip(one, two, strict=True)])


def reference_gradients(
    model: nn.Module, loss: Callable[[Any, Any], Tensor], batch: Batch
) -> list[list[Tensor]]:
    """Return the gradient of each record: a loop, plain autograd, double precision.

    The model must not be wrapped yet.
    """
    model = copy.deepcopy(model).double()
    batch = {k: t.double() if t.is_floating_point() else t for k, t in batch.items()}
    trained = [p for p in model.parameters() if p.requires_grad]
    gradients = []
    for i in range(len(next(iter(batch.values())))):
        single = {name: tensor[i : i + 1] for name, tensor in batch.items()}
        parts = torch.autograd.grad(loss(model, single).sum(), trained, allow_unused=True)
        gradients.append(
            [torch.zeros_like(p) if g is None else g for p, g in zip(trained, parts, strict=True)]
        )
    return gradients


def reference_clipped_sum(
    gradients: list[list[Tensor]], owner: np.ndarray, units: int, clip: float
) -> list[Tensor]:
    """Sum within each unit, clip the sum, add up."""
    total = [torch.zeros_like(g) for g in gradients[0]]
    for unit in range(units):
        mine = [gradients[i] for i in np.flatnonzero(owner == unit)]
        if mine:
            summed = [torch.stack(column).sum(0) for column in zip(*mine, strict=True)]
            factor = min(1.0, clip / max(norm(summed), 1e-300))
            total = [t + factor * s for t, s in zip(total, summed, strict=True)]
    return total


# --- statistics ---------------------------------------------------------------------------


def scale_fits(values: Any, standard_deviation: float) -> bool:
    """Two-sided chi-square test of the scale of normals with mean 0."""
    scaled = np.asarray(values, dtype=np.float64).ravel() / standard_deviation
    law, total = stats.chi2(scaled.size), float(np.square(scaled).sum())
    return bool(2 * min(law.cdf(total), law.sf(total)) > FALSE_ALARM)


def shape_fits(values: Any, standard_deviation: float) -> bool:
    """Kolmogorov-Smirnov test against the normal law."""
    scaled = np.asarray(values, dtype=np.float64).ravel() / standard_deviation
    return bool(stats.kstest(scaled, "norm").pvalue > FALSE_ALARM)


def rate_fits(hits: int, trials: int, rate: float) -> bool:
    """Two-sided binomial test."""
    law = stats.binom(trials, rate)
    return bool(2 * min(law.cdf(hits), law.sf(hits - 1)) > FALSE_ALARM)


class Weak(Stream):
    """A planted fault: noise that is too small by ``factor``."""

    factor = 0.1

    def normal(self, count: int) -> Any:
        return self.factor * super().normal(count)

    def add_normal(self, values: Tensor, standard_deviation: float) -> None:
        if self.factor:
            super().add_normal(values, self.factor * standard_deviation)


class Counting(Stream):
    """Counts how many normals were drawn."""

    drawn = 0

    def add_normal(self, values: Tensor, standard_deviation: float) -> None:
        self.drawn += values.numel()
        super().add_normal(values, standard_deviation)
