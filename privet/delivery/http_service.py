"""A small HTTP service for a trained model, at the site that uses it.

::

    POST /predict    {"records": [{column: cell, …}, …]}  or one record
    POST /feedback   the same, with the label that turned out to be right
    GET  /health     /openapi.json  /docs

It listens on this machine alone unless told otherwise, has no authentication, sends nothing
anywhere, and answers no page of another origin. Feedback goes into a file of the site's own; as a
data set of the same population it is trained on in a later run, through the same ledger.
"""

from __future__ import annotations

import csv
import fcntl
import html
import io
import ipaddress
import json
import os
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from pydantic import BaseModel, ConfigDict

from privet import __version__
from privet.client.data.tables import text_table
from privet.common.cells import Codes, text_of
from privet.common.errors import DataError, InputError, PrivetError
from privet.common.files.private_files import FILE_MODE, make_private
from privet.common.person_id import PersonId
from privet.common.sections.sequence_task import (
    QuestionAnsweringTaskSpec,
    TokenClassificationTaskSpec,
)
from privet.common.sections.task import TableTask
from privet.delivery.trained import Trained
from privet.privacy.policy import Policy

PERSON = "person"
_MAX_RECORDS = 1000
_MAX_CELL_CHARACTERS = 100_000
"""Signs of one cell."""
_MAX_REQUEST_BYTES = 4 << 20
"""Of one question."""


class NotKept(PrivetError):
    """Feedback could not be written."""


class Feedback:
    """A CSV file that records are added to, durably, one whole row at a time.

    Args:
        path: of the file, made when the first record comes.
        columns: of a record, in the file's order.
        needed: those of them that may not be empty.
        declared: values of those of them that are compared with declared ones.
        check: is given the rows as they will be read from the file, and raises DataError where
            somebody could not train on them.

    Raises:
        InputError: if the file is there and has other columns, or cannot be read.
    """

    def __init__(
        self,
        path: Path,
        columns: tuple[str, ...],
        needed: tuple[str, ...],
        declared: Mapping[str, Sequence[str]] = {},
        check: Callable[[pd.DataFrame], object] = lambda frame: None,
    ) -> None:
        self.path, self.columns, self.needed = path, columns, needed
        self._declared, self._check = dict(declared), check
        if path.exists() and (not path.is_file() or path.stat().st_size):
            try:
                with path.open(newline="", encoding="utf-8") as stream:
                    found = next(csv.reader(stream), [])
            except (OSError, UnicodeDecodeError, csv.Error) as error:
                raise InputError(f"{path}: cannot be read as a table: {error}") from error
            if tuple(found) != columns:
                raise InputError(
                    f"{path}: its columns are {', '.join(found)}; feedback for this model has "
                    f"{', '.join(columns)}. Name another file"
                )

    def add(self, records: list[dict[str, Any]]) -> int:
        """Add records; return how many.

        Raises:
            DataError: if one lacks what is needed, or cannot be trained on. Nothing is written.
            NotKept: if the file cannot be written; it is as it was.
        """
        rows = [self._row(place, record) for place, record in enumerate(records)]
        text = _csv([list(self.columns), *rows])
        try:
            data = text.encode()
        except UnicodeEncodeError as error:
            raise DataError("a record holds a sign that is no text") from error
        # What is refused now does not wait in the file until somebody has paid for training.
        self._check(text_table(text).frame.reset_index(drop=True))
        try:
            self._append(_csv(rows).encode(), data)
        except OSError as error:
            raise NotKept(
                f"{self.path.name}: the feedback was not kept: {error.strerror}. Send it again "
                "when the operator has corrected this"
            ) from error
        return len(records)

    def _row(self, place: int, record: dict[str, Any]) -> list[str]:
        row = []
        if unknown := sorted(set(record) - set(self.columns)):
            raise DataError(f"record {place}: '{unknown[0]}' is no column of this model")
        if forgotten := [name for name in self.columns if name not in record]:
            raise DataError(
                f"record {place}: '{forgotten[0]}' is missing; say null where it is not known"
            )
        for name in self.columns:
            cell = record.get(name)
            if isinstance(cell, dict | list):
                raise DataError(f"record {place}: '{name}' is no text and no number")
            text = self._text(name, cell)
            if name == PERSON:
                text = _person(place, cell)
            if name in self.needed and not text.strip():
                raise DataError(f"record {place}: '{name}' is missing")
            if len(text) > _MAX_CELL_CHARACTERS:
                raise DataError(
                    f"record {place}: '{name}' has more than {_MAX_CELL_CHARACTERS} signs"
                )
            row.append(text)
        return row

    def _text(self, name: str, cell: Any) -> str:
        """Return a cell as it will be read from the file: a declared value as it is declared."""
        values = self._declared.get(name, ())
        place = Codes(values).find(cell)
        if place is None:
            return text_of(cell)
        return values[place]

    def _append(self, rows: bytes, whole: bytes) -> None:
        # Records of people: for the owner of the file alone.
        with open(
            self.path, "a+b", opener=lambda path, flags: os.open(path, flags, FILE_MODE)
        ) as stream:
            make_private(self.path)
            fcntl.flock(stream, fcntl.LOCK_EX)
            size = stream.seek(0, os.SEEK_END)
            text = whole
            if size:
                stream.seek(-1, os.SEEK_END)
                text = rows
                # A last line that was written by hand may lack its end.
                if stream.read(1) != b"\n":
                    text = b"\n" + rows
            try:
                stream.write(text)
                stream.flush()
                os.fsync(stream.fileno())
            except OSError:
                os.ftruncate(stream.fileno(), size)  # no half of a row
                raise


def _csv(rows: list[list[str]]) -> str:
    text = io.StringIO()
    # Each cell in quotes: a lone carriage return, as HL7 has it, would end a row.
    csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL).writerows(rows)
    return text.getvalue()


def _person(place: int, cell: Any) -> str:
    """Return who a record is about, written in one way.

    Raises:
        DataError: if that is neither a text nor a whole number: one person would be several.
    """
    if cell is None or cell == "":
        return ""
    if isinstance(cell, bool) or not isinstance(cell, str | int):
        raise DataError(f"record {place}: '{PERSON}' must be a text or a whole number")
    return PersonId().of(cell) or ""


def feedback_columns(trained: Trained, policy: Policy | None) -> tuple[str, ...]:
    """Return the columns of a feedback record: those of the task, and the person's.

    Raises:
        InputError: if the task is a user's own, whose columns are not known.
    """
    columns = trained.plan.task.columns
    if not columns:
        raise InputError("the columns of a user's own task are not known: no feedback for it")
    privacy = trained.plan.privacy
    person = privacy is not None and privacy.unit == "person"
    if policy is not None:
        person = any(one.unit == "person" for one in policy.populations.values())
    return (*columns, PERSON) if person else columns


def open_feedback(path: Path, trained: Trained, policy: Policy | None) -> Feedback:
    """Return the file that feedback for a model goes into; features may be empty cells.

    Raises:
        InputError: if the file has other columns, or the model's are not known.
    """
    columns, task = feedback_columns(trained, policy), trained.plan.task
    features: set[str] = set()
    declared = {task.answer_column: task.labels} if task.answer_column and task.labels else {}
    if isinstance(task, TableTask):
        features = {*task.numeric, *task.categorical}
        declared |= task.categorical
    needed = tuple(name for name in columns if name not in features)
    return Feedback(path, columns, needed, declared, trained.task.encode)


class PostedRecords(BaseModel):
    """One record, column by column, or several under ``records``."""

    model_config = ConfigDict(extra="allow")
    records: list[dict[str, Any]] | None = None

    def rows(self) -> list[dict[str, Any]]:
        """Return the records.

        Raises:
            DataError: if there is none, or there are too many.
        """
        found = self.records
        if found is None:
            found = [self.model_extra or {}]
        if not 1 <= len(found) <= _MAX_RECORDS:
            raise DataError(f"between 1 and {_MAX_RECORDS} records at once, not {len(found)}")
        return found


def make_service(
    trained: Trained, feedback: Feedback | None = None, names: Iterable[str] = ()
) -> Any:
    """Return the ASGI application.

    Args:
        trained: the model.
        feedback: where feedback goes; None has no ``/feedback``.
        names: of this machine by which it may be asked, beside addresses and ``localhost``.

    Raises:
        InputError: if it answers with neither a class nor a text for each record.
    """
    plan = trained.plan
    if isinstance(plan.task, TokenClassificationTaskSpec | QuestionAnsweringTaskSpec):
        raise InputError(
            f"a model for '{plan.task.kind}' is not served: it gives no class and no text for each "
            "record. Export it (privet model export) and read the folder with transformers"
        )
    turn = threading.Lock()  # one pass at a time: torch uses the cores it was given
    trained.network.eval()

    # Its own pages of documentation would be put together from others' servers.
    app = FastAPI(
        title=plan.title or plan.name,
        version=__version__,
        description=f"A model that was trained with Privet (plan {plan.digest}).",
        docs_url=None,
        redoc_url=None,
    )

    @app.exception_handler(PrivetError)
    def refuse(_: Any, error: PrivetError) -> Any:
        return JSONResponse({"detail": str(error)}, status_code=422)

    @app.exception_handler(UnicodeError)
    @app.exception_handler(OverflowError)
    def unreadable(_: Any, __: Exception) -> Any:
        return JSONResponse(
            {"detail": "a record holds what is no text, or a number that is too large"},
            status_code=422,
        )

    @app.exception_handler(RequestValidationError)
    def no_records(_: Any, __: Exception) -> Any:
        # Without what was sent, which the library's own answer repeats.
        return JSONResponse(
            {"detail": 'send one record, {"column": cell, …}, or {"records": [{…}, …]}'},
            status_code=422,
        )

    @app.exception_handler(NotKept)
    def not_kept(_: Any, error: NotKept) -> Any:
        return JSONResponse({"detail": str(error)}, status_code=507)

    @app.get("/health")
    def health() -> dict[str, Any]:
        """Say that the service is up, and with which model."""
        return {"status": "ok", "model": plan.model.kind, "plan": plan.digest}

    @app.get("/docs", include_in_schema=False)
    def docs() -> Any:
        return HTMLResponse(
            _page(trained, feedback),
            headers={"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'"},
        )

    @app.post("/predict")
    def predict(asked: PostedRecords) -> dict[str, Any]:
        """Return for each record the class with its probability, or what is written."""
        frame = pd.DataFrame(asked.rows())
        with turn:
            return {"predictions": _predict(trained, frame)}

    if feedback is not None:

        @app.post("/feedback", status_code=201)
        def give(asked: PostedRecords) -> dict[str, Any]:
            """Keep records with the label that turned out to be right, at this site."""
            found = asked.rows()
            with turn:
                return {"kept": feedback.add(found)}

    return LocalOnlyMiddleware(app, names)


class LocalOnlyMiddleware:
    """Turns away what a page in somebody's browser may send, and what is too long.

    A name that is not this machine's (DNS rebinding), another page's origin, a body that is not
    JSON: a web page can send these to a service on loopback without being asked.

    Args:
        app: behind it.
        names: of this machine, beside addresses and ``localhost``.
    """

    def __init__(self, app: Any, names: Iterable[str] = ()) -> None:
        self._app = app
        self._names = {"localhost", *(name.lower() for name in names)}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer one question (ASGI)."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {
            name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]
        }
        fault = self._fault(scope["method"], headers)
        body = b""
        if fault is None and scope["method"] == "POST":
            body = await _body(receive)
            if len(body) > _MAX_REQUEST_BYTES:
                fault = 413, f"more than {_MAX_REQUEST_BYTES} bytes at once"
        if fault is not None:
            answer = JSONResponse({"detail": fault[1]}, status_code=fault[0])
            await answer(scope, receive, send)
            return
        told = False

        async def again() -> Any:
            nonlocal told
            if scope["method"] == "POST" and not told:
                told = True
                return {"type": "http.request", "body": body, "more_body": False}
            return await receive()

        await self._app(scope, again, send)

    def _fault(self, method: str, headers: dict[str, str]) -> tuple[int, str] | None:
        host = headers.get("host", "")
        if not self._is_here(host):
            return 421, f"this service is not called '{host}'; see --name"
        origin = headers.get("origin")
        if origin is not None and origin.partition("://")[2] != host:
            return 403, "another page may not ask"
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if method == "POST" and kind != "application/json":
            return 415, "send JSON, as application/json"
        return None

    def _is_here(self, host: str) -> bool:
        name, _, port = host.rpartition(":")
        if not port.isdigit():
            name = host
        try:
            ipaddress.ip_address(name.strip("[]"))
        except ValueError:
            return name.lower() in self._names
        return True  # an address is not a name that somebody else could turn to this machine


async def _body(receive: Any) -> bytes:
    """Return a question's body, or the beginning of one that is too long."""
    parts, size = [], 0
    while size <= _MAX_REQUEST_BYTES:
        message = await receive()
        if message["type"] != "http.request":
            break
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if not message.get("more_body"):
            break
    return b"".join(parts)


def _page(trained: Trained, feedback: Feedback | None) -> str:
    """Return a self-contained page that lists the requests of the service."""
    plan = trained.plan
    columns = [name for name in plan.task.columns if name != plan.task.answer_column]
    record = json.dumps(dict.fromkeys(columns, "…"), ensure_ascii=False)
    rows = [("POST /predict", 'a record, or several under "records"', record)]
    if feedback is not None:
        whole = json.dumps(dict.fromkeys(feedback.columns, "…"), ensure_ascii=False)
        rows.append(("POST /feedback", "the same with what turned out to be right", whole))
    rows += [("GET /health", "whether it is up", ""), ("GET /openapi.json", "all of this", "")]
    lines = "".join(
        f"<dt>{html.escape(name)}<dd>{html.escape(what)}"
        + (f"<pre>{html.escape(example)}</pre>" if example else "")
        for name, what, example in rows
    )
    title = html.escape(plan.title or plan.name)
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{title}</title>"
        "<style>body{font:16px/1.5 sans-serif;max-width:45em;margin:2em auto;padding:0 1em}"
        "dt{font-weight:bold;margin-top:1em}pre{white-space:pre-wrap;background:#f4f4f4;"
        "padding:.5em}</style>"
        f"<h1>{title}</h1><p>Plan {plan.digest}. Send JSON as application/json.<dl>{lines}</dl>"
    )


def _predict(trained: Trained, frame: pd.DataFrame) -> list[dict[str, Any]]:
    batch = trained.encode(frame)
    if texts := trained.written(batch):
        return [{"text": text} for text in texts]
    scores, classes = trained.scores(batch), trained.plan.task.labels
    if not classes:
        # A language model is asked how likely a text is.
        nats, tokens = scores[:, 0], np.maximum(scores[:, 1], 1)
        return [{"perplexity": float(np.exp(a / b))} for a, b in zip(nats, tokens, strict=True)]
    return [
        {
            "label": classes[int(row.argmax())],
            "probability": float(row.max()),
            "probabilities": dict(zip(classes, map(float, row), strict=True)),
        }
        for row in scores
    ]
