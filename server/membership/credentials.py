"""TLS credentials of the coordinator's ports; the certificate is renewed without a restart."""

from __future__ import annotations

import logging
import threading

import grpc

from privet.common.errors import PrivetError
from privet.server.membership.registry import MemberRegistry

_LOG = logging.getLogger("privet.credentials")


class _Pair:
    """The newest certificate and key, and callers' authorities, as gRPC reads them at each
    handshake.
    """

    def __init__(self, federation: MemberRegistry, mutual: bool) -> None:
        self._federation = federation
        self._mutual = mutual
        self._pair, self._trusted = self._read()
        self._turn = threading.Lock()

    def _read(self) -> tuple[tuple[bytes, bytes], bytes | None]:
        pair = self._federation.serving_pair()
        return pair, self._federation.authorities.bundle() if self._mutual else None

    def configuration(self) -> grpc.ServerCertificateConfiguration:
        return grpc.ssl_server_certificate_configuration([self._pair], self._trusted)

    def newer(self) -> grpc.ServerCertificateConfiguration | None:
        """Return another configuration if the certificate had to be renewed; else None."""
        try:
            with self._turn:
                found = self._read()
        except (PrivetError, OSError) as error:
            _LOG.error("the coordinator's certificate cannot be renewed", extra={"why": error})
            return None
        if found == (self._pair, self._trusted):
            return None
        self._pair, self._trusted = found
        return self.configuration()


def credentials(federation: MemberRegistry, *, mutual: bool) -> grpc.ServerCredentials:
    """Return the TLS credentials of a port of the coordinator.

    Args:
        federation: the opened folder, with the passphrase of its keys.
        mutual: whether a caller must present a certificate of the federation's authority.

    Raises:
        InputError: if certificate and key were due for renewal, and cannot be renewed.
    """
    pair = _Pair(federation, mutual)
    return grpc.dynamic_ssl_server_credentials(pair.configuration(), pair.newer, mutual)
