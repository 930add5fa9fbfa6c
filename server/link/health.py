"""gRPC's standard health service on the link, for members."""

from __future__ import annotations

import grpc
from grpc_health.v1 import health_pb2 as health

from privet.server.link.calls import PATIENCE, Context, MessageStream, RpcAbort

HEALTH = "grpc.health.v1.Health"
NAMED = ("", "privet.link.v1.Link")
"""Services that the health service knows."""


async def check(call: object, context: Context) -> None:
    """Answer ``SERVING`` for the whole and for the link, ``NOT_FOUND`` for all else.

    A coordinator that does not serve the link does not answer.
    """
    line = MessageStream(context, health.HealthCheckRequest)
    asked = await line.one(PATIENCE)
    if asked.service not in NAMED:
        raise RpcAbort(grpc.StatusCode.NOT_FOUND, "no such service", "not-offered")
    serving = health.HealthCheckResponse(status=health.HealthCheckResponse.SERVING)
    await line.write(serving, PATIENCE)


async def watch(call: object, context: Context) -> None:
    """Refuse: who wants to know asks again."""
    raise RpcAbort(grpc.StatusCode.UNIMPLEMENTED, "ask with Check")
