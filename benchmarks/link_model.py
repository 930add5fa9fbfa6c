"""A model as large as it is asked to be."""

from __future__ import annotations

from typing import Any

from privet.common.plan import Plan

INPUTS = 4


def make(task: Any, *, hidden: int) -> Any:
    """Return a network of about ``5 * hidden`` parameters."""
    from torch import nn

    class Wide(nn.Module):
        """One wide layer."""

        def __init__(self) -> None:
            super().__init__()
            self.up = nn.Linear(INPUTS, hidden, bias=False)
            self.down = nn.Linear(hidden, len(task.classes), bias=False)

        def forward(self, numeric: Any, missing: Any, categorical: Any) -> Any:
            import torch

            return self.down(torch.tanh(self.up(torch.cat([numeric, missing], 1))))

    return Wide()


def shapes(plan: Plan) -> dict[str, tuple[int, ...]]:
    """Return the parameters of a benchmark's model, each with its shape."""
    if plan.model.kind == "linear":
        return {"head.weight": (2, INPUTS), "head.bias": (2,)}
    hidden = int(plan.model.options["hidden"])
    return {"up.weight": (hidden, INPUTS), "down.weight": (2, hidden)}
