"""Private keys as PKCS#8 PEM, encrypted so that guessing the passphrase is expensive.

``cryptography`` encrypts PKCS#8 by OpenSSL's default of 2,048 rounds and accepts no other number,
so this module writes the container: PBES2 with PBKDF2-HMAC-SHA256 and AES-256-CBC (RFC 8018), as
``openssl pkcs8 -topk8 -v2 aes-256-cbc -v2prf hmacWithSHA256 -iter 600000`` does. ``cryptography``,
``openssl`` and any other reader of encrypted PKCS#8 can read it.
"""

from __future__ import annotations

import base64
import os
import textwrap

from cryptography.hazmat.primitives import hashes, padding
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.kdf.pbkdf2 import PBKDF2HMAC
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

ROUNDS = 600_000
"""Rounds of PBKDF2-HMAC-SHA256 (OWASP's least, 2023); about a third of a second."""
_SALT_BYTES, _KEY_BYTES, _BLOCK_BYTES = 16, 32, 16
_INTEGER, _OCTETS, _NULL, _OBJECT, _SEQUENCE = 0x02, 0x04, 0x05, 0x06, 0x30
_PBES2 = bytes.fromhex("2a864886f70d01050d")
_PBKDF2 = bytes.fromhex("2a864886f70d01050c")
_HMAC_SHA256 = bytes.fromhex("2a864886f70d0209")
_AES_256_CBC = bytes.fromhex("60864801650304012a")


def private_pem(
    key: Ed25519PrivateKey | EllipticCurvePrivateKey, passphrase: bytes | None = None
) -> bytes:
    """Return a private key as PKCS#8 PEM.

    Args:
        key: to write.
        passphrase: that encrypts it; None leaves it unencrypted.
    """
    if passphrase is None:
        return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    plain = key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    return _pem("ENCRYPTED PRIVATE KEY", _encrypted(plain, passphrase))


def _encrypted(plain: bytes, passphrase: bytes) -> bytes:
    """Return ``EncryptedPrivateKeyInfo`` (RFC 5958) in DER."""
    salt, vector = os.urandom(_SALT_BYTES), os.urandom(_BLOCK_BYTES)
    secret = PBKDF2HMAC(hashes.SHA256(), _KEY_BYTES, salt, ROUNDS).derive(passphrase)
    padder = padding.PKCS7(_BLOCK_BYTES * 8).padder()
    encryptor = Cipher(algorithms.AES256(secret), modes.CBC(vector)).encryptor()
    data = encryptor.update(padder.update(plain) + padder.finalize()) + encryptor.finalize()
    rounds = ROUNDS.to_bytes(ROUNDS.bit_length() // 8 + 1, "big")
    by_hmac = _sequence(_der(_OBJECT, _HMAC_SHA256), _der(_NULL, b""))
    derive = _sequence(_der(_OCTETS, salt), _der(_INTEGER, rounds), by_hmac)
    scheme = _sequence(
        _sequence(_der(_OBJECT, _PBKDF2), derive),
        _sequence(_der(_OBJECT, _AES_256_CBC), _der(_OCTETS, vector)),
    )
    return _sequence(_sequence(_der(_OBJECT, _PBES2), scheme), _der(_OCTETS, data))


def _sequence(*parts: bytes) -> bytes:
    return _der(_SEQUENCE, b"".join(parts))


def _der(tag: int, content: bytes) -> bytes:
    size = len(content)
    if size < 0x80:
        return bytes((tag, size)) + content
    length = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes((tag, 0x80 | len(length))) + length + content


def _pem(label: str, der: bytes) -> bytes:
    lines = textwrap.wrap(base64.b64encode(der).decode(), 64)
    return "\n".join((f"-----BEGIN {label}-----", *lines, f"-----END {label}-----", "")).encode()
