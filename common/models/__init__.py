"""Models by name, and a user's own, built from layers that Opacus can treat exactly."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from privet.common.config import make
from privet.common.errors import InputError, PlanError
from privet.common.models import start
from privet.common.sections.model import HuggingFaceSpec
from privet.common.sections.task import ImageTaskSpec, TabularTaskSpec
from privet.common.sections.task_base import ReadingTask

if TYPE_CHECKING:
    from torch import nn

    from privet.common.flat import Arrays
    from privet.common.plan import Plan

_READS = {
    "tabular": ("linear", "dense", "ft-transformer"),
    "text": ("text-encoder", "minilm", "huggingface"),
    "image": ("vit", "resnet", "huggingface"),
    "causal-text": ("decoder", "huggingface"),
    "masked-text": ("text-encoder", "minilm", "huggingface"),
    "text-to-text": ("encoder-decoder", "t5", "huggingface"),
    "token-classification": ("huggingface",),
    "question-answering": ("huggingface",),
    "audio": ("huggingface",),
}
"""Models that can do a task."""


def build_model(plan: Plan) -> nn.Module:
    """Return the plan's model with its public initial weights, drawn from the plan's seed.

    The draw uses torch's global generator, and restores its state afterwards.

    Raises:
        PlanError: if the kind or an option is unknown or does not fit the task.
        DataMissingError: if required weights are not on this machine.
    """
    import torch

    from privet.common.models import batch_norms

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(plan.seed)
        model = _build(plan)
        if plan.model.batch_norm is not None:
            model = batch_norms.replaced(model, plan.model.batch_norm)
    if plan.model.start is not None:
        start.apply(model, plan.model.start, whole=not plan.trains)
    model.train()
    try:
        return model.to(plan.device)
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        raise PlanError(f"device '{plan.device}' cannot be used: {reason}") from error


def _build(plan: Plan) -> nn.Module:
    import torch

    kind, task = plan.model.kind, plan.task
    if ":" in kind:
        return make(kind, torch.nn.Module, task, **dict(plan.model.options))  # type: ignore[no-any-return]
    if kind not in _READS.get(task.kind, ()):
        able = ", ".join(_READS.get(task.kind, ())) or "'module:object'"
        raise PlanError(f"model '{kind}' does not do task '{task.kind}': use {able}")
    try:
        return _known(plan)
    except (TypeError, ValueError, ArithmeticError, RuntimeError, AssertionError) as error:
        raise PlanError(f"model.options: {error or 'impossible'}") from error


def _known(plan: Plan) -> nn.Module:
    """Build a model that is Privet's own, or that it knows."""
    kind, task = plan.model.kind, plan.task
    if isinstance(plan.model, HuggingFaceSpec):
        from privet.common.models import huggingface

        return huggingface.build(task, plan.model.options)
    options = dict(plan.model.options)
    if isinstance(task, TabularTaskSpec):
        from privet.common.models import tabular

        tables: dict[str, Any] = {
            "linear": tabular.Linear,
            "dense": tabular.Dense,
            "ft-transformer": tabular.FTTransformer,
        }
        sizes = [len(values) + 1 for _, values in sorted(task.categorical.items())]
        return tables[kind](len(task.numeric), sizes, len(task.classes), **options)  # type: ignore[no-any-return]
    if isinstance(task, ImageTaskSpec):
        from privet.common.models import image

        pictures: dict[str, Any] = {"vit": image.VisionTransformer, "resnet": image.ResNet}
        return pictures[kind](task.image, len(task.classes), **options)  # type: ignore[no-any-return]
    from privet.common.models import language, text

    assert isinstance(task, ReadingTask)
    if task.kind == "text":
        return text.build(plan.model, len(task.labels), task.max_tokens)
    if task.kind == "masked-text":
        return text.build_masked(plan.model, task.max_tokens)
    writers: dict[str, Any] = {
        "decoder": language.Decoder,
        "encoder-decoder": language.encoder_decoder,
        "t5": language.t5,
    }
    size = text.tokens_for(plan.model, task.max_tokens).size
    return writers[kind](size, task.max_tokens, **options)  # type: ignore[no-any-return]


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
