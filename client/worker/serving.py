"""The worker's side of the pipe: a trainer in this process answers."""

from __future__ import annotations

import sys
import traceback
from pathlib import Path
from typing import Any

from privet.client.data.records import open_records
from privet.client.trainer import Trainer
from privet.client.worker.pipe import Pipe
from privet.common.errors import PrivetError
from privet.common.flat import Arrays
from privet.common.order import Order
from privet.common.plan import Plan
from privet.privacy import events as ev
from privet.privacy.noise import Stream
from privet.privacy.policy import Policy

Reply = tuple[dict[str, Any], Arrays]


def serve(pipe: Pipe, opening: dict[str, Any]) -> None:
    """Answer until the pipe is closed; what goes wrong is an answer, too."""
    trainer: Trainer | None = None
    while True:
        try:
            asked, arrays = pipe.receive()
        except EOFError:
            return
        try:
            trainer = trainer or _make(opening)
            pipe.send(*_answer(trainer, asked, arrays))
        except PrivetError as error:
            pipe.send({"error": type(error).__name__, "text": str(error)})
        except Exception as error:
            traceback.print_exc(file=sys.stderr)
            pipe.send({"error": type(error).__name__, "text": repr(error)})


def _make(opening: dict[str, Any]) -> Trainer:
    plan = Plan.parse(opening["plan"], where="offer")
    policy = Policy.parse(opening["policy"]).at(Path(opening["folder"]))
    seed = opening["seed"]

    def stream_for(order: Order) -> Stream | None:
        return Stream.seeded(seed, order.site, order.purpose, order.round) if seed else None

    data_set = opening["data_set"]
    return Trainer(plan, opening["site"], lambda: open_records(policy, data_set, plan), stream_for)


def _answer(trainer: Trainer, asked: dict[str, Any], arrays: Arrays) -> Reply:
    if asked["do"] == "shapes":
        return {"shapes": {name: list(shape) for name, shape in trainer.shapes().items()}}, {}
    if asked["do"] == "test":
        return {"tests": list(trainer.self_test())}, {}
    made = trainer.release(Order.decode(asked["order"]), arrays)
    return {"event": ev.to_json(made.event), "reproducible": made.reproducible}, made.arrays
