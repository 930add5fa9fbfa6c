"""Generated records of many lengths, and what a run's network makes of them.

They are made of the tokenizer's own vocabulary, which is public: no record of the run is read.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from torch import Tensor, nn

from privet.common.models.text import tokens_for
from privet.common.models.tokens import Tokens
from privet.common.sections.task_base import TokenTask
from privet.common.tasks.cleaning import cleaner
from privet.delivery.folder_model import in_float32

if TYPE_CHECKING:
    from privet.delivery.trained import Trained

MAX_PLACES = 64
"""Positions of a text whose outputs are compared: all outputs of a long text need gigabytes."""
_TEXTS = ("text", "causal-text", "masked-text", "text-to-text")


@dataclass(frozen=True)
class Probe:
    """Records, and the network's outputs.

    Attributes:
        tokens: the run's tokenizer; None where records are no texts, or a task is not known.
        texts: of each record.
        targets: the texts to be written, for a task that writes.
        wanted: the numbers that the folder's tokenizer must give for each text.
        rows: the numbers that the network read, without padding.
        target_rows: the same of the targets.
        chat: whether a text is the first turn of a chat.
        places: positions whose outputs are kept, for each record; empty for one output a record.
        outputs: of each record, [P, V] or [K]; without tokens those of the whole batch.
        is_left: whether padding goes before a text.
        is_fixed: whether every text is filled to ``max_tokens``.
        is_batch: whether the outputs are of a generated batch, and the texts only tell what the
            tokenizer makes of them.
    """

    tokens: Tokens | None
    texts: list[str] = field(default_factory=list)
    targets: list[str] = field(default_factory=list)
    wanted: list[list[int]] = field(default_factory=list)
    rows: list[list[int]] = field(default_factory=list)
    target_rows: list[list[int]] = field(default_factory=list)
    places: list[list[int]] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)
    chat: bool = False
    is_left: bool = False
    is_fixed: bool = False
    is_batch: bool = False


def probe(trained: Trained, network: nn.Module) -> Probe:
    """Return generated records with what a network makes of them.

    Args:
        trained: the model, whose task feeds the network.
        network: in evaluation mode; before its adapters are merged, so that merging is compared.
    """
    task = trained.plan.task
    with torch.no_grad(), in_float32(network):
        if isinstance(task, TokenTask) and task.kind in _TEXTS:
            return _of_texts(trained, network)
        outputs = outputs_of(trained, network)
        if not isinstance(task, TokenTask) or not task.texts:
            return Probe(None, outputs=outputs)
        tokens = tokens_for(trained.plan.model, task.max_tokens)
        texts = generated_texts(tokens, task.max_tokens, marks=True)
        wanted = [_unpadded(row, tokens) for row in tokens.numbers(texts).tolist()]
        return Probe(tokens, texts, wanted=wanted, outputs=outputs, is_batch=True)


def outputs_of(trained: Trained, network: nn.Module) -> list[Tensor]:
    """Return what a network gives for generated batches of a task; else the task's scores."""
    found: list[Tensor] = []
    batch = trained.task.random_batch(8, 0)
    hook = network.register_forward_hook(
        lambda module, given, output: found.append(output) if torch.is_tensor(output) else None
    )
    try:
        scores = trained.task.scores(network, batch)
    finally:
        hook.remove()
    return [one.detach().float() for one in found or [scores]]


def _of_texts(trained: Trained, network: nn.Module) -> Probe:
    task: Any = trained.plan.task
    tokens = tokens_for(trained.plan.model, task.max_tokens)
    chat = getattr(task, "chat", False)
    texts = _texts(trained, tokens)
    targets = texts[1:] + texts[:1] if task.kind == "text-to-text" else []
    batch = trained.encode(_records(task, texts, targets))
    given, logits = _call(trained, network, batch)
    rows = [_unpadded(row, tokens) for row in given[0].tolist()]
    written = [_unpadded(row, tokens) for row in batch["target"].tolist()] if targets else []
    wanted = rows
    if task.kind == "causal-text":
        wanted = [_unpadded(row, tokens) for row in batch["tokens"].tolist()]
        if trained.plan.model.kind == "huggingface":  # a text that is continued: a start, no end
            puts = rows[0][1:] == wanted[0][: len(rows[0]) - 1]  # the task puts the start
            begins = rows[0][:1] if puts and tokens.start is not None else []
            wanted = _continued(wanted, batch, begins, tokens)
            rows = [row[: len(text)] for row, text in zip(rows, wanted, strict=True)]
    places = [] if task.kind == "text" else [_places(len(row)) for row in written or rows]
    outputs = [(one[places[k]] if places else one).float().clone() for k, one in enumerate(logits)]
    sides = {name: getattr(network, name, False) for name in ("is_left", "is_fixed")}
    return Probe(tokens, texts, targets, wanted, rows, written, places, outputs, chat, **sides)


def _texts(trained: Trained, tokens: Tokens) -> list[str]:
    """Return generated texts that cleaning leaves alone, and that fit into a chat's template."""
    task: Any = trained.plan.task
    room = tokens.max_tokens
    chat = getattr(task, "chat", False)
    if chat:
        row = trained.encode(_records(task, [""], []))["tokens"][0].tolist()
        room -= len(_unpadded(row, tokens))
    clean = cleaner(task.clean, task.clean_region)  # the folder cleans nothing
    texts = [clean(text) for text in generated_texts(tokens, room, marks=task.kind == "text")]
    texts = [text for text in texts if clean(text) == text]
    if chat:  # transformers cuts a chat with its template, and the run cuts the text in it
        rows = trained.encode(_records(task, texts, []))["tokens"].tolist()
        fits = [len(_unpadded(row, tokens)) < tokens.max_tokens for row in rows]
        texts = [text for text, does in zip(texts, fits, strict=True) if does]
    return texts


def _records(task: Any, texts: list[str], targets: list[str]) -> pd.DataFrame:
    """Return records of a task; a prompt has an empty answer."""
    if getattr(task, "prompt", None) is not None:
        return pd.DataFrame({task.prompt: texts, task.text: ""})
    return pd.DataFrame({task.text: texts} | ({task.target: targets} if targets else {}))


def _call(trained: Trained, network: nn.Module, batch: Any) -> tuple[tuple[Tensor, ...], Tensor]:
    """Return what the task gives a network, and the network's outputs at those positions."""
    if trained.plan.task.kind == "masked-text":  # nothing masked: which tokens are is drawn
        rows = batch["tokens"]
        places = torch.arange(rows.shape[1]).expand_as(rows)
        return (rows,), network(rows, places)
    calls: list[tuple[tuple[Tensor, ...], Tensor]] = []

    def note(module: nn.Module, given: Any, named: dict[str, Any], output: Tensor) -> None:
        calls.append(((*given, *named.values()), output))

    hook = network.register_forward_hook(note, with_kwargs=True)
    try:
        trained.task.scores(network, batch)
    finally:
        hook.remove()
    given, logits = calls[0]
    length = given[-1].shape[1]
    return given, logits[:, -length:] if logits.dim() == 3 else logits


def _continued(
    rows: list[list[int]], batch: Any, begins: list[int], tokens: Tokens
) -> list[list[int]]:
    """Return the numbers of texts that a model continues.

    Args:
        rows: of the texts, with their ends.
        batch: says how long a prompt is, if the task has prompts.
        begins: the start that the task puts.
        tokens: the run's.
    """
    if "prompted" in batch:
        ends = batch["prompted"].tolist()
    else:
        ends = [len(row) - (row[-1:] == [tokens.end]) for row in rows]
    return [[*begins, *row[:end]][: tokens.max_tokens] for row, end in zip(rows, ends, strict=True)]


def _unpadded(row: list[int], tokens: Tokens) -> list[int]:
    return row[: max((k + 1 for k, one in enumerate(row) if one != tokens.padding), default=0)]


def _places(length: int) -> list[int]:
    """Return at most :data:`MAX_PLACES` positions from the first to the last."""
    if length <= MAX_PLACES:
        return list(range(length))
    return sorted({round(k * (length - 1) / (MAX_PLACES - 1)) for k in range(MAX_PLACES)})


def generated_texts(tokens: Tokens, length: int, *, marks: bool = False) -> list[str]:
    """Return texts of one token, a few, half of what fits, all of it, and more than fits.

    Args:
        tokens: whose vocabulary they are made of.
        length: tokens that fit.
        marks: whether one of them spells a special token, which is plain text in a record.
    """
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(tokens.path))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    special = sorted(
        one.content for one in tokenizer.get_added_tokens_decoder().values() if one.special
    )
    known = sorted(number for name, number in tokenizer.get_vocab().items() if name not in special)
    chance = random.Random(0)
    chosen = chance.sample(known, min(len(known), 512))
    words = [word for one in chosen if (word := tokenizer.decode([one]).strip()).isprintable()]
    words = [word for word in words if word and "\ufffd" not in word] or ["a"]
    texts = []
    for wanted in (1, 3, max(1, length // 2), max(1, length), 2 * max(1, length) + 1):
        chance.shuffle(words)
        text = " ".join(words[k % len(words)] for k in range(wanted))
        ends = [end for _, end in tokenizer.encode(text, add_special_tokens=False).offsets]
        texts.append(text[: max(ends[:wanted], default=len(text))])
    frame = len(tokenizer.encode("", add_special_tokens=True).ids)
    texts.append(" ".join(words[k % len(words)] for k in range(max(1, length - frame - 2))))
    if marks and special:
        texts.append(f"{words[0]} {special[0]} {words[-1]}")
    return texts
