"""A site's certificate, renewed over the link before it ends.

The new key is made here and is on disk before its request leaves. Key and certificate lie in two
files, which change one after the other: where the process ended between the two, the next one
finishes the change. The coordinator takes the old certificate too until the one after it.
"""

from __future__ import annotations

from pathlib import Path

import grpc

from privet.common.canonical import write_atomic
from privet.common.errors import InputError, RunError, reason_of
from privet.common.link.identity import belongs, is_due, read_certificate, request, site_of

_KEY, _CERTIFICATE, _AUTHORITY = "link.key", "link.pem", "authority.pem"
_NEXT = "next-"


class Renewal:
    """The key and certificate in a site's folder for the link.

    Args:
        folder: holds ``link.key``, ``link.pem``, ``authority.pem``.
        site: whose certificate it is.

    Raises:
        InputError: if they cannot be read.
    """

    def __init__(self, folder: Path, site: str) -> None:
        self._folder = folder
        self._site = site
        self._finish()
        self.credentials()

    def credentials(self) -> grpc.ChannelCredentials:
        """Return what the site dials with now.

        Raises:
            InputError: if it cannot be read.
        """
        try:
            return grpc.ssl_channel_credentials(
                *((self._folder / name).read_bytes() for name in (_AUTHORITY, _KEY, _CERTIFICATE))
            )
        except OSError as error:
            raise InputError(
                f"{self._folder}: the certificate cannot be read ({reason_of(error)}); the site "
                "comes in with `privet client init JOINFILE`"
            ) from None

    def is_due(self) -> bool:
        """Return whether the certificate should be renewed."""
        return is_due(read_certificate((self._folder / _CERTIFICATE).read_bytes()))

    def ask(self) -> bytes:
        """Make a new key; return the request for its certificate, as PEM."""
        asked, key = request(self._site)
        write_atomic(self._folder / (_NEXT + _KEY), key, mode=0o600)
        return asked

    def keep(self, pem: bytes) -> None:
        """Keep the certificate that came for the newest request.

        Raises:
            RunError: if it is not for this site and its new key.
        """
        key = (self._folder / (_NEXT + _KEY)).read_bytes()
        try:
            certificate = read_certificate(pem)
            good = site_of(certificate) == self._site and belongs(certificate, key)
        except InputError:
            good = False
        if not good or is_due(certificate):
            raise RunError("the certificate that came is not a new one for this site and its key")
        write_atomic(self._folder / (_NEXT + _CERTIFICATE), pem)
        self._finish()

    def _finish(self) -> None:
        """Put a new key and its certificate in the place of the old ones, if both are there."""
        if (self._folder / (_NEXT + _CERTIFICATE)).exists():
            for name in (_KEY, _CERTIFICATE):
                path = self._folder / (_NEXT + name)
                if path.exists():
                    path.replace(self._folder / name)
