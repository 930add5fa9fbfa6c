"""Models that tag words, find answers and classify recordings: from a user's own file to a folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sequence_kit import RECORDS, TASKS, sequence_plan, sounds, write_parquet
from typer.testing import CliRunner

from privet.cli import app
from privet.client.operator.check import check_records
from privet.client.training.model_runtime import ModelRuntime
from privet.common.errors import DataError, InputError, PlanError
from privet.common.models import build_model, initial_model
from privet.common.plan import Plan
from privet.common.tasks.measure import OURS, measure_of, measure_of_kind
from privet.delivery.evaluate import evaluate
from privet.delivery.explain import explain
from privet.delivery.export import Form, export
from privet.delivery.http_service import _predict, make_service
from privet.delivery.provenance import provenance
from privet.delivery.trained import load
from privet.simulations.records import SiteRecords
from privet.simulations.run import simulate

KINDS = sorted(RECORDS)
HEADLINES = {
    "audio": "accuracy", "question-answering": "f1", "token-classification": "token_accuracy",
}  # fmt: skip
HEADINGS = {
    "token_accuracy": "tokens", "exact_match": "exact", "f1": "F1", "accuracy": "accuracy",
    "precision": "precision", "recall": "recall", "auc": "AUC",
}  # fmt: skip
AUTO = {
    "audio": "AutoModelForAudioClassification",
    "question-answering": "AutoModelForQuestionAnswering",
    "token-classification": "AutoModelForTokenClassification",
}
Made = Callable[[str], Path]
# torch has no batching rule for the weight norm of wav2vec2's convolution over places.
pytestmark = pytest.mark.filterwarnings("ignore:.*_weight_norm:UserWarning")


@pytest.fixture(scope="module")
def run_of(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Return the folder of a finished run with privacy, made once."""
    made: dict[str, Path] = {}

    def run(kind: str) -> Path:
        if kind not in made:
            folder = tmp_path_factory.mktemp(kind)
            plan = sequence_plan(kind, folder)
            result = simulate(plan, out=folder / "run")
            assert result.loss is not None and 7.9 < result.loss.epsilon <= 8
            assert [site.status for site in result.sites] == ["released", "released"]
            made[kind] = result.out
        return made[kind]

    return run


@pytest.mark.parametrize("kind", KINDS)
def test_each_passes_the_start_up_tests(kind: str, tmp_path: Path) -> None:
    plan = sequence_plan(kind, tmp_path, 2, metrics={"source": "gate"})
    bench = ModelRuntime(plan)
    assert bench.self_tests == ("H6", "H7", "H16", "H17")
    assert bench.engine.mode == "bookkeeping"
    assert measure_of(bench.task) is measure_of_kind(kind) and measure_of_kind(kind) in OURS


@pytest.mark.parametrize("kind", KINDS)
def test_each_trains_with_privacy_on_the_users_own_file(kind: str, run_of: Made) -> None:
    folder = run_of(kind)
    found = json.loads((folder / "result.json").read_text())
    measure = measure_of_kind(kind)
    assert measure.headline == HEADLINES[kind]
    assert all(found["metrics"][name] is not None for name in measure.names)
    assert measure.headline.replace("_", " ") in (folder / "plots" / "rounds.svg").read_text()
    before = initial_model(load(folder).plan)
    assert all(not np.array_equal(load(folder).arrays[name], before[name]) for name in before)


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
def test_each_learns_what_can_be_learnt(kind: str, tmp_path: Path) -> None:
    learns = {"rounds": 3, "steps": 40, "optimizer": "adam", "learning_rate": 0.01}
    plan = sequence_plan(kind, tmp_path, privacy="none", training=learns)
    found = simulate(plan, out=tmp_path / "run").metrics
    assert all(found[name] > 0.9 for name in measure_of_kind(kind).names)


@pytest.mark.parametrize("kind", KINDS)
def test_each_is_measured_by_a_noised_table(kind: str, tmp_path: Path) -> None:
    metrics = {"source": "gate", "noise_multiplier": 1.0}
    plan = sequence_plan(kind, tmp_path, privacy={"epsilon": 20}, metrics=metrics)
    found = simulate(plan, out=tmp_path / "run")
    name = measure_of_kind(kind).headline
    assert found.metrics[name] is not None and 0 <= found.metrics[name] <= 1
    assert all(name in site.metrics for site in found.sites)
    assert found.metrics.keys() == set(measure_of_kind(kind).names)


@pytest.mark.parametrize("kind", KINDS)
def test_an_evaluation_has_the_names_of_the_task(kind: str, run_of: Made, tmp_path: Path) -> None:
    path = write_parquet(RECORDS[kind](12, 9), tmp_path / "public.parquet")
    asked = ["model", "evaluate", str(run_of(kind)), "--from", str(path)]
    shown = CliRunner().invoke(app, asked)
    assert shown.exit_code == 0, shown.output
    value = json.loads(CliRunner().invoke(app, [*asked, "--json"]).stdout)
    for name in measure_of_kind(kind).names:
        assert name in value["metrics"]
        assert f" {HEADINGS[name]} " in shown.output
    assert (value["calibration"] is None) is (kind != "audio")


def test_groups_are_measured_alike(run_of: Made) -> None:
    frame = RECORDS["token-classification"](20, 3).assign(site=["a", "b"] * 10)
    found = evaluate(load(run_of("token-classification")), frame, [])
    assert found["sites"]["a"].keys() == {"records", *measure_of_kind("token-classification").names}


@pytest.mark.parametrize("kind", KINDS)
def test_an_exported_folder_is_a_model_of_transformers(
    kind: str, run_of: Made, tmp_path: Path
) -> None:
    import transformers

    trained = load(run_of(kind))
    found = export(trained, tmp_path / "out", "# card")
    assert ("tokenizer.json" in found["files"]) is (kind != "audio")
    again: Any = getattr(transformers, AUTO[kind]).from_pretrained(tmp_path / "out").eval()
    labels = TASKS[kind].get("classes")
    if labels:
        assert list(again.config.id2label.values()) == labels
    batch = trained.task.random_batch(3, 0)
    inputs = {name: batch[name] for name in ("tokens", "types", "waveform") if name in batch}
    trained.network.inner, kept = again, trained.network.inner
    with torch.no_grad():
        mine = trained.network(**inputs)
        trained.network.inner = kept
        assert torch.allclose(mine, trained.network(**inputs), atol=1e-5)
    with pytest.raises(InputError, match=f"no ONNX for a model of task '{kind}'"):
        export(trained, tmp_path / "onnx", "# card", Form(onnx=True))


@pytest.mark.parametrize("kind", ["question-answering", "token-classification"])
def test_what_has_no_class_is_not_served_or_explained(kind: str, run_of: Made) -> None:
    trained = load(run_of(kind))
    with pytest.raises(InputError, match=f"a model for '{kind}' is not served"):
        make_service(trained)
    with pytest.raises(InputError, match="has no class to explain"):
        explain(trained, RECORDS[kind](1, 0))


def test_a_recording_is_classified_over_http(run_of: Made) -> None:
    trained = load(run_of("audio"))
    assert make_service(trained)
    frame = pd.DataFrame({"audio": sounds(2, 0)["audio"]})
    answers = _predict(trained, pd.DataFrame(json.loads(frame.to_json(orient="records"))))
    assert [one["label"] in ("low", "high") for one in answers] == [True, True]
    with pytest.raises(DataError, match="neither a list of numbers nor a WAV file"):
        _predict(trained, pd.DataFrame([{"audio": "sound.wav"}]))


def test_a_card_says_where_inputs_come_from(run_of: Made) -> None:
    said = " ".join(provenance(load(run_of("audio")).plan))
    assert "16,000 samples per second" in said and "640 samples" in said
    assert "The vocabulary has" in " ".join(provenance(load(run_of("question-answering")).plan))


@pytest.mark.parametrize("form", ["wav", "struct"])
def test_files_of_sound_train_as_lists_do(form: str, tmp_path: Path) -> None:
    plan = sequence_plan("audio", tmp_path)
    for number in (1, 2):
        write_parquet(sounds(40, number, form), tmp_path / f"site-{number}.parquet")
    result = simulate(plan, out=tmp_path / "run")
    assert [site.status for site in result.sites] == ["released", "released"]
    assert not [one for one in result.remarks if not one.startswith("the model")]


def test_a_record_that_cannot_be_used_is_left_out_and_named(tmp_path: Path) -> None:
    kind = "token-classification"
    plan = sequence_plan(kind, tmp_path, split={"test": 0.0}, metrics={"source": "off"})
    bad = pd.DataFrame({"text": [["Ada", "saw"]], "label": [["O"]]})
    write_parquet(pd.concat([RECORDS[kind](40, 1), bad]), tmp_path / "site-1.parquet")
    result = simulate(plan, out=tmp_path / "run")
    assert [site.status for site in result.sites] == ["released", "released"]
    assert "1 record of 41 to train on" in " ".join(result.remarks)


@pytest.mark.parametrize("kind", KINDS)
def test_an_operator_is_told_what_is_wrong_with_the_records(kind: str, tmp_path: Path) -> None:
    plan = sequence_plan(kind, tmp_path, 40)
    good = RECORDS[kind](40, 1)
    column = "answer" if kind == "question-answering" else "label"
    bad = good.iloc[:1].assign(**{column: [None]})
    write_parquet(pd.concat([good, bad]), tmp_path / "site-1.parquet")
    found = check_records(SiteRecords(plan).site("Site 1"), plan, "Site 1")
    assert list(found.left_out) == [41] and f"'{column}'" in found.left_out[41]
    assert [finding.kind for finding in found.findings if finding.level == "fault"] == []


def test_an_operator_is_told_of_labels_that_never_occur(tmp_path: Path) -> None:
    plan = sequence_plan("token-classification", tmp_path, 40)
    plan = plan.changed(task={"classes": [*TASKS["token-classification"]["classes"], "B-X"]})
    found = check_records(SiteRecords(plan).site("Site 1"), plan, "Site 1")
    said = [finding.message for finding in found.findings]
    assert "no record has the label 'B-X'" in said


def test_a_model_without_types_gets_none(tmp_path: Path) -> None:
    import transformers as hf

    plan = sequence_plan("question-answering", tmp_path, 2)
    folder = Path(str(plan.model.options.folder))
    config = hf.DistilBertConfig(dim=16, hidden_dim=16, n_layers=1, n_heads=2, vocab_size=64)
    hf.DistilBertForQuestionAnswering(config).save_pretrained(folder)
    assert ModelRuntime(plan).self_tests


@pytest.mark.parametrize("tuning", ["lora", "head"])
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("kind", ["question-answering", "token-classification"])
def test_a_head_is_trained_with_adapters_or_alone(kind: str, tuning: str, tmp_path: Path) -> None:
    plan = sequence_plan(kind, tmp_path, 2)
    folder = str(plan.model.options.folder)
    options = {"folder": folder, "tuning": tuning}
    names = initial_model(plan.changed(model={"options": options}))
    head = "qa_outputs" if kind == "question-answering" else "classifier"
    assert any(head in name for name in names)
    assert any("lora" in name for name in names) is (tuning == "lora")


@pytest.mark.parametrize("kind", KINDS)
def test_models_of_privet_do_none_of_them(kind: str, tmp_path: Path) -> None:
    value = sequence_plan(kind, tmp_path, 2).to_dict()
    value["model"] = {"kind": "text-encoder"}
    with pytest.raises(PlanError, match=f"'text-encoder' does not do task '{kind}': use hugging"):
        build_model(Plan.parse(value))
