"""What Privet relies on in peft."""

from __future__ import annotations

from dataclasses import fields
from typing import get_args

import peft
import pytest

from privet.common.models.huggingface import adapters
from privet.common.sections.model import Adapter


@pytest.mark.parametrize("name", get_args(Adapter))
def test_each_adapter_of_a_plan_has_a_configuration_with_its_options(name: str) -> None:
    adapter = adapters.adapter_of(name)
    if adapter.kind not in peft.PeftType.__members__:
        pytest.skip(f"peft {peft.__version__} has none; a plan that names it is refused")
    made = peft.PEFT_TYPE_TO_CONFIG_MAPPING[peft.PeftType[adapter.kind]]
    known = {one.name for one in fields(made)}
    assert set(adapter.preset) <= known
    assert ("target_modules" in known) == (adapter.layers != "none")
    assert "modules_to_save" in known
    # A task of peft that a plan's task means.
    assert set(adapters.TASKS.values()) <= {kind.value for kind in peft.TaskType}
