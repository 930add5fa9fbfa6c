"""One coordinator in a folder: a lock that ends with its process, however that ends."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from privet.common.errors import InputError

_FILE = "server.pid"


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold the folder for this process.

    Raises:
        InputError: if another process holds it.
    """
    with (folder / _FILE).open("a+") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InputError(f"{folder}: a coordinator is running here already") from None
        stream.truncate(0)
        stream.write(f"{os.getpid()}\n")
        stream.flush()
        yield


def holder(folder: Path) -> int:
    """Return the process that holds the folder, or 0: a number alone may be anybody's by now."""
    try:
        with (folder / _FILE).open("r+") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                return int(stream.read() or 0)
    except (OSError, ValueError):
        pass
    return 0
