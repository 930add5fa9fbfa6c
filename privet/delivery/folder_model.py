"""The weights of an exported folder, and the network that a folder holds.

Adapters are merged into their layers. Those that cannot be merged (prompt tuning, prefix tuning)
are in ``adapter/``, beside the whole base model.
"""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from privet.common.canonical import write_json
from privet.common.errors import InputError, RunError
from privet.common.models.text import joined
from privet.common.plan import Plan

if TYPE_CHECKING:
    from privet.delivery.trained import Trained

ADAPTER = "adapter"
"""Folder of an adapter that cannot be merged."""
_GENERATION = "generation_config.json"
_PREPROCESSOR = "preprocessor_config.json"


def merged(network: nn.Module) -> nn.Module:
    """Return a network whose adapters are merged into the layers they change.

    Raises:
        RunError: if peft cannot merge one.
    """
    children: list[tuple[str, Any]] = list(network.named_children())
    for name, module in children:
        if not is_adapter(module) or module.active_peft_config.is_prompt_learning:
            continue  # virtual tokens have no merged form, and are written as an adapter
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # between peft and transformers
            try:
                setattr(network, name, module.merge_and_unload())
            except (NotImplementedError, AttributeError, ValueError, RuntimeError) as error:
                raise RunError(
                    f"peft cannot merge this adapter into its model: {error}. Nothing was written; "
                    "the run's folder holds the trained parameters"
                ) from error
    return network


def is_adapter(inner: Any) -> bool:
    """Whether a model is one of peft's, on a base model."""
    return hasattr(inner, "get_base_model") and hasattr(inner, "peft_config")


def tensors_of(network: nn.Module) -> dict[str, Tensor]:
    """Return a network's tensors by name; a table that is also a head is there once."""
    seen: dict[int, str] = {}
    return {
        name: tensor.detach().contiguous()
        for name, tensor in network.state_dict(keep_vars=True).items()
        if seen.setdefault(id(tensor), name) == name
    }


def write_transformers(inner: Any, out: Path, labels: tuple[str, ...], source: Path | None) -> None:
    """Write a model of transformers as ``save_pretrained`` does, with an adapter beside it if any.

    Args:
        inner: the model; its configuration is changed to what is written.
        out: folder.
        labels: of the plan, in order; none if it does not classify.
        source: folder of the model that the run started from, for its settings of generation and
            of images or sound.
    """
    from transformers import GenerationConfig
    from transformers.utils import logging as hf_logging

    hf_logging.disable_progress_bar()
    base = inner
    if is_adapter(inner):
        base = inner.get_base_model()
        _write_adapter(inner, out / ADAPTER)
    if labels:
        base.config.id2label = dict(enumerate(labels))
        base.config.label2id = {name: number for number, name in enumerate(labels)}
    _settle(base)
    kept = getattr(base, "generation_config", None)
    theirs = source / _GENERATION if source is not None else None
    if theirs is not None and theirs.is_file() and kept is not None:
        base.generation_config = GenerationConfig()  # theirs is copied as it is, valid or not
    with _trained_parts(base):
        base.save_pretrained(out)
    if theirs is not None and theirs.is_file():
        shutil.copyfile(theirs, out / _GENERATION)
        base.generation_config = kept
    if source is not None and (settings := source / _PREPROCESSOR).is_file():
        shutil.copyfile(settings, out / _PREPROCESSOR)


def _settle(base: Any) -> None:
    """Make the configuration say what the weights are: one precision, tied only if they are."""
    kinds = {p.dtype for p in base.parameters() if p.is_floating_point()}
    if len(kinds) > 1:  # a folder has one, and the smaller would cut the other's numbers
        base.float()
    try:
        words, head = base.get_input_embeddings(), base.get_output_embeddings()
    except NotImplementedError:  # it reads images, and has no tables of words
        return
    same = words is not None and head is not None and head.weight is words.weight
    if head is not None and not same and getattr(base.config, "tie_word_embeddings", False):
        base.config.tie_word_embeddings = False


def _write_adapter(inner: Any, out: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a base model that is no folder of the Hub
        inner.save_pretrained(out, save_embedding_layers=False)
    (out / "README.md").unlink(missing_ok=True)  # an empty form, beside our card
    path = out / "adapter_config.json"
    value = json.loads(path.read_text(encoding="utf-8"))
    write_json(path, {**value, "base_model_name_or_path": None})  # it was a folder of this machine


@contextmanager
def _trained_parts(base: Any) -> Iterator[None]:
    """Put layers that peft trains whole, such as a head, in the place of its wrappers."""
    changed = []
    for parent in list(base.modules()):
        for name, wrapper in list(parent.named_children()):
            copies = getattr(wrapper, "modules_to_save", None)
            if isinstance(copies, nn.ModuleDict) and hasattr(wrapper, "original_module"):
                changed.append((parent, name, wrapper))
                setattr(parent, name, next(iter(copies.values())))
    try:
        yield
    finally:
        for parent, name, wrapper in changed:
            setattr(parent, name, wrapper)


def write_own(trained: Trained, network: nn.Module, out: Path, facts: dict[str, str]) -> None:
    """Write a network of an architecture that transformers does not know.

    Args:
        trained: the model, whose plan is written.
        network: merged.
        out: folder.
        facts: metadata of the file of weights.
    """
    save_file(tensors_of(network), out / "model.safetensors", metadata={"format": "pt", **facts})
    write_json(
        out / "config.json",
        {
            "model_type": "privet",
            "architectures": [type(network).__name__],
            "id2label": {str(k): name for k, name in enumerate(trained.plan.task.labels)},
            "plan": trained.plan.to_dict(),
        },
    )


def reload(folder: Path) -> nn.Module:
    """Return the network of a folder of Privet's own architecture, in evaluation mode.

    Raises:
        InputError: if it is not one.
    """
    from privet.common.models import build_model

    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        plan = Plan.parse(config["plan"], where=str(folder / "config.json"))
        tensors = load_file(folder / "model.safetensors")
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{folder}: not a folder that `privet model export` wrote") from error
    network = merged(joined(build_model(plan.changed(device="cpu", model={"start": None}))))
    missing, unknown = network.load_state_dict(tensors, strict=False)
    tied = {name for name in missing if _is_tied(network, name, set(tensors))}
    if unknown or set(missing) - tied:
        odd = sorted({*unknown, *missing} - tied)[0]
        raise InputError(f"{folder}: '{odd}' does not fit the plan's model")
    return network.eval()


def _is_tied(network: nn.Module, name: str, known: set[str]) -> bool:
    state = network.state_dict(keep_vars=True)
    return any(other in known and state[other] is state[name] for other in state)


@contextmanager
def in_float32(network: nn.Module) -> Iterator[None]:
    """Compute in float32, so that two ways through one model differ by rounding of float32 only."""
    tensors = [*network.parameters(), *network.buffers()]
    kept = [(one, one.data) for one in tensors if one.is_floating_point()]
    for one, data in kept:
        one.data = data.to(torch.float32)
    try:
        yield
    finally:
        for one, data in kept:
            one.data = data
