"""Whole federations, whose evidence is looked at."""

from __future__ import annotations

from federation_kit import as_bytes, federation, order_for, same, start, turned

__all__ = ["as_bytes", "federation", "order_for", "same", "start", "turned"]
