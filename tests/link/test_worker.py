"""The trainer in a process of its own: the same bits, no keys, no network; it may be killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from link_kit import until

from privet.client.data.records import open_records
from privet.client.training.protocol import shape_mismatch
from privet.client.training.trainer import Trainer
from privet.client.training.worker.pulse import Pulse, TrainerWatch
from privet.client.training.worker.remote import TRAINER_LOG, RemoteTrainer, _environment
from privet.common.errors import DataError, PrivetError, TrainerLostError
from privet.common.flat import Arrays, digest_arrays
from privet.common.models import initial_model
from privet.common.order import Order
from privet.common.plan import Plan
from privet.privacy.mechanism.noise import Stream
from privet.privacy.policy import Policy

Make = Callable[..., Any]
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="the kernel's means are Linux's")

NOSY = """
import json, os, pathlib, socket, urllib.request
from torch import nn


def tried(what):
    try:
        what()
    except OSError as error:
        return type(error).__name__
    return "done"


def make(task, home):
    home = pathlib.Path(home)
    said = {
        "socket": tried(lambda: socket.create_connection(("127.0.0.1", 9), 1)),
        "listen": tried(lambda: socket.create_server(("127.0.0.1", 0))),
        "key": tried(lambda: (home / "ledger" / "ledger.pem").read_text()),
        "write": tried(lambda: (home / "ledger" / "more").write_text("x")),
        "truncate": tried(lambda: os.truncate(home / "ledger" / "ledger.pem", 0)),
        "remove": tried(lambda: (home / "ledger" / "ledger.pem").rename(home / "trainer" / "x")),
        "policy": tried(lambda: (home / "site.toml").write_text("mine")),
        "cut policy": tried(lambda: os.truncate(home / "site.toml", 0)),
        "code": tried(lambda: pathlib.Path(__file__).write_text("mine")),
        "end": tried(lambda: os.kill(os.getppid(), 0)),
        "list": tried(lambda: os.listdir(home / "ledger")),
        "parent": tried(lambda: open(f"/proc/{os.getppid()}/mem", "rb").read(1)),
        "environment": tried(lambda: open(f"/proc/{os.getppid()}/environ", "rb").read(1)),
        "records": tried(lambda: (home / "records.csv").read_text()),
        "secrets": [name for name in os.environ if "PASS" in name],
    }
    (home / "trainer" / "said.json").write_text(json.dumps(said))
    return nn.Linear(5, 2)
"""
"""A model of the site's own code that looks around while it is made."""


@pytest.mark.parametrize("name", [None, "HF_HOME", "HF_HUB_CACHE", "XDG_CACHE_HOME"])
def test_models_of_the_hub_lie_where_the_site_has_them(
    name: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for known in ("HF_HOME", "HF_HUB_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(known, raising=False)
    if name is not None:
        monkeypatch.setenv(name, str(tmp_path / "cache"))
    code = "from huggingface_hub import constants; print(constants.HF_HUB_CACHE)"
    here, there = (
        subprocess.run(
            [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True
        ).stdout
        for env in (dict(os.environ), _environment(tmp_path / "work"))
    )
    assert here == there and str(tmp_path / "work") not in there


@pytest.fixture
def home(tmp_path: Path, frame_of: Make) -> Path:
    """A site's folder, with something that stands for keys."""
    folder = tmp_path / "north"
    (folder / "ledger").mkdir(parents=True)
    (folder / "ledger" / "ledger.pem").write_text("secret")
    frame_of(40, 1).to_csv(folder / "records.csv", index=False)
    return folder


@pytest.fixture
def remote(home: Path, plan_value: Make) -> Iterator[Make]:
    made: list[RemoteTrainer] = []

    def make(**changes: Any) -> RemoteTrainer:
        plan = Plan.parse(plan_value(**changes))
        policy = Policy.for_simulation(plan, "North", "sha256:" + 64 * "0").at(home)
        data = {
            name: {**part.model_dump(), "path": "records.csv"} for name, part in policy.data.items()
        }
        policy = Policy.parse({**policy.model_dump(), "data": data}).at(home)
        made.append(
            RemoteTrainer(plan, policy, next(iter(data)), home, (home / "ledger",), seed="seed")
        )
        return made[-1]

    yield make
    for one in made:
        one.close()


def order(trainer: RemoteTrainer, model: Arrays, number: int = 1, purpose: str = "train") -> Order:
    plan = trainer.plan
    digest = digest_arrays(model)
    return Order("run", "North", number, 1, purpose, plan.digest, digest, tuple(model))


def without_process(remote: RemoteTrainer) -> Trainer:
    """Return a trainer of the same plan, records and noise in this process."""
    plan, policy, data_set = remote.plan, remote.policy, remote.data_set
    return Trainer(
        plan, "North", lambda: open_records(policy, data_set, plan, remote.home),
        lambda asked: Stream.seeded("seed", asked.site, asked.purpose, asked.round),
    )  # fmt: skip


@pytest.mark.parametrize("purpose", ["train", "evaluate"])
def test_the_worker_makes_what_a_trainer_in_this_process_makes(remote: Make, purpose: str) -> None:
    trainer = remote(metrics={"source": "gate"})
    plan, here = trainer.plan, without_process(trainer)
    model = initial_model(plan)
    assert trainer.shapes() == here.shapes()
    assert shape_mismatch(trainer.shapes(), model) is None
    assert trainer.self_test() == here.self_test()
    assert trainer.event == here.event
    for number in (1, 2):
        ours = trainer.release(order(trainer, model, number, purpose), model)
        theirs = here.release(order(trainer, model, number, purpose), model)
        assert (ours.event, ours.reproducible) == (theirs.event, True)
        assert digest_arrays(ours.arrays) == digest_arrays(theirs.arrays)
    # The control: other noise, other bits.
    other = here.release(order(trainer, model, 3, purpose), model)
    assert digest_arrays(other.arrays) != digest_arrays(ours.arrays)


@LINUX
def test_what_trains_has_no_network_and_no_keys(
    remote: Make, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "nosy.py").write_text(NOSY)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PRIVET_PASSPHRASE", "not for you")
    monkeypatch.setenv("EHR_PASSWORD", "not for you")
    (home / "site.toml").write_text("the site's")
    options = {"home": str(home)}
    trainer = remote(model={"kind": "nosy:make", "options": options})
    trainer.shapes()
    said = json.loads((home / "trainer" / "said.json").read_text())
    assert said == {
        "socket": "PermissionError",
        "listen": "PermissionError",
        "key": "PermissionError",
        "write": "PermissionError",
        "truncate": "PermissionError",
        "remove": "PermissionError",
        "policy": "PermissionError",
        "cut policy": "PermissionError",
        "code": "PermissionError",
        "end": "PermissionError",
        "list": "PermissionError",
        "parent": "PermissionError",
        "environment": "PermissionError",
        "records": "done",
        "secrets": [],
    }
    assert (home / "site.toml").read_text() == "the site's"
    # The control: the same code in a process that is not confined gets at all of it.
    control = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import nosy; nosy.make(None, {str(home)!r})"
    subprocess.run([sys.executable, "-c", control], check=True)
    said = json.loads((home / "trainer" / "said.json").read_text())
    open_to_all = ("listen", "key", "write", "truncate", "policy", "code", "list", "end")
    assert {name: said[name] for name in open_to_all} == dict.fromkeys(open_to_all, "done")
    assert said["socket"] == "ConnectionRefusedError"
    assert set(said["secrets"]) >= {"PRIVET_PASSPHRASE", "EHR_PASSWORD"}


def test_a_worker_that_is_killed_fails_one_question(remote: Make) -> None:
    trainer = remote()
    model = initial_model(trainer.plan)
    first = trainer.release(order(trainer, model), model)
    process = trainer._process
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    with pytest.raises(TrainerLostError, match="signal 9"):
        trainer.release(order(trainer, model), model)
    again = trainer.release(order(trainer, model), model)
    assert digest_arrays(again.arrays) == digest_arrays(first.arrays)


def test_a_worker_that_ended_between_two_orders_is_replaced_before_one_is_paid_for(
    remote: Make,
) -> None:
    trainer = remote()
    tests = trainer.self_test()
    process = trainer._process
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert trainer.self_test() == tests
    model = initial_model(trainer.plan)
    assert trainer.release(order(trainer, model), model).arrays


def test_what_goes_wrong_in_the_worker_is_told_to_the_operator_only(
    remote: Make, home: Path
) -> None:
    (home / "records.csv").write_text("x1,x2\n1,2\n")
    trainer = remote()
    model = initial_model(trainer.plan)
    with pytest.raises(DataError, match="there is no column"):
        trainer.release(order(trainer, model), model)


def test_records_that_were_replaced_since_the_worker_was_confined_are_read(
    remote: Make, home: Path, frame_of: Make
) -> None:
    trainer = remote()
    trainer.shapes()
    confined = trainer._process
    frame_of(30, 2).to_csv(home / "new.csv", index=False)
    (home / "new.csv").replace(home / "records.csv")
    model = initial_model(trainer.plan)
    assert trainer.release(order(trainer, model), model).arrays
    assert trainer._process is not confined


def test_the_worker_ends_with_its_gate(remote: Make) -> None:
    trainer = remote()
    trainer.start()
    process = trainer._process
    trainer.close()
    assert process.poll() is not None


@LINUX
def test_a_worker_whose_gate_is_killed_ends(tmp_path: Path) -> None:
    """Whatever it is doing: an endpoint that is gone cannot take what is made."""
    code = (
        "import subprocess, sys, time\n"
        "code = 'import os,time,threading\\nfrom privet.client.training.worker.__main__ import _end_with\\n"
        "threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()\\n"
        "print(os.getpid(), flush=True)\\nwhile True: pass'\n"
        "child = subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE)\n"
        "print(child.stdout.readline().decode(), end='', flush=True)\n"
        "time.sleep(60)\n"
    )
    endpoint = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert endpoint.stdout is not None
    worker = int(endpoint.stdout.readline())
    endpoint.kill()
    endpoint.wait()
    endpoint.stdout.close()
    for _ in range(600):
        if not Path(f"/proc/{worker}").exists() or "Z" in Path(f"/proc/{worker}/stat").read_text():
            return
        signal.sigtimedwait([], 0.1)
    os.kill(worker, signal.SIGKILL)
    pytest.fail("the worker outlived its gate")


def test_a_worker_finds_weights_to_start_from(
    remote: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors.numpy import save_file

    from privet.common.models.start import digest_of

    (tmp_path / "models").mkdir()
    path = tmp_path / "models" / "first.safetensors"
    shapes = remote().shapes()
    save_file({name: np.ones(shape, np.float32) for name, shape in shapes.items()}, path)
    monkeypatch.setenv("PRIVET_MODELS", str(path.parent))
    assert remote(model={"kind": "linear", "start": digest_of(path)}).shapes() == shapes
    monkeypatch.delenv("PRIVET_MODELS")
    with pytest.raises(PrivetError, match="that the plan starts from are not there"):
        remote(model={"kind": "linear", "start": digest_of(path)}).shapes()


def test_a_worker_hears_what_was_committed(remote: Make) -> None:
    trainer = remote(compression={"kind": "top-k", "share": 0.3})
    plan, here = trainer.plan, without_process(trainer)
    model = initial_model(plan)
    for number in (1, 2, 3):
        made = []
        for one in (trainer, here):
            made.append(one.release(order(trainer, model, number), model))
            one.committed(order(trainer, model, number))
        assert digest_arrays(made[0].arrays) == digest_arrays(made[1].arrays)
    assert here._rest["run"]


SLOW = """
import ctypes, time
from torch import nn


def make(task, how, seconds):
    if how == "holding the lock":
        ctypes.PyDLL(None).sleep(int(seconds))
    else:
        time.sleep(seconds)
    return nn.Linear(5, 2)
"""
"""A model of the site's own code that takes its time, with and without Python's lock."""


@pytest.fixture
def slow(remote: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    (tmp_path / "slow.py").write_text(SLOW)
    monkeypatch.syspath_prepend(tmp_path)

    def make(how: str, seconds: float) -> RemoteTrainer:
        options = {"how": how, "seconds": seconds}
        made: RemoteTrainer = remote(model={"kind": "slow:make", "options": options})
        made.start()
        return made

    return make


def test_a_trainer_that_hangs_is_ended_and_one_that_works_long_is_not(slow: Make) -> None:
    works = slow("letting go of it", 6.0)
    works.still = 3.0
    assert works.shapes()
    assert works._process.poll() is None
    hangs = slow("holding the lock", 600)
    hangs.still = 3.0
    process = hangs._process
    with pytest.raises(TrainerLostError, match="no sign of life for 3 s"):
        hangs.shapes()
    assert process.poll() == -signal.SIGKILL


def test_what_is_asked_of_a_trainer_has_a_limit(slow: Make) -> None:
    trainer = slow("letting go of it", 600.0)
    trainer.limit = 2.0
    with pytest.raises(TrainerLostError, match="not done after 2 s"):
        trainer.shapes()
    assert trainer._process is None


def test_a_trainer_that_is_stopped_fails_one_question(remote: Make) -> None:
    trainer = remote()
    model = initial_model(trainer.plan)
    first = trainer.release(order(trainer, model), model)
    os.kill(trainer._process.pid, signal.SIGSTOP)
    trainer.still = 2.0
    with pytest.raises(TrainerLostError, match="no sign of life"):
        trainer.release(order(trainer, model), model)
    trainer.still = 60.0
    again = trainer.release(order(trainer, model), model)
    assert digest_arrays(again.arrays) == digest_arrays(first.arrays)


def test_a_trainer_that_was_stopped_while_idle_is_replaced_before_an_order_is_paid_for(
    remote: Make,
) -> None:
    trainer = remote()
    tests, process = trainer.self_test(), trainer._process
    assert trainer.self_test() == tests and trainer._process is process
    os.kill(process.pid, signal.SIGSTOP)
    trainer.still_idle = 1.0

    def seconds_since_a_beat() -> float:
        return time.monotonic() - trainer._pulse.last

    until(lambda: seconds_since_a_beat() > 4)
    assert trainer.self_test() == tests
    assert trainer._process is not process and process.poll() == -signal.SIGKILL
    assert seconds_since_a_beat() < 4


def test_a_gate_that_was_stopped_with_its_trainer_does_not_end_it(tmp_path: Path) -> None:
    pulse, other = Pulse.make(tmp_path)
    os.close(other)
    watch = TrainerWatch(pulse, 0.9, 100)
    time.sleep(1.5)  # nobody looked, as where the whole machine slept
    watch.look()
    with pytest.raises(TrainerLostError):
        for _ in range(10):
            time.sleep(0.2)
            watch.look()


ENDS = """
import os


def make(task, talks):
    if talks:
        os.write(2, b"no memory\\n")
    os._exit(3)
"""


@pytest.mark.parametrize("talks", [True, False])
def test_the_last_words_of_a_trainer_are_named_where_there_are_any(
    remote: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, talks: bool
) -> None:
    (tmp_path / "ends.py").write_text(ENDS)
    monkeypatch.syspath_prepend(tmp_path)
    trainer = remote(model={"kind": "ends:make", "options": {"talks": talks}})
    with pytest.raises(TrainerLostError, match="exit 3") as lost:
        trainer.shapes()
    log = trainer.home / TRAINER_LOG
    assert log.exists() is talks
    assert (f"its last words are in {log}" in str(lost.value)) is talks
    assert not talks or log.read_text().endswith("no memory\n")
