"""Every adapter, and models with odd padding, answer in transformers as they did in a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hub_kit import EACH_ADAPTER, SMALL_ADAPTERS, hub_folder, hub_plan

from privet.common.errors import RunError
from privet.common.models import initial_model
from privet.delivery import export as export_module
from privet.delivery.export import export
from privet.delivery.folder_check import FolderCheck
from privet.delivery.trained import Trained

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]
UNMERGED = ("prompt", "prefix", "p-tuning")


def trained_of(folder: Path, family: str, task: str, **options: Any) -> Trained:
    """A model as a run leaves it: every trained parameter moved."""
    plan = hub_plan(hub_folder(folder, family, task), task, **options)
    chance = np.random.default_rng(0)
    arrays = {
        name: (array + 0.1 * chance.normal(size=array.shape)).astype(np.float32)
        for name, array in initial_model(plan).items()
    }
    return Trained(plan, arrays, {"names": json.dumps(list(arrays))}, folder)


@pytest.mark.parametrize("tuning", EACH_ADAPTER)
def test_an_adapter_is_delivered(tuning: str, tmp_path: Path) -> None:
    options = SMALL_ADAPTERS.get(tuning, {})
    trained = trained_of(tmp_path / "model", "bert", "text", tuning=tuning, **options)
    found = export(trained, tmp_path / "out", "")
    assert found["folder_off"] <= 1e-4
    assert ("adapter" in found["files"]) == (tuning in UNMERGED)


@pytest.mark.parametrize(
    ("family", "said"), [("xlnet", "padded at the left"), ("fnet", "padding='max_length'")]
)
def test_odd_padding_is_delivered_and_said(family: str, said: str, tmp_path: Path) -> None:
    trained = trained_of(tmp_path / "model", family, "text")
    cards: list[FolderCheck] = []
    found = export(trained, tmp_path / "out", lambda lighter, checked: cards.append(checked) or "")
    assert found["folder_off"] <= 1e-4 and said in cards[0].notes[0]


@pytest.mark.parametrize(
    ("family", "task"), [("vit", "image"), ("t5", "text-to-text"), ("bart", "text")]
)
def test_other_tasks_are_delivered(family: str, task: str, tmp_path: Path) -> None:
    trained = trained_of(tmp_path / "model", family, task, tuning="lora", rank=2)
    assert export(trained, tmp_path / "out", "")["folder_off"] <= 1e-4


def test_another_side_of_padding_is_noticed(tmp_path: Path) -> None:
    """The control: XLNet, with its padding where other models have theirs."""
    trained = trained_of(tmp_path / "model", "xlnet", "text")
    network: Any = trained.network
    network.is_left = False
    with pytest.raises(RunError, match="answers otherwise"):
        export(trained, tmp_path / "out", "")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("family", "tuning"), [("roberta", "ia3"), ("deberta-v2", "loha"), ("bart", "vera")]
)
def test_a_head_of_several_layers_is_delivered(family: str, tuning: str, tmp_path: Path) -> None:
    trained = trained_of(tmp_path / "model", family, "text", tuning=tuning)
    found = export(trained, tmp_path / "out", "")
    assert found["folder_off"] <= 1e-4 and "adapter" not in found["files"]


def test_a_convolutional_model_is_delivered(tmp_path: Path) -> None:
    folder = hub_folder(tmp_path / "model", "resnet", "image")
    plan = hub_plan(folder, "image")
    plan = plan.changed(model={"batch_norm": "frozen"})
    trained = Trained(plan, initial_model(plan), {"names": "[]"}, folder)
    assert export(trained, tmp_path / "out", "")["folder_off"] <= 1e-4
    # A group norm is in no configuration of transformers.
    plan = plan.changed(model={"batch_norm": "group"})
    trained = Trained(plan, initial_model(plan), {"names": "[]"}, folder)
    with pytest.raises(RunError, match="answers otherwise"):
        export(trained, tmp_path / "other", "")


def test_the_tokenizer_of_another_task_is_compared_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = trained_of(tmp_path / "model", "bert", "question-answering")
    assert export(trained, tmp_path / "out", "")["folder_off"] <= 1e-4
    # The control: a tokenizer that reads other numbers.
    whole = export_module.write_tokenizer

    def spoilt(trained: Trained, out: Path, probe: Any) -> None:
        whole(trained, out, probe)
        path = out / "tokenizer.json"
        value = json.loads(path.read_text())
        vocabulary = value["model"]["vocab"]
        vocabulary["w5"], vocabulary["w6"] = vocabulary["w6"], vocabulary["w5"]
        path.write_text(json.dumps(value))

    monkeypatch.setattr(export_module, "write_tokenizer", spoilt)
    with pytest.raises(RunError, match="the tokenizer of the exported folder is not that of"):
        export(trained, tmp_path / "other", "")
