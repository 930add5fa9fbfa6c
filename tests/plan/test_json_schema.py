"""The JSON Schema for editors: what is a plan or a policy passes, what is none does not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from privet.common.errors import InputError
from privet.common.plan import Plan
from privet.common.schema import json_schema
from privet.simulations import scenarios

Make = Callable[..., Any]


@pytest.fixture(scope="module")
def plan_schema() -> Draft202012Validator:
    return validator(json_schema(Plan, "Privet plan", optional=("name",)))


def validator(schema: dict[str, Any]) -> Draft202012Validator:
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


@pytest.mark.parametrize("name", scenarios.names())
def test_every_scenario_fits(plan_schema: Draft202012Validator, name: str) -> None:
    value = scenarios.get(name).make_plan().to_dict()
    assert [fault.message for fault in plan_schema.iter_errors(value)] == []


@pytest.mark.parametrize(
    "changes",
    [
        {"privacy": "none"},
        {"training": {"sample_rate": 1.0}},
        {"strategy": {"kind": "fedadam", "options": {"eta": 0.1}}},
        {"strategy": {"kind": "mine:make", "options": {"any": 1}}},
        {"task": {"classes": ["a", "b"], "numeric": {"x": {"low": 0, "high": 1}}}},
        {"task": {"kind": "text", "classes": ["a", "b"], "max_tokens": 9, "numeric": {}}},
        {"task": {"kind": "masked-text", "text": "note"}},
        {"task": {"kind": "mine:make", "options": {"deep": [1]}}},
        {"task": {"kind": "token-classification", "classes": ["O", "B-X"], "max_tokens": 9}},
        {"task": {"kind": "question-answering", "question": "q", "answer_start": "at"}},
        {"task": {"kind": "audio", "classes": ["a", "b"], "samples": 8000, "rate": 8000}},
        {"model": {"options": {"width": 8}}},
        {"model": {"kind": "minilm", "options": {"tuning": "lora", "rank": 4}}},
        {"model": {"kind": "mine:make", "options": {"any": "thing"}}},
    ],
)
def test_what_a_file_may_say_fits(
    plan_schema: Draft202012Validator, plan_value: Make, changes: dict[str, Any]
) -> None:
    value = {**plan_value(), **changes}
    if isinstance(changes.get("training"), dict):
        value["training"] = {**plan_value()["training"], **changes["training"]}
    value.pop("name")
    assert plan_schema.is_valid(value)
    Plan.parse({**value, "name": "a"})


@pytest.mark.parametrize(
    "changes",
    [
        {"trainig": {}},
        {"privacy": "non"},
        {"sites": []},
        {"seed": -1},
        {"training": {"sample_rate": 2.0}},
        {"training": {"rounds": "many"}},
        {"metrics": {"source": "everywhere"}},
        {"task": {"kind": "table"}},
        {"task": {"kind": "text", "classes": ["a", "b"], "numeric": {"x": {"low": 0, "high": 1}}}},
        {"task": {"kind": "text", "classes": ["a"]}},
        {"task": {"kind": "causal-text", "classes": ["a", "b"]}},
        {"task": {"kind": "image", "classes": ["a", "b"]}},
        {"task": {"kind": "token-classification", "classes": ["O", "B-X"], "clean": ["dates"]}},
        {"task": {"kind": "question-answering", "classes": ["a", "b"]}},
        {"task": {"kind": "audio", "classes": ["a", "b"]}},
        {"model": {"options": {"scale": 2.0}}},
        {"model": {"kind": "gru"}},
        {"model": {"kind": "minilm", "options": {"rank": 4}}},
        {"model": {"kind": "vit", "options": {"width": "wide"}}},
        {"strategy": {"kind": "fedadam", "proximal_mu": 1.0}},
        {"strategy": {"kind": "fedavg", "options": {"eta": 0.1}}},
        {"sites": [{"name": "\x1b[31m", "nominal_size": 10}]},
    ],
)
def test_what_no_plan_may_say_does_not(
    plan_schema: Draft202012Validator, plan_value: Make, changes: dict[str, Any]
) -> None:
    value = {**plan_value(), **changes}
    assert not plan_schema.is_valid(value)
    with pytest.raises(InputError):
        Plan.parse(value)


def test_a_kind_chooses_what_else_a_section_may_say(plan_schema: Draft202012Validator) -> None:
    """Exactly one of the kinds, each with its own keys; another kind's are not completed."""
    schema = plan_schema.schema
    assert isinstance(schema, dict)
    for section in ("task", "model", "strategy"):
        refs = [one["$ref"].split("/")[-1] for one in schema["properties"][section]["oneOf"]]
        kinds: list[str] = []
        for part in (schema["$defs"][name] for name in refs):
            kind = part["properties"]["kind"]
            kinds += [kind["const"]] if "const" in kind else kind.get("enum", ["module:object"])
            assert part["additionalProperties"] is False
        assert len(set(kinds)) == len(kinds) and kinds[-1] == "module:object"
