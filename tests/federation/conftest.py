"""Whole federations, in this process."""

from __future__ import annotations

from federation_kit import as_bytes, federation, order_for, same, start, turned

__all__ = ["as_bytes", "federation", "order_for", "same", "start", "turned"]
