"""Renew a site's certificate over the link before it ends.

The new key is made here, and is on disk before its request is sent. Key and certificate are two
files, which are replaced one after the other: if the process ends between the two, the next one
finishes the change. The coordinator accepts the old certificate too, until the one after it.
"""

from __future__ import annotations

from pathlib import Path

import grpc
from cryptography import x509

from privet.client.link.join import NEXT, finish_pair
from privet.common.canonical import write_atomic
from privet.common.errors import InputError, PrivateKeyError, RunError, reason_of
from privet.common.files.private_files import FILE_MODE, read_private
from privet.common.link.identity import (
    belongs,
    fingerprint_of,
    is_due,
    read_certificate,
    request,
    site_of,
)
from privet.common.link.notices import read_certificates
from privet.common.link.validity import is_signed_by, of_handshake, out_of_time

_KEY, _CERTIFICATE, _AUTHORITY = "link.key", "link.pem", "authority.pem"


class Renewal:
    """The key and certificate in a site's folder for the link.

    Args:
        folder: holds ``link.key``, ``link.pem``, ``authority.pem``.
        site: whose certificate it is.

    Raises:
        InputError: if they cannot be read, or others can read the key.
    """

    def __init__(self, folder: Path, site: str) -> None:
        self._folder = folder
        self._site = site
        finish_pair(folder)
        self.credentials()

    def credentials(self) -> grpc.ChannelCredentials:
        """Return the TLS credentials with which the site connects now.

        Raises:
            InputError: if they cannot be read.
        """
        try:
            return grpc.ssl_channel_credentials(
                (self._folder / _AUTHORITY).read_bytes(),
                read_private(self._folder / _KEY),
                (self._folder / _CERTIFICATE).read_bytes(),
            )
        except OSError as error:
            raise InputError(
                f"{self._folder}: the certificate cannot be read ({reason_of(error)}); enrol "
                "the site with `privet client init JOINFILE`"
            ) from None

    def require_fit(self) -> None:
        """Check that key and certificate belong together; if not, only other files can repair it.

        Raises:
            PrivateKeyError: if they do not.
        """
        if fault := self._misfit():
            raise PrivateKeyError(fault)

    def faults(self) -> list[str]:
        """Return in words why the coordinator would refuse the present certificate; or nothing."""
        own, authorities = self._certificate(_CERTIFICATE), self._authorities()
        again = "ask the coordinator for a new join file (`privet server enroll … --again`)"
        found = [
            out_of_time(own, f"{self._folder / _CERTIFICATE}: this site's certificate", again),
            out_of_time(
                authorities[0],
                f"{self._folder / _AUTHORITY}: the certificate of the federation's authority",
                "the coordinator's operator has to make the federation again",
            ),
            self._misfit(),
        ]
        if not any(is_signed_by(own, one) for one in authorities):
            found.append(
                f"{self._folder / _CERTIFICATE} is not of the authority beside it ({_AUTHORITY}): "
                f"they come from two federations. Restore the files of one, or {again}"
            )
        return [fault for fault in found if fault is not None]

    def explain(self, details: str) -> str:
        """Return in words why the link fails, if a certificate, a key or a clock is the cause.

        Args:
            details: gRPC's text about the failed call.
        """
        try:
            own = self.faults()
        except (InputError, OSError):
            own = []
        said = [*own, *filter(None, [of_handshake(details)])]
        return f"{'; '.join(said)} ({details})" if said else details

    def _misfit(self) -> str | None:
        if belongs(self._certificate(_CERTIFICATE), (self._folder / _KEY).read_bytes()):
            return None
        return (
            f"{self._folder / _KEY} does not fit the certificate beside it ({_CERTIFICATE}): an "
            "enrolment that was not finished, or files of two copies. Finish `privet client init "
            "JOINFILE --dir FOLDER` with the join file, restore the pair of one copy, or ask for "
            "a new join file (`privet server enroll … --again`)"
        )

    def _certificate(self, name: str) -> x509.Certificate:
        return read_certificate((self._folder / name).read_bytes())

    def _authorities(self) -> list[x509.Certificate]:
        return read_certificates((self._folder / _AUTHORITY).read_bytes())

    def is_due(self) -> bool:
        """Return whether to renew the certificate, because of its age or of a newer authority."""
        own, authorities = self._certificate(_CERTIFICATE), self._authorities()
        return is_due(own) or (
            is_signed_by(own, authorities[-1]) and not is_signed_by(own, authorities[0])
        )

    @property
    def authority(self) -> str:
        """Fingerprint of the newest authority that the site trusts."""
        return fingerprint_of(self._authorities()[0])

    def ask(self) -> bytes:
        """Make a new key; return the certificate request, as PEM."""
        asked, key = request(self._site)
        write_atomic(self._folder / (NEXT + _KEY), key, mode=FILE_MODE)
        return asked

    def keep(self, pem: bytes) -> None:
        """Store the certificate that answers the newest request.

        Raises:
            RunError: if it is not for this site and its new key.
        """
        key = (self._folder / (NEXT + _KEY)).read_bytes()
        try:
            certificate = read_certificate(pem)
            good = site_of(certificate) == self._site and belongs(certificate, key)
        except InputError:
            good = False
        if not good or is_due(certificate):
            raise RunError("the certificate that came is not a new one for this site and its key")
        write_atomic(self._folder / (NEXT + _CERTIFICATE), pem)
        finish_pair(self._folder)
