"""Models of transformers, called in the same way as Privet's own."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from privet.common.compat.torch import is_transformed
from privet.common.errors import PlanError
from privet.common.models.tokens import trimmed
from privet.common.sections.audio_task import AudioTaskSpec
from privet.common.sections.model import HuggingFaceOptions
from privet.common.sections.task import ImageTaskSpec, TaskSpec
from privet.common.sections.task_base import TokenTask

PADDING = -1
"""What fills a row of tokens: no number of a tokenizer, so that it is never taken for text."""

_PREPROCESSOR = "preprocessor_config.json"
_EPSILON = 1e-7


def around(inner: Any, task: TaskSpec, options: HuggingFaceOptions, path: Path) -> nn.Module:
    """Return the network of a task around a model of transformers.

    Args:
        inner: the model, with its adapter.
        task: of the plan.
        options: of the plan's model.
        path: the model's folder.

    Raises:
        PlanError: if the model lacks a number that the task needs.
    """
    precision = torch.bfloat16 if options.precision == "bfloat16" else None
    if isinstance(task, ImageTaskSpec):
        return PixelNetwork(inner, task.image.channels, path / _PREPROCESSOR, precision)
    if isinstance(task, AudioTaskSpec):
        return WaveNetwork(inner, path / _PREPROCESSOR, precision)
    assert isinstance(task, TokenTask)
    network = TokenNetwork(inner, task.kind, task.max_tokens, precision)
    if task.kind == "text-to-text" and network.start is None:
        raise PlanError(
            f"{path / 'config.json'}: 'decoder_start_token_id' is missing, with which a text begins"
        )
    return network


class _Network(nn.Module):
    """What all networks share: a model of transformers, and its precision in training.

    Args:
        inner: the model.
        precision: of its layers during training; None is that of its parameters.
    """

    def __init__(self, inner: Any, precision: torch.dtype | None) -> None:
        super().__init__()
        self.inner = inner
        self._precision = precision

    def _autocast(self, like: Tensor) -> torch.autocast:
        precision = self._precision if self.training else None
        return torch.autocast(like.device.type, precision, enabled=precision is not None)


class TokenNetwork(_Network):
    """A model that reads tokens, of which -1 is padding.

    Attributes:
        inner: the model of transformers.
        task: kind of the plan's task.
        start: the token with which a model begins to write; None if it says none.
        padding: the token that fills rows for it.
        is_left: whether padding goes before a text: a few models read a text's end at the last
            place.
        is_fixed: whether each row has ``max_tokens`` places, because the model's results depend
            on how many there are.
    """

    def __init__(
        self, inner: Any, task: str, max_tokens: int, precision: torch.dtype | None
    ) -> None:
        super().__init__(inner, precision)
        configs = (inner.config, getattr(inner, "generation_config", None))
        starts = [getattr(config, "decoder_start_token_id", None) for config in configs]
        self.start = next((start for start in starts if start is not None), None)
        self.padding = 0
        self.is_left = False
        self.is_fixed = False
        self.max_tokens = max_tokens
        self.task = task
        self._takes = _parameters_of(inner)
        self._is_windowed = _has_window(inner.config)
        self._is_causal = not inner.config.is_encoder_decoder and any(
            getattr(part, "is_causal", False) for part in inner.modules()
        )

    def forward(self, *given: Tensor, **named: Tensor) -> Tensor:
        """Return logits, as the task's own models do.

        Args:
            given: ``tokens`` [B, T]; for masked tokens their places [B, P], too; for one text from
                another ``source`` [B, T] and ``target`` [B, S].
            named: ``tokens``, and for a pair of texts ``types`` [B, T].
        """
        with self._autocast(given[0] if given else named["tokens"]):
            return self._logits(*given, **named).float()

    def _logits(self, *given: Tensor, **named: Tensor) -> Tensor:
        if self.task == "text-to-text":
            return self._two(*given)
        tokens = named["tokens"] if named else given[0]
        if self.task == "text" and not self.is_fixed:
            tokens = trimmed(tokens, PADDING)
        types = named.get("types")
        if self.task == "question-answering" and types is None:
            types = given[1]
        read = self._read(tokens, types)
        if "use_cache" in self._takes:
            read["use_cache"] = False
        output = self.inner(**read)
        if self.task == "text":
            return output.logits  # type: ignore[no-any-return]
        if self.task == "question-answering":
            logits = torch.stack([output.start_logits, output.end_logits], 2)
        else:
            logits = output.logits
        places = read["input_ids"].shape[1]
        logits = logits[:, -places:][:, : tokens.shape[1]]  # virtual tokens come first
        if self.task == "masked-text":
            chosen = given[1].unsqueeze(2).expand(-1, -1, logits.shape[2])
            return logits.gather(1, chosen)
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

    def _two(self, source: Tensor, target: Tensor) -> Tensor:
        before = functional.pad(target[:, :-1], (1, 0), value=self.start)
        before = before.masked_fill(before == PADDING, self.padding)
        read: dict[str, Any] = self._read(source)
        return self.inner(**read, decoder_input_ids=before, use_cache=False).logits  # type: ignore[no-any-return]

    def _read(self, tokens: Tensor, types: Tensor | None = None) -> dict[str, Any]:
        """Return what the model reads of rows [B, T]."""
        if self.is_fixed:
            tokens = functional.pad(tokens, (0, self.max_tokens - tokens.shape[1]), value=PADDING)
        if self.is_left:
            tokens = _to_the_right(tokens)
        there = tokens != PADDING
        # transformers asks a mask [B, T] whether it hides anything, which has no answer in vmap.
        is_ready = is_transformed(tokens) and not self._is_windowed
        mask = self._mask(there) if is_ready else there.long()
        given = {"input_ids": tokens.masked_fill(~there, self.padding), "attention_mask": mask}
        if types is not None and "token_type_ids" in self._takes:
            given["token_type_ids"] = functional.pad(types, (0, tokens.shape[1] - types.shape[1]))
        return given

    def _mask(self, there: Tensor) -> Tensor:
        """Return what attention adds to its scores, [B, 1, T, T], of the tokens that are there."""
        length = there.shape[1]
        seen = there[:, None, None, :].expand(-1, 1, length, -1)
        if self._is_causal:
            seen = seen & torch.ones(length, length, dtype=torch.bool, device=there.device).tril()
        lowest = torch.finfo(torch.float32).min
        return torch.zeros_like(seen, dtype=torch.float32).masked_fill(~seen, lowest)


class PixelNetwork(_Network):
    """A model that reads images, in the size and scale that it was trained with before.

    Args:
        inner: the model of transformers.
        channels: C of the task's images.
        settings: the folder's ``preprocessor_config.json``, if it has one.
        precision: see :class:`_Network`.

    Raises:
        PlanError: if the model reads other channels, or the settings cannot be used.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(
        self, inner: Any, channels: int, settings: Path, precision: torch.dtype | None
    ) -> None:
        super().__init__(inner, precision)
        wanted = getattr(inner.config, "num_channels", channels)
        if channels not in (1, wanted):
            raise PlanError(
                f"task.image.channels: the model reads images of {wanted} channels, not {channels}"
            )
        self.channels = wanted
        self.size = _size(getattr(inner.config, "image_size", None))
        for name, key, usual in (("mean", "image_mean", 0.5), ("deviation", "image_std", 0.5)):
            values = _of_channels(settings, key, usual, wanted)
            self.register_buffer(name, values, persistent=False)
        if not (self.deviation > 0).all():
            raise PlanError(f"{settings}: 'image_std' must be above 0")

    def forward(self, pixels: Tensor) -> Tensor:
        """Map pixels [B, C, H, W] in [-1, 1] to logits [B, K]."""
        read = pixels.expand(-1, self.channels, -1, -1)
        if self.size is not None and tuple(read.shape[2:]) != self.size:
            read = functional.interpolate(read, self.size, mode="bilinear", align_corners=False)
        read = ((read + 1) / 2 - self.mean) / self.deviation
        with self._autocast(read):
            return self.inner(pixel_values=read).logits.float()  # type: ignore[no-any-return]


class WaveNetwork(_Network):
    """A model that reads samples of sound.

    Args:
        inner: the model of transformers.
        settings: the folder's ``preprocessor_config.json``, if it has one.
        precision: see :class:`_Network`.

    Raises:
        PlanError: if the model reads something else of a sound than its samples.
    """

    def __init__(self, inner: Any, settings: Path, precision: torch.dtype | None) -> None:
        super().__init__(inner, precision)
        if "input_values" not in _parameters_of(inner):
            raise PlanError(
                f"model.options: '{inner.config.model_type}' reads a spectrum of a sound; models "
                "that read samples, as wav2vec2, Hubert and WavLM do, can be trained"
            )
        self.is_scaled = bool(_json(settings).get("do_normalize", False))

    def forward(self, waveform: Tensor) -> Tensor:
        """Map samples [B, S] in [-1, 1] to logits [B, K]."""
        if self.is_scaled:  # as transformers' Wav2Vec2FeatureExtractor does
            deviation, mean = torch.var_mean(waveform, 1, keepdim=True, correction=0)
            waveform = (waveform - mean) / torch.sqrt(deviation + _EPSILON)
        with self._autocast(waveform):
            return self.inner(input_values=waveform).logits.float()  # type: ignore[no-any-return]


def _to_the_right(rows: Tensor) -> Tensor:
    """Return rows with the padding at their end put before them."""
    places = torch.arange(rows.shape[1], device=rows.device)
    length = ((rows != PADDING) * (places + 1)).amax(1, keepdim=True)
    source = places - (rows.shape[1] - length)
    return rows.gather(1, source.clamp(min=0)).masked_fill(source < 0, PADDING)


def _parameters_of(inner: Any) -> frozenset[str]:
    """Return what a model's ``forward`` takes, that of the model within an adapter."""
    base = inner.get_base_model() if hasattr(inner, "get_base_model") else inner
    return frozenset(inspect.signature(base.forward).parameters)


def _has_window(config: Any) -> bool:
    """Return whether some layers attend to a part of a text, which a ready mask does not say."""
    text = config.get_text_config()
    names = ("sliding_window", "attention_chunk_size", "local_attention", "attention_window")
    kinds = getattr(text, "layer_types", None) or ()
    return any(getattr(text, name, None) for name in names) or len(set(kinds)) > 1


def _size(value: Any) -> tuple[int, int] | None:
    """Return height and width of the images that a model reads; None if it reads any."""
    if isinstance(value, int):
        return value, value
    return tuple(value) if isinstance(value, list | tuple) else None


def _of_channels(path: Path, key: str, usual: float, channels: int) -> Tensor:
    """Return a setting with a number for each channel, [C, 1, 1].

    Raises:
        PlanError: if it is something else.
    """
    value = _json(path).get(key, [usual] * channels)
    try:
        found = torch.tensor(value, dtype=torch.float32)
    except (TypeError, ValueError, RuntimeError) as error:
        raise PlanError(f"{path}: '{key}' must be a list of numbers") from error
    if found.shape != (channels,) or not found.isfinite().all():
        raise PlanError(f"{path}: '{key}' must have a number for each of {channels} channels")
    return found.view(-1, 1, 1)


def _json(path: Path) -> dict[str, Any]:
    """Return a file's table; an empty one if there is no such file.

    Raises:
        PlanError: if it cannot be read.
    """
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise PlanError(f"{path}: cannot be read: {error}") from error
    return value if isinstance(value, dict) else {}
