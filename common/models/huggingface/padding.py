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
_SHORT, _MORE = 6, 9
"""Tokens of the text that is tried, and places that are added to it."""


def settle(network: TokenNetwork, tokens: Tokens) -> None:
    """Find out how a model wants its rows to be filled, and set the network so.

    Args:
        network: its ``padding``, ``is_left`` and ``is_fixed`` are set.
        tokens: that it reads.

    Raises:
        PlanError: if it cannot read rows of different lengths, or of ``max_tokens`` tokens.
    """
    _require_known(network.inner, tokens)
    network.padding = _padding_of(network.inner, tokens)
    was_training = network.training
    network.eval()
    try:
        with torch.no_grad():
            _require_length(network, tokens)
            _choose_side(network, tokens)
    finally:
        network.train(was_training)


def _choose_side(network: TokenNetwork, tokens: Tokens) -> None:
    sides = [False] if network.task != "text" else [False, True]
    for network.is_left in sides:
        if _is_steady(network, tokens):
            return
    network.is_left, network.is_fixed = False, True


def _is_steady(network: TokenNetwork, tokens: Tokens) -> bool:
    """Return whether a text's logits stay the same beside a longer text."""
    short = min(_SHORT, tokens.max_tokens)
    longer = min(short + _MORE, tokens.max_tokens)
    alone = tokens.generated(short, torch.Generator().manual_seed(0)).unsqueeze(0)
    other = tokens.generated(longer, torch.Generator().manual_seed(1))
    both = torch.full((2, longer), PADDING)
    both[0, :short], both[1] = alone[0], other
    try:
        first, second = _logits(network, alone)[0], _logits(network, both)[0]
    except (ValueError, RuntimeError, IndexError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise PlanError(
            f"model.options: the model cannot read texts of different lengths: {reason}"
            f"{_hint(network.inner)}"
        ) from error
    if first.shape != second.shape:
        second = second[: len(first)]
    largest = max(float(first.abs().max()), 1e-12)
    return float((first - second).abs().max()) <= _CLOSE * largest


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


def _padding_of(inner: Any, tokens: Tokens) -> int:
    """Return the token that fills rows: the model's own, or its tokenizer's, or any."""
    config = inner.config
    found = getattr(config, "pad_token_id", None)
    if found is None and tokens.filler is not None:
        found = config.pad_token_id = tokens.filler
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
    """Check that a text of ``max_tokens`` tokens can be read, where that is near the limit.

    Raises:
        PlanError: naming the limit.
    """
    limit = getattr(network.inner.config.get_text_config(), "max_position_embeddings", None)
    if not isinstance(limit, int) or tokens.max_tokens <= limit - 4:
        return
    row = tokens.generated(tokens.max_tokens, torch.Generator().manual_seed(0)).unsqueeze(0)
    try:
        _logits(network, row)
    except (IndexError, RuntimeError, ValueError) as error:
        raise PlanError(
            f"task.max_tokens: the model cannot read {tokens.max_tokens} tokens; it has {limit} "
            "positions, of which some models leave the first two free"
        ) from error
