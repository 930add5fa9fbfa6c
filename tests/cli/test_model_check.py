"""``privet model check``: methods are measured, and the quickest is written into the plan."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from budget_kit import Desk
from families_kit import SMALL, plan_for

from privet.common.errors import InputError
from privet.common.plan import Plan
from privet.simulations import peak_memory
from privet.simulations.model_check import check_model
from privet.simulations.written_choice import write_clipping

HEAD = """name = "mine"
# Who reads this knows why.
[task]
kind = "tabular"
classes = ["no", "yes"]
numeric = {age = {low = 0, high = 90}}
"""
TAIL = """
[privacy]
epsilon = 3
delta = 1e-4

[[sites]]
name = "A"
nominal_size = 100
"""


@pytest.mark.parametrize(
    "training",
    [
        "",
        "[training]\nrounds = 3  # few\n",
        '[ training ] # of a round\nclipping = "one-by-one" # for now\nrounds = 3\n',
        "[training]\n\n[training.nothing]\n",
    ],
)
def test_a_plan_is_changed_in_one_line(training: str, tmp_path: Path) -> None:
    path = tmp_path / "plan.toml"
    path.write_text(HEAD + training + TAIL)
    if "nothing" in training:  # no plan at all: said as always
        with pytest.raises(InputError, match="unknown key"):
            write_clipping(path, "vmap")
        return
    before, old = Plan.load(path), path.read_text().splitlines()
    after = write_clipping(path, "vmap")
    assert after == Plan.load(path) == before.changed(training={"clipping": "vmap"})
    new = path.read_text().splitlines()
    added = [line for line in new if line not in old]
    assert added[-1].startswith('clipping = "vmap"') and len(added) <= 2
    assert [line for line in old if line not in new] in ([], [old[7]])
    assert write_clipping(path, "vmap") == after


@pytest.mark.parametrize(
    "text", ["training = {rounds = 3}\n" + HEAD, "training.rounds = 3\n" + HEAD]
)
def test_a_section_written_in_another_way_stays(text: str, tmp_path: Path) -> None:
    path = tmp_path / "plan.toml"
    path.write_text(text + TAIL)
    with pytest.raises(InputError, match='write clipping = "vmap" under'):
        write_clipping(path, "vmap")
    assert path.read_text() == text + TAIL


def test_every_exact_method_is_measured_and_the_others_are_explained(tmp_path: Path) -> None:
    plan = plan_for("tabular", {"kind": "dense", "options": {"width": 8}}, tmp_path)
    found = check_model(plan, every=True)
    assert set(found.measured) == {"bookkeeping", "vmap", "one-by-one"}
    assert not found.passed_over
    # Which one that is, a busy machine decides.
    assert found.measured[found.way] <= 1.25 * min(found.measured.values())
    assert set(check_model(plan).measured) == {"bookkeeping"}


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux says it")
def test_memory_is_that_of_the_step(tmp_path: Path) -> None:
    large = {**SMALL, "width": 64, "layers": 3}
    plan = plan_for("text", {"kind": "text-encoder", "options": large}, tmp_path)
    found = peak_memory.peaks(plan.changed(training={"clipping": "bookkeeping"}))
    assert found is not None and found[0] > 0 and found[1] > 0
    # A method that holds every gradient of every record.
    whole = peak_memory.peaks(plan.changed(training={"clipping": "vmap", "micro_batch": 64}))
    assert whole is None or whole[0] > found[1]


def test_the_command_writes_into_a_plan_and_refuses_a_scenario(desk: Desk) -> None:
    path = Path("plan.toml")
    path.write_text(HEAD + TAIL)
    code, out, _ = desk.run("model", "check", str(path), "--write", "--json")
    value = json.loads(out)
    assert code == 0 and value["digest"] == Plan.load(path).digest
    assert Plan.load(path).training.clipping == value["clipping"]
    for wrong in (["lending", "--write"], [str(path), "--write", "--model", "linear"]):
        code, _, said = desk.run("model", "check", *wrong)
        assert code == 2 and "--write changes a plan's file" in said
