"""Certificates of the link, and the TLS that both ends require.

A site's name is a URI in its certificate, ``urn:privet:site:NAME``, a researcher's is
``urn:privet:researcher:NAME``. The coordinator's is ``urn:privet:coordinator:NAME``, beside the
fixed DNS name :data:`SERVER_NAME`, which is the same whatever address a site connects to.
"""

from __future__ import annotations

import os
import sys
from datetime import UTC, datetime
from urllib.parse import quote, unquote

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from privet.common.errors import InputError, RunError
from privet.common.files.private_pem import private_pem

SERVER_NAME = "coordinator.privet.internal"
_SITE, _COORDINATOR = "urn:privet:site:", "urn:privet:coordinator:"
_RESEARCHER = "urn:privet:researcher:"

# gRPC sets no minimum version. All our keys are elliptic, so the one TLS 1.2 suite that is left
# (for RSA keys) can never be agreed on, and 1.3 remains. gRPC reads it when it is loaded.
_VARIABLE, _SUITES = "GRPC_SSL_CIPHER_SUITES", "ECDHE-RSA-AES256-GCM-SHA384"
_IN_TIME = os.environ.get(_VARIABLE) == _SUITES or "grpc" not in sys.modules
os.environ[_VARIABLE] = _SUITES


def require_tls_1_3() -> None:
    """Check that this process accepts nothing below TLS 1.3.

    Raises:
        RunError: if gRPC was loaded before it could be configured.
    """
    if not _IN_TIME:
        raise RunError(
            "gRPC was loaded before privet.common.link, and would speak TLS 1.2: import "
            f"privet.common.link first, or set {_VARIABLE}={_SUITES} for this process"
        )


def site_uri(name: str) -> str:
    """Return the URI that names a site in its certificate."""
    return _SITE + quote(name, safe="")


def researcher_uri(name: str) -> str:
    """Return the URI that names a researcher in a certificate."""
    return _RESEARCHER + quote(name, safe="")


def coordinator_uri(name: str) -> str:
    """Return the URI that names a coordinator in its certificate."""
    return _COORDINATOR + quote(name, safe="")


def read_certificate(pem: bytes) -> x509.Certificate:
    """Read one certificate.

    Raises:
        InputError: if it cannot be read, or its key is not elliptic (it would let TLS 1.2 in).
    """
    try:
        found = x509.load_pem_x509_certificate(pem)
        elliptic = isinstance(found.public_key(), ec.EllipticCurvePublicKey)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise InputError(f"not a certificate: {error}") from None
    if not elliptic:
        raise InputError("the certificate's key must be elliptic (P-256), so that TLS 1.3 is used")
    return found


def site_of(certificate: x509.Certificate) -> str:
    """Return the site that a certificate names.

    Raises:
        InputError: if it names none, or more than one.
    """
    return _named(certificate, _SITE, "site")


def researcher_of(certificate: x509.Certificate) -> str:
    """Return the researcher that a certificate names.

    Raises:
        InputError: if it names none, more than one, or another party as well.
    """
    return _named(certificate, _RESEARCHER, "researcher")


def _named(certificate: x509.Certificate, kind: str, what: str) -> str:
    uris = _uris(certificate)
    if len(uris) != 1 or not uris[0].startswith(kind):
        raise InputError(f"the certificate does not name one {what}")
    return unquote(uris[0][len(kind) :])


def fingerprint_of(certificate: x509.Certificate) -> str:
    """Return ``sha256:…`` of the whole certificate."""
    return "sha256:" + certificate.fingerprint(hashes.SHA256()).hex()


def is_due(certificate: x509.Certificate, now: datetime | None = None) -> bool:
    """Return whether a certificate should be renewed: a third of its life is left, or less.

    Args:
        certificate: that is in use.
        now: time with a zone; None takes the clock's.
    """
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    return (now or datetime.now(UTC)) >= end - (end - begin) / 3


def belongs(certificate: x509.Certificate, key: bytes) -> bool:
    """Return whether a private key belongs to a certificate.

    Args:
        certificate: with the public key.
        key: unencrypted private key, as PEM; one that cannot be read belongs to none.
    """
    try:
        private = serialization.load_pem_private_key(key, None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        return False
    return bool(private.public_key() == certificate.public_key())


def request(name: str, uri: str = "") -> tuple[bytes, bytes]:
    """Return a certificate request, and its new private key, as PEM.

    Args:
        name: of the subject, for people to read.
        uri: of the subject; "" makes the URI of a site.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri or site_uri(name))])
    builder = x509.CertificateSigningRequestBuilder().subject_name(common_name(name))
    asked = builder.add_extension(names, critical=False).sign(key, hashes.SHA256())
    return asked.public_bytes(serialization.Encoding.PEM), private_pem(key)


def common_name(name: str) -> x509.Name:
    """Return an X.509 name for people to read; nothing depends on it."""
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64])])


def _uris(certificate: x509.Certificate) -> list[str]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        return []
    return names.get_values_for_type(x509.UniformResourceIdentifier)
