"""TLS of the coordinator's ports: its certificate, renewed before it ends, without a restart."""

from __future__ import annotations

import logging
import threading

import grpc

from privet.common.errors import PrivetError
from privet.server.federation import Federation

_LOG = logging.getLogger("privet.credentials")


class _Pair:
    """The newest pair, as gRPC asks for it at each handshake."""

    def __init__(self, federation: Federation, mutual: bool) -> None:
        self._federation = federation
        self._authority = (federation.folder / "authority.pem").read_bytes() if mutual else None
        self._pair = federation.serving_pair()
        self._turn = threading.Lock()

    def configuration(self) -> grpc.ServerCertificateConfiguration:
        return grpc.ssl_server_certificate_configuration([self._pair], self._authority)

    def newer(self) -> grpc.ServerCertificateConfiguration | None:
        """Return another configuration, where the certificate had to be renewed; else None."""
        try:
            with self._turn:
                pair = self._federation.serving_pair()
        except (PrivetError, OSError) as error:
            _LOG.error("the coordinator's certificate cannot be renewed", extra={"why": error})
            return None
        if pair == self._pair:
            return None
        self._pair = pair
        return self.configuration()


def credentials(federation: Federation, *, mutual: bool) -> grpc.ServerCredentials:
    """Return what a port of the coordinator shows.

    Args:
        federation: whose.
        mutual: whether a caller must show a certificate of the federation's authority.

    Raises:
        InputError: if the pair had to be renewed, and cannot be.
    """
    pair = _Pair(federation, mutual)
    return grpc.dynamic_ssl_server_credentials(pair.configuration(), pair.newer, mutual)
