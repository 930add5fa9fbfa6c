"""A plan's digest, its round trip, and its changed copies."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privet.common.errors import PlanError
from privet.common.plan import Plan

Make = Callable[..., dict[str, Any]]

names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9 ._-]{0,12}", fullmatch=True)
words = st.text("abcdxyz ", min_size=1, max_size=5).map(str.strip).filter(bool)
numbers = st.floats(allow_nan=False, allow_infinity=False, min_value=-1e9, max_value=1e9)
columns = st.text(min_size=1, max_size=6).filter(lambda text: text not in ("y", "label"))
options = st.dictionaries(
    st.text(min_size=1, max_size=5),
    st.one_of(st.booleans(), st.integers(-(2**53) + 1, 2**53 - 1), numbers, st.text(max_size=5)),
    max_size=3,
)


@st.composite
def features(draw: st.DrawFn) -> dict[str, Any]:
    low = draw(numbers)
    return {"low": low, "high": low + draw(st.floats(1e-3, 1e6)), "log": low > -1}


@st.composite
def models(draw: st.DrawFn) -> dict[str, Any]:
    own = draw(st.booleans())
    if own:
        return {"kind": "mine:make", "options": draw(options)}
    chosen = st.dictionaries(st.sampled_from(["width", "heads"]), st.integers(1, 9), max_size=2)
    return {"kind": "ft-transformer", "options": draw(chosen)}


@st.composite
def plans(draw: st.DrawFn) -> dict[str, Any]:
    rounds = draw(st.integers(1, 50))
    sites = draw(st.lists(names, min_size=1, max_size=5, unique_by=str.casefold))
    private = draw(st.booleans())
    return {
        "name": draw(names),
        "title": draw(st.text(st.characters(exclude_categories=["C", "Zl", "Zp"]), max_size=20)),
        "seed": draw(st.integers(0, 2**53 - 1)),
        "task": {
            "label": "y",
            "classes": draw(st.lists(words, min_size=2, max_size=4, unique_by=str.strip)),
            "numeric": draw(st.dictionaries(columns, features(), min_size=1, max_size=3)),
        },
        "model": draw(models()),
        "training": {
            "rounds": rounds,
            "sample_rate": draw(st.floats(1e-6, 1.0)),
            "learning_rate": draw(st.floats(1e-6, 1e3)),
        },
        "strategy": {"average_last": draw(st.integers(1, rounds))},
        "privacy": {"epsilon": draw(st.floats(1e-3, 1000)), "delta": draw(st.floats(1e-12, 1e-2))}
        if private
        else None,
        "sites": [{"name": name, "nominal_size": draw(st.integers(1, 10**6))} for name in sites],
    }  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(plans())
def test_a_plan_reads_back_from_its_own_words(value: dict[str, Any]) -> None:
    plan = Plan.parse(value)
    again = Plan.parse(json.loads(json.dumps(plan.to_dict())))
    assert again == plan
    assert again.digest == plan.digest
    assert hash(again) == hash(plan)


@settings(max_examples=30, deadline=None)
@given(plans(), st.randoms(use_true_random=False))
def test_the_digest_does_not_depend_on_the_order_of_keys(value: dict[str, Any], luck: Any) -> None:
    def shuffled(part: Any) -> Any:
        if isinstance(part, dict):
            keys = list(part)
            luck.shuffle(keys)
            return {key: shuffled(part[key]) for key in keys}
        return [shuffled(item) for item in part] if isinstance(part, list) else part

    assert Plan.parse(shuffled(value)).digest == Plan.parse(value).digest


def test_plans_of_one_digest_mean_the_same_model(
    plan_value: Make, frame_of: Callable[..., pd.DataFrame]
) -> None:
    from privet.common.tasks import build_task

    value = plan_value()
    plan = Plan.parse(value)
    value["task"]["numeric"] = dict(reversed(value["task"]["numeric"].items()))
    turned = Plan.parse(value)
    assert plan.digest == turned.digest
    frame = frame_of(5, 0)
    encoded, other = (build_task(p).encode(frame)["numeric"] for p in (plan, turned))
    assert encoded.tolist() == other.tolist()


def test_equal_plans_have_equal_hashes(plan_value: Make) -> None:
    value = plan_value()
    plan = Plan.parse(value)
    value["task"]["numeric"] = dict(reversed(value["task"]["numeric"].items()))
    turned = Plan.parse(value)
    assert (plan == turned) == (hash(plan) == hash(turned))


def test_the_digest_is_the_same_in_another_process(plan_value: Make, root: Path) -> None:
    code = (
        "import json, sys\nfrom privet.common.plan import Plan\n"
        "print(Plan.parse(json.load(sys.stdin)).digest)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], input=json.dumps(plan_value()),
        capture_output=True, text=True, cwd=root, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == Plan.parse(plan_value()).digest


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 1},
        {"training": {"steps": 3}},
        {"privacy": {"epsilon": 19.999}},
        {"privacy": None},
        {"strategy": {"kind": "fedprox"}},
        {"strategy": {"grace": 5.0}},
        {"task": {"numeric": {"x1": {"low": -2, "high": 2}, "x2": {"low": -2, "high": 2.001}}}},
        {"sites": [{"name": "North", "nominal_size": 60}]},
    ],
)
def test_every_change_changes_the_digest(plan_value: Make, changes: dict[str, Any]) -> None:
    assert Plan.parse(plan_value(**changes)).digest != Plan.parse(plan_value()).digest


def test_a_default_left_out_is_the_default_written_down(plan_value: Make) -> None:
    written = plan_value(training={"momentum": 0.0, "optimizer": "sgd"}, seed=0)
    assert Plan.parse(written).digest == Plan.parse(plan_value()).digest


def test_a_plan_cannot_be_altered(plan_value: Make) -> None:
    plan = Plan.parse(plan_value())
    with pytest.raises(ValueError, match="frozen"):
        plan.seed = 3  # type: ignore[misc]
    with pytest.raises(ValueError, match="frozen"):
        plan.training.steps = 3  # type: ignore[misc]


def test_changed_merges_into_sections(plan_value: Make) -> None:
    plan = Plan.parse(plan_value())
    other = plan.changed(training={"rounds": 7}, seed=4)
    assert (other.training.rounds, other.training.steps, other.seed) == (7, 2, 4)
    assert (plan.training.rounds, plan.seed) == (2, 0)
    assert plan.changed() == plan
    assert plan.changed(privacy=None).privacy is None
    back = plan.changed(privacy=None).changed(privacy={"epsilon": 1.0, "delta": 1e-5})
    assert back.privacy is not None
    assert back.privacy.epsilon == 1.0


@pytest.mark.parametrize(
    "changes", [{"seeed": 1}, {"training": {"steps": 0}}, {"training": {"step": 1}}, {"sites": []}]
)
def test_changed_refuses_what_parse_refuses(plan_value: Make, changes: dict[str, Any]) -> None:
    plan = Plan.parse(plan_value())
    with pytest.raises(PlanError, match=r"^tiny: "):
        plan.changed(**changes)


def test_a_plan_is_loaded_from_toml(
    tmp_path: Path, plan_value: Make, write_toml: Callable[..., Path]
) -> None:
    value = plan_value()
    path = write_toml(tmp_path / "tiny.toml", value)
    assert Plan.load(path) == Plan.parse(value)
    del value["name"]
    assert Plan.load(write_toml(tmp_path / "other.toml", value)).name == "other"


def test_an_unknown_site_is_named_with_those_there_are(plan_value: Make) -> None:
    with pytest.raises(PlanError, match="no site 'West'; it has North, East, South"):
        Plan.parse(plan_value()).site("West")


def test_a_plan_that_names_no_grace_is_the_plan_from_before_there_was_one(plan_value: Make) -> None:
    plan = Plan.parse(plan_value())
    assert "grace" not in plan.to_dict()["strategy"]
    named = Plan.parse(plan_value(strategy={"grace": 0.0}))
    assert named.to_dict()["strategy"]["grace"] == 0.0
    assert named.changed(strategy={"grace": None}).digest == plan.digest
