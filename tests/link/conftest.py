"""Whole federations over the link: real sockets, real TLS."""

from __future__ import annotations

from federation_kit import federation, order_for, same, start

__all__ = ["federation", "order_for", "same", "start"]
