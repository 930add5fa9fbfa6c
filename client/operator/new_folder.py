"""A new site's folder: whole, or not there."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from privet.common.errors import RunError


@contextmanager
def whole_or_gone(folder: Path) -> Iterator[None]:
    """Leave nothing behind of a new folder where something goes wrong inside.

    One that is there and is not empty stays as it is. So does what was made where nobody answered
    (``RunError``): it is whole, and the same command goes on with it.

    Args:
        folder: to be made.
    """
    first = next((one for one in (*reversed(folder.parents), folder) if not one.exists()), None)
    was_empty = folder.is_dir() and not any(folder.iterdir())
    try:
        yield
    except RunError:
        raise
    except BaseException:
        if first is not None:
            shutil.rmtree(first, ignore_errors=True)
        elif was_empty:
            for path in folder.iterdir():
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        raise
