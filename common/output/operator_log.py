"""The operator's log: the only place at a site that may hold a part of a record.

A message may quote a cell. So the file is its owner's alone (mode 0600, whatever the umask, and
again after a rotation). A cell cannot write a line of its own: control characters are escaped, and
the lines of a traceback are indented. A failure to write reveals nothing of the message: standard
error gets :data:`NOT_WRITTEN` once, lost lines are counted, and their number is written first when
the file can be written again.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

MAX_LINE_CHARS = 8_192
"""Characters of a message, or of one line of a traceback."""
MAX_TRACEBACK_LINES = 400
"""Lines of a traceback; of a longer one the middle is left out."""
NOT_WRITTEN = "the operator's log cannot be written"
INDENT = "  | "
"""Start of a line that continues the message above it."""

_STATE = logging.getLogger("privet.operator_log")
"""Says that the log cannot be written: never to the log itself, and without details."""
_KNOWN = {*vars(logging.makeLogRecord({})), "message", "asctime", "taskName"}


def fields_of(record: logging.LogRecord) -> dict[str, Any]:
    """Return the fields that ``extra`` added to a record."""
    # A name that begins with "_" is of a library that makes the records its own, as Ray does.
    return {
        key: value for key, value in vars(record).items() if key not in _KNOWN and key[0] != "_"
    }


def one_line(text: str, limit: int = MAX_LINE_CHARS) -> str:
    """Return a text as one line, with control characters escaped as Python writes them.

    Args:
        text: of any length.
        limit: number of characters after which it is cut; a note says how many are missing.
    """
    cut = len(text) - limit
    if cut > 0:
        text = text[:limit]
    if not text.isprintable():
        text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return f"{text} ... ({cut} more characters)" if cut > 0 else text


def open_private(path: Path) -> int:
    """Open a file to append to, which only its owner can read; return its descriptor.

    Raises:
        OSError: if it cannot be opened, is not a file (a device or a pipe leads elsewhere), or is
            another user's and open to others.
    """
    # O_NONBLOCK: a pipe without a reader would wait here forever.
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK
    handle = os.open(path, flags, 0o600)
    try:
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "it is not a file", str(path))
        if stat.S_IMODE(found.st_mode) != 0o600:
            os.fchmod(handle, 0o600)
    except OSError:
        os.close(handle)
        raise
    return handle


class OperatorFile:
    """Append lines to a file, and never raise; all handlers of one path share one object.

    Args:
        path: of the file; it is opened at the first line, and again after it was moved away.
        handle: an open descriptor, instead of a path.
    """

    _shared: dict[Path, OperatorFile] = {}  # noqa: RUF012  (one process has one)

    def __init__(self, path: Path | None = None, handle: int = -1) -> None:
        self._path = path
        self._handle = handle
        self._lost = 0
        self._torn = False
        self._noted = False

    @classmethod
    def of(cls, path: Path) -> OperatorFile:
        """Return this process's file of a path."""
        with _Turn.lock:
            return cls._shared.setdefault(path.absolute(), cls(path.absolute()))

    def write(self, text: str) -> None:
        """Append whole lines, in one piece; lines that cannot be written are counted.

        Args:
            text: without a final line end.
        """
        with _Turn.lock:
            try:
                self._open()
                self._put(f"{self._gap()}{text}\n".encode("utf-8", "backslashreplace"))
                self._lost, self._noted = 0, False
            except OSError as error:
                self._lose(error)

    def close(self) -> None:
        """Close the file; the next line opens it again."""
        with _Turn.lock:
            if self._path is not None and self._handle >= 0:
                os.close(self._handle)
                self._handle = -1

    def _open(self) -> None:
        """Have the file open that is at the path now."""
        if self._path is None:
            return
        if self._handle >= 0:
            try:
                there, ours = self._path.stat(), os.fstat(self._handle)
                if (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino):
                    if stat.S_IMODE(ours.st_mode) != 0o600:
                        os.fchmod(self._handle, 0o600)
                    return
            except FileNotFoundError:
                pass
            self.close()
        self._handle = open_private(self._path)

    def _gap(self) -> str:
        """Return the text before the next line: the end of a torn line, the number of lost ones."""
        end = "\n" if self._torn else ""
        if not self._lost:
            return end
        return f"{end}{stamp()} WARNING {self._lost} lines were lost: {NOT_WRITTEN}\n"

    def _put(self, data: bytes) -> None:
        while data:
            data = data[os.write(self._handle, data) :]
            self._torn = bool(data)

    def _lose(self, error: OSError) -> None:
        self._lost += 1
        if self._noted:
            return
        self._noted = True
        # Of the error only the system's own word: "No space left on device".
        _STATE.error(NOT_WRITTEN, extra=self._why(error))

    def _why(self, error: OSError) -> dict[str, str]:
        name = {} if self._path is None else {"log": self._path.name}
        return name | {"why": os.strerror(error.errno or errno.EIO)}


class _Turn:
    """One lock for all files, so that two handlers write whole lines."""

    lock = threading.RLock()

    @classmethod
    def renew(cls) -> None:
        cls.lock = threading.RLock()


# A thread that is not in the child may have held it.
os.register_at_fork(after_in_child=_Turn.renew)


class OperatorFormatter(logging.Formatter):
    """Format a record in full: one line, and under it the traceback, indented.

    Args:
        name: written before the level in each line; "" takes the logger's own name.
    """

    def __init__(self, name: str = "") -> None:
        super().__init__()
        self._name = name

    def format(self, record: logging.LogRecord) -> str:
        """Return the lines; a record that cannot be formatted is named by its place in the code."""
        head = f"{stamp(record.created)} {self._name or one_line(record.name)} {record.levelname} "
        try:
            said = record.getMessage()
            said += "".join(f" {key}={str(value)!r}" for key, value in fields_of(record).items())
            below = self._below(record)
        except Exception as error:  # of an object that cannot be printed
            place = f"{Path(record.pathname).name}:{record.lineno}"
            return f"{head}a message of {place} could not be formatted: {type(error).__name__}"
        return head + one_line(said) + "".join(f"\n{INDENT}{one_line(line)}" for line in below)

    def _below(self, record: logging.LogRecord) -> list[str]:
        lines: list[str] = []
        if record.exc_info and record.exc_info[1] is not None:
            lines += self.formatException(record.exc_info).split("\n")
        if record.stack_info:
            lines += record.stack_info.split("\n")
        if (more := len(lines) - MAX_TRACEBACK_LINES) > 0:
            # How it began and what it came to; the message itself is at the end.
            quarter = MAX_TRACEBACK_LINES // 4
            lines[quarter : quarter + more] = [f"... {more} lines are left out ..."]
        return lines


class OperatorLogHandler(logging.Handler):
    """Write records to the operator's log; a failure to do so reveals nothing of them.

    Args:
        file: to write to.
        name: as of :class:`OperatorFormatter`.
    """

    def __init__(self, file: OperatorFile, name: str = "") -> None:
        super().__init__()
        self._file = file
        self.setFormatter(OperatorFormatter(name))

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record."""
        if record.name != _STATE.name:
            self._file.write(self.format(record))

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        """Do nothing: the standard library would print the message and its arguments."""

    def close(self) -> None:
        """Close the file."""
        self._file.close()
        super().close()


def operator_logger(path: Path, name: str) -> logging.Logger:
    """Return a logger that writes to the operator's log and nowhere else.

    Args:
        path: of the log.
        name: of the site, written in each line.
    """
    logger = logging.getLogger(f"privet.site.{path.resolve()}")
    logger.propagate = False
    logger.setLevel(logging.INFO)
    if not logger.handlers:
        logger.addHandler(OperatorLogHandler(OperatorFile.of(path), name))
    return logger


def stamp(seconds: float | None = None) -> str:
    """Return a time, default now, in UTC."""
    time = datetime.now(UTC) if seconds is None else datetime.fromtimestamp(seconds, UTC)
    return time.isoformat(timespec="milliseconds").replace("+00:00", "Z")
