"""A server of gRPC that a stranger's call cannot end, and a line of its log that says too much."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from grpc import aio
from grpc._cython import cygrpc
from grpc.aio._server import Server

from privet.common.errors import RunError

_LOGGER, _INVALID = "grpc._cython.cygrpc", "Invalid encoding"


def quiet_metadata() -> None:
    """Keep gRPC from writing a traceback for metadata that is no text.

    It takes the metadata as it is afterwards. The logger's name and the message's beginning are
    private; the public way is to silence all that gRPC's core logs, errors too.
    """
    logging.getLogger(_LOGGER).addFilter(_is_of_interest)


def _is_of_interest(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith(_INVALID)


def known_methods_server(options: tuple[tuple[str, Any], ...], most: int | None) -> aio.Server:
    """Return a server that answers its own methods only; call it in the loop that will run it.

    gRPC's own server accepts a call of any method, and stops permanently at a method name that is
    not UTF-8: one call of a stranger would close the port (seen with grpcio 1.84 and 1.85). The
    part that is replaced is there since 1.84. ``grpc.aio.server`` has no option for it; a proxy
    before the port, or another HTTP/2 server, would be the public way.

    Args:
        options: of gRPC.
        most: calls at once; others are refused.

    Raises:
        RunError: if this version of gRPC cannot be kept from unknown methods.
    """
    if not hasattr(cygrpc.AioServer, "_make_request_call_future"):
        raise RunError("this version of gRPC is not known to Privet; install grpcio 1.84 or 1.85")
    return _Server(options, most)


class _Core(cygrpc.AioServer):
    """Takes calls of the methods that it knows, and leaves others without an answer."""

    def _make_request_call_future(self, method: bytes | None) -> asyncio.Future[Any]:
        if method is None:
            return asyncio.get_running_loop().create_future()
        found: asyncio.Future[Any] = super()._make_request_call_future(method)
        return found


class _Server(Server):
    def __init__(self, options: tuple[tuple[str, Any], ...], most: int | None) -> None:
        # In place of the constructor of gRPC, which makes a core of its own.
        self._loop = asyncio.get_running_loop()
        self._server = _Core(self._loop, None, (), (), options, most)
