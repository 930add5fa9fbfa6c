"""Call the enrolment server, which opens a moment after an invitation is made."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import grpc

_OPENING_S = 5.0
"""Seconds in which the port of an invitation made just now is surely open."""
_INTERVAL_S = 0.25
OPTIONS = [("grpc.initial_reconnect_backoff_ms", 200), ("grpc.max_reconnect_backoff_ms", 500)]
"""For the channel: another try connects again."""


def call_when_open(call: Callable[..., Any], message: Any, timeout: float) -> Any:
    """Send a request, and again for five seconds where nobody listens.

    The coordinator opens the port when it sees an invitation and shuts it when none is left; a
    request may come between the two.

    Args:
        call: of a stub.
        message: the request.
        timeout: seconds that an answer may take.

    Returns:
        the answer.

    Raises:
        grpc.RpcError: if it is refused, or nobody listens.
    """
    end = time.monotonic() + _OPENING_S
    while True:
        try:
            return call(message, timeout=timeout)
        except grpc.RpcError as error:
            closed = error.code() is grpc.StatusCode.UNAVAILABLE
            if not closed or time.monotonic() > end:
                raise
        time.sleep(_INTERVAL_S)
