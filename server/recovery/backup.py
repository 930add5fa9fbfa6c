"""Back up a coordinator: all of its folder except transfers in progress."""

from __future__ import annotations

from pathlib import Path

from privet.common.files.backup import Backup, back_up
from privet.server.membership.registry import MemberRegistry

_LEFT_OUT = ("spool",)
"""Updates that are not aggregated yet: the coordinator requests them again, at no cost."""


def back_up_federation(federation: MemberRegistry, out: Path) -> Backup:
    """Write a federation's folder into a tar file: authority, keys, members, runs, copies.

    Args:
        federation: the opened folder.
        out: the tar file; it must not exist.

    Raises:
        InputError: if ``out`` cannot be written.
        RunError: if a journal is held by another process for too long.
    """
    return back_up(federation.folder, out, lambda name: name.parts[0] not in _LEFT_OUT)
