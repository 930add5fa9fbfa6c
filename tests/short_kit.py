"""The short form of a long list: `make test` tries some of it, `make test-all` the whole."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def short(values: Iterable[Any], tried: Collection[Any]) -> list[Any]:
    """Mark all but some parameters of a test as long.

    Args:
        values: of the parameter; tuples for several parameters.
        tried: those that every change is tried on.
    """
    values = list(values)
    assert any(value in tried for value in values), "nothing would be tried"
    return [
        value
        if value in tried
        else pytest.param(
            *(value if isinstance(value, tuple) else (value,)), marks=pytest.mark.long
        )
        for value in values
    ]
