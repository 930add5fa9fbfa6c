"""Perplexity and what belongs to it, from likelihoods or from a histogram of them.

The scores of a record are [nats, tokens, characters]: the negative log-likelihood of its predicted
tokens in sum, how many they are, and how many characters of the text they stand for.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
NAMES = ("perplexity", "loss", "bits_per_character")
MOST = 12.0
"""Nats a token at which the histogram ends; guessing among 160,000 tokens costs as much."""


def from_scores(scores: Array, labels: Array) -> dict[str, float | None]:
    """Return perplexity per token, loss in nats per token, and bits per character.

    Args:
        scores: [N, 3], see the module.
        labels: unused.
    """
    del labels
    nats, tokens, characters = (
        np.asarray(scores, dtype=np.float64).sum(0) if len(scores) else 3 * [0]
    )
    if not tokens > 0:
        return dict.fromkeys(NAMES)
    loss = float(nats / tokens)
    bits = float(nats / math.log(2) / characters) if characters > 0 else None
    return {"perplexity": math.exp(min(loss, 700.0)), "loss": loss, "bits_per_character": bits}


def histogram(scores: Array, labels: Array, weights: Array, bins: int) -> Array:
    """Return [1, bins] of each record's loss per token, between 0 and :data:`MOST`."""
    del labels
    tokens = scores[:, 1]
    there = tokens > 0
    loss = scores[there, 0] / tokens[there]
    column = np.clip(loss * bins / MOST, 0, bins - 1).astype(int)
    table = np.zeros((1, bins))
    np.add.at(table, (0, column), weights[there])
    return table


def from_histogram(table: Array) -> dict[str, float | None]:
    """Read the figures from a (noised) histogram; negative cells count as zero.

    The loss is the mean over units of their loss per token, known to half a bin.
    """
    table = np.maximum(np.asarray(table, dtype=np.float64), 0.0)[0]
    if not table.sum() > 0:
        return dict.fromkeys(NAMES)
    centres = (np.arange(len(table)) + 0.5) * MOST / len(table)
    loss = float((table * centres).sum() / table.sum())
    return {"perplexity": math.exp(loss), "loss": loss, "bits_per_character": None}
