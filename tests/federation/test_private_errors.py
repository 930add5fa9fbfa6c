"""What is wrong with a site's records is told to its operator and to nobody else (H30)."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict, UserConfig

from privet.client.data.records import SiteData
from privet.client.site import Answer, Site
from privet.common.errors import DataError, QuorumNotMet
from privet.common.flat import Arrays
from privet.common.models import initial_model
from privet.common.order import Order, Status
from privet.common.plan import Plan
from privet.common.wire import decode_reply, encode_order, encode_reply, to_record
from privet.simulations.grid import InProcessGrid

Make = Callable[..., Any]
SECRET = "Mrs-Hedge-1931"
PERSON = {"unit": "person"}


def frame(**columns: Any) -> pd.DataFrame:
    """Twenty good records; ``columns`` replace some, None drops one."""
    generator = np.random.default_rng(0)
    good = pd.DataFrame(
        {
            "x1": generator.normal(size=20),
            "x2": generator.normal(size=20),
            "colour": ["red", "blue"] * 10,
            "y": [0, 1] * 10,
            "person": [f"p{k // 2}" for k in range(20)],
        }
    )
    dropped = [name for name, value in columns.items() if value is None]
    return good.assign(**columns).drop(columns=dropped)


def cell(value: object, column: str) -> dict[str, Any]:
    cells: list[object] = frame()[column].tolist()
    cells[3] = value
    return {column: cells}


def scripted(fed: Any, order: Order, model: Arrays) -> Message:
    """Send one order to North through the real app; return the reply."""
    grid = fed.grid()
    content = encode_order(order, to_record(model), ConfigRecord())
    message = Message(content, 1, "train", group_id="1")
    number = list(grid.push_messages([message]))
    return next(iter(grid.pull_messages(number)))


FAULTS: dict[str, tuple[pd.DataFrame, dict[str, Any], str]] = {
    "unknown-label": (frame(**cell(SECRET, "y")), {}, f"label '{SECRET}' in row 3"),
    "empty-label": (frame(**cell(None, "y")), {}, "label '' in row 3"),
    "no-label": (frame(y=None), {}, "the label column 'y' is missing"),
    "no-column": (frame(x2=None), {}, "the column 'x2' is missing"),
    "text-in-number": (frame(**cell(SECRET, "x1")), {}, f"'{SECRET}' in row 3"),
    "no-rows": (frame().iloc[:0], {}, "there is no record to train"),
    "no-table": (pd.DataFrame(), {}, "there is no record to train"),
    "no-person": (frame(person=None), PERSON, "no column names the person"),
    "empty-person": (frame(**cell(None, "person")), PERSON, "row 3 names no person"),
    "nan-person": (frame(person=[1.0, np.nan] * 10), PERSON, "row 1 names no person"),
}


@pytest.mark.parametrize("fault", list(FAULTS))
def test_a_fault_in_the_records_leaves_as_failed_and_nothing_else(
    federation: Make, order_for: Callable[..., Order], as_bytes: Callable[..., bytes], fault: str
) -> None:
    records, privacy, reason = FAULTS[fault]
    fed = federation(frames={"North": pd.concat([records] * 2)}, privacy=privacy)
    model = initial_model(fed.plan)
    reply = scripted(fed, order_for(fed, "North", model), model)
    assert decode_reply(reply.content) == ("North", Status.FAILED, None)
    # The bytes are those of any failure of this site, to the last one.
    assert as_bytes(reply) == as_bytes(encode_reply("North", Status.FAILED))
    assert reason in fed.log("North")
    assert fed.charged("North") == 1


def test_a_reply_that_tells_the_reason_is_noticed(
    federation: Make, order_for: Callable[..., Order], as_bytes: Callable[..., bytes]
) -> None:
    """The control: an app that passes the reason on fails the test above."""

    class Chatty(Site):
        def answer(self, order: Order, model: Arrays, head: str = "") -> Answer:
            super().answer(order, model, head)
            raise DataError(f"label '{SECRET}' in row 3")

    records = frame(**cell(SECRET, "y"))
    fed = federation(frames={"North": records}, site=Chatty)
    model = initial_model(fed.plan)
    app = fed.client
    order = order_for(fed, "North", model)
    fed.grid()
    with pytest.raises(DataError, match=SECRET):
        app(Message(encode_order(order, to_record(model), ConfigRecord()), 1, "train"), context())
    told = encode_reply(f"North: {SECRET}", Status.FAILED)
    assert SECRET.encode() in as_bytes(told)
    assert as_bytes(told) != as_bytes(encode_reply("North", Status.FAILED))
    # Even then the grid in this process passes on the kind of the error only.
    reply = scripted(fed, order, model)
    assert reply.has_error()
    assert reply.error.reason == "DataError"


def context() -> Context:
    return Context(1, 1, UserConfig({"partition-id": 0}), RecordDict(), UserConfig())


def test_an_order_cannot_write_a_line_of_the_operators_log(
    federation: Make, order_for: Callable[..., Order]
) -> None:
    fed = federation()
    model, line = initial_model(fed.plan), "2026-01-01 North INFO all is well"
    order = order_for(fed, "North", model, run=f"r\n{line}", plan="sha256:0")
    reply = scripted(fed, order, model)
    assert decode_reply(reply.content) == ("North", Status.FAILED, None)
    assert line not in fed.log("North")
    # The control: past the check of the message, the line would stand in the log.
    fed.sites[0].answer(order, model)
    assert any(text.startswith(line) for text in fed.log("North").splitlines())


_CODING = """
import torch
from torch import nn
from torch.nn import functional


class Coding:
    learnt = None

    def __init__(self, spec):
        self.how = spec.options["how"]

    def encode(self, frame):
        x = torch.tensor(frame["x1"].to_numpy(), dtype=torch.float64)[:, None]
        if self.how == "mean":
            x = x - x.mean(0)
        elif self.how == "rank":
            x = x.argsort(0).argsort(0).double()
        elif self.how == "before":
            x = x + torch.cat([x[:1], x[:-1]])
        elif self.how == "longest":
            x = torch.cat([x, torch.zeros(len(x), len(x) - 1)], 1)
        elif self.how == "learns":
            self.learnt = x.mean(0) if self.learnt is None else self.learnt
            x = x - self.learnt
        return {"x": x[:, :1].float() if self.how != "longest" else x.float(),
                "label": torch.tensor(frame["y"].to_numpy())}

    def loss(self, model, batch):
        return functional.cross_entropy(model(batch["x"][:, :1]), batch["label"], reduction="none")

    def scores(self, model, batch):
        return model(batch["x"][:, :1]).softmax(-1)

    def random_batch(self, records, seed):
        generator = torch.Generator().manual_seed(seed)
        return {
            "x": torch.randn((records, 1), generator=generator),
            "label": torch.randint(0, 2, (records,), generator=generator),
        }


def make(task):
    return nn.Linear(1, 2)
"""


@pytest.mark.parametrize("how", ["own", "mean", "rank", "before", "longest", "learns"])
def test_an_encoding_that_couples_records_leaves_as_failed(
    federation: Make, order_for: Callable[..., Order], as_bytes: Callable[..., bytes],
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str,
) -> None:  # fmt: skip
    (tmp_path / "own_coding.py").write_text(_CODING)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_coding", raising=False)
    task = {"kind": "own_coding:Coding", "numeric": {}, "categorical": {}, "options": {"how": how}}
    fed = federation(frames={"North": frame()}, task=task, model={"kind": "own_coding:make"})
    model = initial_model(fed.plan)
    reply = scripted(fed, order_for(fed, "North", model), model)
    status = decode_reply(reply.content)[1]
    assert fed.charged("North") == 1
    if how == "own":  # the control: each record from itself
        assert status is Status.RELEASED
        return
    assert as_bytes(reply) == as_bytes(encode_reply("North", Status.FAILED))
    assert "H6: 'x' of one record depends on the other records" in fed.log("North")


def test_the_coordinator_sees_statuses_only(
    federation: Make, as_bytes: Callable[..., bytes], caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    bad = pd.concat([frame(**cell(SECRET, "y"))] * 2)
    fed = federation(frames={"North": bad, "East": bad})
    passed: list[bytes] = []

    class Listening(InProcessGrid):
        def pull_messages(self, message_ids: Any) -> Any:
            replies = list(super().pull_messages(message_ids))
            passed.extend(as_bytes(reply) for reply in replies)
            return replies

    with pytest.raises(QuorumNotMet) as caught:
        fed.run(fed.grid(Listening))
    assert str(caught.value).endswith("the quorum is 2 (2 failed, 1 released)")
    seen = b"\n".join(passed) + str(caught.value).encode() + caplog.text.encode()
    captured = capfd.readouterr()
    assert SECRET.encode() not in seen
    assert SECRET not in captured.out + captured.err
    assert all(SECRET in fed.log(name) for name in ("North", "East"))
    assert not (fed.folder / "model").exists()


def test_a_failing_site_does_not_stop_the_others(federation: Make) -> None:
    fed = federation(frames={"East": pd.DataFrame()})
    outcome = fed.run()
    for step in outcome.progress:
        assert step.statuses == {
            "North": Status.RELEASED, "East": Status.FAILED, "South": Status.RELEASED
        }  # fmt: skip
        assert set(step.spent) == {"North", "South"}


# what is not a fault


@pytest.mark.parametrize("label", [0, 1])
def test_a_site_with_one_class_trains(federation: Make, label: int) -> None:
    fed = federation(frames={"North": pd.concat([frame(y=[label] * 20)] * 2)})
    outcome = fed.run()
    assert outcome.progress[-1].statuses["North"] is Status.RELEASED


def test_labels_match_by_value(plan_value: Make) -> None:
    from privet.common.tasks import build_task

    task = build_task(Plan.parse(plan_value()))
    records = frame(y=[0, 1, 0.0, 1.0, "0", "1", " 1 ", True, False, np.int64(1)] * 2)
    assert task.encode(records)["label"].tolist() == [0, 1, 0, 1, 0, 1, 1, 1, 0, 1] * 2


def test_an_empty_cell_is_missing_and_the_site_trains(federation: Make, plan_value: Make) -> None:
    from privet.common.tasks import build_task

    records = frame(**cell(np.nan, "x1"), **cell(None, "colour"))
    batch = build_task(Plan.parse(plan_value())).encode(records)
    assert batch["missing"][3].tolist() == [1.0, 0.0]
    assert batch["numeric"][3, 0] == 0.0
    assert batch["missing"].sum() == 1
    assert batch["categorical"][3, 0] == 0
    fed = federation(frames={"North": pd.concat([records] * 2)})
    assert fed.run().progress[-1].statuses["North"] is Status.RELEASED


def test_an_infinite_cell_is_missing(plan_value: Make) -> None:
    from privet.common.tasks import build_task

    batch = build_task(Plan.parse(plan_value())).encode(frame(**cell(np.inf, "x1")))
    assert batch["missing"][3].tolist() == [1.0, 0.0]
    assert np.isfinite(batch["numeric"].numpy()).all()


def test_an_undeclared_category_counts_as_other(plan_value: Make) -> None:
    from privet.common.tasks import build_task

    batch = build_task(Plan.parse(plan_value())).encode(frame(**cell("green", "colour")))
    assert batch["categorical"][:5, 0].tolist() == [1, 2, 1, 0, 1]


@pytest.mark.parametrize(("unit", "bounded"), [("person", True), ("record", False)])
def test_a_person_with_many_records_moves_the_update_by_one_bound(
    federation: Make, order_for: Callable[..., Order], unit: str, bounded: bool
) -> None:
    """With and without a person of 200 records; everyone is in the batch, the noise is equal."""
    crowd = frame(x1=[2.0] * 20, y=[1] * 20, person=["crowd"] * 20)
    others = pd.concat([frame()] * 2)
    privacy = {"unit": unit, "clip": 0.5, "epsilon": 1000.0}
    if unit == "person":
        privacy["max_records"] = 200
    updates = []
    for number, train in enumerate([others, pd.concat([others] + [crowd] * 10)]):
        fed = federation(
            folder=str(number), privacy=privacy, noise_seed=7,
            training={"sample_rate": 1.0, "steps": 1, "learning_rate": 1.0},
        )  # fmt: skip
        site = fed.sites[0]
        site._trainer._open_data = lambda data=train: SiteData(data, data)
        model = initial_model(fed.plan)
        update = site.answer(order_for(fed, "North", model), model).release.arrays
        updates.append(np.concatenate([array.ravel() for array in update.values()]))
    moved = float(np.linalg.norm(updates[1].astype(float) - updates[0].astype(float))) * 60
    assert (moved <= 0.5 * (1 + 1e-5)) is bounded
    assert moved > 0.4


def test_the_same_records_twice_are_two_records(federation: Make) -> None:
    """Duplicate rows are records of their own; the ledger does not see them."""
    fed = federation(frames={"North": pd.concat([frame()] * 4)})
    outcome = fed.run()
    assert outcome.progress[-1].statuses["North"] is Status.RELEASED
    spent = {name: loss["epsilon"] for name, loss in outcome.progress[-1].spent.items()}
    assert spent["North"] == spent["East"]
