"""Where a log is kept: a thin, durable shell around SQLite.

SQLite gives what a ledger needs and is hard to write well: a transaction is on disk
(``synchronous=FULL``) before the promise is given, or it never happened; a full disk or a
short write rolls back; a killed process leaves a file that opens again; one process
writes at a time, a second one waits. Entries can be added and read, never changed.

A file that cannot be written, or lies in a folder that cannot, is read all the same, and
nothing is left beside it:

- no write-ahead file beside it: all is in the file itself, which is read as it is
  (``immutable``). If somebody writes to it meanwhile, an error asks the reader to start again.
- a write-ahead file with its index: its owner may be at work; SQLite reads both (``mode=ro``).
- a write-ahead file alone, as in a copy: both are copied to a temporary folder and read there.
"""

from __future__ import annotations

import atexit
import os
import shutil
import sqlite3
import tempfile
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Literal

from privet.common.canonical import fsync_folder
from privet.common.errors import LedgerError, LedgerFullError, WrongLedgerError
from privet.common.files.format_version import Step, bring_up, newer_fault

_SCHEMA = """
CREATE TABLE entries (sequence INTEGER PRIMARY KEY, leaf BLOB NOT NULL);
CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE papers (
    kind TEXT NOT NULL, name TEXT NOT NULL, text TEXT NOT NULL, PRIMARY KEY (kind, name)
) WITHOUT ROWID;
CREATE TRIGGER entries_stay BEFORE UPDATE ON entries
    BEGIN SELECT RAISE(ABORT, 'entries are never changed'); END;
CREATE TRIGGER entries_remain BEFORE DELETE ON entries
    BEGIN SELECT RAISE(ABORT, 'entries are never removed'); END;
"""
_VERSION = 2
_APPLICATION = 0x70726976
"""Names the file's kind to other programs, as ``file`` does ("priv"; from format 2 on)."""
_MIN_DATABASE_BYTES = 512
"""No SQLite file with anything in it is smaller; SQLite itself takes such a file for empty."""


def _to_2(connection: sqlite3.Connection) -> None:
    connection.execute(f"PRAGMA application_id = {_APPLICATION}")


_STEPS: dict[int, Step[sqlite3.Connection]] = {1: _to_2}
"""By format, what leads to the next one; they run inside the transaction of the first write."""

_OPEN: weakref.WeakSet[Store] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    """Leave no write-ahead file behind: who copies the log alone would copy an older one."""
    for store in list(_OPEN):
        with suppress(Exception):
            store.close()


ASIDE = "before-recovery-"
"""How a folder's name begins in which a recovery put damaged files; nothing in it counts."""


class Store:
    """Entries in order, facts by name, and papers by kind and name, in one file.

    Args:
        path: the file; made if ``create``.
        create: make a new file where there is none.
        patience: seconds to wait for another process's transaction.

    Raises:
        WrongLedgerError: if the file is not there.
        LedgerError: if it is not a log, or of a later version.
    """

    def __init__(self, path: Path, *, create: bool = False, patience: float = 30.0) -> None:
        self.path = path
        self._patience = patience
        self._lock = threading.RLock()
        _OPEN.add(self)
        self._inside: Literal["", "reading", "writing"] = ""
        self._process = 0
        self._connections = 0
        self._remove_copy: Callable[[], object] = _nothing
        if not path.exists() and not create:
            raise WrongLedgerError(f"{path}: there is no log here; is this the right folder?")
        self._writable = not path.exists() or _is_writable(path)
        with self._told():
            self._require_known(_version_in(path))
            path.parent.mkdir(parents=True, exist_ok=True)
            foreign = path.exists() and 0 < path.stat().st_size < _MIN_DATABASE_BYTES
            self._connect()
            if foreign or not (create or self._version()):
                raise LedgerError(f"{path}: the file is damaged: it is not a log")
            self._prepare()

    def close(self) -> None:
        """Close the file; a later call opens it again."""
        with self._lock:
            if self._process == os.getpid():
                self._connection.close()
            self._process = 0
            self._remove_copy()

    @property
    def is_current(self) -> bool:
        """Whether the file that is open is still the one at its path."""
        return self._process != os.getpid() or self._identity() == self._opened

    def leaves(self, start: int = 0) -> Iterator[bytes]:
        """Yield the leaves from sequence ``start`` on, and check that none is missing."""
        with self._told():
            rows = self._open().execute(
                "SELECT sequence, leaf FROM entries WHERE sequence >= ? ORDER BY sequence", (start,)
            )
            for expected, (sequence, leaf) in enumerate(rows, start):
                if sequence != expected or not isinstance(leaf, bytes):
                    raise LedgerError(f"{self.path}: entry {expected} is missing or damaged")
                yield leaf
            self._require_still()

    def leaf(self, sequence: int) -> bytes:
        """Return one leaf.

        Raises:
            LedgerError: if there is none.
        """
        with self._told():
            row = (
                self._open()
                .execute("SELECT leaf FROM entries WHERE sequence = ?", (sequence,))
                .fetchone()
            )
        if row is None:
            raise LedgerError(f"{self.path}: there is no entry {sequence}")
        return bytes(row[0])

    def count(self) -> int:
        """Return the number of entries."""
        with self._told():
            return int(self._open().execute("SELECT COUNT(*) FROM entries").fetchone()[0])

    def version(self) -> tuple[int, int]:
        """Return a value that changes when another connection has written to the file.

        What is written through this object leaves it as it is.
        """
        with self._told():
            found = self._open().execute("PRAGMA data_version").fetchone()
        return self._connections, int(found[0])

    def size(self) -> int:
        """Return one more than the last entry's sequence; quicker than :meth:`count`."""
        with self._told():
            last = self._open().execute("SELECT IFNULL(MAX(sequence), -1) FROM entries").fetchone()
        return int(last[0]) + 1

    def fact(self, name: str) -> str | None:
        """Return a fact, or None."""
        return self._text("SELECT value FROM facts WHERE name = ?", name)

    def paper(self, kind: str, name: str) -> str | None:
        """Return one paper, or None."""
        return self._text("SELECT text FROM papers WHERE kind = ? AND name = ?", kind, name)

    def _text(self, query: str, *names: str) -> str | None:
        with self._told():
            row = self._open().execute(query, names).fetchone()
        return str(row[0]) if row else None

    def papers(self, kind: str) -> list[tuple[str, str]]:
        """Return (name, text) of all papers of a kind, by name."""
        with self._told():
            rows = self._open().execute(
                "SELECT name, text FROM papers WHERE kind = ? ORDER BY name", (kind,)
            )
            return [(str(name), str(text)) for name, text in rows]

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Hold the only right to write; all that is added inside is durable, or none of it.

        Raises:
            LedgerError: if another process holds it too long, or the disk does not take it.
        """
        with self._lock, self._told():
            if self._inside == "writing":
                yield
                return
            if self._inside:
                raise LedgerError(f"{self.path}: nothing is written while it is being read")
            connection = self._open()
            if not self._writable:
                raise LedgerError(f"{self.path}: may be read only: the file or its folder")
            connection.execute("BEGIN IMMEDIATE")
            self._inside = "writing"
            try:
                self._bring_up(connection)
                yield
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise
            finally:
                self._inside = ""

    @contextmanager
    def reading(self) -> Iterator[None]:
        """See one state of the file, whatever other processes write meanwhile."""
        with self._lock, self._told():
            if self._inside:
                yield
                return
            connection = self._open()
            connection.execute("BEGIN")
            self._inside = "reading"
            try:
                yield
                self._require_still()
            finally:
                self._inside = ""
                connection.execute("ROLLBACK")

    def add(self, sequence: int, leaf: bytes) -> None:
        """Add an entry, inside a transaction."""
        with self._told():
            self._open().execute("INSERT INTO entries VALUES (?, ?)", (sequence, leaf))

    def put(self, name: str, value: str) -> None:
        """Set a fact, inside a transaction."""
        with self._told():
            self._open().execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, value))

    def file(self, kind: str, name: str, text: str) -> None:
        """Keep a paper, inside a transaction."""
        with self._told():
            self._open().execute(
                "INSERT OR REPLACE INTO papers VALUES (?, ?, ?)", (kind, name, text)
            )

    def _open(self) -> sqlite3.Connection:
        # A connection must not be used in a process that was forked after it was made.
        if self._process != os.getpid():
            self._connect()
        if self._identity() != self._opened:
            raise LedgerError(
                f"{self.path}: the file was moved, removed or replaced while it was open; what is "
                "written now would be lost. Start again"
            )
        self._require_still()
        return self._connection

    def _identity(self) -> tuple[int, int] | None:
        try:
            found = self.path.stat()
        except FileNotFoundError:
            return None
        return found.st_dev, found.st_ino

    def _connect(self) -> None:
        self._as_it_was: tuple[int, int] | None = None
        self._opened = self._identity()
        where = str(self.path) if self._writable else self._to_be_read()
        self._connection = sqlite3.connect(
            where,
            uri=not self._writable,
            timeout=self._patience,
            isolation_level=None,
            check_same_thread=False,
        )
        self._process = os.getpid()
        self._connections += 1
        if self._writable:
            self._connection.execute("PRAGMA journal_mode = WAL")
            self._opened = self._identity()  # it may have been made just now
            self._connection.execute("PRAGMA synchronous = FULL")

    def _to_be_read(self) -> str:
        """Return what SQLite opens where nothing can be written (see the module)."""
        ahead, index = (self.path.with_name(self.path.name + end) for end in ("-wal", "-shm"))
        # Read before the write-ahead file: what is moved into the file later is noticed.
        as_it_was = self._state()
        if not ahead.exists() or ahead.stat().st_size == 0:
            self._as_it_was = as_it_was
            return self.path.absolute().as_uri() + "?mode=ro&immutable=1"
        if index.exists():
            return self.path.absolute().as_uri() + "?mode=ro"
        self._remove_copy()
        copied = Path(tempfile.mkdtemp(prefix="privet-"))
        self._remove_copy = weakref.finalize(self, shutil.rmtree, copied, ignore_errors=True)
        for source in (self.path, ahead):
            shutil.copyfile(source, copied / source.name)
        return (copied / self.path.name).as_uri()

    def _state(self) -> tuple[int, int]:
        found = self.path.stat()
        return found.st_size, found.st_mtime_ns

    def _require_still(self) -> None:
        """Check that a file that is read as it is was not written to since it was opened."""
        if self._as_it_was is not None and self._as_it_was != self._state():
            raise LedgerError(f"{self.path}: was written to while it was being read; start again")

    def _prepare(self) -> None:
        new = not self._version()
        if new and self._writable:
            with self.transaction():
                if not self._version():
                    for statement in _SCHEMA.split(";\n"):
                        # A trigger's body has a semicolon of its own, without a line end.
                        if statement.strip():
                            self._connection.execute(statement)
                    self._connection.execute("PRAGMA user_version = 1")
                    self._bring_up(self._connection)
            fsync_folder(self.path.parent)
        self._require_known(self._version())

    def _bring_up(self, connection: sqlite3.Connection) -> None:
        """Bring a file of an earlier format up to this one."""
        found = self._version()
        self._require_known(found)  # another process may have written since
        if (now := bring_up(connection, found, _STEPS)) != found:
            connection.execute(f"PRAGMA user_version = {now}")

    def _require_known(self, version: int) -> None:
        """Refuse a file of a later format.

        Raises:
            LedgerError: saying what to do.
        """
        if fault := newer_fault(self.path, version, _VERSION):
            raise LedgerError(fault)

    def _version(self) -> int:
        return int(self._connection.execute("PRAGMA user_version").fetchone()[0])

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            if "locked" in str(error) or "busy" in str(error):
                raise LedgerError(
                    f"{self.path}: another process is writing and did not finish within "
                    f"{self._patience:g} s; is a second client running?"
                ) from error
            is_full = getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_FULL
            kind = LedgerFullError if is_full else LedgerError
            raise kind(f"{self.path}: could not be written or read: {error}") from error
        except sqlite3.DatabaseError as error:
            raise LedgerError(f"{self.path}: the file is damaged: {error}") from error
        except OSError as error:
            raise LedgerError(f"{self.path}: {error.strerror or error}") from error


def _is_writable(path: Path) -> bool:
    """Whether the file and its folder can be written: SQLite needs both."""
    return all(os.access(place, os.W_OK, effective_ids=True) for place in (path, path.parent))


def _version_in(path: Path) -> int:
    """Return the format that a file states, without writing anything beside it; 0 for none.

    One that a later version wrote may have it in its write-ahead file alone: that is seen once it
    is open, and nothing is written then, too. SQLite reads it, and not ``open``: to close a file
    lets go of all locks that the process holds on it (POSIX), those of another store among them.
    The next process that closes it would then take itself for the last one, and remove the
    write-ahead file into which the other store still writes.
    """
    if not path.exists():
        return 0
    where = path.absolute().as_uri() + "?mode=ro&immutable=1"
    try:
        with closing(sqlite3.connect(where, uri=True)) as connection:
            return int(connection.execute("PRAGMA user_version").fetchone()[0])
    except sqlite3.Error:
        return 0


def _nothing() -> None:
    pass
