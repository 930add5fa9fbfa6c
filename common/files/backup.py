"""Copy a coordinator's or a site's folder as of one moment, also while it is in use.

A plain copy of an open database misses a part of it (SQLite keeps the newest entries in a file
beside it). So the backup locks the databases for writing, in the same way as any other change:
promised data is on disk, and a process waits for this short moment. The copy is the folder that a
kill at that moment would leave. Other files are replaced as a whole and never changed in place, so
they are linked, and read after the locks are released.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from pathlib import Path

from privet.common.canonical import fsync_folder
from privet.common.errors import InputError, RunError, reason_of
from privet.common.files.private_files import FILE_MODE

_DATABASE = ".db"
_PASSING = (".pid", ".lock", ".sock", f"{_DATABASE}-wal", f"{_DATABASE}-shm")
"""Ends of names of files that are of no use in a copy, or would be wrong there."""
_PATIENCE_S = 30.0


@dataclass(frozen=True)
class Backup:
    """The result of a backup: its file, and the number of files in it."""

    path: Path
    files: int


def back_up(folder: Path, out: Path, takes: Callable[[Path], bool]) -> Backup:
    """Write a folder into a tar file, completely or not at all, readable by its owner only.

    Args:
        folder: a coordinator's or a site's.
        out: the tar file; it must not exist. Members are named from the folder's own name on.
        takes: returns whether a file is included, by its path in the folder.

    Raises:
        InputError: if ``out`` exists, would be in the next backup, or cannot be written.
        RunError: if a database is held by another process for too long, or cannot be read.
    """
    if out.exists():
        raise InputError(f"{out} exists; a backup is never overwritten")
    target, own = out.resolve(), folder.resolve()
    if target.is_relative_to(own) and takes(target.relative_to(own)):
        raise InputError(f"{out} is in {folder}: the next backup would hold it; name another place")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=".privet-backup-") as place:
            count = _gather(folder, Path(place) / "files", takes)
            whole = Path(place) / "whole.tar"
            with whole.open("xb") as stream:
                os.fchmod(stream.fileno(), FILE_MODE)
                with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as tar:
                    tar.add(Path(place) / "files", folder.resolve().name)
                stream.flush()
                os.fsync(stream.fileno())
            os.link(whole, out)
        fsync_folder(out.parent)
    except OSError as error:
        raise InputError(f"{out}: cannot be written: {reason_of(error)}") from error
    except sqlite3.Error as error:
        raise RunError(f"{folder}: a database cannot be copied now: {error}") from error
    return Backup(out, count)


def _gather(folder: Path, into: Path, takes: Callable[[Path], bool]) -> int:
    """Collect the files of one moment; return their number."""
    into.mkdir(mode=0o700)
    count = 0
    with ExitStack() as held:
        databases = [path for path in _files(folder, takes) if path.suffix == _DATABASE]
        for path in databases:
            held.enter_context(closing(_locked(folder / path)))
        # No promise is made from here on, and the other files match what the databases say.
        for path in _files(folder, takes):
            target = into / path
            target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            if path.suffix == _DATABASE:
                _copy_database(folder / path, target)
                count += 1
            else:
                count += _take(folder / path, target)
    return count


def _files(folder: Path, takes: Callable[[Path], bool]) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        passing = path.name.endswith(_PASSING) or any(part.startswith(".") for part in name.parts)
        if not passing and takes(name) and path.is_file() and not path.is_symlink():
            yield name


def _locked(path: Path) -> sqlite3.Connection:
    """Return a connection that keeps others from writing until it is closed."""
    connection = sqlite3.connect(path, timeout=_PATIENCE_S, isolation_level=None)
    try:
        connection.execute("BEGIN IMMEDIATE")
    except BaseException:
        connection.close()
        raise
    return connection


def _copy_database(source: Path, target: Path) -> None:
    with closing(sqlite3.connect(source)) as reading, closing(sqlite3.connect(target)) as copy:
        reading.backup(copy)
        copy.execute("PRAGMA journal_mode = DELETE")  # one file, and nothing beside it
    target.chmod(FILE_MODE)


def _take(source: Path, target: Path) -> int:
    """Link a file, or copy it if it cannot be linked; leave out one that has gone by now."""
    with suppress(FileNotFoundError):
        try:
            os.link(source, target)
        except FileNotFoundError:
            raise
        except OSError:
            shutil.copy2(source, target)
        return 1
    return 0
