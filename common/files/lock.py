"""A lock for one coordinator, or one client, in a folder; it ends with its process."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from privet.common.errors import InputError

COORDINATOR, CLIENT = "server.pid", "client.pid"
"""Names of the lock files; each says which process holds it."""
_WHO = {COORDINATOR: "coordinator", CLIENT: "client"}


@contextmanager
def alone(folder: Path, file: str = COORDINATOR) -> Iterator[None]:
    """Hold a folder for this process.

    Args:
        folder: of a coordinator or a site.
        file: name of the lock file, which says what the process is.

    Raises:
        InputError: if another process holds it, or it cannot be written.
    """
    try:
        stream = (folder / file).open("a+")
    except OSError as error:
        raise InputError(f"{folder / file}: cannot be written: {error.strerror}") from error
    with stream:
        if not _taken(stream):
            stream.seek(0)
            number = stream.read().strip()
            raise InputError(f"{folder}: a {_WHO[file]} is running here already (process {number})")
        stream.truncate(0)
        stream.write(f"{os.getpid()}\n")
        stream.flush()
        yield


def _taken(stream: TextIO) -> bool:
    """Take the lock, or wait half a second for it: a process that checks for the holder has it for
    a moment.
    """
    for _ in range(10):
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            time.sleep(0.05)
        else:
            return True
    return False


def holder(folder: Path) -> int:
    """Return the process id of the coordinator that holds the folder, or 0.

    The lock decides: the number in the file alone may belong to another process by now.
    """
    try:
        with (folder / COORDINATOR).open("r+") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError:
                return int(stream.read() or 0)
    except (OSError, ValueError):
        pass
    return 0
