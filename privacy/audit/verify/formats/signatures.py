"""Every Ed25519 check of the verifier goes through :func:`ed25519`.

It is libsodium's, by PyNaCl: twice as fast as OpenSSL's, which those who write the evidence use,
and another implementation. It also refuses keys of small order and signatures in a second form.
"""

from __future__ import annotations

from nacl.bindings import crypto_sign_open
from nacl.exceptions import BadSignatureError


def ed25519(key: bytes, signature: bytes, message: bytes) -> bool:
    """Return whether ``signature`` (64 bytes) of ``key`` (32 raw bytes) fits ``message``.

    Args:
        key: 32 raw bytes.
        signature: 64 bytes.
        message: that was signed.
    """
    if len(key) != 32 or len(signature) != 64:
        return False
    try:
        crypto_sign_open(signature + message, key)
    except BadSignatureError:
        return False
    return True


def pae(payload_type: bytes, payload: bytes) -> bytes:
    """Return the pre-authentication encoding of DSSE.

    Args:
        payload_type: media type of the payload.
        payload: its bytes.
    """
    return b"DSSEv1 %d %s %d %s" % (len(payload_type), payload_type, len(payload), payload)
