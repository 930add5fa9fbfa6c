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
