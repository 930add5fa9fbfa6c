"""What is wrong with a site's records is told to its operator and to nobody else (H30)."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from flwr.app import ConfigRecord, Context, Message, RecordDict, UserConfig

from privet.client.data.records import SiteData
from privet.client.site import Answer, Site
from privet.client.training.protocol import TrainerOutput
from privet.client.training.trainer import Trainer
from privet.common.errors import DataError, QuorumError
from privet.common.flat import Arrays
from privet.common.flower.wire import decode_reply, encode_order, encode_reply, to_record
from privet.common.models import initial_model
from privet.common.order import Order, Status
from privet.common.plan import Plan
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
    "no-label": (frame(y=None), {}, "the label column 'y' is missing"),
    "no-column": (frame(x2=None), {}, "the column 'x2' is missing"),
    "no-table": (pd.DataFrame(), {}, "the column 'x1' is missing"),
    "no-person": (frame(person=None), PERSON, "no column names the person"),
}
"""What is wrong with the file; no record decides it."""


@pytest.mark.parametrize("fault", list(FAULTS))
def test_a_fault_of_the_file_leaves_as_failed_and_nothing_else(
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


UNUSABLE: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "unknown-label": ({"y": SECRET}, {}, f"row 3: the label '{SECRET}' in 'y'"),
    "no-label": ({"y": None}, {}, "row 3: no label in 'y'"),
    "blank-label": ({"y": "  "}, {}, "row 3: no label in 'y'"),
    "nan-label": ({"y": np.nan}, {}, "row 3: no label in 'y'"),
    "text-in-number": ({"x1": SECRET}, {}, f"row 3: '{SECRET}' in the numeric column 'x1'"),
    "two-numbers": ({"x1": "1 2"}, {}, "row 3: '1 2' in the numeric column 'x1'"),
    "no-person": ({"person": None}, PERSON, "row 3: names no person"),
    "blank-person": ({"person": "\u2003"}, PERSON, "row 3: names no person"),
    "nan-person": ({"person": np.nan}, PERSON, "row 3: names no person"),
}


@pytest.mark.parametrize("kind", list(UNUSABLE))
def test_a_record_that_cannot_be_used_is_as_if_it_were_not_there(
    federation: Make, order_for: Callable[..., Order], kind: str
) -> None:
    """The same release, to the last bit, with the record and without it; the log tells."""
    cells, privacy, reason = UNUSABLE[kind]
    spoilt = frame(**{name: cell(value, name)[name] for name, value in cells.items()})
    updates = []
    for folder, train in (("with", spoilt), ("without", frame().drop(index=3))):
        fed = federation(folder=folder, frames={"North": train}, privacy=privacy, noise_seed=7)
        site = fed.sites[0]
        site._trainer._open_data = lambda data=train: SiteData(data, data)
        model = initial_model(fed.plan)
        answer = site.answer(order_for(fed, "North", model), model)
        assert answer.status is Status.RELEASED
        updates.append(answer.release.arrays)
        assert (reason in fed.log("North")) is (folder == "with")
        assert fed.charged("North") == 1
    assert updates[0].keys() == updates[1].keys()
    assert all(np.array_equal(updates[0][name], updates[1][name]) for name in updates[0])


@pytest.mark.parametrize("rows", [frame().iloc[:0], frame(y=["odd"] * 20)], ids=["none", "no-good"])
def test_a_site_without_a_usable_record_releases_noise(
    federation: Make, order_for: Callable[..., Order], rows: pd.DataFrame
) -> None:
    """No record and one record are neighbours: the answer must not tell them apart."""
    fed = federation(frames={"North": frame()}, metrics={"source": "gate"})
    site = fed.sites[0]
    site._trainer._open_data = lambda: SiteData(rows, rows)
    model = initial_model(fed.plan)
    for purpose in ("train", "evaluate"):
        answer = site.answer(order_for(fed, "North", model, purpose=purpose), model)
        assert answer.status is Status.RELEASED
        assert all(np.abs(array).max() > 0 for array in answer.release.arrays.values())


def test_a_reply_that_tells_the_reason_is_noticed(
    federation: Make, order_for: Callable[..., Order], as_bytes: Callable[..., bytes]
) -> None:
    """The control: an app that passes the reason on fails the test above."""

    class Chatty(Site):
        def answer(self, order: Order, model: Arrays, head: str = "") -> Answer:
            super().answer(order, model, head)
            raise DataError(f"label '{SECRET}' in row 3")

    fed = federation(frames={"North": frame(y=None)}, site=Chatty)
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
    # Past the check of the message it is a part of another line.
    fed.sites[0].answer(order, model)
    assert f"r\\n{line}" in fed.log("North")
    assert not any(text.startswith(line) for text in fed.log("North").splitlines())
    # The control: the standard library's own handler writes the line.
    plain = logging.FileHandler(fed.folder / "plain.log")
    plain.emit(logging.makeLogRecord({"msg": order.slot}))
    plain.close()
    written = (fed.folder / "plain.log").read_text().splitlines()
    assert any(text.startswith(line) for text in written)


_CODING = """
import torch
from torch import nn
from torch.nn import functional


class Coding:
    learnt = None

    def __init__(self, spec):
        self.how = spec.options["how"]
        self.kept, self.buffer = [], torch.zeros(64, 1)

    def encode(self, frame):
        x = torch.tensor(frame["x1"].to_numpy(dtype=float))[:, None]
        if self.how == "mean":
            x = x - x.mean(0)
        elif self.how == "rank":
            x = x.argsort(0).argsort(0).double()
        elif self.how == "before":
            x = x + torch.cat([x[:1], x[:-1]])
        elif self.how == "longest":
            x = torch.cat([x, torch.zeros(len(x), len(x) - 1)], 1)
        elif self.how == "raises":
            if bool((x < -1e3).any()):
                raise ValueError("too large")
        elif self.how == "exits":
            if bool((x < -1e3).any()):
                raise SystemExit(3)
        elif self.how == "list":
            self.kept.append(float(x.mean()))
            x = x - sum(self.kept[:-1])
        elif self.how == "buffer":
            self.buffer[: len(x)] = x.float()
            return {"x": self.buffer[: len(x)],
                    "label": torch.tensor(frame["y"].to_numpy(dtype="int64"))}
        elif self.how == "learns":
            self.learnt = x.mean(0) if self.learnt is None else self.learnt
            x = x - self.learnt
        return {"x": x[:, :1].float() if self.how != "longest" else x.float(),
                "label": torch.tensor(frame["y"].to_numpy(dtype="int64"))}

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


@pytest.mark.parametrize(
    "how",
    ["own", "mean", "rank", "before", "longest", "learns", "list", "buffer", "raises", "exits"],
)
def test_an_encoding_of_ones_own_cannot_couple_records(
    federation: Make, order_for: Callable[..., Order], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, how: str,
) -> None:  # fmt: skip
    """Whatever it computes of its table: one record changes no other one's tensors (H6)."""
    from privet.client.training.model_runtime import ModelRuntime
    from privet.client.training.trainer import usable_records

    (tmp_path / "own_coding.py").write_text(_CODING)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_coding", raising=False)
    task = {"kind": "own_coding:Coding", "numeric": {}, "categorical": {}, "options": {"how": how}}
    fed = federation(frames={"North": frame()}, task=task, model={"kind": "own_coding:make"})
    odd = frame(x1=[-1e6] * 20).iloc[[0]]
    bench = ModelRuntime(fed.plan)
    alone = usable_records(bench, frame())
    among = usable_records(bench, pd.concat([odd, frame(), odd]))
    assert len(alone.units) == 20
    for name, tensor in alone.examples.items():
        others = slice(0, 20) if how in ("raises", "exits") else slice(1, 21)
        assert torch.equal(among.examples[name][others], tensor), name
    if how in ("mean", "rank", "before", "longest", "learns"):
        # The control: encoded as one table, the odd record moves all the others.
        whole = ModelRuntime(fed.plan).task.encode(frame())["x"]
        with_odd = ModelRuntime(fed.plan).task.encode(pd.concat([odd, frame()]))["x"][1:]
        assert whole.shape != with_odd.shape or not torch.allclose(whole, with_odd)
    if how == "list":
        # The control: a task that is not reset remembers the odd record at the next one.
        task = ModelRuntime(fed.plan).task
        first = ModelRuntime(fed.plan).task.encode(frame().iloc[[0]])["x"]
        task.encode(odd)
        assert not torch.equal(task.encode(frame().iloc[[0]])["x"], first)
    model = initial_model(fed.plan)
    reply = scripted(fed, order_for(fed, "North", model), model)
    assert decode_reply(reply.content)[1] is Status.RELEASED


@pytest.mark.parametrize("label", [2, -1, 10**6])
def test_a_label_beyond_the_scores_stops_no_site(
    federation: Make, order_for: Callable[..., Order], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, label: int,
) -> None:  # fmt: skip
    """A task of one's own that encodes what its loss cannot take: the record is left out."""
    (tmp_path / "own_coding.py").write_text(_CODING)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_coding", raising=False)
    task = {
        "kind": "own_coding:Coding",
        "numeric": {},
        "categorical": {},
        "options": {"how": "own"},
    }
    fed = federation(
        frames={"North": frame(**cell(label, "y"))}, task=task, model={"kind": "own_coding:make"},
        metrics={"source": "gate"},
    )  # fmt: skip
    site, model, bad = fed.sites[0], initial_model(fed.plan), frame(**cell(label, "y"))
    site._trainer._open_data = lambda: SiteData(bad, bad)
    for purpose in ("train", "evaluate"):
        answer = site.answer(order_for(fed, "North", model, purpose=purpose), model)
        assert answer.status is Status.RELEASED
    assert re.search(r"row 3: its loss .* cannot be computed: IndexError\(", fed.log("North"))


def test_the_coordinator_sees_statuses_only(
    federation: Make, as_bytes: Callable[..., bytes], caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    bad = pd.concat([frame(**cell(SECRET, "y"))] * 2)
    fed = federation(frames={"North": bad, "East": bad})

    class Broken(Trainer):
        """Fails with a record in its words, as code of a user's own may."""

        def release(self, order: Order, model: Arrays) -> TrainerOutput:
            super().release(order, model)
            raise DataError(f"label '{SECRET}' in row 3")

    for site in fed.sites[:2]:
        site._trainer.__class__ = Broken
    passed: list[bytes] = []

    class Listening(InProcessGrid):
        def pull_messages(self, message_ids: Any) -> Any:
            replies = list(super().pull_messages(message_ids))
            passed.extend(as_bytes(reply) for reply in replies)
            return replies

    with pytest.raises(QuorumError) as caught:
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


def test_typed_labels_match_by_value_and_written_ones_as_they_are_written(plan_value: Make) -> None:
    from privet.common.tasks import build_task

    task = build_task(Plan.parse(plan_value()))
    with pytest.raises(DataError, match="the label '1.0' in 'y'; declared are '0', '1'"):
        task.encode(frame(y=["1.0", "1"] * 10))
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
