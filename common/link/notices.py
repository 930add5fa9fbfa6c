"""A notice: what a coordinator changed of itself, and how far a site takes its word for it.

Whoever holds the key of the coordinator's certificate can send one, and that key is not the
authority's. So an address is taken on its word, because the certificate at the new address must be
of the same authority; another authority only where the one that the site holds certified it.
"""

from __future__ import annotations

import hashlib

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from privet.common.errors import InputError
from privet.common.link import link_pb2 as pb
from privet.common.link.identity import read_certificate
from privet.common.link.validity import is_signed_by

_END = b"-----END CERTIFICATE-----"
_MAX_AUTHORITIES, _MAX_BYTES = 4, 64 << 10


def notice_digest(notice: pb.Notice) -> bytes:
    """Return the digest by which a site says that it has kept a notice."""
    return hashlib.sha256(notice.SerializeToString(deterministic=True)).digest()


def read_certificates(pem: bytes) -> list[x509.Certificate]:
    """Read the certificates of a file, in their order.

    Raises:
        InputError: if there is none, too many, or one cannot be read.
    """
    parts = pem.split(_END)[:-1] if len(pem) <= _MAX_BYTES else []
    if not 0 < len(parts) <= _MAX_AUTHORITIES:
        raise InputError("not the certificates of one authority, or of two")
    return [read_certificate(part.strip() + b"\n" + _END + b"\n") for part in parts]


def write_certificates(certificates: list[x509.Certificate]) -> bytes:
    """Return certificates as one PEM file."""
    return b"".join(one.public_bytes(Encoding.PEM) for one in certificates)


def followed(
    held: list[x509.Certificate], told: list[x509.Certificate], cross: bytes
) -> list[x509.Certificate]:
    """Return the authorities that a site holds after a notice, the newest first.

    A newer one is taken where the newest that is held certified its key; an older one goes when the
    coordinator names the newest alone. The newest that is held never goes.

    Args:
        held: by the site, the newest first.
        told: by the coordinator, the newest first.
        cross: the newest one's key as the one before certified it, as PEM; or nothing.

    Raises:
        InputError: if the newest one is not held, and not certified by the newest that is.
    """
    newest = held[0]
    if told[0] == newest:
        return [newest] if len(told) == 1 else held
    if told[0] in held:
        return held  # the word of who does not know the newest yet
    if not cross:
        raise InputError("the coordinator names another authority, and nothing certifies it")
    bridge = read_certificate(cross)
    if not is_signed_by(bridge, newest) or _public(bridge) != _public(told[0]):
        raise InputError(
            "the coordinator names another authority, which the present one did not certify"
        )
    if not _is_authority(bridge) or not _is_authority(told[0]):
        raise InputError("what the coordinator names as authority may not sign certificates")
    if told[0].subject == newest.subject:
        raise InputError("the new authority cannot be told from the present one")
    return [told[0], newest]


def _public(certificate: x509.Certificate) -> bytes:
    return certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _is_authority(certificate: x509.Certificate) -> bool:
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except (x509.ExtensionNotFound, ValueError):
        return False
