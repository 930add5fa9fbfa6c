"""Folders that cannot be written, also for root, who may write everywhere otherwise."""

from __future__ import annotations

import ctypes
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_CAPABILITIES_V3, _DAC_OVERRIDE = 0x20080522, 1 << 1


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Take the right to write ``folder`` and what is in it from this thread."""
    places = [folder, *folder.rglob("*")]
    before = {place: stat.S_IMODE(place.stat().st_mode) for place in places}
    for place, mode in before.items():
        place.chmod(mode & ~0o222)
    try:
        with _as_anybody():
            if os.access(folder, os.W_OK, effective_ids=True):
                pytest.skip("every folder can be written here")
            yield
    finally:
        for place, mode in before.items():
            if place.exists():
                place.chmod(mode)


@contextmanager
def _as_anybody() -> Iterator[None]:
    """Lay down root's right to pass over a file's mode, for as long as this lasts."""
    if os.geteuid() != 0 or sys.platform != "linux":
        yield
        return
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(_CAPABILITIES_V3, 0)
    held = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; twice
    if libc.capget(header, held):
        pytest.skip("this machine does not say what root may do")
    less = (ctypes.c_uint32 * 6)(*held)
    less[0] &= ~_DAC_OVERRIDE
    libc.capset(header, less)
    try:
        yield
    finally:
        libc.capset(header, held)


def names(folder: Path) -> list[str]:
    """The names of all that is in a folder."""
    return sorted(path.name for path in folder.iterdir())
