"""Answer gRPC's standard health service on the link, for members only."""

from __future__ import annotations

import grpc
from grpc_health.v1 import health_pb2 as health

from privet.server.link.calls import STALL_TIMEOUT_S, Context, MessageStream, RpcAbort

HEALTH = "grpc.health.v1.Health"
NAMED = ("", "privet.link.v1.Link")
"""Services that the health service knows."""


async def check(call: object, context: Context) -> None:
    """Answer ``SERVING`` for the process and for the link, ``NOT_FOUND`` for all other services.

    A coordinator that does not serve the link does not answer.

    Args:
        call: the member's call; unused, its caller was identified before.
        context: of the gRPC call.

    Raises:
        RpcAbort: if the service's name is unknown, or the request does not come in time.
    """
    line = MessageStream(context, health.HealthCheckRequest)
    asked = await line.one(STALL_TIMEOUT_S)
    if asked.service not in NAMED:
        raise RpcAbort(grpc.StatusCode.NOT_FOUND, "no such service", "not-offered")
    serving = health.HealthCheckResponse(status=health.HealthCheckResponse.SERVING)
    await line.write(serving, STALL_TIMEOUT_S)


async def watch(call: object, context: Context) -> None:
    """Refuse to stream the health status; a client polls with ``Check``.

    Args:
        call: the member's call; unused.
        context: of the gRPC call; unused.

    Raises:
        RpcAbort: always, with ``UNIMPLEMENTED``.
    """
    raise RpcAbort(grpc.StatusCode.UNIMPLEMENTED, "ask with Check")
