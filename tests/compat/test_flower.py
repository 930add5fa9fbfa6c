"""What :mod:`privet.common.compat.flower` relies on, and what else of Flower is not its public API."""

from __future__ import annotations

import inspect
import logging
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Error, Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.serverapp import Grid

from privet.common.compat.flower import (
    CLIENT_FAILED,
    ZeroCopyArray,
    ZeroCopyRecord,
    claim_identity,
    empty_run,
    number_message,
)
from privet.common.flower.grid import OwnGrid, PassingGrid

MODEL = {"w": np.arange(6, dtype="float32").reshape(2, 3), "b": np.zeros((), dtype="float64")}

IDENTITY = """
import flwr.app as f
from privet.common.compat.flower import claim_identity, require_identity
try:
    f.Message(f.RecordDict(), 1, "query")
except RuntimeError:
    print("wanted")
require_identity(7)
print(f.Message(f.RecordDict(), 1, "query").metadata.run_id)
require_identity(8)
print(f.Message(f.RecordDict(), 1, "query").metadata.run_id)
claim_identity(9)
print(f.Message(f.RecordDict(), 1, "query").metadata.run_id)
"""


def test_a_message_takes_the_identity_that_was_claimed(root: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", IDENTITY], cwd=root, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["wanted", "7", "7", "9"]


def test_a_message_keeps_the_id_that_it_is_given() -> None:
    claim_identity(1)
    message = Message(RecordDict(), 1, "query")
    assert message.metadata.message_id == ""
    number = number_message(message)
    assert message.metadata.message_id == number
    reply = Message(RecordDict(), reply_to=message)
    assert reply.metadata.reply_to_message_id == number


def test_the_code_of_a_failed_app_is_flowers() -> None:
    assert CLIENT_FAILED == ErrorCode.CLIENT_APP_RAISED_EXCEPTION == 2
    claim_identity(1)
    reply = Message(Error(CLIENT_FAILED, "ValueError"), reply_to=Message(RecordDict(), 1, "query"))
    assert reply.has_error() and reply.error.code == CLIENT_FAILED


def test_a_grid_has_a_run() -> None:
    assert empty_run(3).run_id == 3 and empty_run(3).fab_hash == ""


@pytest.mark.parametrize("kind", [OwnGrid, PassingGrid])
def test_our_grids_have_all_that_flowers_asks_for(kind: type) -> None:
    asked = Grid.__abstractmethods__
    assert asked == {
        "create_message", "get_node_ids", "pull_messages", "push_messages", "run",
        "send_and_receive", "set_run",
    }  # fmt: skip
    for name in asked & {name for one in kind.__mro__[:-2] for name in vars(one)} - {"run"}:
        theirs = inspect.signature(getattr(Grid, name)).parameters
        ours = inspect.signature(getattr(kind, name)).parameters
        assert list(ours) == list(theirs), name


def test_an_array_that_was_not_copied_travels_as_flowers_own() -> None:
    ours = RecordDict({"arrays": ZeroCopyRecord(MODEL)})
    theirs = RecordDict({"arrays": ArrayRecord({n: Array(a) for n, a in MODEL.items()})})
    assert recorddict_to_proto(ours) == recorddict_to_proto(theirs)
    came = recorddict_from_proto(recorddict_to_proto(ours))["arrays"]
    assert all(np.array_equal(came[name].numpy(), MODEL[name]) for name in MODEL)


def test_an_array_that_was_not_copied_is_taken_apart_as_flowers_own() -> None:
    """The way of SuperNodes: in pieces, each named by the digest of what it holds."""
    ours, theirs = ZeroCopyArray(MODEL["w"]), Array(MODEL["w"])
    assert ours.deflate() == theirs.deflate() and ours.object_id == theirs.object_id
    record = ZeroCopyRecord(MODEL)
    assert record.object_id == ArrayRecord({n: Array(a) for n, a in MODEL.items()}).object_id
    again = ArrayRecord.inflate(
        record.deflate(),
        {
            key: Array.inflate(one.deflate(), dict(one.children))
            for key, one in record.children.items()
        },
    )
    assert all(np.array_equal(again[name].numpy(), MODEL[name]) for name in MODEL)


def test_an_array_that_was_not_copied_is_pickled_as_flowers_own() -> None:
    """The way of Ray."""
    again = pickle.loads(pickle.dumps(ZeroCopyRecord(MODEL)))
    assert type(again) is ArrayRecord and type(again["w"]) is Array
    assert np.array_equal(again["w"].numpy(), MODEL["w"])


def test_an_array_is_not_copied() -> None:
    record = ZeroCopyRecord(MODEL)
    assert np.shares_memory(record["w"].numpy(), MODEL["w"]) and record.arrays is MODEL
    assert not np.shares_memory(ArrayRecord({"w": Array(MODEL["w"])})["w"].numpy(), MODEL["w"])
    record["w"] = Array(MODEL["w"])
    assert record.arrays is None


def test_flower_logs_under_its_own_name() -> None:
    """``privet.common.output.logs`` hands that logger's records to the root."""
    from flwr.supercore import log

    assert getattr(log, "__self__", None) is logging.getLogger("flwr")
