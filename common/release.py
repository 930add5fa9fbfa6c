"""A release: the one thing a site lets out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from privet.common.flat import Arrays


@dataclass(frozen=True)
class Release:
    """Tensors and public facts that answer one order.

    Attributes:
        order: digest of the order it answers.
        facts: JSON values: site, event, digest of the tensors, what was spent.
        arrays: float32 arrays by name.
    """

    order: str
    facts: dict[str, Any]
    arrays: Arrays
