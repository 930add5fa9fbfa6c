"""How a model of transformers wants rows of different lengths to be filled.

A record's result must not depend on how long the other records of a batch are. That is tried, and
not taken from the model's name: a text is read alone, and beside a longer one.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from privet.common.errors import PlanError
from privet.common.models.huggingface.networks import PADDING, TokenNetwork
from privet.common.models.tokens import Tokens

_CLOSE = 1e-4
"""Most that a text's logits may differ, relative to the largest."""
_SHORT = 6
"""Tokens of the text that is tried, beside the longest."""


def settle(network: TokenNetwork, tokens: Tokens) -> None:
    """Find out how a model wants its rows to be filled, and set the network so.

    Args:
        network: its ``padding``, ``is_left`` and ``is_fixed`` are set.
        tokens: that it reads.

    Raises:
        PlanError: if it cannot read rows of different lengths, or of ``max_tokens`` tokens, or what
            it read before changes its answers.
    """
    _require_known(network.inner, tokens)
    network.padding = _padding_of(network, tokens)
    was_training = network.training
    network.eval()
    try:
        with torch.no_grad():
            _require_length(network, tokens)
            _require_no_memory(network, tokens)
            _choose_side(network, tokens)
    finally:
        network.train(was_training)


def _row(tokens: Tokens, length: int, seed: int) -> Tensor:
    """Return a generated row [1, L]."""
    return tokens.generated(length, torch.Generator().manual_seed(seed)).unsqueeze(0)


def _choose_side(network: TokenNetwork, tokens: Tokens) -> None:
    sides = [False] if network.task != "text" else [False, True]
    for network.is_left in sides:
        if _is_steady(network, tokens):
            return
    network.is_left, network.is_fixed = False, True


def _is_steady(network: TokenNetwork, tokens: Tokens) -> bool:
    """Return whether a text's logits stay the same beside the longest one."""
    short = min(_SHORT, tokens.max_tokens)
    alone = _row(tokens, short, 0)
    both = torch.full((2, tokens.max_tokens), PADDING)
    both[0, :short], both[1] = alone[0], _row(tokens, tokens.max_tokens, 1)[0]
    try:
        first, second = _logits(network, alone)[0], _logits(network, both)[0]
    except (ValueError, RuntimeError, IndexError) as error:
        reason = str(error).strip().partition("\n")[0].rstrip(".")
        raise PlanError(
            f"model.options: the model cannot read texts of different lengths: {reason}"
            f"{_hint(network.inner)}"
        ) from error
    if first.shape != second.shape:
        second = second[: len(first)]
    return _agree(first, second)


def _agree(first: Tensor, second: Tensor) -> bool:
    largest = max(float(first.abs().max()), 1e-12)
    return float((first - second).abs().max()) <= _CLOSE * largest


def _require_no_memory(network: TokenNetwork, tokens: Tokens) -> None:
    """Check that a short text changes neither the answer to a long one nor the model's buffers.

    Some position embeddings are made for the longest text so far, and some attention changes its
    kind at the first short text: then a record's gradient would depend on records before it.

    Raises:
        PlanError: naming the buffer that changed.
    """
    kept = {name: buffer.clone() for name, buffer in network.named_buffers()}
    long = _row(tokens, tokens.max_tokens, 0)
    first = _logits(network, long)
    changed = _changed(network, kept)
    _logits(network, _row(tokens, min(_SHORT, tokens.max_tokens), 0))
    changed += _changed(network, kept)
    if not changed and _agree(first, _logits(network, long)):
        return
    what = f"'{changed[0]}' is another after it read" if changed else "its answers change with"
    raise PlanError(
        f"model.options: the model keeps something of the texts that it reads: {what} a text of "
        f"another length. Texts up to a length are often treated alike: lower task.max_tokens "
        f"({tokens.max_tokens}), or change rope_type or attention_type in config.json"
    )


def _changed(network: TokenNetwork, kept: dict[str, Tensor]) -> list[str]:
    now = dict(network.named_buffers())
    return [name for name, buffer in kept.items() if not _is_same(buffer, now.get(name))]


def _is_same(one: Tensor, other: Tensor | None) -> bool:
    return other is not None and one.shape == other.shape and torch.equal(one, other)


def _logits(network: TokenNetwork, rows: Tensor) -> Tensor:
    """Return logits of rows [B, T], each place's where the task has such."""
    given = [rows]
    if network.task == "question-answering":
        given = [rows, torch.zeros_like(rows)]
    elif network.task == "text-to-text":
        given = [rows, rows[:, :3]]
    elif network.task == "masked-text":
        given = [rows, torch.arange(rows.shape[1]).expand_as(rows)]
    logits: Tensor = network(*given)
    return logits


def _padding_of(network: TokenNetwork, tokens: Tokens) -> int:
    """Return the token that fills rows: the model's own, or its tokenizer's, or any."""
    config = network.inner.config
    found = getattr(config, "pad_token_id", None)
    if found is None and tokens.filler is not None:
        found = config.pad_token_id = tokens.filler
    elif found is None and network.task == "text":
        # A classifier must know it; GPT-2 and LLaMA have an end, which is as good.
        found = config.pad_token_id = tokens.end
    return 0 if found is None or found < 0 else int(found)


def _hint(inner: Any) -> str:
    if getattr(inner.config, "pad_token_id", None) is not None:
        return ""
    return (
        "; neither config.json has a 'pad_token_id' nor tokenizer_config.json a 'pad_token': write "
        "one there that no text holds"
    )


def _require_known(inner: Any, tokens: Tokens) -> None:
    try:
        rows = inner.get_input_embeddings().weight.shape[0]
    except (NotImplementedError, AttributeError):  # it reads no table of tokens
        return
    if tokens.size > rows:
        raise PlanError(
            f"{tokens.path}: has {tokens.size} tokens, and the model of that folder knows {rows}: "
            "they are not of one model"
        )


def _require_length(network: TokenNetwork, tokens: Tokens) -> None:
    """Check that a text of ``max_tokens`` tokens can be read.

    Raises:
        PlanError: naming the limit.
    """
    try:
        _logits(network, _row(tokens, tokens.max_tokens, 0))
    except (IndexError, RuntimeError, ValueError) as error:
        limit = getattr(network.inner.config, "max_position_embeddings", None)
        virtual = getattr(
            getattr(network.inner, "active_peft_config", None), "num_virtual_tokens", 0
        )
        if not isinstance(limit, int) or tokens.max_tokens + virtual <= limit - 4:
            reason = str(error).strip().partition("\n")[0]
            raise PlanError(f"model.options: the model cannot read a text: {reason}") from error
        more = f" and the adapter's {virtual} virtual ones" if virtual else ""
        raise PlanError(
            f"task.max_tokens: the model cannot read {tokens.max_tokens} tokens{more}; it has "
            f"{limit} positions, of which some models leave the first two free"
        ) from error
