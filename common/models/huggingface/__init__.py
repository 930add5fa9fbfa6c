"""A model of transformers on this machine, trained in full, in part, or by an adapter of peft.

It is in a folder, or in this machine's cache of the Hugging Face Hub (``hf download``) under its
name and commit. Nothing is downloaded and none of the folder's code is run: weights are
safetensors, and the architecture is one that transformers knows. All sites need the same folder if
parts of it stay frozen, so a plan should pin the digest of its weights.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from privet.common.models.huggingface import adapters, folder, networks, padding
from privet.common.models.huggingface.folder import tokens
from privet.common.models.trained_parts import choose
from privet.common.sections.model import AdapterOptions, HuggingFaceOptions
from privet.common.sections.task import TaskSpec
from privet.common.sections.task_base import TokenTask

__all__ = ["build", "tokens"]


def build(task: TaskSpec, options: HuggingFaceOptions) -> nn.Module:
    """Return the model of a folder for a task, with its public initial weights.

    Args:
        task: of the plan; its kind decides the class of transformers.
        options: of the plan's model.

    Raises:
        DataMissingError: if the folder is missing, or has no safetensors.
        PlanError: if its weights have another digest, transformers cannot load it, the adapter does
            not fit, or it cannot read the task's records.
    """
    path = folder.weights(options).parent
    inner: Any = folder.load(path, task)
    if isinstance(options, AdapterOptions):
        inner = adapters.adapt(inner, task.kind, options)
    elif options.tuning == "head":
        for name, parameter in inner.named_parameters():
            parameter.requires_grad_(name.split(".")[0] in adapters.heads(inner))
    choose(inner, options.freeze or (), options.train or ())
    network = networks.around(inner, task, options, path)
    if isinstance(network, networks.TokenNetwork) and isinstance(task, TokenTask):
        padding.settle(network, tokens(options, task.max_tokens))
    return network
