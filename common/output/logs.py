"""The log of a running process on standard error, and the part for its operator alone.

A line is an event in fixed words, with fields: who, which run, why. Standard error holds nothing
that was read from records: no value, no name of a column, and at a site no text of an exception
except of those in :data:`_SAID`, which are about keys, ledgers and the link. Any other fault is
named by the type of the exception and the line of code; its text and its traceback go to the
operator's log (:mod:`privet.common.output.operator_log`), with all logs and warnings of libraries.
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
from typing import Any

from privet.common.errors import (
    DataMissingError,
    InputError,
    NoteError,
    PlanError,
    PolicyError,
    PrivateKeyError,
    PrivetError,
    RefusedError,
    RunError,
    WrongLedgerError,
    reason_of,
)
from privet.common.output.operator_log import OperatorFile, OperatorLogHandler, fields_of
from privet.common.output.process_output import console

_OWN = "privet"
_SAYS = {_OWN, "flwr", "uvicorn"}
"""Loggers whose messages hold nothing from records, though an error that they log may."""
_SAID = (PrivateKeyError, NoteError, RefusedError, RunError, WrongLedgerError)
"""Errors whose text is never made from records."""
_ENDING = (DataMissingError, PlanError, PolicyError)
"""Further ones that may end a site's command: they quote its own files, and none of records."""


class Style(StrEnum):
    """The form of log lines."""

    TEXT = "text"
    JSON = "json"


class Level(StrEnum):
    """The lowest level that is written."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


def why(error: BaseException) -> str:
    """Return the text of an error if it can hold nothing from records, else its type's name."""
    if isinstance(error, _SAID) or type(error) in (InputError, PrivetError):
        return str(error)
    return kind_of(error)


def why_ended(error: Exception) -> str | None:
    """Return why a site's command ends, or None if only the operator's log may say it."""
    sayable = isinstance(error, (*_SAID, *_ENDING, OSError))
    if sayable or type(error) in (InputError, PrivetError):
        return reason_of(error)
    return None


def kind_of(error: BaseException) -> str:
    """Return the name of an error's type, if the type is defined in code.

    A type that was made while the program ran may be named after a value of its data.
    """
    kind = type(error)
    found: Any = sys.modules.get(kind.__module__)
    for name in kind.__qualname__.split("."):
        found = getattr(found, name, None)
    return kind.__name__ if found is kind else "Exception"


def place_of(error: BaseException) -> str:
    """Return the file and line of Privet's own code that raised an error, or called the raiser."""
    steps = list(traceback.walk_tb(error.__traceback__))
    own = [one for one in steps if str(one[0].f_globals.get("__name__")).split(".")[0] == _OWN]
    last = (own or steps)[-1:]
    return f"{Path(last[0][0].f_code.co_filename).name}:{last[0][1]}" if last else ""


def set_up(style: Style, level: Level, *, operator: Path | None = None, texts: bool = True) -> None:
    """Send this process's log to standard error; call it before gRPC and Flower are imported.

    Args:
        style: of the lines on standard error.
        level: lowest level that is written there.
        operator: a site's own file. With it, standard error gets only the lines of Privet, and no
            text of an exception; the file gets both, and the output of libraries.
        texts: whether standard error may hold the text of an exception. If not, and without
            ``operator``, neither that text nor the output of libraries is written anywhere.
    """
    # gRPC's core writes lines of its own, which are not JSON.
    if style is Style.JSON:
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    root = logging.getLogger()
    for before in [one for one in root.handlers if isinstance(one, _Stderr | OperatorLogHandler)]:
        root.removeHandler(before)
        before.close()
    root.setLevel(logging.WARNING)
    own = logging.getLogger(_OWN)
    own.setLevel(level.upper())
    error = _Stderr()
    error.setFormatter(Lines(style, texts=texts and operator is None))
    root.addHandler(error)
    if operator is not None or not texts:
        said = {_OWN} if operator is not None else _SAYS
        error.addFilter(lambda record: record.name.split(".")[0] in said)
    if operator is not None:
        root.addHandler(OperatorLogHandler(OperatorFile.of(operator)))
    _take_over()


class Lines(logging.Formatter):
    """Format a record as one line.

    Args:
        style: of the line.
        texts: whether an exception's text and traceback are written.

    Example::

        {"time": "2026-01-31T12:00:00.000Z", "level": "warning", "logger": "privet.link",
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
        fields = {k: self._value(v) for k, v in fields_of(record).items()} | self._exception(record)
        event = self._event(record)
        if self._json:
            head = {"time": stamp, "level": level, "logger": record.name, "event": event}
            return json.dumps(head | fields, ensure_ascii=False)
        said = "".join(f" {key}={json.dumps(v, ensure_ascii=False)}" for key, v in fields.items())
        return f"{stamp} {level} {record.name}: {json.dumps(event, ensure_ascii=False)[1:-1]}{said}"

    def _event(self, record: logging.LogRecord) -> str:
        """Return the message; its arguments are checked like fields."""
        given = record.args
        try:
            if isinstance(given, tuple) and given:
                return str(record.msg) % tuple(map(self._value, given))
            return record.getMessage()
        except (TypeError, ValueError):
            return str(record.msg)

    def _value(self, value: Any) -> Any:
        if isinstance(value, BaseException) and not self._texts:
            return why(value)
        return value if isinstance(value, int | float | bool | None) else str(value)

    def _exception(self, record: logging.LogRecord) -> dict[str, str]:
        _, error, _ = record.exc_info or (None, None, None)
        if error is None:
            return {}
        found = {"exception": type(error).__name__ if self._texts else kind_of(error)}
        if place := place_of(error):
            found["where"] = place
        if self._texts and record.exc_info:
            found["traceback"] = self.formatException(record.exc_info)
        return found


class _ToRoot(logging.Filter):
    """Pass a record to the root's handlers, and keep it from the logger's own."""

    def filter(self, record: logging.LogRecord) -> bool:
        root = logging.getLogger()
        if root.isEnabledFor(record.levelno):
            root.handle(record)
        return False


def _take_over() -> None:
    """Take over warnings, and Flower's log, which has a handler for standard error of its own."""
    logging.captureWarnings(True)
    flower = logging.getLogger("flwr")
    if not any(isinstance(known, _ToRoot) for known in flower.filters):
        flower.addFilter(_ToRoot())


class _Stderr(logging.StreamHandler[Any]):
    """Write to the present standard error; ignore that its reader is gone."""

    @property
    def stream(self) -> Any:
        return console()

    @stream.setter
    def stream(self, value: object) -> None:
        del value

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        """Say nothing: the standard library would print the message and its arguments."""
