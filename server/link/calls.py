"""Serve gRPC calls with time limits; both ports of a coordinator use this.

Privet parses messages itself, after it has identified the caller, so that nothing from a stranger
is parsed. A message that cannot be parsed ends its call with a status, and writes no traceback into
the log. A call that makes no progress is ended. A call of an unknown method gets no answer.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Generic, TypeAlias, TypeVar, cast

import grpc
from google.protobuf.message import DecodeError, Message
from grpc import StatusCode, aio

from privet.common.compat.grpc import known_methods_server, quiet_metadata
from privet.common.errors import InputError

_SHUTDOWN_TIMEOUT_S = 0.5
"""Seconds that tasks have to end after their server did."""
STALL_TIMEOUT_S = 60.0
"""Seconds that a call may make no progress: a megabyte takes 8 at 1 Mbit/s."""

_OPTIONS = [
    # A stranger has so long for the handshake; by default it is two minutes.
    ("grpc.server_handshake_timeout_ms", 10_000),
    # Connections without a call end. An honest site always has one: Attend.
    ("grpc.max_connection_idle_ms", 30_000),
    ("grpc.absolute_max_metadata_size", 32 << 10),
    # Nothing here is compressed; a compressed message is refused unread.
    ("grpc.per_message_decompression", 0),
    ("grpc.compression_enabled_algorithms_bitset", 1),
    # Calls that are not accepted yet, of one method or of unknown ones, and for how long.
    ("grpc.server.max_pending_requests", 200),
    ("grpc.server.max_pending_requests_hard_limit", 400),
    ("grpc.server_max_unrequested_time_in_server", 5),
    ("grpc.so_reuseport", 0),
]

quiet_metadata()

_M = TypeVar("_M", bound=Message)

Context: TypeAlias = "aio.ServicerContext[Any, Any]"
Serve = Callable[[Context], Awaitable[None]]
"""Serves a call; raises :class:`RpcAbort`."""
Options = Sequence[tuple[str, int]]


class RpcAbort(Exception):
    """End a call with a gRPC status.

    Args:
        status: that the caller receives.
        text: the message beside the status.
        reason: under which the metrics count the refusal; "" counts none.
    """

    def __init__(self, status: StatusCode, text: str, reason: str = "malformed") -> None:
        super().__init__(text)
        self.status = status
        self.reason = reason


class PeerClosed(Exception):
    """The other end of a call has gone."""


class MessageStream(Generic[_M]):
    """The messages of one call, in both directions.

    Args:
        context: of the call.
        kind: class of the messages that the caller sends.
    """

    def __init__(self, context: Context, kind: type[_M]) -> None:
        self._context = context
        self._kind = kind

    async def read(self, seconds: float | None = None) -> _M | None:
        """Return the next message; None at the end of the stream.

        Raises:
            RpcAbort: if none came within ``seconds``, or it cannot be parsed.
        """
        raw = await self.raw(seconds)
        return None if raw is None else self.parse(raw)

    async def raw(self, seconds: float | None = None) -> bytes | None:
        """Return the bytes of the next message; None at the end of the stream.

        Raises:
            RpcAbort: if none came within ``seconds``.
        """
        try:
            async with asyncio.timeout(seconds):
                raw = await self._context.read()
        except TimeoutError:
            status = StatusCode.DEADLINE_EXCEEDED
            raise RpcAbort(status, f"nothing came for {seconds:g} seconds", "stalled") from None
        return raw if isinstance(raw, bytes) else None

    def parse(self, raw: bytes) -> _M:
        """Parse a message.

        Raises:
            RpcAbort: if it cannot be parsed.
        """
        try:
            return cast(_M, self._kind.FromString(raw))
        except DecodeError:
            status = StatusCode.INVALID_ARGUMENT
            raise RpcAbort(status, f"not a {self._kind.DESCRIPTOR.name}") from None

    async def one(self, seconds: float) -> _M:
        """Return the only message of a call.

        Raises:
            RpcAbort: if the call has none, or none came within ``seconds``.
        """
        message = await self.read(seconds)
        if message is None:
            raise RpcAbort(StatusCode.INVALID_ARGUMENT, "the call has no message")
        return message

    async def write(
        self, message: Message | bytes, seconds: float, stalled: Callable[[], None] = lambda: None
    ) -> None:
        """Send a message.

        A call cannot be ended while gRPC is sending a part of it: it stays open, and counts against
        the site's limit, until the other end reads or goes. ``stalled`` frees what need not be kept
        until then.

        Args:
            message: to send.
            seconds: within which the other end should read it.
            stalled: called once, if it does not.

        Raises:
            RpcAbort: if the message was read too late.
            PeerClosed: if the other end has gone.
        """
        raw = message if isinstance(message, bytes) else message.SerializeToString()
        writing = asyncio.ensure_future(self._context.write(raw))
        del raw, message
        try:
            await asyncio.wait({writing}, timeout=seconds)
            if late := not writing.done():
                stalled()
            await writing
        except Exception:  # gRPC has no public name for it
            raise PeerClosed from None
        finally:
            writing.cancel()
            del writing  # its error would keep this frame, and with it the message
        if late:
            raise RpcAbort(StatusCode.DEADLINE_EXCEEDED, "what was sent was not taken", "stalled")


def make_server(
    services: Mapping[str, Mapping[str, Serve]], options: Options, most: int | None = None
) -> aio.Server:
    """Return a gRPC server of these services; call this in the event loop that will run it.

    Args:
        services: by full name, each with its methods by name.
        options: of gRPC, beside those of every port.
        most: largest number of calls at once; more are refused. None sets no limit.

    Raises:
        RunError: if this version of gRPC cannot be kept from answering unknown methods.
    """
    server = known_methods_server((*_OPTIONS, *options), most)
    for service, methods in services.items():
        handlers = {name: _handler(serve) for name, serve in methods.items()}
        server.add_registered_method_handlers(service, handlers)
    return server


async def listen(server: aio.Server, address: str, shown: grpc.ServerCredentials) -> int:
    """Start a server.

    Args:
        server: of :func:`make_server`.
        address: ``host:port``; port 0 takes a free one.
        shown: the TLS credentials that the port presents.

    Returns:
        The port.

    Raises:
        InputError: if one of the host's addresses is taken, or none can be used. gRPC would listen
            on the others, and a client that calls the taken one would reach another program.
    """
    await asyncio.to_thread(_require_free, address)
    try:
        port = server.add_secure_port(address, shown)
    except RuntimeError as error:
        raise InputError(f"{address}: cannot listen there: {error}") from None
    await server.start()
    return int(port)


async def stop(server: aio.Server, grace: float) -> None:
    """Stop a server, and let its tasks end.

    A task that is left behind in a loop is logged as an error when its memory is freed.

    Args:
        server: that listens.
        grace: seconds that running calls have after the server accepts no new ones.
    """
    await server.stop(grace)
    if others := asyncio.all_tasks() - {asyncio.current_task()}:
        await asyncio.wait(others, timeout=_SHUTDOWN_TIMEOUT_S)


def _require_free(address: str) -> None:
    host, _, port = address.rpartition(":")
    hosts = [host.strip("[]")]
    if host == "localhost":
        hosts = ["127.0.0.1", "::1"]  # gRPC takes both, whatever the system says
    try:
        found = [
            place
            for one in hosts
            for place in socket.getaddrinfo(one, int(port), type=socket.SOCK_STREAM)
        ]
    except (OSError, ValueError) as error:
        raise InputError(f"{address}: there is no such address here: {error}") from None
    if int(port) == 0:
        return
    for family, kind, protocol, _, where in found:
        try:
            with socket.socket(family, kind, protocol) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as gRPC does
                probe.bind(where)
                probe.listen(1)
        except OSError as error:
            if error.errno in (errno.EADDRINUSE, errno.EACCES):
                why = f"cannot listen at {where[0]}: {error.strerror}"
                raise InputError(f"{address}: {why}") from None


def _handler(serve: Serve) -> grpc.RpcMethodHandler:
    async def handle(_: Any, context: Context) -> None:
        # gRPC keeps the error that ends a call, and with it all frames that it came through.
        outcome = await _outcome(serve, context)
        if outcome is not None:
            await _end(context, *outcome)

    return grpc.stream_stream_rpc_method_handler(handle)


async def _outcome(serve: Serve, context: Context) -> tuple[StatusCode | None, str] | None:
    try:
        await serve(context)
    except RpcAbort as fault:
        return fault.status, str(fault)
    except PeerClosed:
        return None, ""
    return None


async def _end(context: Context, status: StatusCode | None, text: str) -> None:
    """End a call with a status, or without one if its caller has gone."""
    if status is not None:
        try:
            await context.abort(status, text)
        except aio.AbortError:
            raise
        except Exception:  # gRPC ended the call before; it has no public name for that
            pass
    # Nobody is there to read a status, and gRPC logs any other error with its traceback.
    raise asyncio.CancelledError
