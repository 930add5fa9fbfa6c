"""What a site answers to an order, and what its ledger holds afterwards."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from privet.client.data.records import SiteData
from privet.client.outbox import Outbox
from privet.client.training.trainer import mechanism
from privet.common.code import code_digest
from privet.common.flat import Arrays, digest_arrays
from privet.common.flower.wire import encode_reply
from privet.common.order import Order, Status
from privet.common.plan import Plan
from privet.common.release import Release
from privet.privacy.accounting.pld import epsilon
from privet.privacy.evidence.ledger import Ledger, Request
from privet.privacy.evidence.ledger_state import Reservation
from privet.privacy.mechanism.dpsgd import DpSgd, PlainSgd

Make = Callable[..., Any]
Orders = Callable[..., Order]
Start = Callable[[Plan], Arrays]


def moved(model: Arrays) -> Arrays:
    return {name: array + np.float32(0.25) for name, array in model.items()}


def test_a_released_order_is_paid_for_once(
    federation: Make, order_for: Orders, start: Start
) -> None:
    fed = federation()
    model = start(fed.plan)
    order = order_for(fed, "North", model)
    answer = fed.sites[0].answer(order, model)
    assert answer.status is Status.RELEASED
    assert answer.release is not None
    reserved, released = (entry.predicate for entry in fed.answers("North"))
    assert fed.kinds("North") == ["reserved", "released"]
    assert reserved["order"] == released["order"] == order.digest
    assert answer.release.facts["spent"] == fed.ledger("North").spent().to_dict()
    assert released["digest"] == digest_arrays(answer.release.arrays)


NET = """
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(2, 2)

    def forward(self, numeric, missing, categorical):
        return self.head(numeric)


def make(task):
    return Net()
"""


def test_code_that_is_gone_or_changed_is_refused_before_anything_is_paid(
    federation: Make, order_for: Orders, start: Start, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """A plan's own module is in the digest of its run, as it was when the run began."""
    module = tmp_path / "covered_net.py"
    module.write_text(NET)
    monkeypatch.syspath_prepend(tmp_path)
    fed = federation(model={"kind": "covered_net:make"})
    model = start(fed.plan)

    def answered(number: int, attempt: int = 1) -> Status:
        order = order_for(fed, "North", model, round=number, attempt=attempt)
        return fed.sites[0].answer(order, model).status

    monkeypatch.delitem(sys.modules, "covered_net")
    module.rename(module.with_suffix(".away"))
    assert answered(1) is Status.REFUSED_POLICY
    assert "'covered_net', which is not there" in fed.log("North")
    assert fed.charged("North") == 0
    module.with_suffix(".away").rename(module)
    assert answered(1, 2) is Status.RELEASED
    module.write_text(NET + "# other code\n")
    assert answered(2) is Status.REFUSED_CONFLICT
    assert "was begun with code" in fed.log("North")
    assert fed.charged("North") == 1
    module.write_text(NET)
    assert answered(2, 2) is Status.RELEASED
    codes = {e.predicate["code"] for e in fed.answers("North") if e.kind == "reserved"}
    assert codes == {code_digest(fed.plan)}
    module.write_text(NET + "# other code\n")
    assert codes != {code_digest(fed.plan)}


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"plan": "sha256:" + "0" * 64}, Status.REFUSED_PLAN),
        ({"site": "East"}, Status.REFUSED_PLAN),
        ({"round": 3}, Status.REFUSED_PLAN),
        ({"purpose": "evaluate"}, Status.REFUSED_PLAN),
        ({"parameters": ("head.weight",)}, Status.REFUSED_PARAMETERS),
        ({"parameters": ("head.bias", "head.weight")}, Status.REFUSED_PARAMETERS),
        ({"parameters": ()}, Status.REFUSED_PARAMETERS),
    ],
)
def test_a_wrong_order_is_refused_before_anything_is_paid(
    federation: Make, order_for: Orders, start: Start, changes: dict[str, Any], status: Status
) -> None:
    fed = federation()
    model = start(fed.plan)
    answer = fed.sites[0].answer(order_for(fed, "North", model, **changes), model)
    assert (answer.status, answer.release) == (status, None)
    # An order to another site is no business of this one's ledger.
    noted = [] if "site" in changes else [status]
    assert [entry.predicate["status"] for entry in fed.answers("North")] == noted
    assert fed.ledger("North").history() == []
    assert fed.opened == []
    assert str(status) in fed.log("North")


@pytest.mark.parametrize("fault", ["shape", "scalar", "nan"])
def test_a_model_that_does_not_fit_is_refused_before_anything_is_paid(
    federation: Make, order_for: Orders, start: Start, fault: str
) -> None:
    fed = federation()
    model = start(fed.plan)
    name = next(iter(model))
    if fault == "shape":
        model[name] = np.zeros((1, 1, 3), np.float32)
    elif fault == "scalar":
        model[name] = np.array(0.0, np.float32)
    else:
        model[name] = np.full_like(model[name], np.nan)
    answer = fed.sites[0].answer(order_for(fed, "North", model), model)
    assert answer.status is Status.REFUSED_PARAMETERS
    assert fed.kinds("North") == ["refused"]
    assert fed.ledger("North").history() == []


def test_a_second_model_for_one_attempt_is_refused(
    federation: Make, order_for: Orders, start: Start
) -> None:
    fed = federation()
    model = start(fed.plan)
    site = fed.sites[0]
    first = site.answer(order_for(fed, "North", model), model)
    second = site.answer(order_for(fed, "North", moved(model)), moved(model))
    assert (first.status, second.status) == (Status.RELEASED, Status.REFUSED_CONFLICT)
    assert second.release is None
    assert fed.charged("North") == 1
    assert fed.kinds("North") == ["reserved", "released", "refused"]
    assert "refused-conflict" in fed.log("North")
    again = site.answer(order_for(fed, "North", moved(model), attempt=2), moved(model))
    assert again.status is Status.RELEASED
    assert fed.charged("North") == 2


@pytest.mark.parametrize("other", [False, True], ids=["repeated", "conflicting"])
def test_an_old_attempt_is_not_answered_a_second_time(
    federation: Make, order_for: Orders, start: Start, other: bool
) -> None:
    fed = federation(training={"rounds": 5, "steps": 1})
    model = start(fed.plan)
    site = fed.sites[0]
    for number in range(1, 6):
        site.answer(order_for(fed, "North", model, round=number), model)
        dated(site.outbox, number, 1000.0 + number)
    late = moved(model) if other else model
    answer = site.answer(order_for(fed, "North", late), late)
    # The ledger has a reservation of the repeated order, and cannot say that it was refused.
    said = Status.REFUSED_CONFLICT if other else Status.FAILED
    assert (answer.status, answer.release) == (said, None)
    assert fed.charged("North") == 5


def test_the_newest_release_is_kept(federation: Make, order_for: Orders, start: Start) -> None:
    fed = federation(training={"rounds": 5, "steps": 1})
    model = start(fed.plan)
    site = fed.sites[0]
    for number in range(1, 5):
        site.answer(order_for(fed, "North", model, round=number), model)
        dated(site.outbox, number, 4e9)
    order = order_for(fed, "North", model, round=5)
    site.answer(order, model)
    assert site.outbox.get(order.slot) is not None


def dated(outbox: Outbox, number: int, seconds: float) -> None:
    """Say that the release of a round was written at ``seconds``."""
    for path in outbox.folder.glob(f"*-train-{number}-1.safetensors"):
        os.utime(path, (seconds, seconds))


@pytest.mark.parametrize(
    "run",
    [
        "other",
        "tiny-run-2",
    ],
)
def test_another_runs_releases_are_not_forgotten(
    federation: Make, order_for: Orders, start: Start, run: str
) -> None:
    fed = federation(training={"rounds": 5, "steps": 1})
    model = start(fed.plan)
    site = fed.sites[0]
    other = order_for(fed, "North", model, run=run)
    site.answer(other, model)
    for path in site.outbox.folder.iterdir():
        os.utime(path, (1000.0, 1000.0))
    for number in range(1, 6):
        site.answer(order_for(fed, "North", model, round=number), model)
    assert site.outbox.get(other.slot) is not None


def test_a_repeated_order_gets_the_same_bytes_and_costs_nothing(
    federation: Make, order_for: Orders, start: Start, as_bytes: Callable[..., bytes]
) -> None:
    fed = federation()
    model = start(fed.plan)
    order = order_for(fed, "North", model)
    first = fed.sites[0].answer(order, model)
    before = fed.ledger("North").log.head()
    again = fed.sites[0].answer(order, model)
    # Also of a site that was started anew, from what is on its disk.
    restarted = fed.restart("North", lambda: pytest.fail("opened"))
    third = restarted.answer(order, model)
    one, two, three = (as_bytes(encode_reply("North", a.status, a.release))
                       for a in (first, again, third))  # fmt: skip
    assert one == two == three
    assert fed.ledger("North").log.head() == before


def test_a_new_attempt_draws_new_noise_and_pays_again(
    federation: Make, order_for: Orders, start: Start, same: Callable[..., bool]
) -> None:
    fed = federation()
    model = start(fed.plan)
    answers = [
        fed.sites[0].answer(order_for(fed, "North", model, attempt=k), model) for k in (1, 2)
    ]
    assert not same(answers[0].release.arrays, answers[1].release.arrays)
    assert fed.charged("North") == 2
    spent = [answer.release.facts["spent"]["epsilon"] for answer in answers]
    assert 0 < spent[0] < spent[1]


def test_a_budget_that_does_not_cover_the_order_refuses_it(
    federation: Make, order_for: Orders, start: Start
) -> None:
    fed = federation(privacy={"epsilon": 0.5})
    model = start(fed.plan)
    answer = fed.sites[0].answer(order_for(fed, "North", model), model)
    assert answer.status is Status.REFUSED_BUDGET
    assert fed.opened == []
    assert fed.kinds("North") == ["refused"]
    said = fed.log("North")
    assert "(δ 0.0001, per record, add or remove one), the cap is ε 0.5" in said


def test_a_budget_is_used_up_and_then_refuses(
    federation: Make, order_for: Orders, start: Start
) -> None:
    one = mechanism(federation(folder="once").plan).event
    each = [epsilon([one] * count, 1e-4) for count in (1, 2)]
    fed = federation(privacy={"epsilon": sum(each) / 2}, training={"rounds": 1})
    model = start(fed.plan)
    statuses = [
        fed.sites[0].answer(order_for(fed, "North", model, attempt=k), model).status
        for k in (1, 2, 3)
    ]
    assert statuses == [Status.RELEASED, Status.REFUSED_BUDGET, Status.REFUSED_BUDGET]
    assert fed.kinds("North") == ["reserved", "released", "refused", "refused"]
    assert fed.ledger("North").spent().epsilon <= sum(each) / 2


def test_a_run_that_cannot_come_to_its_end_is_not_begun(
    federation: Make, order_for: Orders, start: Start
) -> None:
    fed = federation(privacy={"epsilon": 1.0}, training={"rounds": 1000})
    model = start(fed.plan)
    answer = fed.sites[0].answer(order_for(fed, "North", model), model)
    assert answer.status is Status.REFUSED_BUDGET
    assert "would not come to its end" in fed.log("North")
    assert fed.kinds("North") == ["refused"]
    assert fed.opened == []


_MIXING = """
import torch
from torch import nn


class Mixing(nn.Module):
    def __init__(self, mix):
        super().__init__()
        self.head = nn.Linear(2, 2)
        self.mix = mix

    def forward(self, numeric, missing, categorical):
        out = self.head(numeric)
        return out - self.mix * out.mean(0, keepdim=True) if self.mix else out


def make(task, mix=1.0):
    return Mixing(mix)
"""


@pytest.mark.parametrize(("mix", "status"), [(1.0, "refused-self-test"), (0.0, "released")])
def test_a_model_that_mixes_records_is_refused_before_data_is_opened(
    federation: Make, order_for: Orders, start: Start, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, mix: float, status: str,
) -> None:  # fmt: skip
    (tmp_path / "mixing_net.py").write_text(_MIXING)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mixing_net", raising=False)
    fed = federation(model={"kind": "mixing_net:make", "options": {"mix": mix}})
    model = start(fed.plan)
    answer = fed.sites[0].answer(order_for(fed, "North", model), model)
    assert answer.status == status
    assert fed.opened == (["North"] if status == "released" else [])


class _Lying(DpSgd):
    """Reserves what ``DpSgd`` costs and trains without noise."""

    def release(self, *given: Any, **more: Any) -> Any:
        return PlainSgd(self.sample_rate).release(*given, **more)


def test_an_update_without_noise_leaves_only_where_the_plan_has_no_privacy(
    federation: Make, order_for: Orders, start: Start
) -> None:
    for name, privacy in (("private", {}), ("plain", None)):
        fed = federation(folder=name, privacy=privacy)
        site, model = fed.sites[0], start(fed.plan)
        if privacy is not None:
            site._trainer._mechanism = _Lying(0.5, 2.0, 1.0, 2)
        answer = site.answer(order_for(fed, "North", model), model)
        assert answer.status is (Status.FAILED if privacy is not None else Status.RELEASED)
        assert ("a PlainUpdate is not a release" in fed.log("North")) == (privacy is not None)
    # The control: the same site, whose mechanism adds its noise, releases.
    fed = federation(folder="honest")
    answer = fed.sites[0].answer(order_for(fed, "North", model), model)
    assert answer.status is Status.RELEASED


# the debit is on disk before data is read


@pytest.mark.parametrize("decided", ["policy", "refused", "nothing"])
def test_what_is_decided_between_the_look_and_the_debit_counts(
    federation: Make, order_for: Orders, start: Start, decided: str
) -> None:
    """Another process writes into the ledger after the site has looked at its policy."""
    fed = federation()
    site, model = fed.sites[0], start(fed.plan)
    test = site._trainer.self_test

    def deciding() -> tuple[str, ...]:
        other = Ledger(fed.home("North"), fed.ledger("North").log.signer, "North")
        if decided == "policy":
            policy = dict(other.state.policy or {})
            other.set_policy({**policy, "allow": {**policy["allow"], "max_rounds": 1}})
        elif decided == "refused":
            other.refuse_plan(fed.plan.digest, ["DPO"])
        return test()

    site._trainer.self_test = deciding
    answer = site.answer(order_for(fed, "North", model), model)
    said = {"policy": Status.REFUSED_POLICY, "refused": Status.REFUSED_PLAN}
    assert answer.status is said.get(decided, Status.RELEASED)
    assert ("reserved" in fed.kinds("North")) is (decided == "nothing")


def paid_when_opened(
    fed: Any, order: Order, model: Arrays, kind: type[Ledger] = Ledger
) -> list[list[str]]:
    """Answer one order; return what the ledger's file said when data was opened.

    It is read by another process, which sees what is committed and nothing else.
    """
    path = fed.home("North") / "ledger.db"
    found: list[list[str]] = []
    read = (
        "import sqlite3, sys, json, base64\n"
        "for (leaf,) in sqlite3.connect(sys.argv[1]).execute('SELECT leaf FROM entries'):\n"
        "    value = json.loads(base64.b64decode(json.loads(leaf)['payload']))\n"
        "    print(value['predicateType'].rpartition(':')[2])"
    )

    def open_data() -> SiteData:
        done = subprocess.run(
            [sys.executable, "-c", read, str(path)], capture_output=True, text=True, check=True
        )
        found.append([word for word in done.stdout.split() if word in ("reserved", "released")])
        frame = fed.frames["North"]
        return SiteData(frame, frame)

    site = fed.restart("North", open_data)
    site.ledger.__class__ = kind
    assert site.answer(order, model).status is Status.RELEASED
    return found


def test_the_debit_is_on_disk_before_data_is_opened(
    federation: Make, order_for: Orders, start: Start
) -> None:
    fed = federation()
    model = start(fed.plan)
    assert paid_when_opened(fed, order_for(fed, "North", model), model) == [["reserved"]]


def test_a_ledger_that_writes_late_is_noticed(
    federation: Make, order_for: Orders, start: Start
) -> None:
    class Late(Ledger):
        """Keeps the reservation in memory until the commit."""

        def reserve(
            self, request: Request, still_allowed: Callable[[], None] = lambda: None
        ) -> Reservation:
            self.kept = request
            return Reservation(0, request.order.digest, request.order.slot, request.event)

        def commit(self, reservation: Reservation, *given: Any, **more: Any) -> int:
            return super().commit(super().reserve(self.kept), *given, **more)

    fed = federation()
    model = start(fed.plan)
    assert paid_when_opened(fed, order_for(fed, "North", model), model, Late) == [[]]


# crashes


class DyingOutbox(Outbox):
    def put(self, slot: str, release: Release) -> None:
        os._exit(9)


class DyingLedger(Ledger):
    def commit(self, *given: Any, **more: Any) -> int:
        os._exit(9)


class FailingOutbox(Outbox):
    def put(self, slot: str, release: Release) -> None:
        raise OSError("no space left")


class FailingLedger(Ledger):
    def commit(self, *given: Any, **more: Any) -> int:
        raise OSError("no space left")


def alone(request: pytest.FixtureRequest) -> bool:
    """Run the test again, in a process with its other parameters; return False in that process.

    A process that trained before has threads, and a fork of it may wait for their locks.
    """
    if os.environ.get("PRIVET_TEST_ALONE"):
        return False
    name = request.node.name
    said = in_its_own_process(f"{request.path}::{name.partition('[')[0]}", request.config.rootpath)
    assert f"::{name} PASSED" in said, said
    return True


@functools.cache
def in_its_own_process(test: str, root: Path) -> str:
    """Return what pytest prints of a test, with all its parameters."""
    words = [sys.executable, "-m", "pytest", "-vv", "-p", "no:cacheprovider", test]
    return subprocess.run(
        words, cwd=root, env={**os.environ, "PRIVET_TEST_ALONE": "1"},
        capture_output=True, text=True, timeout=300, check=False,
    ).stdout  # fmt: skip


def dies(work: Callable[[], object]) -> bool:
    """Do ``work`` in a child process; return whether it died of ``os._exit(9)``."""
    child = os.fork()
    if not child:
        try:
            work()
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status) == 9


@pytest.mark.parametrize(
    ("place", "charges"), [("open", 2), ("outbox", 2), ("commit", 1), ("reply", 1)]
)
def test_a_site_that_dies_never_loses_a_charge(
    federation: Make, order_for: Orders, start: Start, place: str, charges: int,
    request: pytest.FixtureRequest,
) -> None:  # fmt: skip
    if alone(request):
        return
    fed = federation()
    model = start(fed.plan)
    order = order_for(fed, "North", model)

    def open_data() -> SiteData:
        if place == "open":
            os._exit(9)
        return SiteData(fed.frames["North"], fed.frames["North"])

    def answer_and_die() -> None:
        site = fed.restart("North", open_data)
        if place == "commit":
            site.ledger.__class__ = DyingLedger
        if place == "outbox":
            site.outbox.__class__ = DyingOutbox
        site.answer(order, model)
        os._exit(9 if place == "reply" else 0)

    assert dies(answer_and_die)
    assert fed.charged("North") == 1
    data = SiteData(fed.frames["North"], fed.frames["North"])
    site = fed.restart("North", lambda: data)
    kept = site.outbox.get(order.slot)
    assert (kept is not None) == (place in ("commit", "reply"))
    # The same order after the restart: what was made is let out, what was not is paid again.
    again = site.answer(order, model)
    assert again.status is Status.RELEASED
    ledger = fed.ledger("North")
    assert fed.charged("North") == charges
    assert again.release.facts["spent"] == ledger.spent().to_dict()
    last = fed.answers("North")[-1]
    assert last.kind == "released"
    assert last.predicate["digest"] == digest_arrays(again.release.arrays)
    aborted = [entry.predicate for entry in fed.answers("North") if entry.kind == "aborted"]
    assert [(entry["reason"], entry["data_opened"]) for entry in aborted] == (
        [("recovered", True)] if charges == 2 else []
    )
    if kept is not None:
        assert digest_arrays(kept.arrays) == digest_arrays(again.release.arrays)
    assert not dies(lambda: None)


def test_two_processes_of_a_site_answer_an_order_once(
    federation: Make, order_for: Orders, start: Start, same: Callable[..., bool]
) -> None:
    """As Ray's actors are: each has its own reading of the ledger's file."""
    fed = federation()
    model = start(fed.plan)
    order = order_for(fed, "North", model)
    data = SiteData(fed.frames["North"], fed.frames["North"])
    sites = [fed.restart("North", lambda: data) for _ in range(2)]
    first, second = (site.answer(order, model) for site in sites)
    assert same(first.release.arrays, second.release.arrays)
    assert fed.charged("North") == 1


def test_a_stored_release_without_a_charge_does_not_leave(
    federation: Make, order_for: Orders, start: Start, same: Callable[..., bool]
) -> None:
    """As when a ledger is restored from an older backup than the outbox."""
    fed = federation()
    model = start(fed.plan)
    order = order_for(fed, "North", model)
    first = fed.sites[0].answer(order, model)
    for path in fed.home("North").glob("ledger.db*"):
        path.unlink()
    site = fed.restart("North")
    again = site.answer(order, model)
    assert again.status is Status.RELEASED
    assert not same(first.release.arrays, again.release.arrays)
    assert fed.charged("North") == 1


@pytest.mark.parametrize("place", ["commit", "outbox"])
def test_a_release_that_cannot_be_kept_does_not_leave(
    federation: Make, order_for: Orders, start: Start, place: str
) -> None:
    fed = federation()
    model = start(fed.plan)
    site = fed.sites[0]
    if place == "outbox":
        site.outbox.__class__ = FailingOutbox
    else:
        site.ledger.__class__ = FailingLedger
    answer = site.answer(order_for(fed, "North", model), model)
    assert (answer.status, answer.release) == (Status.FAILED, None)
    assert fed.charged("North") == 1
    assert "no space left" in fed.log("North")


def test_a_ledger_that_forgets_is_noticed(
    federation: Make, order_for: Orders, start: Start
) -> None:
    """The control of the tests above: they would see a charge that is given back."""

    class Refunding(Ledger):
        def abort(self, reservation: Reservation, **more: Any) -> None:
            super().abort(reservation, data_opened=False)

    fed = federation()
    model = start(fed.plan)
    site = fed.sites[0]
    site.ledger.__class__ = Refunding
    site._trainer._open_data = lambda: SiteData(pd.DataFrame(), pd.DataFrame())
    assert site.answer(order_for(fed, "North", model), model).status is Status.FAILED
    assert fed.charged("North") == 0


def test_a_failure_after_data_was_opened_keeps_its_charge(
    federation: Make, order_for: Orders, start: Start
) -> None:
    fed = federation(frames={"North": pd.DataFrame()})
    model = start(fed.plan)
    answer = fed.sites[0].answer(order_for(fed, "North", model), model)
    assert answer.status is Status.FAILED
    assert fed.kinds("North") == ["reserved", "aborted"]
    aborted = fed.answers("North")[1].predicate
    assert (aborted["data_opened"], aborted["reason"]) == (True, "failed")
    assert fed.charged("North") == 1


def test_a_damaged_outbox_answers_failed_and_costs_nothing(
    federation: Make, order_for: Orders, start: Start
) -> None:
    fed = federation()
    model = start(fed.plan)
    order = order_for(fed, "North", model)
    fed.sites[0].answer(order, model)
    next((fed.home("North") / "outbox").iterdir()).write_bytes(b"\x08" + bytes(20))
    assert fed.sites[0].answer(order, model).status is Status.FAILED
    assert fed.charged("North") == 1
    assert "cannot be read" in fed.log("North")


def test_a_site_with_a_damaged_ledger_answers_failed(
    federation: Make, order_for: Orders, start: Start
) -> None:
    from flwr.app import ConfigRecord, Message

    from privet.client.app import create_app
    from privet.common.flower.wire import decode_reply, encode_order, to_record

    fed = federation()
    order = order_for(fed, "North", start(fed.plan))
    for path in fed.home("North").glob("ledger.db*"):
        path.write_bytes(b"damaged\n" * 1000)
    model = start(fed.plan)
    fed.grid()
    app = create_app(lambda _: fed.restart("North"))
    content = encode_order(order, to_record(model), ConfigRecord())
    reply = app(Message(content, 1, "train"), _context())
    assert decode_reply(reply.content)[1] is Status.FAILED


def _context() -> Any:
    from flwr.app import Context, RecordDict, UserConfig

    return Context(1, 1, UserConfig({"partition-id": 0}), RecordDict(), UserConfig())
