"""The door by which sites come in: a port of its own, open only while an invitation is.

What is asked here needs no certificate, so it is the one thing that a stranger can reach. A
request is small, a wrong one costs a second, and the answer is the same whatever was wrong.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc

from privet.common.errors import InputError, PrivetError
from privet.common.link import link_pb2 as pb
from privet.common.link import link_pb2_grpc as rpc
from privet.common.link.identity import require_tls_1_3
from privet.server.federation import Federation

_LOOK = 1.0
"""Seconds between two looks whether an invitation is open."""
_WRONG = 1.0
"""Seconds that a wrong request waits for its answer; no two are answered at once."""
_OPTIONS = [
    ("grpc.max_receive_message_length", 64 << 10),
    ("grpc.max_metadata_size", 8 << 10),
    ("grpc.max_connection_age_ms", 30_000),
    ("grpc.so_reuseport", 0),
]

_LOG = logging.getLogger("privet.enrolment")


class Door:
    """Opens and shuts the enrolment port as invitations come and go.

    Args:
        federation: whose invitations.
        address: where to listen; the port is fixed while the door exists.

    Example::

        with Door(federation, "0.0.0.0:7444"):
            ...
    """

    def __init__(self, federation: Federation, address: str) -> None:
        self._federation = federation
        self.address = address
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="door", daemon=True)
        self._server: Any = None

    def __enter__(self) -> Door:
        require_tls_1_3()
        self._look()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()
        self._shut()

    @property
    def is_open(self) -> bool:
        """Whether the port is listening."""
        return self._server is not None

    def _watch(self) -> None:
        while not self._stopped.wait(_LOOK):
            self._look()

    def _look(self) -> None:
        try:
            wanted = self._federation.invites
        except PrivetError as error:
            _LOG.error("the invitations cannot be read", extra={"why": error})
            wanted = False
        if wanted and self._server is None:
            self._open()
        elif not wanted and self._server is not None:
            self._shut()

    def _open(self) -> None:
        folder = self._federation.folder
        pair = (folder / "server.key").read_bytes(), (folder / "server.pem").read_bytes()
        server = grpc.server(ThreadPoolExecutor(4), options=_OPTIONS, maximum_concurrent_rpcs=4)
        rpc.add_EnrolmentServicer_to_server(_Service(self._federation), server)
        try:
            port = server.add_secure_port(self.address, grpc.ssl_server_credentials([pair]))
        except RuntimeError as error:
            raise InputError(f"{self.address}: cannot listen there: {error}") from None
        host, _, _ = self.address.rpartition(":")
        self.address = f"{host}:{port}"
        server.start()
        self._server = server
        _LOG.info("open for enrolment", extra={"address": self.address})

    def _shut(self) -> None:
        if self._server is not None:
            self._server.stop(0.5).wait()
            self._server = None
            _LOG.info("enrolment is shut: no invitation is open")


class _Service(rpc.EnrolmentServicer):
    def __init__(self, federation: Federation, sleep: Callable[[float], None] = time.sleep) -> None:
        self._federation = federation
        self._sleep = sleep
        self._lock = threading.Lock()

    def Enrol(self, request: pb.Request, context: grpc.ServicerContext) -> pb.Certificate:  # noqa: N802
        with self._lock:
            try:
                pem = self._federation.enrol(
                    request.site, request.token, request.request, request.ledger, request.witness
                )
            except PrivetError as error:
                _LOG.warning("refused", extra={"peer": context.peer(), "why": error})
                self._sleep(_WRONG)
                context.abort(grpc.StatusCode.PERMISSION_DENIED, "no such invitation, or bad keys")
            _LOG.info("enrolled", extra={"site": request.site, "peer": context.peer()})
        return pb.Certificate(pem=pem)
