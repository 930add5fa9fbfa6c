"""What a running process says on standard error, and what it says to its operator alone.

A line is an event in fixed words, with fields: who, which run, why. On standard error there is
nothing that was read from records: no value, no name of a column, and at a site no text of an
exception but of those in :data:`_SAID`, which speak of keys, ledgers and the link. What
else went wrong is named by the type of the exception and the line of code; its text and its
traceback go to the operator's file, with all that libraries log or warn of.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import traceback
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any, TextIO

from privet.common.errors import (
    InputError,
    KeyFault,
    NoteError,
    PrivetError,
    Refused,
    RunError,
    WrongLedger,
)

_OWN = "privet"
_KNOWN = {*vars(logging.makeLogRecord({})), "message", "asctime", "taskName"}
"""What a record of logging has of itself; all else is a field."""
_SAID = (KeyFault, NoteError, Refused, RunError, WrongLedger)
"""Errors whose text is never made from records."""


class Style(StrEnum):
    """How lines are written."""

    TEXT = "text"
    JSON = "json"


class Level(StrEnum):
    """The least that is written."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


def why(error: BaseException) -> str:
    """Return the text of an error if it can hold nothing from records, else its type's name."""
    if isinstance(error, _SAID) or type(error) in (InputError, PrivetError):
        return str(error)
    return type(error).__name__


def set_up(style: Style, level: Level, *, operator: Path | None = None) -> None:
    """Let this process log to standard error; call it before gRPC and Flower are imported.

    Args:
        style: of the lines on standard error.
        level: the least that is written there.
        operator: a site's own file. With it, standard error gets the lines of Privet alone, and no
            text of an exception; the file gets those, and what libraries say.
    """
    # gRPC's core writes lines of its own, which are not JSON.
    if style is Style.JSON:
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    root = logging.getLogger()
    for before in [one for one in root.handlers if isinstance(one, _Stderr | _Operators)]:
        root.removeHandler(before)
        before.close()
    root.setLevel(logging.WARNING)
    own = logging.getLogger(_OWN)
    own.setLevel(level.upper())
    error = _Stderr()
    error.setFormatter(Lines(style, texts=operator is None))
    root.addHandler(error)
    if operator is not None:
        error.addFilter(lambda record: record.name.split(".")[0] == _OWN)
        root.addHandler(_Operators(operator))
    _take_over()


class Lines(logging.Formatter):
    """Writes a record as one line.

    Args:
        style: of the line.
        texts: whether an exception's text and traceback are written.

    Example::

        {"time": "2026-01-31T12:00:00.000Z", "level": "warning", "logger": "privet.hub",
         "event": "a late answer", "site": "North"}
    """

    def __init__(self, style: Style, *, texts: bool) -> None:
        super().__init__()
        self._json = style is Style.JSON
        self._texts = texts

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, without its end."""
        time = datetime.fromtimestamp(record.created, UTC)
        stamp = time.isoformat(timespec="milliseconds").replace("+00:00", "Z")
        level = record.levelname.lower()
        fields = {k: self._value(v) for k, v in _fields(record).items()} | self._exception(record)
        event = self._event(record)
        if self._json:
            head = {"time": stamp, "level": level, "logger": record.name, "event": event}
            return json.dumps(head | fields, ensure_ascii=False)
        said = "".join(f" {key}={json.dumps(v, ensure_ascii=False)}" for key, v in fields.items())
        return f"{stamp} {level} {record.name}: {json.dumps(event, ensure_ascii=False)[1:-1]}{said}"

    def _event(self, record: logging.LogRecord) -> str:
        """Return the message; what is put into it is checked like a field."""
        given = record.args
        try:
            if isinstance(given, tuple) and given:
                return str(record.msg) % tuple(map(self._placed, given))
            return record.getMessage()
        except (TypeError, ValueError):
            return str(record.msg)

    def _placed(self, value: Any) -> Any:
        return value if isinstance(value, int | float) else self._value(value)

    def _value(self, value: Any) -> Any:
        if isinstance(value, BaseException):
            return str(value) if self._texts else why(value)
        return value if isinstance(value, int | float | bool | None) else str(value)

    def _exception(self, record: logging.LogRecord) -> dict[str, str]:
        error = record.exc_info[1] if record.exc_info else None
        if error is None:
            return {}
        frames = traceback.extract_tb(error.__traceback__)
        found: dict[str, str] = {"exception": type(error).__name__}
        if frames:
            found["where"] = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}"
        if self._texts and record.exc_info:
            found["traceback"] = self.formatException(record.exc_info)
        return found


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    # A name that begins with "_" is of a library that makes the records its own, as Ray does.
    found = vars(record).items()
    return {key: value for key, value in found if key not in _KNOWN and key[0] != "_"}


class _Whole(logging.Formatter):
    """Writes all that is known of a record, for the operator alone."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        said = "".join(f" {key}={str(value)!r}" for key, value in _fields(record).items())
        return super().formatMessage(record) + said


class _ToRoot(logging.Filter):
    """Hands a record to the root's handlers, and keeps it from the logger's own."""

    def filter(self, record: logging.LogRecord) -> bool:
        root = logging.getLogger()
        if root.isEnabledFor(record.levelno):
            root.handle(record)
        return False


def _take_over() -> None:
    """Take what is warned of, and what Flower says: it has a handler for standard error."""
    logging.captureWarnings(True)
    flower = logging.getLogger("flwr")
    if not any(isinstance(known, _ToRoot) for known in flower.filters):
        flower.addFilter(_ToRoot())


class _Stderr(logging.StreamHandler[TextIO]):
    """Writes to standard error, wherever that is now."""

    @property
    def stream(self) -> TextIO:
        return sys.stderr

    @stream.setter
    def stream(self, value: TextIO) -> None:
        del value


class _Operators(logging.FileHandler):
    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        super().__init__(path, delay=True)
        self.setFormatter(_Whole("%(asctime)s %(name)s %(levelname)s %(message)s"))


def to_file_only(path: Path) -> None:
    """Let a process that handles records log to the operator's file, and nowhere else."""
    root = logging.getLogger()
    root.handlers = [_Operators(path)]
    root.setLevel(logging.INFO)
    _take_over()
