"""Layers of transformers that book-keeping reads, known by the names of their classes.

No page promises that such a class computes the same tomorrow; the start-up self-test (H16) compares
each with single records. The public way is to clip their models by Opacus, at several times the
cost.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

_RMS = (
    "LlamaRMSNorm", "MistralRMSNorm", "Qwen2RMSNorm", "Qwen3RMSNorm", "T5LayerNorm", "MT5LayerNorm",
)  # fmt: skip
"""Root-mean-square norms that scale by their weight as it is, with ``variance_epsilon``."""
BIAS = "compute_bias"
"""Method of T5's attention that makes its position bias."""


def is_conv1d(kind: type[nn.Module]) -> bool:
    """Return whether this is GPT-2's linear map, whose weight is transposed."""
    return kind.__module__ == "transformers.pytorch_utils" and kind.__name__ == "Conv1D"


def is_rms_norm(kind: type[nn.Module]) -> bool:
    """Return whether this is a root-mean-square norm that is known."""
    return kind.__module__.startswith("transformers.") and kind.__name__ in _RMS


def rms_epsilon(norm: Any) -> float:
    """Return what a norm of :func:`is_rms_norm` adds to the mean square."""
    epsilon: float = norm.variance_epsilon
    return epsilon


def position_table(module: nn.Module) -> nn.Module | None:
    """Return the table of T5's relative positions, if a module makes a bias of one."""
    table = getattr(module, "relative_attention_bias", None)
    return table if hasattr(type(module), BIAS) else None


def position_bias(module: nn.Module, *given: Any, **more: Any) -> Tensor:
    """Return a T5 attention's own position bias, [1, heads, queries, keys].

    ``compute_bias`` calls the table's ``forward`` once, with positions [queries, keys].
    """
    found: Tensor = getattr(type(module), BIAS)(module, *given, **more)
    return found
