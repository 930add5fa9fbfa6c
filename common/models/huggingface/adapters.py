"""Adapters of peft by name, in layers that fit a family without being named."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any

from torch import nn

from privet.common.compat.transformers import is_conv1d
from privet.common.errors import PlanError
from privet.common.schema import did_you_mean
from privet.common.sections.model import AdapterOptions


@dataclass(frozen=True)
class AdapterKind:
    """How peft calls an adapter.

    Attributes:
        kind: its name in ``peft.PeftType``.
        preset: its options, where a plan says nothing else.
        rank: options that a plan's ``rank`` sets.
        layers: which layers it changes: those of ``attention``, ``norms``, or none.
    """

    kind: str
    preset: dict[str, Any] = field(default_factory=dict)
    rank: tuple[str, ...] = ("r",)
    layers: str = "attention"


_VIRTUAL = {"num_virtual_tokens": 20}
_SPECIAL = {
    "dora": AdapterKind("LORA", {"use_dora": True}),
    "rslora": AdapterKind("LORA", {"use_rslora": True}),
    # Ranks stay as they are: to share them out, peft would read gradients of records.
    "adalora": AdapterKind("ADALORA", {"total_step": 1}, ("init_r", "target_r")),
    "ia3": AdapterKind("IA3", {"feedforward_modules": []}),
    "ln-tuning": AdapterKind("LN_TUNING", layers="norms"),
    "prompt": AdapterKind("PROMPT_TUNING", _VIRTUAL, layers="none"),
    "prefix": AdapterKind("PREFIX_TUNING", _VIRTUAL, layers="none"),
    "p-tuning": AdapterKind("P_TUNING", _VIRTUAL, layers="none"),
}
_LORA_RANK = 8
_LORAS = ("lora", "dora", "rslora")

TASKS = {
    "text": "SEQ_CLS",
    "token-classification": "TOKEN_CLS",
    "causal-text": "CAUSAL_LM",
    "text-to-text": "SEQ_2_SEQ_LM",
    "masked-text": "FEATURE_EXTRACTION",
}
"""What peft calls a task, where virtual tokens go before a text.

It has no word for images and sound, and forgets the types of a pair's tokens for questions.
"""
_HEADLESS = ("causal-text", "masked-text", "text-to-text")
"""Tasks whose head comes with the model, and is no fresh one."""
_NOT_IN_A_PLAN = (
    "task_type", "peft_type", "inference_mode", "base_model_name_or_path", "revision",
    "auto_mapping", "tokenizer_name_or_path", "tokenizer_kwargs", "prompt_tuning_init",
    "prompt_tuning_init_text", "peft_version", "target_modules", "r", "loftq_config",
    "eva_config", "corda_config", "megatron_config", "megatron_core", "velora_config",
    "monteclora_config",
)  # fmt: skip
"""Options that a plan says otherwise, or that read files, records or the network."""

_ATTENTION = frozenset(
    "q v query value q_proj v_proj q_lin v_lin query_proj value_proj q_head v_head Wq Wv wq wv "
    "query_layer value_layer to_q to_v linear_q linear_v "
    "qkv qkv_proj query_key_value c_attn Wqkv in_proj".split()
)
"""Names of layers that make queries and values, or both and keys together."""


def adapter_of(name: str) -> AdapterKind:
    """Return how peft calls an adapter of a plan."""
    return _SPECIAL.get(name) or AdapterKind(name.upper().replace("-", "_"))


def adapt(model: Any, task: str, options: AdapterOptions) -> Any:
    """Return a model with an adapter, of which the adapter and a fresh head are trained.

    Args:
        model: of transformers.
        task: kind of the plan's task.
        options: of the plan's model.

    Raises:
        PlanError: if peft has no such adapter, or it does not fit the model.
    """
    import peft

    adapter = adapter_of(options.tuning)
    made = peft.PEFT_TYPE_TO_CONFIG_MAPPING.get(getattr(peft.PeftType, adapter.kind, None))
    if made is None:
        raise PlanError(
            f"model.options.tuning: peft {peft.__version__} of this machine has no "
            f"'{options.tuning}'; all sites need a version that has it"
        )
    if adapter.layers == "none" and task not in TASKS:
        raise PlanError(
            f"model.options.tuning: '{options.tuning}' puts virtual tokens before a text, which "
            f"task '{task}' does not allow"
        )
    known: dict[str, Any] = {one.name: one for one in fields(made)}
    settings = _settings(adapter, known, options)
    if adapter.layers == "none":
        settings["task_type"] = TASKS[task]
    fresh = [] if task in _HEADLESS else heads(model)
    if "modules_to_save" in known and adapter.layers != "none":
        parts = [*(settings.get("modules_to_save") or ()), *_layers_of(model, fresh)]
        settings["modules_to_save"] = parts or None
    if adapter.layers == "none":
        settings = {**_sizes(model, known), **settings}
    elif "target_modules" in known:
        targets = options.targets
        if targets is None:
            targets = _layers(model, adapter.layers, fresh)
        _require_targets(model, targets)
        settings["target_modules"] = targets
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it turns GPT-2's weights by itself, and says so
            adapted = peft.get_peft_model(model, made(**settings))
    except (ValueError, TypeError, KeyError, RuntimeError, AttributeError, IndexError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise PlanError(f"model.options: tuning '{options.tuning}': {reason}") from error
    if adapter.layers == "none":
        for name in fresh:
            model.get_submodule(name).requires_grad_(True)
    return adapted


def _layers_of(model: Any, parts: list[str]) -> list[str]:
    """Return the names of the layers of parts of a model that hold parameters themselves.

    peft cannot put a part of several layers back where an adapter is merged.
    """
    return [
        f"{part}.{name}".rstrip(".")
        for part in parts
        for name, layer in model.get_submodule(part).named_modules()
        if any(True for _ in layer.parameters(recurse=False))
    ]


def _require_targets(model: Any, targets: list[str]) -> None:
    known = {name: name.split(".")[-1] for name, _ in model.named_modules() if name}
    for target in targets:
        if not any(name == target or name.endswith(f".{target}") for name in known):
            raise PlanError(
                f"model.options.targets: the model has no layer '{target}'"
                f"{did_you_mean(target, dict.fromkeys(known.values()))}"
            )


def heads(model: Any) -> list[str]:
    """Return the names of the parts of a model of transformers that are no part of its base."""
    parts = [name for name, part in model.named_children() if any(True for _ in part.parameters())]
    base = model.base_model
    if base is model:  # it does not say which part is its base
        return parts[-1:]
    return [name for name in parts if getattr(model, name) is not base]


def _settings(
    adapter: AdapterKind, known: dict[str, Any], options: AdapterOptions
) -> dict[str, Any]:
    """Return an adapter's options: preset, those of the plan, and its rank."""
    for key in options.peft or ():
        if key in _NOT_IN_A_PLAN:
            raise PlanError(
                f"model.options.peft: '{key}' is not for a plan; 'rank' and 'targets' are keys of "
                "model.options, and what reads records, files or the network is left out"
            )
        if key not in known:
            raise PlanError(
                f"model.options.peft: '{options.tuning}' has no option '{key}'"
                f"{did_you_mean(key, known)}"
            )
    settings = {**adapter.preset, **(options.peft or {})}
    rank = options.rank
    if options.tuning in _LORAS:
        rank = rank or _LORA_RANK
        settings.setdefault("lora_alpha", 2 * rank)
    if rank is None:
        return settings
    keys = [key for key in adapter.rank if key in known]
    if not keys:
        raise PlanError(f"model.options.rank: '{options.tuning}' has no rank")
    return {**settings, **dict.fromkeys(keys, rank)}


def _sizes(model: Any, known: dict[str, Any]) -> dict[str, Any]:
    """Return the sizes of a model by the names that prompts know them by.

    peft knows few names of them; a config has all of them under transformers' own.
    """
    config = model.config.get_text_config()
    named = {
        "num_layers": "num_hidden_layers",
        "token_dim": "hidden_size",
        "num_attention_heads": "num_attention_heads",
    }
    found = {key: getattr(config, name, None) for key, name in named.items() if key in known}
    return {key: size for key, size in found.items() if size is not None}


def _layers(model: Any, which: str, fresh: list[str]) -> list[str]:
    """Return the names of the layers that an adapter changes.

    Args:
        model: of transformers.
        which: ``attention`` or ``norms``.
        fresh: parts of the model that are trained in full.

    Raises:
        PlanError: if there is none.
    """
    inside = {name: part for name, part in model.named_modules() if name.split(".")[0] not in fresh}
    if which == "norms":
        return _required(_last(inside, lambda part: "Norm" in type(part).__name__), "norm")
    words = _words(model.get_output_embeddings)
    linear = _last(inside, lambda part: _is_linear(part) and part is not words)
    if chosen := [name for name in linear if name in _ATTENTION]:
        return chosen
    convolutions = _last(inside, lambda part: isinstance(part, nn.Conv2d | nn.Conv1d))
    return _required(linear or convolutions, "linear layer")


def _words(get: Callable[[], nn.Module | None]) -> nn.Module | None:
    try:
        return get()
    except (NotImplementedError, AttributeError):  # not every family says which it is
        return None


def _last(parts: dict[str, nn.Module], is_one: Callable[[nn.Module], bool]) -> list[str]:
    """Return the last names of the parts that are of a kind, each once."""
    return list(dict.fromkeys(name.split(".")[-1] for name, part in parts.items() if is_one(part)))


def _is_linear(part: nn.Module) -> bool:
    return isinstance(part, nn.Linear) or is_conv1d(type(part))


def _required(names: list[str], what: str) -> list[str]:
    if not names:
        raise PlanError(f"model.options.targets: the model has no {what}; name layers to change")
    return names
