"""Reserve disk space before it is written to, so that its lack is an error at once."""

from __future__ import annotations

import os


def allocate(descriptor: int, size: int) -> None:
    """Give a file its blocks on the disk.

    Args:
        descriptor: of the file, open for writing.
        size: in bytes, from the file's start.

    Raises:
        OSError: if the disk, a quota or a limit of this process does not have them.
    """
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, size)
        return
    chunk = bytes(1 << 20)
    for start in range(0, size, len(chunk)):
        os.pwrite(descriptor, chunk[: size - start], start)
