"""gRPC's standard health service on the link, for members."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from typing import Any

import grpc
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

NAMED = ("", "privet.link.v1.Link")
"""Services that the health service knows."""

Member = Callable[[aio.ServicerContext[Any, Any]], Awaitable[AbstractContextManager[Any]]]
"""Returns the call of a member; ends anybody else's."""


class Health(health_pb2_grpc.HealthServicer):
    """Says that the link is served: a coordinator that does not serve it does not answer.

    Args:
        member: who may ask.
    """

    def __init__(self, member: Member) -> None:
        self._member = member

    async def Check(  # noqa: N802
        self, request: health_pb2.HealthCheckRequest, context: aio.ServicerContext[Any, Any]
    ) -> health_pb2.HealthCheckResponse:
        """Answer ``SERVING`` for the whole and for the link, ``NOT_FOUND`` for all else."""
        with await self._member(context):
            if request.service not in NAMED:
                await context.abort(grpc.StatusCode.NOT_FOUND, "no such service")
            return health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVING)

    async def Watch(  # noqa: N802
        self, request: health_pb2.HealthCheckRequest, context: aio.ServicerContext[Any, Any]
    ) -> None:
        """Refuse: who wants to know asks again."""
        with await self._member(context):
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, "ask with Check")
