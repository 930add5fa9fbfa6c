"""A notice: the coordinator's changes of itself, and which of them a site accepts.

A holder of the key of the coordinator's certificate can send one, and that key is not the
authority's. So a site accepts an address without proof, because the certificate at the new address
must be of the same authority; it accepts another authority only if the one that it holds certified
it.
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
    """Return the digest by which a site confirms that it has kept a notice."""
    return hashlib.sha256(notice.SerializeToString(deterministic=True)).digest()


def read_certificates(pem: bytes) -> list[x509.Certificate]:
    """Read the certificates of a file, in their order.

    Raises:
        InputError: if there is none, too many, or one cannot be read.
    """
    parts = pem[: _MAX_BYTES + 1].split(_END)[:-1]
    if len(pem) > _MAX_BYTES or not 0 < len(parts) <= _MAX_AUTHORITIES:
        raise InputError("not the certificates of one authority, or of two")
    return [read_certificate(part.strip() + b"\n" + _END + b"\n") for part in parts]


def write_certificates(certificates: list[x509.Certificate]) -> bytes:
    """Return certificates as one PEM file."""
    return b"".join(one.public_bytes(Encoding.PEM) for one in certificates)


def followed(
    held: list[x509.Certificate], told: list[x509.Certificate], cross: bytes
) -> list[x509.Certificate]:
    """Return the authorities that a site holds after a notice, the newest first.

    A newer one is accepted if the newest one that the site holds certified its key. An older one is
    dropped when the coordinator names the newest alone. The newest one that the site holds is never
    dropped.

    Args:
        held: held by the site, the newest first.
        told: named by the coordinator, the newest first.
        cross: certificate of the newest one's key by the one before, as PEM; or b"".

    Raises:
        InputError: if the coordinator's newest one is not held, nor certified by the newest one
            held.
    """
    newest = held[0]
    if told[0] == newest:
        return [newest] if len(told) == 1 else held
    if told[0] in held:
        return held  # from a coordinator that does not know the newest one yet
    if not cross:
        raise InputError("the coordinator names another authority, and nothing certifies it")
    # The new authority signs its own certificate, so the old one can vouch for its key only.
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
