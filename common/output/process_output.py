"""Restrict a site process's output to events in fixed words, without records.

Beside the intended output, four ways lead out of a process:

- standard output and standard error, printed to by Python or by a library in C;
- an interpreter's report of an uncaught error (here, in a thread, in a finaliser);
- the report of :mod:`logging` about a record that was not written, or a logger without handlers;
- a core dump, which is all of its memory.

:func:`protect_process` closes the last three, and :func:`to_operator` the first. In a process that
holds records both are called before records are opened.
"""

from __future__ import annotations

import ctypes
import io
import logging
import os
import resource
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from privet.common.output.operator_log import (
    MAX_LINE_CHARS,
    OperatorFile,
    OperatorLogHandler,
    one_line,
    open_private,
    stamp,
)

_LOG = logging.getLogger("privet.process")
_PR_SET_DUMPABLE = 4
_console: TextIO | None = None
"""The process's own standard error, while :func:`to_operator` leads what is printed elsewhere."""


def console() -> TextIO:
    """Return the stream for the process's own lines: its standard error."""
    return _console or sys.stderr


def protect_process() -> None:
    """Prevent core dumps, and name an uncaught error by its type and place only.

    The text of such an error goes only to those handlers of :mod:`logging` that may have it.
    """
    forbid_core_dumps()
    logging.raiseExceptions = False
    logging.lastResort = None
    logging.captureWarnings(True)
    sys.excepthook = _uncaught
    sys.unraisablehook = _unraisable
    threading.excepthook = _in_thread


def forbid_core_dumps() -> None:
    """Keep this process's memory out of files; its children must call this themselves.

    The limit keeps the kernel from writing a file. The flag (``PR_SET_DUMPABLE``, Linux) keeps it
    from handing the memory to a program such as systemd-coredump, which the limit does not
    everywhere. The flag also closes the memory to other processes of the same user.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def _uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        _LOG.warning("interrupted")
        return
    _LOG.critical("an error that nobody caught", exc_info=(kind, error, trace))


def _in_thread(given: threading.ExceptHookArgs) -> None:
    if given.exc_value is not None and not issubclass(given.exc_type, SystemExit):
        _LOG.critical(
            "an error in a thread that nobody caught",
            exc_info=(given.exc_type, given.exc_value, given.exc_traceback),
        )


def _unraisable(given: sys.UnraisableHookArgs) -> None:
    # Not the object: its text may be made of a record.
    if (error := given.exc_value) is not None:
        _LOG.error(
            "an error that could not be raised",
            exc_info=(given.exc_type, error, given.exc_traceback),
        )


def in_loop(loop: object, context: dict[str, Any]) -> None:
    """Log an error that no task of an event loop handled: a handler for asyncio.

    Args:
        loop: in which the error occurred.
        context: as asyncio passes it; only the error is used.
    """
    error = context.get("exception")
    if isinstance(error, BaseException):
        _LOG.error(
            "an error in a task that nobody awaited",
            exc_info=(type(error), error, error.__traceback__),
        )
    else:
        _LOG.error("the event loop met a fault")


@contextmanager
def to_operator(path: Path) -> Iterator[None]:
    """Send all output of this process to the operator's log, except that to :func:`console`.

    Output of Python is written line by line (:mod:`privet.common.output.operator_log`). Output of a
    library in C goes to the file as it is, or nowhere if the file cannot be opened.

    Args:
        path: of the operator's log.
    """
    global _console
    _standing_streams()
    kept = [os.dup(number) for number in (1, 2)]
    streams = sys.stdout, sys.stderr
    for stream in streams:
        _flush(stream)
    own = _console = os.fdopen(os.dup(2), "w", encoding="utf-8", errors="backslashreplace")
    target = _open_or_nothing(path)
    for number in (1, 2):
        os.dup2(target, number)
    os.close(target)
    file = OperatorFile.of(path)
    sys.stdout, sys.stderr = _printed(file, "stdout", 1), _printed(file, "stderr", 2)
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            _flush(stream)
        sys.stdout, sys.stderr = streams
        for number, descriptor in enumerate(kept, 1):
            os.dup2(descriptor, number)
            os.close(descriptor)
        _console = None
        with suppress(OSError):  # a collector that is gone
            own.close()


def hand_over(descriptor: int) -> None:
    """Make a process that holds records write permanently to one file only: its operator's.

    Standard output, standard error, and all logs and warnings go to it.

    Args:
        descriptor: of the file, open to append to.
    """
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    file = OperatorFile(handle=2)
    sys.stdout, sys.stderr = _printed(file, "stdout", 1), _printed(file, "stderr", 2)
    root = logging.getLogger()
    root.handlers = [OperatorLogHandler(file)]
    root.setLevel(logging.INFO)
    protect_process()


class _Lines(io.RawIOBase):
    """Receive printed output, and pass it on line by line."""

    def __init__(self, file: OperatorFile, name: str, number: int) -> None:
        self._file, self._name, self._number = file, name, number
        self._rest = b""

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._number

    def write(self, data: Any) -> int:
        *lines, self._rest = (self._rest + bytes(data)).split(b"\n")
        if len(self._rest) > MAX_LINE_CHARS:
            lines, self._rest = [*lines, self._rest], b""
        for line in lines:
            self._say(line)
        return len(data)

    def close(self) -> None:
        if not self.closed and self._rest:
            self._say(self._rest)
            self._rest = b""
        super().close()

    def _say(self, line: bytes) -> None:
        text = one_line(line.decode("utf-8", "backslashreplace"))
        self._file.write(f"{stamp()} {self._name} INFO {text}")


def _printed(file: OperatorFile, name: str, number: int) -> TextIO:
    """Return a stream for ``print``, whose lines go to the operator's log.

    Args:
        file: the log.
        name: written in each line.
        number: the descriptor that ``fileno`` returns.
    """
    buffered = io.BufferedWriter(_Lines(file, name, number))
    return io.TextIOWrapper(
        buffered, encoding="utf-8", errors="backslashreplace", line_buffering=True
    )


def _standing_streams() -> None:
    """Have something at descriptors 0 to 2, lest a file that is opened later becomes one."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest that is free: this one
    # Where a descriptor was closed when Python began, it has no stream for it.
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)


def _open_or_nothing(path: Path) -> int:
    try:
        return open_private(path)
    except OSError:
        return os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)


def _flush(stream: TextIO) -> None:
    with suppress(OSError, ValueError):  # a collector that is gone, or a stream that is closed
        stream.flush()
