"""The worker's side of the pipe: a trainer in this process answers requests."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from privet.client.data.records import SiteData, read_records
from privet.client.training.trainer import Trainer
from privet.client.training.worker.pipe import Pipe
from privet.common.errors import PrivetError
from privet.common.flat import Arrays
from privet.common.order import Order
from privet.common.plan import Plan
from privet.privacy.accounting import events as ev
from privet.privacy.mechanism.noise import Stream
from privet.privacy.policy import DataSet

_LOG = logging.getLogger("privet.trainer")

Reply = tuple[dict[str, Any], Arrays]
_MAX_TEXT_CHARACTERS = 10_000
"""Length of an error's text; a pipe accepts no message that is much longer."""


def serve(pipe: Pipe, opening: dict[str, Any]) -> None:
    """Answer requests until the pipe is closed; a fault is an answer, too.

    Args:
        pipe: to the endpoint.
        opening: the first message: plan, data set, name of the site and seed.
    """
    worker: _Worker | None = None
    while True:
        try:
            asked, arrays = pipe.receive()
        except EOFError:
            return
        try:
            worker = worker or _Worker(opening)
            pipe.send(*worker.answer(asked, arrays))
        except PrivetError as error:
            pipe.send({"error": type(error).__name__, "text": str(error)[:_MAX_TEXT_CHARACTERS]})
        except Exception as error:
            _LOG.exception("a question was not answered")
            pipe.send({"error": type(error).__name__, "text": _shown(error)})


def _shown(error: Exception) -> str:
    """Return an error as text; one of a task of the site's own may not be able to say itself."""
    try:
        return repr(error)
    except Exception:
        return "it cannot be printed"


class _Worker:
    def __init__(self, opening: dict[str, Any]) -> None:
        self._plan = Plan.parse(opening["plan"], where="offer")
        self._data = DataSet.model_validate_json(json.dumps(opening["data"]))
        self._seed = opening["seed"]
        self._records = Path()
        self._trainer = Trainer(self._plan, opening["site"], self._open, self._stream_for)

    def answer(self, asked: dict[str, Any], arrays: Arrays) -> Reply:
        trainer = self._trainer
        if asked["do"] == "shapes":
            return {"shapes": {name: list(shape) for name, shape in trainer.shapes().items()}}, {}
        if asked["do"] == "begins":
            return {"begins": trainer.begins()}, {}
        if asked["do"] == "test":
            return {"tests": list(trainer.self_test())}, {}
        if asked["do"] == "committed":
            trainer.committed(Order.decode(asked["order"]))
            return {}, {}
        self._records = Path(asked["records"])
        made = trainer.release(Order.decode(asked["order"]), arrays)
        told = {"event": ev.to_json(made.event), "reproducible": made.reproducible}
        return told | {"notes": list(made.notes)}, made.arrays

    def _open(self) -> SiteData:
        return read_records(self._records, self._data, self._plan)

    def _stream_for(self, order: Order) -> Stream | None:
        seed = self._seed
        return Stream.seeded(seed, order.site, order.purpose, order.round) if seed else None
