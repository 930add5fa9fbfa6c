"""The federation's own certificate authority: who may connect, and until when.

All keys are P-256 (see :mod:`privet.common.link.identity`). A site makes its key itself and sends a
certificate request; the private key never leaves the site.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Self

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from privet.common.errors import InputError
from privet.common.files.private_pem import private_pem
from privet.common.link.identity import (
    SERVER_NAME,
    common_name,
    coordinator_uri,
    read_certificate,
    site_uri,
)
from privet.common.link.validity import is_signed_by, out_of_time

AUTHORITY_DAYS, LEAF_DAYS = 3650, 397
_CLOCKS = timedelta(minutes=10)
"""How far the clocks of two machines may be apart."""


class Authority:
    """A certificate authority: its certificate and its key.

    Example::

        authority = Authority.found("readmission study")
        chain = authority.admit(request_pem, "Hospital 1")
    """

    def __init__(self, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
        self.certificate = certificate
        self._key = key

    @classmethod
    def found(cls, name: str, *, distinct: bool = False) -> Self:
        """Make a new authority.

        Args:
            name: of the federation.
            distinct: whether its subject is unique among the authorities of this federation: TLS
                finds the authority of a certificate by its subject.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        if distinct:
            name = f"{name[:36]} {secrets.token_hex(4)}"
        subject = common_name(f"{name} (Privet federation)")
        builder = (
            _builder(subject, subject, key.public_key(), AUTHORITY_DAYS)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(authority=True), critical=True)
        )
        return cls(builder.sign(key, hashes.SHA256()), key)

    @classmethod
    def load(cls, certificate: bytes, key: bytes, passphrase: bytes | None) -> Self:
        """Read an authority's certificate and key.

        Args:
            certificate: as PEM.
            key: the private key, as PEM.
            passphrase: of the key; None for an unencrypted one.

        Raises:
            InputError: if one cannot be read, they do not belong together, or the certificate may
                not sign others or has ended.
        """
        found = read_certificate(certificate)
        try:
            private = serialization.load_pem_private_key(key, passphrase)
        except (TypeError, ValueError) as error:
            raise InputError(f"the authority's key cannot be opened: {error}") from None
        if not isinstance(private, ec.EllipticCurvePrivateKey) or (
            private.public_key() != found.public_key()
        ):
            raise InputError("the authority's key does not belong to its certificate")
        if not _may_sign(found):
            raise InputError("the authority's certificate may not sign others, or has ended")
        return cls(found, private)

    def pem(self) -> bytes:
        """Return the authority's certificate."""
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    def key_pem(self, passphrase: bytes | None) -> bytes:
        """Return the authority's key, as PEM, encrypted if a passphrase is given."""
        return private_pem(self._key, passphrase)

    def cross(self, other: Authority) -> bytes:
        """Return a certificate, as PEM, by which this authority names ``other`` its successor."""
        subject, issuer = other.certificate.subject, self.certificate.subject
        key = other.certificate.public_key()
        assert isinstance(key, ec.EllipticCurvePublicKey)
        builder = (
            _builder(subject, issuer, key, AUTHORITY_DAYS, self.certificate.not_valid_after_utc)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(authority=True), critical=True)
        )
        found = builder.sign(self._key, hashes.SHA256())
        return found.public_bytes(serialization.Encoding.PEM)

    def serve(self, coordinator: str) -> tuple[bytes, bytes]:
        """Return a new certificate for the coordinator, and its key, as PEM."""
        key = ec.generate_private_key(ec.SECP256R1())
        names: list[x509.GeneralName] = [
            x509.DNSName(SERVER_NAME),
            x509.UniformResourceIdentifier(coordinator_uri(coordinator)),
        ]
        found = self._leaf(coordinator, key.public_key(), names, ExtendedKeyUsageOID.SERVER_AUTH)
        return found.public_bytes(serialization.Encoding.PEM), private_pem(key)

    def admit(self, request: bytes, site: str, days: int = LEAF_DAYS, *, uri: str = "") -> bytes:
        """Sign a site's certificate request, and take the names from here, not from the request.

        Args:
            request: as PEM.
            site: name for which the certificate stands.
            days: validity of the certificate, in days.
            uri: the subject's URI; "" makes the URI of a site.

        Raises:
            InputError: if the request cannot be read, is not signed by its key, or its key is not
                P-256.
        """
        try:
            asked = x509.load_pem_x509_csr(request)
            key = asked.public_key()
            # A signature by another kind of key is not even checked: that may take long.
            right = isinstance(key, ec.EllipticCurvePublicKey) and isinstance(
                key.curve, ec.SECP256R1
            )
            valid = right and asked.is_signature_valid
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise InputError(f"not a certificate request: {error}") from None
        if not valid:
            raise InputError("a certificate request must be signed by its own P-256 key")
        assert isinstance(key, ec.EllipticCurvePublicKey)
        names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(uri or site_uri(site))]
        found = self._leaf(site, key, names, ExtendedKeyUsageOID.CLIENT_AUTH, days)
        return found.public_bytes(serialization.Encoding.PEM)

    def _leaf(
        self,
        name: str,
        key: ec.EllipticCurvePublicKey,
        names: Sequence[x509.GeneralName],
        purpose: x509.ObjectIdentifier,
        days: int = LEAF_DAYS,
    ) -> x509.Certificate:
        issuer = self.certificate.subject
        builder = (
            _builder(common_name(name), issuer, key, days, self.certificate.not_valid_after_utc)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(authority=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
        )
        return builder.sign(self._key, hashes.SHA256())


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    days: int,
    latest: datetime | None = None,
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    end = now + timedelta(days=days)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCKS)
        .not_valid_after(min(end, latest or end))
    )


def _usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        key_cert_sign=authority,
        crl_sign=authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _may_sign(certificate: x509.Certificate) -> bool:
    try:
        basic = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    except (x509.ExtensionNotFound, ValueError):
        return False
    return basic.ca and datetime.now(UTC) < certificate.not_valid_after_utc


def validity_faults(folder: Path) -> list[str]:
    """Return a sentence for each certificate of a federation's folder that is not valid now.

    Raises:
        InputError: if one cannot be read.
    """
    whose = (
        (
            "authority.pem",
            "the certificate of the federation's authority",
            "the federation has to be made again, or its organisation's authority renewed",
        ),
        ("server.pem", "the coordinator's certificate", "start again: it is renewed when due"),
    )
    certificates = [read_certificate((folder / name).read_bytes()) for name, _, _ in whose]
    found = [
        out_of_time(certificate, f"{folder / name}: {what}", remedy)
        for certificate, (name, what, remedy) in zip(certificates, whose, strict=True)
    ]
    former = folder / "former-authority.pem"
    signers = [certificates[0]]
    if former.exists():  # its certificate is good until all sites know the newer authority
        signers.append(read_certificate(former.read_bytes()))
    if not any(is_signed_by(certificates[1], one) for one in signers):
        found.append(
            f"{folder / 'server.pem'} is not of the authority beside it: sites cannot know it. "
            "Restore the files of one copy"
        )
    return [fault for fault in found if fault is not None]
