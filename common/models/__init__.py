"""Models by name, and a user's own. All are built from layers Opacus can treat exactly."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from privet.common.config import make
from privet.common.errors import InputError, PlanError

if TYPE_CHECKING:
    from torch import nn

    from privet.common.flat import Arrays
    from privet.common.plan import Plan

KINDS = {
    "linear": "multinomial logistic regression on a tabular task",
    "ft-transformer": "tabular Transformer (one token a feature)",
    "text-encoder": "small Transformer encoder from scratch, with its own tokenizer",
    "minilm": "MiniLM-L6 sentence encoder; tuning = head, lora or full",
}


def build_model(plan: Plan) -> nn.Module:
    """Return the plan's model with its public initial weights, drawn from the plan's seed.

    The global generator of torch is used for the draw and put back afterwards.

    Raises:
        PlanError: if the kind or an option is unknown or does not fit the task.
    """
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(plan.seed)
        model = _build(plan)
    model.train()
    try:
        return model.to(plan.device)
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        raise PlanError(f"device '{plan.device}' cannot be used: {reason}") from error


def _build(plan: Plan) -> nn.Module:
    import torch

    kind, task, options = plan.model.kind, plan.task, plan.model.options
    try:
        if kind in ("linear", "ft-transformer") and task.kind == "tabular":
            from privet.common.models import tabular

            factory: Any = {"linear": tabular.Linear, "ft-transformer": tabular.FTTransformer}[kind]
            sizes = [len(values) + 1 for _, values in sorted(task.categorical.items())]
            return factory(len(task.numeric), sizes, len(task.classes), **options)  # type: ignore[no-any-return]
        if kind in ("text-encoder", "minilm") and task.kind == "text":
            from privet.common.models import text

            return text.build(plan.model, len(task.classes), task.max_tokens)
    except (TypeError, ValueError, ArithmeticError, RuntimeError, AssertionError) as error:
        raise PlanError(f"model.options: {error or 'impossible'}") from error
    if ":" in kind:
        return make(kind, torch.nn.Module, task, **options)  # type: ignore[no-any-return]
    if kind in KINDS:
        raise PlanError(f"model '{kind}' does not read task '{task.kind}'")
    raise PlanError(
        f"model '{kind}' is not known: use one of {', '.join(KINDS)}, or 'module:object'"
    )


def trainable(model: nn.Module) -> dict[str, Any]:
    """Return the trained parameters by name, in the model's order.

    Raises:
        InputError: if there is none.
    """
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not named:
        raise InputError("the model has no trainable parameter")
    return named


def initial_model(plan: Plan) -> Arrays:
    """Return the public initial values of the parameters that a plan trains."""
    model = build_model(plan)
    return {name: p.detach().cpu().numpy().copy() for name, p in trainable(model).items()}
