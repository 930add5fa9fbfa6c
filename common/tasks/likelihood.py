"""Perplexity and related metrics, from likelihoods or from a histogram of them.

The scores of a record are [nats, tokens, characters]: the negative log-likelihood of its predicted
tokens in sum, their number, and the number of characters that they cover.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
NAMES = ("perplexity", "loss", "bits_per_character")
MAX_NATS = 12.0
"""Nats a token at which the histogram ends; guessing among 160,000 tokens costs as much."""


def from_scores(scores: Array, labels: Array) -> dict[str, float | None]:
    """Return perplexity per token, loss in nats per token, and bits per character.

    Args:
        scores: [N, 3], see the module.
        labels: unused.
    """
    del labels
    nats, tokens, characters = np.asarray(scores, dtype=np.float64).reshape(-1, 3).sum(0)
    if not tokens > 0:
        return dict.fromkeys(NAMES)
    loss = float(nats / tokens)
    bits = float(nats / math.log(2) / characters) if characters > 0 else None
    return {"perplexity": math.exp(min(loss, 700.0)), "loss": loss, "bits_per_character": bits}


def cells(scores: Array, labels: Array, shape: tuple[int, int]) -> Array:
    """Return each record's bin of its loss per token, between 0 and :data:`MAX_NATS`.

    A record without tokens has no bin (-1). No record has one if the scores have another width.

    Args:
        scores: [N, 3], see the module; finite.
        labels: unused.
        shape: (1, bins).
    """
    del labels
    bins = shape[1]
    if scores.ndim != 2 or scores.shape[1] != 3:
        return np.full(len(scores), -1, dtype=np.int64)
    tokens = scores[:, 1].astype(np.float64)
    with np.errstate(over="ignore"):
        loss = scores[:, 0] / np.where(tokens > 0, tokens, 1.0)
        column = np.clip(loss * bins / MAX_NATS, 0, bins - 1).astype(np.int64)
    return np.where(tokens > 0, column, -1)


def from_histogram(table: Array) -> dict[str, float | None]:
    """Compute the metrics from a (noised) histogram; negative cells count as zero.

    The loss is the mean over units of their loss per token, exact to half a bin.
    """
    table = np.maximum(np.asarray(table, dtype=np.float64), 0.0)[0]
    if not table.sum() > 0:
        return dict.fromkeys(NAMES)
    centres = (np.arange(len(table)) + 0.5) * MAX_NATS / len(table)
    loss = float((table * centres).sum() / table.sum())
    return {"perplexity": math.exp(loss), "loss": loss, "bits_per_character": None}
