"""The folder of a model of transformers: its weights, its settings, its tokenizer."""

from __future__ import annotations

import json
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

from privet.common.errors import DataMissingError, PlanError
from privet.common.models.huggingface.adapters import heads
from privet.common.models.start import digest_of
from privet.common.models.tokens import Tokens
from privet.common.sections.model import HuggingFaceOptions
from privet.common.sections.task import TaskSpec

_AUTO = {
    "text": "AutoModelForSequenceClassification",
    "image": "AutoModelForImageClassification",
    "causal-text": "AutoModelForCausalLM",
    "masked-text": "AutoModelForMaskedLM",
    "text-to-text": "AutoModelForSeq2SeqLM",
    "token-classification": "AutoModelForTokenClassification",
    "question-answering": "AutoModelForQuestionAnswering",
    "audio": "AutoModelForAudioClassification",
}
"""The class of transformers that does a task."""
_ELSEWHERE = {
    "auto_map", "custom_pipelines", "quantization_config", "transformers_weights", "use_kernels",
    "kernel_config",
}  # fmt: skip
_KERNELS = ("attn_implementation", "_attn_implementation", "experts_implementation")
"""Settings that may name a kernel of the Hub; torch's own are fine."""
_OFF = {"apply_spec_augment": False, "router_jitter_noise": 0.0}
"""What transformers draws at random in training, and not from the plan's seed."""

_UNKNOWN = "\u0001 \U0001f9ff \u6f22 \u0416zq\u014b"
"""A text of which hardly a tokenizer knows every part."""


def weights(options: HuggingFaceOptions) -> Path:
    """Return the file of a model's weights, in a folder with plain settings.

    Args:
        options: of the plan's model; they name the folder, and perhaps the file's digest.

    Raises:
        DataMissingError: if the folder is missing, or has no safetensors.
        PlanError: if the weights have another digest, or the settings would have more read.
    """
    path = folder_of(options) / "model.safetensors"
    _require_folder(path.parent)
    if not path.is_file():
        raise DataMissingError(
            f"{path}: there is no such file; only safetensors are read. Where the folder has "
            "pytorch_model.bin, open it once with transformers and save it with save_pretrained"
        )
    if options.sha256 is not None and digest_of(path) != f"sha256:{options.sha256}":
        raise PlanError(f"{path}: these are not the weights that model.options.sha256 names")
    _require_plain(path.parent)
    return path


def load(path: Path, task: TaskSpec) -> Any:
    """Return the model of transformers that does a task, in single precision.

    Args:
        path: folder, as ``save_pretrained`` writes it, with ``model.safetensors``.
        task: of the plan. A head for its classes is fresh, unless the folder has one for the same
            classes, or for as many without names (``LABEL_0`` and so on).

    Raises:
        PlanError: if transformers cannot load it.
    """
    import torch
    import transformers
    from transformers.utils import logging as hf_logging

    hf_logging.disable_progress_bar()
    hf_logging.set_verbosity_error()
    more: dict[str, Any] = {"num_labels": len(task.labels)} if task.labels else {}
    if task.kind == "question-answering":
        more["num_labels"] = 2  # scores of each place: that an answer starts there, or ends
    try:
        config = transformers.AutoConfig.from_pretrained(
            path, local_files_only=True, trust_remote_code=False, **more
        )
        is_other = _has_other_classes(path, task)
        _make_steady(config)
        # Checkpoints in 16 bits, too: bounds of gradients would not be exact in them (H16).
        family = getattr(transformers, _AUTO[task.kind])
        model = family.from_pretrained(
            path,
            config=config,
            dtype=torch.float32,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            ignore_mismatched_sizes=bool(more),
        )
        if is_other:
            fresh = family.from_config(config).float()
            for name in heads(model):
                setattr(model, name, getattr(fresh, name))
        return model
    except PlanError:
        raise
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        raise PlanError(
            f"{path}: transformers cannot load it for '{task.kind}': {reason}"
        ) from error


def _has_other_classes(path: Path, task: TaskSpec) -> bool:
    """Return whether a folder's classifier has names of classes that are not the plan's.

    Raises:
        PlanError: if it has the plan's classes in another order: the head would begin with its
            answers exchanged.
    """
    value = json.loads((path / "config.json").read_text(encoding="utf-8"))
    named = value.get("id2label")
    if not task.labels or not isinstance(named, dict):
        return False
    theirs = [str(named[key]) for key in sorted(named, key=int)]
    if sorted(theirs) == sorted(task.labels) and theirs != list(task.labels):
        raise PlanError(
            f"task.classes: the model of {path} has these classes in another order; write "
            f"classes = {json.dumps(theirs, ensure_ascii=False)}"
        )
    unnamed = [f"LABEL_{number}" for number in range(len(theirs))]
    return theirs not in (list(task.labels), unnamed)


def _make_steady(config: Any) -> None:
    """Set all dropout of a configuration and those within it to zero.

    Dropout and noise for privacy do the same work, and one of them is asked for.
    """
    from transformers import PretrainedConfig

    for value in list(vars(config).values()):
        if isinstance(value, PretrainedConfig):
            _make_steady(value)
    for name, value in config.to_dict().items():
        if "drop" in name and isinstance(value, int | float) and not isinstance(value, bool):
            setattr(config, name, type(value)(0))
        elif name in _OFF:
            setattr(config, name, _OFF[name])


def tokens(options: HuggingFaceOptions, max_tokens: int) -> Tokens:
    """Return the tokens of a folder's ``tokenizer.json``.

    Args:
        options: of the plan's model; they name the folder.
        max_tokens: length T to which rows are cut and padded.

    Raises:
        DataMissingError: if there is no such file.
        PlanError: if the plan names no folder.
    """
    folder = folder_of(options)
    path = folder / "tokenizer.json"
    _require_folder(folder)
    if not path.is_file():
        raise DataMissingError(
            f"{path}: there is no such file; model.options.folder needs a fast tokenizer, which "
            "transformers writes with save_pretrained"
        )
    ids = _special(path)
    made = Tokens(
        path, max_tokens, padding=-1, start=ids["start"], end=ids["end"],
        mask=ids["mask"] if ids["mask"] is not None else 0,
        special=tuple(sorted(ids["special"])), filler=ids["padding"], unknown=ids["unknown"],
    )  # fmt: skip
    _require_any_text(path, made)
    return made


@lru_cache(maxsize=4)
def _special(path: Path) -> dict[str, Any]:
    """Return the numbers of special tokens, by the names that transformers gives them.

    Raises:
        PlanError: if a file cannot be read.
    """
    try:
        return _read_special(path)
    except (OSError, ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
        raise PlanError(f"{path}: the special tokens cannot be read: {error!r}") from error


def _read_special(path: Path) -> dict[str, Any]:
    value = json.loads(path.read_text(encoding="utf-8"))
    known = {one["content"]: one["id"] for one in value.get("added_tokens", []) if one["special"]}
    settings: dict[str, Any] = {}
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if (path.parent / name).is_file():
            settings |= json.loads((path.parent / name).read_text(encoding="utf-8"))

    def number(key: str) -> int | None:
        text = settings.get(key)
        return known.get(text["content"] if isinstance(text, dict) else text)

    return {
        "start": number("bos_token"),
        "end": number("eos_token"),
        "mask": number("mask_token"),
        "padding": number("pad_token"),
        "unknown": _unknown(value, settings),
        "special": set(known.values()),
    }


def _require_folder(folder: Path) -> None:
    """Check that a folder holds a model, and no adapter of one.

    Raises:
        DataMissingError: if it is no folder.
        PlanError: if it holds an adapter.
    """
    if not folder.is_dir():
        raise DataMissingError(
            f"model.options.folder: '{folder}' is no folder on this machine. Get one on a machine "
            "with a network, by `hf download NAME --local-dir FOLDER`, and copy it here"
        )
    if (folder / "adapter_config.json").exists():
        raise PlanError(
            f"{folder}: it holds an adapter; join it with its model (merge_and_unload) and save "
            "that"
        )


def _elsewhere(config: dict[str, Any]) -> set[str]:
    """Return the settings that read elsewhere, of a configuration and those within it."""
    found = {key for key in _ELSEWHERE & set(config) if config[key]}
    found |= {key for key in _KERNELS if config.get(key) not in (None, "sdpa", "eager")}
    for value in config.values():
        if isinstance(value, dict):
            found |= _elsewhere(value)
    return found


def _unknown(value: dict[str, Any], settings: dict[str, Any]) -> int | None:
    """Return the number of what a tokenizer does not know."""
    model = value.get("model", {})
    if isinstance(model.get("unk_id"), int):
        return int(model["unk_id"])
    name = model.get("unk_token") or settings.get("unk_token")
    if isinstance(name, dict):
        name = name.get("content")
    for one in value.get("added_tokens", []):
        if one["content"] == name:
            return int(one["id"])
    vocabulary = model.get("vocab")
    return vocabulary.get(name) if isinstance(vocabulary, dict) else None


def _require_any_text(path: Path, tokens: Tokens) -> None:
    """Check that no record can hold a text that the tokenizer cannot read.

    Raises:
        PlanError: if it has no token for what it does not know.
    """
    try:
        tokens.encode([_UNKNOWN])
    except PlanError:
        raise
    except Exception as error:  # tokenizers raises nothing more special
        raise PlanError(
            f"{path}: it cannot read every text ({error}): name an 'unk_token' in it that its "
            "vocabulary has"
        ) from error


def _require_plain(folder: Path) -> None:
    """Refuse settings that make transformers read code, or weights beside ``model.safetensors``.

    Raises:
        PlanError: naming the setting.
    """
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise PlanError(f"{folder / 'config.json'}: cannot be read: {error}") from error
    odd = _elsewhere(config) if isinstance(config, dict) else {"no table"}
    if odd:
        raise PlanError(
            f"{folder / 'config.json'}: '{min(odd)}' would have other weights or code read than "
            "model.safetensors; take it out, or save the model whole"
        )


def folder_of(options: HuggingFaceOptions) -> Path:
    """Return the folder that a plan names, by path or as a commit of the Hub.

    Args:
        options: of the plan's model.

    Raises:
        DataMissingError: if a commit is not in this machine's cache of the Hub.
        PlanError: if both are named, or none, or no commit.
    """
    folder, name, revision = options.folder, options.name, options.revision
    if (folder is None) == (name is None):
        raise PlanError("model.options: huggingface needs 'folder', or 'name' with 'revision'")
    if folder is not None:
        return Path(folder)
    if not re.fullmatch("[0-9a-f]{40}", str(revision)):
        raise PlanError(
            "model.options.revision: a model of the Hugging Face Hub is named with its commit, 40 "
            "hexadecimal digits: a branch would be another model at each site"
        )
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(str(name), revision=revision, local_files_only=True))
    except Exception as error:  # also what it says of a name that cannot be one
        raise DataMissingError(
            f"model.options.name: '{name}' at {revision} is not in this machine's cache of the "
            "Hugging Face Hub, and Privet downloads nothing. Run "
            f"`hf download {name} --revision {revision}`, or bring that folder from a machine with "
            "a network"
        ) from error
