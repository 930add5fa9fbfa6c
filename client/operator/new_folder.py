"""A new site's folder: complete, or not there."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from privet.common.errors import RunError


@contextmanager
def whole_or_gone(folder: Path, last: str) -> Iterator[None]:
    """Remove a new folder if an error occurs inside, unless it is complete and can be used.

    A folder that exists and is not empty stays as it is. A complete folder stays if nobody answered
    (``RunError``) or the command was interrupted: the coordinator may have admitted its keys by
    then, and the same command continues with them.

    Args:
        folder: that is created inside.
        last: name of the file in it that is written last.
    """
    first = next((one for one in (*reversed(folder.parents), folder) if not one.exists()), None)
    was_empty = folder.is_dir() and not any(folder.iterdir())
    try:
        yield
    except BaseException as error:
        is_complete = (folder / last).exists()
        if is_complete and isinstance(error, RunError | KeyboardInterrupt):
            raise
        if first is not None:
            shutil.rmtree(first, ignore_errors=True)
        elif was_empty:
            for path in folder.iterdir():
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink()
        raise
