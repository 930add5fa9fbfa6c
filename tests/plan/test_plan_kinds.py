"""A kind decides what else a section says: errors name whose a key is, and digests are as ever."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
from families_kit import FAMILIES, plan_for

from privet.common.canonical import digest_json
from privet.common.errors import PlanError
from privet.common.plan import Plan
from privet.common.schema import ByKind
from privet.common.sections.model import ModelSpec
from privet.common.sections.strategy import Strategy
from privet.common.sections.task import TaskSpec
from privet.common.sections.task_base import AnyTask
from privet.simulations import scenarios
from privet.simulations.planning import without_privacy
from privet.simulations.starter import write_starter

Make = Callable[..., dict[str, Any]]
DIGESTS: dict[str, str] = json.loads(Path(__file__).with_name("digests.json").read_text())
"""Of every plan that is shipped, from before sections had kinds."""
TEXTS = (
    "'text', 'causal-text', 'masked-text', 'text-to-text', 'token-classification', "
    "'question-answering' or 'module:object'"
)


def shipped(folder: Path) -> dict[str, str]:
    """Return the digest of every scenario with each of its models, and of what `init` writes."""
    write_starter(folder)
    found = {"init": Plan.load(folder / "plan.toml").digest}
    for name in scenarios.names():
        scenario = scenarios.get(name)
        for model in (None, *scenario.models):
            plan = scenario.make_plan(model)
            found[f"{name}/{model or 'own'}"] = plan.digest
            found[f"{name}/{model or 'own'}/plain"] = without_privacy(plan).digest
    return found


def test_every_shipped_plan_has_the_digest_of_before(tmp_path: Path) -> None:
    assert shipped(tmp_path / "new") == DIGESTS


@pytest.mark.parametrize("family", FAMILIES)
def test_canonical_form_names_the_keys_of_all_kinds(tmp_path: Path, family: str) -> None:
    plan = plan_for(*FAMILIES[family], tmp_path)
    value = plan.to_dict()
    assert {*AnyTask.blanks, "kind"} == set(value["task"])
    assert "proximal_mu" in value["strategy"]
    assert value["model"]["options"] == FAMILIES[family][1].get("options", {})
    again = Plan.parse(json.loads(json.dumps(value)))
    assert again == plan and again.task == plan.task


def test_options_are_in_a_digest_as_they_were_written(plan_value: Make) -> None:
    bare, said = ({"kind": "linear"}, {"kind": "linear", "options": {"scale": 1}})
    plans = [Plan.parse(plan_value(model=model)) for model in (bare, said)]
    assert plans[0].model.options == plans[1].model.options
    assert plans[0].digest != plans[1].digest and plans[0] != plans[1]
    assert plans[1].to_dict()["model"]["options"] == {"scale": 1.0}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"task": {"max_tokens": 16}}, f"task.max_tokens: belongs to kind = {TEXTS}, not to"),
        ({"task": {"image": {"height": 4, "width": 4}}}, "task.image: belongs to kind = 'image'"),
        ({"task": {"options": {"a": 1}}}, "task.options: belongs to kind = 'module:object'"),
        ({"task": {"kind": "text"}}, "task.numeric: belongs to kind = 'tabular' or 'module:ob"),
        ({"task": {"kind": "mine:task", "augment": ["hide"]}}, "task.augment: belongs to kind"),
        ({"task": {"kind": "txet"}}, "not 'txet'; did you mean 'text'?"),
        ({"task": {"kind": "TEXT"}}, "not 'TEXT'; did you mean 'text'?"),
        ({"task": {"kind": 3}}, "task.kind: must be a text in quotes, not 3"),
        ({"task": 3}, "task: must be a table, not 3"),
        ({"task": {"augment": ["flip"]}}, "task.augment.0: must be 'hide', not 'flip'"),
        ({"task": {"augment": ["hide", "hide"]}}, "task.augment: names one twice"),
        ({"model": {"options": {"width": 8}}}, "model.options.width: belongs to kind = 'dense', "),
        ({"model": {"options": {"scal": 1}}}, "model.options.scal: unknown key; did you mean 'sc"),
        ({"model": {"options": {"scale": "x"}}}, "model.options.scale: must be a number, not 'x'"),
        (
            {"model": {"kind": "minilm", "options": {"rank": 4}}},
            "model.options.rank: belongs to tuning = 'lora' or 'full', not to 'head'",
        ),
        (
            {"model": {"kind": "minilm", "options": {"tuning": "soft"}}},
            "model.options.tuning: must be 'head', 'lora' or 'full', not 'soft'",
        ),
        ({"strategy": {"proximal_mu": 1.0}}, "strategy.proximal_mu: belongs to kind = 'fedprox'"),
        (
            {"strategy": {"kind": "fedavgm", "options": {"eta": 1.0}}},
            "strategy.options.eta: belongs to kind = 'fedadam', 'fedyogi' or 'fedadagrad', not to",
        ),
    ],
)
def test_a_key_of_another_kind_is_named_as_such(
    plan_value: Make, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(PlanError) as caught:
        Plan.parse(plan_value(**changes))
    assert said in str(caught.value)


def test_a_key_that_says_nothing_for_a_kind_is_no_fault(plan_value: Make) -> None:
    plain = Plan.parse(plan_value())
    said = plan_value(task={"max_tokens": 128, "image": None}, strategy={"proximal_mu": 0})
    assert Plan.parse(said).digest == plain.digest


def test_a_plan_that_was_kept_is_still_the_same_where_it_has_a_key_of_another_kind(
    plan_value: Make,
) -> None:
    value = {**Plan.parse(plan_value()).to_dict()}
    value["task"] = {**value["task"], "max_tokens": 64}
    plan = Plan.parse(value)
    assert plan.to_dict() == value and plan.digest == digest_json(value)
    assert plan.with_noise(1.5).to_dict()["task"] == value["task"]
    with pytest.raises(PlanError, match="max_tokens: belongs to kind"):
        plan.changed(task={"max_tokens": 65})


def test_noise_changes_a_plan_as_a_validated_change_does(plan_value: Make) -> None:
    plan = Plan.parse(plan_value())
    assert plan.digest != plan.with_noise(1.25).digest
    assert plan.with_noise(1.25) == plan.changed(privacy={"noise_multiplier": 1.25})


@pytest.mark.parametrize("kind", ["fedavg", "fedavgm", "fedadam", "fedyogi", "fedadagrad"])
def test_options_of_a_strategy_are_flowers(plan_value: Make, kind: str) -> None:
    from privet.server.aggregate import KINDS

    options = dict(Plan.parse(plan_value(strategy={"kind": kind})).strategy.options)
    theirs = inspect.signature(KINDS[kind].__init__).parameters
    numbers = {name: one.default for name, one in theirs.items() if isinstance(one.default, float)}
    assert options == {k: v for k, v in numbers.items() if not k.startswith("fraction_")}


def rows(page: str, heading: str) -> dict[str, str]:
    """Return the last column of the first table after a heading that lists kinds, by kind."""
    table = page.split(f"\n## `[{heading}]`\n")[1].split("\n## ")[0].split("\n| kind | ")[1]
    found = {}
    for line in table.split("\n\n")[0].splitlines()[2:]:
        kinds, *_, last = (cell.strip() for cell in line.strip("|").split("|"))
        found |= {kind.strip(" `"): last for kind in kinds.split(",")}
    return found


@pytest.mark.parametrize(
    ("heading", "union", "default"),
    [("task", TaskSpec, "tabular"), ("model", ModelSpec, "ft-"), ("strategy", Strategy, "fedavg")],
)
def test_the_reference_has_every_kind_with_its_own_keys(
    root: Path, heading: str, union: Any, default: str
) -> None:
    page = (root / "docs" / "reference" / "plan.md").read_text(encoding="utf-8")
    parts = ByKind(default).parts(union)
    listed = rows(page, heading)
    assert set(listed) == set(parts)
    for kind, part in parts.items():
        options = part.model_fields["options"].annotation if heading != "task" else part
        for one in get_args(options) or (options,):
            for key, field in getattr(one, "model_fields", {}).items():
                assert f"`{key}`" in listed[kind] or key == "kind"
                told = heading == "task" or field.is_required() or field.default is None
                assert told or str(field.default) in listed[kind], (kind, key)
