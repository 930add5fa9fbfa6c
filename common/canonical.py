"""Canonical JSON (RFC 8785) and digests."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import rfc8785

from privet.common.errors import InputError


def canonical_json(value: Any) -> bytes:
    """Return ``value`` as RFC 8785 JSON.

    Raises:
        InputError: if the value holds something JSON cannot (NaN, infinity, a set, …).
    """
    try:
        return rfc8785.dumps(value)
    except rfc8785.CanonicalizationError as error:
        raise InputError(f"cannot be written as canonical JSON: {error}") from error


def digest(data: bytes) -> str:
    """Return ``sha256:<hex>`` of ``data``."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def hash_of_file(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def digest_json(value: Any) -> str:
    """Return the digest of the canonical JSON of ``value``."""
    return digest(canonical_json(value))


def write_atomic(
    path: Path, data: bytes | Iterable[bytes | memoryview], *, mode: int = 0o644
) -> None:
    """Write ``data``, whole or in parts, to ``path`` durably: all or nothing, also after a crash.

    Raises:
        OSError: if it cannot be written; it names ``path``.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _write(path, data, mode)
    except OSError as error:  # by its number the error is of the same type again
        raise OSError(error.errno, error.strerror, str(path)) from error


def _write(path: Path, data: bytes | Iterable[bytes | memoryview], mode: int) -> None:
    if isinstance(data, bytes):
        data = (data,)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as stream:
            for part in data:
                stream.write(part)
            stream.flush()
            os.fsync(stream.fileno())
        Path(name).chmod(mode)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    fsync_folder(path.parent)


def fsync_folder(folder: Path) -> None:
    """Make the names in ``folder`` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, value: Any, *, mode: int = 0o644) -> None:
    """Write ``value`` as indented JSON, atomically."""
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    write_atomic(path, text.encode(), mode=mode)
