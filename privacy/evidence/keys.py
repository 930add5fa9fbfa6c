"""Private keys at rest: made where they are used, encrypted, never copied out.

A key file is PKCS#8 PEM, encrypted under a passphrase (:mod:`privet.common.files.private_pem`; one
of other rounds opens, too), readable by its owner only. A simulation keeps its keys unencrypted,
because its passphrase would lie beside them. A key in hardware is a :class:`Signer` like any
other.
"""

from __future__ import annotations

import os
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
)

from privet.common.canonical import write_atomic
from privet.common.errors import PrivateKeyError
from privet.common.files.private_files import FILE_MODE, private_folder, read_private
from privet.common.files.private_pem import private_pem

PASSPHRASE = "PRIVET_PASSPHRASE"
"""Environment variable that holds the passphrase of a site's keys."""
PASSPHRASE_FILE = "PRIVET_PASSPHRASE_FILE"
"""Environment variable that names the file with the passphrase, such as a service's secret."""
MIN_PASSPHRASE_CHARACTERS = 8
"""Characters of a passphrase, where keys are made."""
_MAX_PASSPHRASE_BYTES = 1000
"""Bytes of a passphrase; OpenSSL takes 1023."""


class FileSigner:
    """An Ed25519 key in memory, read from an encrypted file or newly made."""

    def __init__(self, private: Ed25519PrivateKey) -> None:
        self._private = private
        self._public = private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)

    @property
    def public(self) -> bytes:
        """The 32 raw bytes of the public key."""
        return self._public

    @property
    def seed(self) -> bytes:
        """The 32 raw bytes of the private key: they open what is encrypted to the public key."""
        return self._private.private_bytes_raw()

    def sign(self, message: bytes) -> bytes:
        """Return an Ed25519 signature (RFC 8032)."""
        return self._private.sign(message)

    @classmethod
    def from_seed(cls, seed: bytes) -> FileSigner:
        """Return the key whose :attr:`seed` this is; ValueError if it has not 32 bytes."""
        return cls(Ed25519PrivateKey.from_private_bytes(seed))

    @classmethod
    def generate(cls) -> FileSigner:
        """Return a new key from the operating system's randomness."""
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def load(cls, path: Path, passphrase: str | None, *, shared: bool = False) -> FileSigner:
        """Read a key file.

        Args:
            path: of the file.
            passphrase: None for one that is not encrypted.
            shared: others may be able to read it: a simulation's, which protects nothing.

        Raises:
            PrivateKeyError: if it is not there, others can read it, it is not an Ed25519 key, or
                the passphrase is wrong.
        """
        secret = secret_of(passphrase)
        try:
            data = path.read_bytes() if shared else read_private(path)
            private = load_pem_private_key(data, secret)
        except FileNotFoundError:
            raise PrivateKeyError(
                f"{path}: there is no key file; was it moved, or never made?"
            ) from None
        except TypeError as error:
            wants = f"is not encrypted; unset {PASSPHRASE}"
            if secret is None:
                wants = f"needs a passphrase; set {PASSPHRASE}"
            raise PrivateKeyError(f"{path}: the key {wants}") from error
        except (ValueError, UnsupportedAlgorithm) as error:
            raise PrivateKeyError(f"{path}: wrong passphrase, or not a key file") from error
        except OSError as error:
            raise PrivateKeyError(f"{path}: cannot be read: {error.strerror}") from error
        if not isinstance(private, Ed25519PrivateKey):
            raise PrivateKeyError(f"{path}: not an Ed25519 key")
        return cls(private)

    def save(self, path: Path, passphrase: str | None) -> None:
        """Write a new key file; an existing one is never overwritten.

        Raises:
            PrivateKeyError: if ``path`` exists, or the passphrase is too short or too long.
        """
        if path.exists():
            raise PrivateKeyError(f"{path} exists; a key is never overwritten")
        if passphrase and len(passphrase) < MIN_PASSPHRASE_CHARACTERS:
            raise PrivateKeyError(
                f"a passphrase has at least {MIN_PASSPHRASE_CHARACTERS} characters; no key was made"
            )
        if passphrase and len(passphrase.encode()) > _MAX_PASSPHRASE_BYTES:
            raise PrivateKeyError(f"a passphrase has at most {_MAX_PASSPHRASE_BYTES} bytes")
        private_folder(path.parent)
        write_atomic(path, private_pem(self._private, secret_of(passphrase)), mode=FILE_MODE)


def secret_of(passphrase: str | None) -> bytes | None:
    """Return the bytes that encrypt a key file; None for one that is not encrypted."""
    return passphrase.encode() if passphrase else None


def load_or_make(path: Path, passphrase: str | None, *, shared: bool = False) -> FileSigner:
    """Return the key in ``path``; make and store one where there is none.

    Args:
        path: of the file.
        passphrase: as of :meth:`FileSigner.load`.
        shared: the same.

    Raises:
        PrivateKeyError: as :meth:`FileSigner.load` and :meth:`FileSigner.save`.
    """
    if not path.exists():
        made = FileSigner.generate()
        made.save(path, passphrase)
        return made
    return FileSigner.load(path, passphrase, shared=shared)


def passphrase_from_environment() -> str | None:
    """Return the passphrase in ``PRIVET_PASSPHRASE`` or in the file of ``PRIVET_PASSPHRASE_FILE``.

    One line end at the end of the file is no part of it. None if neither variable is set.

    Raises:
        PrivateKeyError: if both are set, or the file is empty, no text, cannot be read, or others
            can read it.
    """
    given, named = os.environ.get(PASSPHRASE), os.environ.get(PASSPHRASE_FILE)
    if not named:
        return given or None
    if given:
        raise PrivateKeyError(f"both {PASSPHRASE} and {PASSPHRASE_FILE} are set; unset one of them")
    try:
        text = read_private(Path(named)).decode()
    except OSError as error:
        raise PrivateKeyError(
            f"{PASSPHRASE_FILE}: {named} cannot be read: {error.strerror}"
        ) from None
    except UnicodeDecodeError:
        raise PrivateKeyError(f"{PASSPHRASE_FILE}: {named} is not UTF-8 text") from None
    text = text.removesuffix("\n").removesuffix("\r")
    if not text or "\n" in text:
        raise PrivateKeyError(f"{PASSPHRASE_FILE}: {named} must hold one line, the passphrase")
    return text
