"""A small HTTP service for a trained model, at the site that uses it.

::

    POST /predict    {"records": [{column: cell, …}, …]}  or one record
    POST /feedback   the same, with the label that turned out to be right
    GET  /health     /openapi.json  /docs

It listens on this machine alone unless told otherwise, has no authentication, and sends nothing
anywhere. Feedback goes into a file of the site's own; as a data set of the same population it is
trained on in a later run, through the same ledger.
"""

from __future__ import annotations

import csv
import fcntl
import io
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from fastapi import FastAPI
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict

from privet import __version__
from privet.common.delivery.trained import Trained
from privet.common.errors import DataError, InputError, PrivetError
from privet.privacy.policy import Policy

PERSON = "person"
_MOST = 1000


class NotKept(PrivetError):
    """Feedback could not be written."""


class Feedback:
    """A CSV file that records are added to, durably, one whole row at a time.

    Args:
        path: of the file, made when the first record comes.
        columns: of a record, in the file's order.
        needed: those of them that may not be empty.

    Raises:
        InputError: if the file is there and has other columns.
    """

    def __init__(self, path: Path, columns: tuple[str, ...], needed: tuple[str, ...]) -> None:
        self.path, self.columns, self.needed = path, columns, needed
        if path.exists() and path.stat().st_size:
            with path.open(newline="", encoding="utf-8") as stream:
                found = next(csv.reader(stream), [])
            if tuple(found) != columns:
                raise InputError(
                    f"{path}: its columns are {', '.join(found)}; feedback for this model has "
                    f"{', '.join(columns)}. Name another file"
                )

    def add(self, records: list[dict[str, Any]]) -> int:
        """Add records; return how many.

        Raises:
            DataError: if one lacks what is needed. Nothing is written then.
            NotKept: if the file cannot be written; it is as it was.
        """
        for place, record in enumerate(records):
            if missing := [name for name in self.needed if record.get(name) in (None, "")]:
                raise DataError(f"record {place}: '{missing[0]}' is missing")
        try:
            self._append(records)
        except OSError as error:
            raise NotKept(
                f"{self.path.name}: the feedback was not kept: {error.strerror}. Send it again "
                "when the operator has mended this"
            ) from error
        return len(records)

    def _append(self, records: list[dict[str, Any]]) -> None:
        text = io.StringIO()
        writer = csv.DictWriter(text, self.columns, extrasaction="ignore", lineterminator="\n")
        with self.path.open("ab") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            size = stream.seek(0, os.SEEK_END)
            if not size:
                writer.writeheader()
            writer.writerows(records)
            try:
                stream.write(text.getvalue().encode())
                stream.flush()
                os.fsync(stream.fileno())
            except OSError:
                os.ftruncate(stream.fileno(), size)  # no half of a row
                raise


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
    features = {*task.numeric, *task.categorical}
    return Feedback(path, columns, tuple(name for name in columns if name not in features))


class Records(BaseModel):
    """One record, column by column, or several under ``records``."""

    model_config = ConfigDict(extra="allow")
    records: list[dict[str, Any]] | None = None

    def rows(self) -> list[dict[str, Any]]:
        """Return the records.

        Raises:
            DataError: if there is none, or there are too many.
        """
        found = [self.model_extra or {}] if self.records is None else self.records
        if not 1 <= len(found) <= _MOST:
            raise DataError(f"between 1 and {_MOST} records at once, not {len(found)}")
        return found


def make_service(trained: Trained, feedback: Feedback | None = None) -> FastAPI:
    """Return the ASGI application.

    Args:
        trained: the model.
        feedback: where feedback goes; None has no ``/feedback``.
    """
    plan = trained.plan
    turn = threading.Lock()  # one pass at a time: torch uses the cores it was given
    trained.network.eval()

    app = FastAPI(
        title=plan.title or plan.name,
        version=__version__,
        description=f"A model that was trained with Privet (plan {plan.digest}).",
    )

    @app.exception_handler(PrivetError)
    def refuse(_: Any, error: PrivetError) -> Any:
        return JSONResponse({"detail": str(error)}, status_code=422)

    @app.exception_handler(NotKept)
    def not_kept(_: Any, error: NotKept) -> Any:
        return JSONResponse({"detail": str(error)}, status_code=507)

    @app.get("/health")
    def health() -> dict[str, Any]:
        """Say that the service is up, and with which model."""
        return {"status": "ok", "model": plan.model.kind, "plan": plan.digest}

    @app.post("/predict")
    def predict(asked: Records) -> dict[str, Any]:
        """Return for each record the class with its probability, or what is written."""
        frame = pd.DataFrame(asked.rows())
        with turn:
            return {"predictions": _predict(trained, frame)}

    if feedback is not None:

        @app.post("/feedback", status_code=201)
        def give(asked: Records) -> dict[str, Any]:
            """Keep records with the label that turned out to be right, at this site."""
            found = asked.rows()
            with turn:
                # Wrong cells are refused now, and not when somebody wants to train.
                trained.task.encode(pd.DataFrame(found))
                return {"kept": feedback.add(found)}

    return app


def _predict(trained: Trained, frame: pd.DataFrame) -> list[dict[str, Any]]:
    from privet.common.tasks.language import TextToText

    batch = trained.encode(frame)
    if isinstance(trained.task, TextToText):
        return [{"text": text} for text in trained.task.write(trained.network, batch)]
    scores, classes = trained.scores(batch), trained.plan.task.classes
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
