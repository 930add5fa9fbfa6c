"""A Hugging Face Transformer on this machine, trained in full, by LoRA, or only its head.

It is in a folder, or in this machine's cache of the Hugging Face Hub (``hf download``) under its
name and commit. Nothing is downloaded and none of the folder's code is run: weights are
safetensors, and the architecture is one that transformers knows. All sites need the same folder if
parts of it stay frozen, so a plan should pin the digest of its weights.
"""

from __future__ import annotations

import inspect
import json
import re
import warnings
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from privet.common.errors import DataMissingError, PlanError
from privet.common.models.start import digest_of
from privet.common.models.tokens import Tokens
from privet.common.sections.model import HuggingFaceOptions

_AUTO = {
    "text": "AutoModelForSequenceClassification",
    "causal-text": "AutoModelForCausalLM",
    "masked-text": "AutoModelForMaskedLM",
    "text-to-text": "AutoModelForSeq2SeqLM",
    "token-classification": "AutoModelForTokenClassification",
    "question-answering": "AutoModelForQuestionAnswering",
    "audio": "AutoModelForAudioClassification",
}
_HEADS = {
    "text": "SEQ_CLS",
    "token-classification": "TOKEN_CLS",
    "question-answering": "QUESTION_ANS",
    "audio": "SEQ_CLS",
}
"""Tasks whose head is fresh where the folder has none, with their names in peft."""


_ELSEWHERE = {"auto_map", "custom_pipelines", "quantization_config", "transformers_weights"}


def build(
    task: str,
    classes: int,
    *,
    folder: str | None = None,
    name: str | None = None,
    revision: str | None = None,
    sha256: str | None = None,
    tuning: str = "full",
    rank: int = 8,
    targets: list[str] | None = None,
) -> nn.Module:
    """Return the model of a folder for a task.

    Args:
        task: kind of the plan's task.
        classes: number of classes, for a classification.
        folder: as ``save_pretrained`` writes it, with ``model.safetensors`` and ``tokenizer.json``.
        name: on the Hugging Face Hub, instead of a folder, with its commit as ``revision``; this
            machine's cache must contain it.
        revision: the commit, as 40 hexadecimal digits.
        sha256: digest that ``model.safetensors`` must have, as 64 hexadecimal digits.
        tuning: ``full``, ``lora`` (with ``rank``, in the layers ``targets``) or ``head``.
        rank: of LoRA's matrices.
        targets: names of the layers that LoRA changes; None takes peft's choice for the model.

    Raises:
        DataMissingError: if the folder is missing, or has no safetensors.
        PlanError: if its weights have another digest, or transformers cannot load it.
    """
    import transformers
    from transformers.utils import logging as hf_logging

    path = _weights(_place(folder, name, revision), sha256)
    _require_plain(path.parent)
    hf_logging.disable_progress_bar()
    hf_logging.set_verbosity_error()
    # A place in a text has two scores: of an answer's start and of its end.
    more: dict[str, Any] = {"num_labels": classes or 2} if task in _HEADS else {}
    try:
        config = transformers.AutoConfig.from_pretrained(
            path.parent, local_files_only=True, trust_remote_code=False, **more
        )
        # Dropout and noise for privacy do the same work, and one of them is asked for.
        for name, value in config.to_dict().items():
            if "drop" in name and isinstance(value, int | float) and not isinstance(value, bool):
                setattr(config, name, 0.0)
        model: Any = getattr(transformers, _AUTO[task]).from_pretrained(
            path.parent,
            config=config,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            ignore_mismatched_sizes=bool(more),
        )
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        raise PlanError(
            f"{path.parent}: transformers cannot load it for '{task}': {reason}"
        ) from error
    if tuning == "lora":
        import peft

        settings = peft.LoraConfig(
            r=rank, lora_alpha=2 * rank, lora_dropout=0.0, target_modules=targets,
            # A fresh head for classes is trained in full beside the adapters.
            task_type=_HEADS.get(task),
        )  # fmt: skip
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it turns GPT-2's weights by itself, and says so
            model = peft.get_peft_model(model, settings)
    elif tuning == "head":
        base = model.base_model
        for parameter in base.parameters():
            parameter.requires_grad_(False)
    return Wrapped(model, task)


class Wrapped(nn.Module):
    """A model of transformers, called in the same way as Privet's own; padding is -1."""

    def __init__(self, inner: Any, task: str) -> None:
        super().__init__()
        self.inner = inner
        self._task = task
        base = inner.get_base_model() if hasattr(inner, "get_base_model") else inner
        self._typed = "token_type_ids" in inspect.signature(base.forward).parameters

    def forward(self, *given: Tensor, **named: Tensor) -> Tensor:
        """Return logits, as the task's own models do."""
        if self._task == "text-to-text":
            return self._two(*given)
        if self._task == "audio":
            return self.inner(input_values=named["waveform"]).logits  # type: ignore[no-any-return]
        if self._task == "question-answering":
            return self._places(named["tokens"], named["types"])
        tokens = named["tokens"] if named else given[0]
        logits: Tensor = self.inner(**self._read(tokens)).logits
        if self._task == "masked-text":
            places = given[1].unsqueeze(2).expand(-1, -1, logits.shape[2])
            return logits.gather(1, places)
        return logits

    def write(self, source: Tensor, beams: int) -> Tensor:
        """Generate texts by beam search.

        Args:
            source: token numbers [B, T] of the sources.
            beams: width of the search.

        Returns:
            Token numbers [B, S] with at most T new tokens.
        """
        found: Tensor = self.inner.generate(
            **self._read(source), num_beams=beams, max_new_tokens=source.shape[1]
        )
        return found

    def _places(self, tokens: Tensor, types: Tensor) -> Tensor:
        read = self._read(tokens) | ({"token_type_ids": types} if self._typed else {})
        found = self.inner(**read)
        return torch.stack([found.start_logits, found.end_logits], 2)

    def _two(self, source: Tensor, target: Tensor) -> Tensor:
        start = self.inner.config.decoder_start_token_id
        before = nn.functional.pad(target[:, :-1], (1, 0), value=start)
        read = self._read(source)
        return self.inner(**read, decoder_input_ids=before.clamp(min=0)).logits  # type: ignore[no-any-return]

    def _read(self, tokens: Tensor) -> dict[str, Tensor]:
        return {"input_ids": tokens.clamp(min=0), "attention_mask": (tokens >= 0).long()}


def tokens(options: HuggingFaceOptions, max_tokens: int) -> Tokens:
    """Return the tokens of a folder's ``tokenizer.json``.

    Args:
        options: of the plan's model; they name the folder.
        max_tokens: length T to which rows are cut and padded.

    Raises:
        DataMissingError: if there is no such file.
        PlanError: if the plan names no folder.
    """
    folder = _place(options.folder, options.name, options.revision)
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise DataMissingError(
            f"{path}: there is no such file; model.options.folder needs a fast tokenizer, which "
            "transformers writes with save_pretrained"
        )
    ids = _special(path)
    return Tokens(
        path, max_tokens, padding=-1, start=ids["start"], end=ids["end"],
        mask=ids["mask"] if ids["mask"] is not None else 0,
        special=tuple(sorted(ids["special"])),
    )  # fmt: skip


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
        "special": set(known.values()),
    }


def _require_plain(folder: Path) -> None:
    """Refuse settings that make transformers read code, or weights beside ``model.safetensors``.

    Raises:
        PlanError: naming the setting.
    """
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise PlanError(f"{folder / 'config.json'}: cannot be read: {error}") from error
    odd = _ELSEWHERE & set(config) if isinstance(config, dict) else {"no table"}
    if odd:
        raise PlanError(
            f"{folder / 'config.json'}: '{min(odd)}' would have other weights or code read than "
            "model.safetensors; take it out, or save the model whole"
        )
    if (folder / "adapter_config.json").exists():
        raise PlanError(
            f"{folder}: it holds an adapter; join it with its model (merge_and_unload) and save "
            "that"
        )


def _place(folder: str | None, name: str | None, revision: str | None) -> Path:
    """Return the folder that a plan names, by path or as a commit of the Hub.

    Raises:
        DataMissingError: if a commit is not in this machine's cache of the Hub.
        PlanError: if both are named, or none, or no commit.
    """
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


def _weights(folder: Path, sha256: str | None) -> Path:
    path = folder / "model.safetensors"
    if not path.is_file():
        raise DataMissingError(
            f"{path}: there is no such file. Get a model's folder on a machine with a network, by "
            "`hf download NAME --local-dir FOLDER`, and copy it here; only safetensors are read"
        )
    if sha256 is not None and digest_of(path) != f"sha256:{sha256}":
        raise PlanError(f"{path}: these are not the weights that model.options.sha256 names")
    return path
