"""Looking into the processes of a site, which are closed to all but root."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

_CAP_SYS_PTRACE = 19


def _looks_in() -> bool:
    if sys.platform != "linux":
        return True
    found = re.search(r"CapEff:\s*(\w+)", Path("/proc/self/status").read_text())
    return found is not None and bool(int(found[1], 16) >> _CAP_SYS_PTRACE & 1)


LOOKS_IN = pytest.mark.skipif(
    not _looks_in(), reason="a process that makes no core dump shows its files to root alone"
)
"""Marks tests that read the descriptors or the environment of another process."""
