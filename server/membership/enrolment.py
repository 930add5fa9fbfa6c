"""The enrolment server, on a port of its own that is open only while an invitation is.

A caller here has no certificate yet, so this is the only port that a stranger can reach. A request
is small and must arrive within seconds. A wrong one costs its caller a second, in which others are
served, and the answer is the same whatever was wrong.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import threading
from collections.abc import Callable
from typing import Any

import grpc
from google.protobuf.message import Message
from grpc import aio

from privet.common.errors import InputError, PrivateKeyError, PrivetError
from privet.common.link import link_pb2 as pb
from privet.common.link.address import show_peer
from privet.common.link.identity import require_tls_1_3
from privet.server.link.calls import Context, MessageStream, RpcAbort, listen, make_server, stop
from privet.server.membership.credentials import credentials
from privet.server.membership.registry import MemberRegistry
from privet.server.membership.researchers import Researchers

_POLL_INTERVAL_S = 1.0
"""Seconds between two checks whether an invitation is open."""
_WRONG_REQUEST_DELAY_S = 1.0
"""Seconds that a wrong request waits for its answer."""
_FIRST_MESSAGE_TIMEOUT_S = 5.0
"""Seconds that a call has to bring its request."""
_MAX_CALLS = 1_000
_OPTIONS = [
    ("grpc.max_receive_message_length", 64 << 10),
    ("grpc.max_metadata_size", 8 << 10),
    ("grpc.max_concurrent_streams", 4),
    ("grpc.max_connection_age_ms", 10_000),
    ("grpc.max_connection_age_grace_ms", 5_000),
    ("grpc.max_allowed_incoming_connections", 500),
]

_LOG = logging.getLogger("privet.enrolment")


class EnrolmentServer:
    """Open the enrolment port while invitations are open, and close it otherwise.

    Args:
        federation: the opened folder, with its invitations.
        address: ``host:port`` to listen on; the port stays the same while this object exists.

    Example::

        with EnrolmentServer(federation, "0.0.0.0:7444"):
            ...
    """

    def __init__(self, federation: MemberRegistry, address: str) -> None:
        self._federation = federation
        self.address = address
        self._stopped = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="door", daemon=True)
        self._loop: asyncio.AbstractEventLoop
        self._thread: threading.Thread
        self._server: aio.Server | None = None

    def __enter__(self) -> EnrolmentServer:
        require_tls_1_3()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="calls", daemon=True)
        self._thread.start()
        self._look()
        self._watcher.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        if self._watcher.is_alive():
            self._watcher.join()
        self._shut()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    @property
    def is_open(self) -> bool:
        """Whether the port is listening."""
        return self._server is not None

    def _watch(self) -> None:
        while not self._stopped.wait(_POLL_INTERVAL_S):
            try:
                self._look()
            except (InputError, OSError) as error:
                _LOG.error("%s", error)  # it is tried again

    def _look(self) -> None:
        try:
            wanted = self._federation.invites or Researchers(self._federation).invites
        except PrivetError as error:
            _LOG.error("the invitations cannot be read", extra={"why": error})
            wanted = False
        if wanted and self._server is None:
            self._open()
        elif not wanted and self._server is not None:
            self._shut()

    def _open(self) -> None:
        self._do(self._listen(credentials(self._federation, mutual=False)))
        _LOG.info("open for enrolment", extra={"address": self.address})

    def _shut(self) -> None:
        if self._server is not None:
            self._do(stop(self._server, 0.5))
            self._server = None
            _LOG.info("enrolment is shut: no invitation is open")

    def _do(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _listen(self, shown: grpc.ServerCredentials) -> None:
        researchers = Researchers(self._federation)
        sites = _Service(pb.Request, "site", functools.partial(_enrol_site, self._federation))
        people = _Service(
            pb.Newcomer,
            "researcher",
            lambda one: researchers.enrol(one.name, one.token, one.request),
        )
        services = {
            "privet.link.v1.Enrolment": {"Enrol": sites},
            "privet.link.v1.Introduction": {"Connect": people},
        }
        server = make_server(services, _OPTIONS, _MAX_CALLS)
        port = await listen(server, self.address, shown)
        host, _, _ = self.address.rpartition(":")
        self.address = f"{host}:{port}"
        self._server = server


class _Service:
    """Use up an invitation.

    Args:
        kind: of the message that comes.
        what: what enrols, for the log: a site or a researcher.
        enrol: checks what came, and returns a certificate.
    """

    def __init__(self, kind: type[Message], what: str, enrol: Callable[[Any], bytes]) -> None:
        self._kind, self._what, self._enrol = kind, what, enrol
        self._turn = asyncio.Lock()

    async def __call__(self, context: Context) -> None:
        line = MessageStream[Message](context, self._kind)
        request: Any = await line.one(_FIRST_MESSAGE_TIMEOUT_S)
        try:
            async with self._turn:  # an invitation is used once
                pem = await asyncio.to_thread(self._enrol, request)
        except Exception as error:
            level = logging.WARNING if isinstance(error, PrivetError) else logging.ERROR
            _LOG.log(level, "refused", extra={"peer": show_peer(context.peer()), "why": error})
            await asyncio.sleep(_WRONG_REQUEST_DELAY_S)
            if isinstance(error, PrivateKeyError):
                # Only the holder of an invitation gets this far, and learns that it is still valid.
                raise RpcAbort(grpc.StatusCode.INTERNAL, "a fault of the coordinator") from error
            status = grpc.StatusCode.PERMISSION_DENIED
            raise RpcAbort(status, "no such invitation, or bad keys") from error
        name = request.site if isinstance(request, pb.Request) else request.name
        _LOG.info("enrolled", extra={self._what: name, "peer": show_peer(context.peer())})
        await line.write(pb.Certificate(pem=pem), _FIRST_MESSAGE_TIMEOUT_S)


def _enrol_site(federation: MemberRegistry, request: pb.Request) -> bytes:
    return federation.enrol(
        request.site, request.token, request.request, request.ledger, request.witness
    )
