"""Logs that are rotated while their processes go on: the next line is in the new file."""

from __future__ import annotations

import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from privet.client.training.worker.output import CapturedOutput
from privet.client.training.worker.remote import RemoteTrainer
from privet.common.flat import digest_arrays
from privet.common.models import initial_model
from privet.common.order import Order
from privet.common.output.operator_log import OperatorFile, operator_logger
from privet.common.plan import Plan
from privet.privacy.policy import Policy

Make = Callable[..., Any]
CHATTY = """
import os
from torch import nn

class Chatty(nn.Module):
    def __init__(self):
        super().__init__()
        self.line = nn.Linear(2, 2)

    def forward(self, numeric, missing, categorical):
        print("said by Python")
        os.write(2, b"said\\x1b by C\\n")
        return self.line(numeric)

def make(task):
    return Chatty()
"""


def until(found: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not found():
        assert time.monotonic() < end
        time.sleep(0.02)


def content(path: Path) -> bytes:
    return path.read_bytes() if path.exists() else b""


@pytest.fixture
def trainer(
    tmp_path: Path, plan_value: Make, frame_of: Make, monkeypatch: pytest.MonkeyPatch
) -> Iterator[RemoteTrainer]:
    """A trainer in a process of its own, whose model says something in each pass."""
    home = tmp_path / "north"
    (home / "ledger").mkdir(parents=True)
    (tmp_path / "chatty_model.py").write_text(CHATTY)
    monkeypatch.syspath_prepend(tmp_path)
    frame_of(40, 1).to_csv(home / "records.csv", index=False)
    plan = Plan.parse(plan_value(model={"kind": "chatty_model:make"}))
    policy = Policy.for_simulation(plan, "North", "sha256:" + 64 * "0")
    data = {name: {**one.model_dump(), "path": "records.csv"} for name, one in policy.data.items()}
    policy = Policy.parse({**policy.model_dump(), "data": data}).at(home)
    made = RemoteTrainer(plan, policy, next(iter(data)), home, (home / "ledger",), seed="seed")
    yield made
    made.close()


def train(trainer: RemoteTrainer, number: int) -> None:
    model = initial_model(trainer.plan)
    trainer.release(
        Order("run", "North", number, 1, "train", trainer.plan.digest, digest_arrays(model),
              tuple(model)),
        model,
    )  # fmt: skip


def test_a_trainers_log_that_was_moved_away(trainer: RemoteTrainer) -> None:
    log, old = trainer.home / "trainer.log", trainer.home / "trainer.log.1"
    train(trainer, 1)
    process = trainer._process
    until(lambda: b"said by Python" in content(log) and b"by C" in content(log))
    log.rename(old)
    time.sleep(0.3)
    before = old.read_bytes()
    train(trainer, 2)
    assert trainer._process is process
    until(lambda: b"said by Python" in content(log) and b"by C" in content(log))
    assert old.read_bytes() == before
    assert stat.S_IMODE(log.stat().st_mode) == 0o600
    # What a library in C writes can take no terminal over.
    assert b"said\\x1b by C" in log.read_bytes() and b"\x1b" not in log.read_bytes()


def test_a_trainers_last_words_are_there_when_its_end_is_told(tmp_path: Path) -> None:
    output = CapturedOutput(tmp_path / "trainer.log")
    code = "import os; os.write(2, b'x' * 100000 + b'\\nlast words'); os.abort()"
    process = subprocess.Popen([sys.executable, "-c", code], stderr=output)
    output.started()
    process.wait()
    output.finish()
    lines = (tmp_path / "trainer.log").read_text().splitlines()
    assert lines[-1] == "last words" and sum(line.count("x") for line in lines) == 100_000


def test_a_trainer_goes_on_where_its_log_cannot_be_written(tmp_path: Path) -> None:
    output = CapturedOutput(tmp_path / "nowhere" / "trainer.log")
    code = "import os\nfor _ in range(3000): os.write(2, b'x' * 99 + b'\\n')"
    process = subprocess.Popen([sys.executable, "-c", code], stderr=output)
    output.started()
    assert process.wait(30) == 0
    output.finish()
    (tmp_path / "nowhere").mkdir()
    OperatorFile.of(tmp_path / "nowhere" / "trainer.log").write("again")
    text = (tmp_path / "nowhere" / "trainer.log").read_text()
    assert "3000 lines were lost" in text and text.endswith("again\n")


@pytest.mark.skipif(not shutil.which("logrotate"), reason="logrotate is not here")
def test_the_documented_recipe(root: Path, tmp_path: Path) -> None:
    page = (root / "docs" / "how-to" / "observe.md").read_text()
    recipe = page[page.index("/var/lib/privet/site/operator.log /var") :]
    recipe = recipe[: recipe.index("}") + 1].replace("/var/lib/privet/site", str(tmp_path))
    recipe = "\n".join(line for line in recipe.splitlines() if "su privet" not in line)
    (tmp_path / "recipe").write_text(recipe)
    log = operator_logger(tmp_path / "operator.log", "North")
    log.warning("before")
    tmp_path.chmod(0o700)
    subprocess.run(
        ["logrotate", "--force", "--state", tmp_path / "state", tmp_path / "recipe"], check=True
    )
    log.warning("after")
    assert "before" in (tmp_path / "operator.log.1").read_text()
    assert "after" in (tmp_path / "operator.log").read_text()
    assert (tmp_path / "operator.log").stat().st_mode & 0o777 == 0o600
