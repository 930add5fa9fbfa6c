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
_TABLE = "relative_attention_bias"
_BIASES = ("compute_bias", "compute_position_bias")
"""Methods that make a position bias of a table: of T5's attention, and of MPNet's encoder."""


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


def position_bias_method(module: nn.Module) -> str | None:
    """Return the method that makes a position bias of a table of the module, if it has one."""
    if not isinstance(getattr(module, _TABLE, None), nn.Embedding):
        return None
    return next((name for name in _BIASES if hasattr(type(module), name)), None)


def position_table(module: Any) -> nn.Embedding:
    """Return the table of relative positions of a module with :func:`position_bias_method`."""
    table: nn.Embedding = getattr(module, _TABLE)
    return table


def position_bias(module: nn.Module, method: str, *given: Any, **more: Any) -> Tensor:
    """Return a module's own position bias, [1 or B, heads, queries, keys].

    Its method calls the table's ``forward`` once, with positions [queries, keys].
    """
    found: Tensor = getattr(type(module), method)(module, *given, **more)
    return found
