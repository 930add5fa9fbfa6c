"""Calls of gRPC, heard with patience: what both ports of a coordinator have in common.

Every method of a port comes to one function, and messages are parsed here. So nothing that was
sent is parsed, and not even told whether a method exists, before the caller is known; what is no
message is a status and no error in the log; and a call that does not go on is ended.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Generic, TypeAlias, TypeVar, cast

import grpc
from google.protobuf.message import DecodeError, Message
from grpc import aio

PATIENCE = 60.0
"""Seconds that a call may stand still where it should go on: a megabyte takes 8 at 1 Mbit/s."""

OPTIONS = [
    # A stranger has so long for the handshake; by default it is two minutes.
    ("grpc.server_handshake_timeout_ms", 10_000),
    # Connections without a call end. An honest site always has one: Attend.
    ("grpc.max_connection_idle_ms", 30_000),
    ("grpc.absolute_max_metadata_size", 32 << 10),
    # gRPC unpacks a message before it looks how long it is.
    ("grpc.per_message_decompression", 0),
    ("grpc.compression_enabled_algorithms_bitset", 1),
    ("grpc.so_reuseport", 0),
]

_M = TypeVar("_M", bound=Message)

Context: TypeAlias = "aio.ServicerContext[Any, Any]"
Serve = Callable[[str, Context], Awaitable[None]]
"""Serves a call of a method; raises :class:`CallFault`."""


class CallFault(Exception):
    """A call is ended with a status."""

    def __init__(self, status: grpc.StatusCode, text: str) -> None:
        super().__init__(text)
        self.status = status


class Line(Generic[_M]):
    """The messages of one call, both ways.

    Args:
        context: of the call.
        kind: of the messages that come.
    """

    def __init__(self, context: Context, kind: type[_M]) -> None:
        self._context = context
        self._kind = kind

    async def read(self, seconds: float | None = None) -> _M | None:
        """Return the next message, None at the end.

        Raises:
            CallFault: if none came in time, or what came is none.
        """
        try:
            async with asyncio.timeout(seconds):
                raw = await self._context.read()
        except TimeoutError:
            status = grpc.StatusCode.DEADLINE_EXCEEDED
            raise CallFault(status, f"nothing came for {seconds:g} seconds") from None
        if not isinstance(raw, bytes):
            return None
        try:
            return cast(_M, self._kind.FromString(raw))
        except DecodeError:
            status = grpc.StatusCode.INVALID_ARGUMENT
            raise CallFault(status, f"not a {self._kind.DESCRIPTOR.name}") from None

    async def one(self, seconds: float) -> _M:
        """Return the one message of a call.

        Raises:
            CallFault: if there is none, or none in time.
        """
        message = await self.read(seconds)
        if message is None:
            raise CallFault(grpc.StatusCode.INVALID_ARGUMENT, "the call has no message")
        return message

    async def write(self, message: Message, seconds: float | None = None) -> bool:
        """Write a message; False if nobody is there any more.

        Raises:
            CallFault: if it is not taken in time.
        """
        try:
            async with asyncio.timeout(PATIENCE if seconds is None else seconds):
                await self._context.write(message.SerializeToString())
        except TimeoutError:
            status = grpc.StatusCode.DEADLINE_EXCEEDED
            raise CallFault(status, "what was sent was not taken") from None
        except Exception:  # gRPC has no public name for it
            return False
        return True


class EveryMethod(grpc.GenericRpcHandler):
    """Hands every call, of whatever method, to one function."""

    def __init__(self, serve: Serve) -> None:
        self._serve = serve

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        """Return the handler of a call."""
        method = details.method

        async def handle(_: Any, context: Context) -> None:
            try:
                await self._serve(method, context)
            except CallFault as fault:
                await context.abort(fault.status, str(fault))

        return grpc.stream_stream_rpc_method_handler(handle)
