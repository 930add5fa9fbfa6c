"""Check a certificate's validity on this machine now, in words that say what to do.

A certificate that has ended, one that begins later, and a wrong clock appear the same here: each
text names both times, so that its reader can tell them apart.
"""

from __future__ import annotations

from datetime import UTC, datetime

from cryptography import x509
from cryptography.exceptions import InvalidSignature

CLOCK = "compare this machine's clock (`date -u`) with another"
_HANDSHAKE = (
    (
        "certificate is not yet valid",
        f"the coordinator's certificate begins later than this machine's clock says: {CLOCK}",
    ),
    (
        "certificate has expired",
        "the coordinator's certificate has ended by this machine's clock: "
        f"{CLOCK}; where it is right, tell the coordinator's operator",
    ),
    (
        "certificate signature failure",
        "the server there presents a certificate of another authority than that of this site's "
        "join file",
    ),
    (
        "CERTIFICATE_VERIFY_FAILED",
        "the server there presents a certificate that this site's join file does not vouch for",
    ),
)
"""What gRPC says of a handshake that failed, and the same in words."""


def out_of_time(certificate: x509.Certificate, whose: str, remedy: str) -> str | None:
    """Return why a certificate is not valid now by its times, or None.

    Args:
        certificate: to be used.
        whose: the start of the sentence, such as "this site's certificate".
        remedy: what to do if it has really ended.
    """
    now = datetime.now(UTC)
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if now < begin:
        return (
            f"{whose} is good from {_said(begin)} on, and this machine's clock says {_said(now)}: "
            f"the clock is behind. Set it ({CLOCK})"
        )
    if now > end:
        return (
            f"{whose} ended at {_said(end)}; this machine's clock says {_said(now)}. Where the "
            f"clock is right, {remedy}; else set it ({CLOCK})"
        )
    return None


def of_handshake(details: str) -> str | None:
    """Return why a handshake failed, if gRPC's text about it names a certificate; else None."""
    return next((words for sign, words in _HANDSHAKE if sign in details), None)


def is_signed_by(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    """Whether an authority's key signed a certificate.

    Args:
        certificate: whose signature is checked; its times are not.
        authority: certificate of the authority.
    """
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _said(time: datetime) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC")
