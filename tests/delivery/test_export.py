"""What is handed on is the same model, with a card that says what was verified."""

from __future__ import annotations

import functools
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from families_kit import counting, plan_for, tokenizer_folder
from short_kit import short

from privet.cli import main as privet
from privet.client.training.model_runtime import model_runtime
from privet.common.errors import DataError, InputError, RunError
from privet.common.flat import digest_arrays
from privet.common.models.start import digest_of
from privet.common.models.tokens import TOKENIZER
from privet.common.tasks.measure import measure_of
from privet.delivery.explain import explain
from privet.delivery.export import Form, export, reload
from privet.delivery.onnx_file import full_length
from privet.delivery.optimise import OnnxNetwork
from privet.delivery.provenance import provenance
from privet.delivery.trained import load
from privet.privacy.audit.bundle import write_bundle
from privet.privacy.audit.card import gather, write_card
from privet.simulations.run import simulate

Runs = Callable[[str], Path]
OWN = ["linear", "dense", "ft-transformer", "vit", "resnet", "text-encoder", "decoder", "gaps"]
WRITTEN_AS_ONNX = [name for name in (*OWN, "encoder-decoder", "t5") if name != "gaps"]


@pytest.mark.parametrize("name", OWN)
def test_a_folder_gives_the_same_network_again(run_of: Runs, tmp_path: Path, name: str) -> None:
    trained = load(run_of(name))
    found = export(trained, tmp_path / "out", "# card\n")
    assert {"README.md", "config.json", "model.safetensors", "plan.json"} <= set(found["files"])
    again = reload(tmp_path / "out")
    batch = trained.encode(counting(1, 6, 5))
    with torch.no_grad():
        one, two = (trained.task.loss(net, batch) for net in (trained.network, again))
    assert torch.equal(one, two)


@pytest.mark.parametrize("name", ["t5", "encoder-decoder"])
def test_a_folder_of_transformers_is_loaded_by_it(run_of: Runs, tmp_path: Path, name: str) -> None:
    from transformers import AutoModelForSeq2SeqLM

    trained = load(run_of(name))
    export(trained, tmp_path / "out", "# card\n")
    again = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "out").eval()
    batch = trained.encode(counting(1, 3, 5))
    with torch.no_grad():
        wanted = trained.network.inner(batch["source"], decoder_input_ids=batch["target"])  # type: ignore[operator]
        got = again(batch["source"], decoder_input_ids=batch["target"])
    assert torch.allclose(got.logits, wanted.logits, atol=1e-6)


@pytest.mark.parametrize("name", ["t5", "encoder-decoder", "decoder", "gaps", "text-encoder"])
def test_its_tokenizer_gives_the_numbers_that_were_trained_on(
    run_of: Runs, tmp_path: Path, name: str
) -> None:
    from transformers import AutoTokenizer

    trained = load(run_of(name))
    export(trained, tmp_path / "out", "# card\n")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    frame = counting(1, 3, 5)
    frame.loc[0, "text"] = "Zwölf 12"
    batch = trained.encode(frame)
    rows = batch["source" if "source" in batch else "tokens"].tolist()
    wanted = [row[: max(k for k, token in enumerate(row) if token) + 1] for row in rows]
    assert [tokenizer(text).input_ids for text in frame["text"]] == wanted
    assert tokenizer.pad_token_id == 0
    assert tokenizer.eos_token_id == (1 if name in ("t5", "encoder-decoder", "decoder") else None)
    assert tokenizer.mask_token_id == (1 if name == "gaps" else None)


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("tuning", ["head", "lora"])
def test_minilm_is_whole_when_it_is_handed_on(tmp_path: Path, tuning: str) -> None:
    """A head gets the frozen encoder it was trained on; LoRA is joined with what it changes."""
    model = {"kind": "minilm", "options": {"tuning": tuning}}
    plan = plan_for("text", model, tmp_path, 30, training={"rounds": 1, "steps": 1})
    trained = load(simulate(plan, out=tmp_path / "run").out)
    found = export(trained, tmp_path / "out", "# card\n", Form(onnx=True))
    assert found["onnx_off"] <= 1e-4
    batch = trained.encode(counting(1, 6, 5))
    bench = model_runtime(plan)
    bench.load(trained.arrays)
    wanted = bench.score(bench.encode(counting(1, 6, 5)))
    again = reload(tmp_path / "out")
    with torch.no_grad():
        got = trained.task.scores(again, batch).numpy()
    assert got == pytest.approx(wanted, abs=1e-5)
    one = explain(trained, counting(1, 1, 5))[0]
    assert [part.name for part in one.parts if part.name.isalpha()] == counting(1, 1, 5)[
        "text"
    ].item().split()
    assert one.off < 0.2 and any(part.weight for part in one.parts)


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_a_model_of_a_folder_is_loaded_by_transformers(tmp_path: Path, tuning: str) -> None:
    import transformers

    def save(folder: Path) -> None:
        config = transformers.BertConfig(
            vocab_size=4096, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
            intermediate_size=32, max_position_embeddings=32, num_labels=2,
        )  # fmt: skip
        transformers.BertForSequenceClassification(config).save_pretrained(folder)

    folder = tokenizer_folder(tmp_path / "bert", save)
    model = {"kind": "huggingface", "options": {"folder": str(folder), "tuning": tuning}}
    trained = load(simulate(plan_for("text", model, tmp_path, 30), out=tmp_path / "run").out)
    batch = trained.encode(counting(1, 6, 5))
    wanted = trained.scores(batch)
    found = export(trained, tmp_path / "out", "# card\n", Form(onnx=True))
    assert found["onnx_off"] <= 1e-4
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["id2label"] == {"0": "0", "1": "1"}
    again = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").eval()
    rows = batch["tokens"]
    with torch.no_grad():
        logits = again(input_ids=rows.clamp(min=0), attention_mask=(rows >= 0).long()).logits
    assert logits.softmax(-1).numpy() == pytest.approx(wanted, abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.long) if n == "t5" else n for n in WRITTEN_AS_ONNX]
)
def test_onnx_agrees(run_of: Runs, tmp_path: Path, name: str) -> None:
    found = export(load(run_of(name)), tmp_path / "out", "# card\n", Form(onnx=True))
    assert found["onnx_off"] <= 1e-4
    assert "model.onnx" in found["files"]


@pytest.mark.long
def test_onnx_of_a_table_with_one_category_alone(tmp_path: Path) -> None:
    """Its records have one number each, which no test of empty texts may take for padding."""
    label = {"label": "y", "classes": ["0", "1"], "categorical": {"c": ["red", "blue"]}}
    for number in (1, 2):
        frame = pd.DataFrame({"c": ["red", "blue"] * 30, "y": [0, 1] * 30})
        frame.to_csv(tmp_path / f"one-{number}.csv", index=False)
    plan = plan_for("tabular", {"kind": "linear"}, tmp_path).changed(
        task={**label, "numeric": {}},
        sites=[
            {"name": f"Site {n}", "nominal_size": 40, "path": str(tmp_path / f"one-{n}.csv")}
            for n in (1, 2)
        ],
    )
    trained = load(simulate(plan, out=tmp_path / "run").out)
    found = export(trained, tmp_path / "out", "# card\n", Form(onnx=True))
    assert found["onnx_off"] <= 1e-4


def test_onnx_that_differs_is_not_handed_on(
    run_of: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnxruntime

    real = onnxruntime.InferenceSession.run
    monkeypatch.setattr(
        onnxruntime.InferenceSession, "run",
        lambda self, names, given: [part * 1.001 for part in real(self, names, given)],
    )  # fmt: skip
    with pytest.raises(RunError, match="differ from the network's"):
        export(load(run_of("dense")), tmp_path / "out", "# card\n", Form(onnx=True))
    assert not any(tmp_path.iterdir())


def test_a_folder_that_is_not_empty_is_left_alone(run_of: Runs, tmp_path: Path) -> None:
    (tmp_path / "note").write_text("mine")
    with pytest.raises(InputError, match="not an empty folder"):
        export(load(run_of("dense")), tmp_path, "# card\n")
    assert [path.name for path in tmp_path.iterdir()] == ["note"]
    with pytest.raises(InputError, match="not a folder that `privet model export` wrote"):
        reload(tmp_path)


# the card


def test_the_card_says_what_was_verified(run_of: Runs) -> None:
    folder = run_of("dense")
    trained = load(folder)
    evidence = gather(folder, folder / "roster-fingerprints.json", digest_arrays(trained.arrays))
    card = write_card(trained.plan, {"accuracy": 0.5}, evidence, source="a test")
    result = json.loads((folder / "result.json").read_text())
    assert "ended with this very model" in card and result["run"] in card
    assert "no rule is broken (roster pinned)" in card
    assert "δ 0.001, per record, add or remove one" in card and "Trust: local" in card
    assert f"{result['sites'][0]['epsilon']:.3f}" in card
    assert "Claim: conditional on" in card and "H31 rollback" in card
    for origin, (size, root) in evidence.heads.items():
        assert f"| `{origin}` | {size} | `{root}` |" in card
    assert len(evidence.heads) == 3


def test_the_card_of_another_model_says_so(run_of: Runs) -> None:
    folder = run_of("dense")
    trained = load(folder)
    arrays = {name: array + 1 for name, array in trained.arrays.items()}
    evidence = gather(folder, None, digest_arrays(arrays))
    card = write_card(trained.plan, {}, evidence, source="a test")
    assert "names no run that ended with this model" in card
    assert "roster not pinned" in card


def test_the_card_of_damaged_evidence_says_so(run_of: Runs, tmp_path: Path) -> None:
    folder = run_of("dense")
    trained = load(folder)
    bundle = write_bundle([folder], tmp_path / "run.bundle").path
    lines = bundle.read_text().splitlines(keepends=True)
    cut = next(number for number, line in enumerate(lines) if '"payload"' in line)
    bundle.write_text("".join(lines[:cut] + lines[cut + 1 :]))
    evidence = gather(bundle, None, digest_arrays(trained.arrays))
    card = write_card(trained.plan, {}, evidence, source="a test")
    assert "has faults" in card and "was verified" not in card


def test_only_a_model_that_the_evidence_knows_is_called_verified(
    run_of: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def exported(*words: str) -> tuple[int, dict[str, Any]]:
        monkeypatch.setattr(sys, "argv", ["privet", "model", "export", *words])
        code = 0
        try:
            privet()
        except SystemExit as end:
            code = int(end.code or 0)
        return code, json.loads(capsys.readouterr().out)

    folder = shutil.copytree(run_of("dense"), tmp_path / "run")
    code, value = exported(str(folder), "--out", str(tmp_path / "a"), "--json")
    assert code == 0 and value["verified"] is True
    # The control: another model in the same folder.
    from safetensors import safe_open
    from safetensors.numpy import save_file

    path = folder / "model" / "model.safetensors"
    with safe_open(str(path), framework="numpy") as stored:
        facts = stored.metadata()
        arrays = {name: stored.get_tensor(name) + 1 for name in stored.keys()}  # noqa: SIM118
    save_file(arrays, path, metadata=facts)
    code, value = exported(str(folder), "--out", str(tmp_path / "b"), "--json")
    assert code == 0 and value["verified"] is None and value["run"] is None
    bundle = write_bundle([run_of("dense")], tmp_path / "run.bundle").path
    lines = bundle.read_text().splitlines(keepends=True)
    cut = next(number for number, line in enumerate(lines) if '"payload"' in line)
    bundle.write_text("".join(lines[:cut] + lines[cut + 1 :]))
    words = (str(folder), "--out", str(tmp_path / "c"), "--json", "--bundle", str(bundle))
    code, value = exported(*words)
    assert code == 4 and value["verified"] is False


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda a: {n: v * np.float32("nan") for n, v in a.items()}, "not finite"),
        (lambda a: {n: np.ones(1, np.float32) for n in a}, "do not have the same parameters"),
    ],
)
def test_a_spoilt_model_is_not_loaded(
    run_of: Runs, tmp_path: Path, spoil: Callable[[Any], Any], said: str
) -> None:
    from safetensors import safe_open
    from safetensors.numpy import save_file

    folder = shutil.copytree(run_of("dense"), tmp_path / "run")
    path = folder / "model" / "model.safetensors"
    with safe_open(str(path), framework="numpy") as stored:
        facts = stored.metadata()
        arrays = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
    save_file(spoil(arrays), path, metadata=facts)
    with pytest.raises(InputError, match=said):
        load(folder).network.eval()


def test_a_damaged_result_is_said(run_of: Runs, tmp_path: Path) -> None:
    folder = shutil.copytree(run_of("dense"), tmp_path / "run")
    (folder / "result.json").write_text("[1")
    with pytest.raises(InputError, match=r"result.json: cannot be read"):
        load(folder).result.keys()


def test_evidence_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="its evidence cannot be gathered"):
        gather(tmp_path, None, "sha256:" + 64 * "0")


def test_a_run_without_privacy_says_none(run_of: Runs) -> None:
    plan = load(run_of("dense")).plan.changed(privacy=None)
    card = write_card(plan, {}, None, source="a test")
    assert "**None.** This model was trained without noise" in card
    with_privacy = write_card(load(run_of("dense")).plan, {}, None, source="a test")
    assert "**Not verified:**" in with_privacy


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("dense", ["`x1` -5 to 5, `x2` -5 to 5", "Classes are those that the plan declares"]),
        ("vit", ["the declared range -4 to 12"]),
        ("decoder", ["4,096 tokens (`sha256:b258de8cc902", "learnt on public-domain text"]),
    ],
)
def test_the_card_says_where_inputs_come_from(run_of: Runs, name: str, said: list[str]) -> None:
    plan = load(run_of(name)).plan
    card = write_card(plan, {}, None, source="a test", provenance=provenance(plan))
    section = card.partition("## Vocabulary and normalisation (H12)")[2].partition("## Limits")[0]
    assert all(words in section for words in said)


def test_a_name_of_the_plan_is_no_section_of_the_card(run_of: Runs) -> None:
    plan = load(run_of("dense")).plan
    name = "age\n\n## Privacy\n\n`Claim`: **proved**"
    plan = plan.changed(task={"numeric": {name: {"low": 0, "high": 1}}})
    assert provenance(plan)[0].splitlines() == provenance(plan)[:1]
    assert "`age ## Privacy Claim : **proved**` 0 to 1" in provenance(plan)[0]


def test_variants_are_not_measured_against_made_up_answers(run_of: Runs, tmp_path: Path) -> None:
    for name, column in (("dense", "low"), ("encoder-decoder", "spanish")):
        records = counting(1, 9, 5).drop(columns=column)
        with pytest.raises(DataError, match=f"'{column}' is missing: it says what is right"):
            export(load(run_of(name)), tmp_path / "out", "", Form(prune=0.5, records=records))
    assert not any(tmp_path.iterdir())


def test_the_vocabulary_is_the_file_that_is_described() -> None:
    described = TOKENIZER.with_name("tokenizer.md").read_text()
    assert digest_of(TOKENIZER).removeprefix("sha256:") in described


# lighter


def test_pruning_sets_the_share_to_zero_and_says_what_it_costs(
    run_of: Runs, tmp_path: Path
) -> None:
    from safetensors.numpy import load_file

    trained = load(run_of("dense"))
    before = {name: array.copy() for name, array in trained.arrays.items()}
    frame = counting(1, 60, 5)
    found = export(
        trained,
        tmp_path / "out",
        lambda lighter, checked: str(sorted(lighter)),
        Form(prune=0.5, records=frame),
    )
    weights = load_file(tmp_path / "out" / "model.safetensors")
    linear = [name for name in weights if name.endswith("weight")]
    zeros = sum(int((weights[name] == 0).sum()) for name in linear)
    total = sum(weights[name].size for name in linear)
    assert zeros / total == pytest.approx(0.5, abs=0.15)  # the head may have zeros of its own
    kept = [weights[name][weights[name] != 0] for name in linear]
    assert all(
        set(part) <= set(before[name].ravel()) for name, part in zip(linear, kept, strict=True)
    )
    assert set(found["lighter"]) == {"whole", "pruned"}
    assert found["lighter"]["pruned"]["packed"] > 0
    assert (tmp_path / "out" / "README.md").read_text() == "['pruned', 'whole']"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "name", short(["text-encoder", "decoder", "encoder-decoder"], ["text-encoder"])
)
def test_eight_bits_are_measured_on_the_same_records(
    run_of: Runs, tmp_path: Path, name: str
) -> None:
    trained = load(run_of(name))
    frame = counting(1, 60, 5)
    found = export(trained, tmp_path / "out", "# card\n", Form(onnx=True, int8=True, records=frame))
    whole, small = found["lighter"]["whole"], found["lighter"]["int8"]
    headline = measure_of(trained.task).headline
    assert small[headline] == pytest.approx(whole[headline], rel=0.12)
    files = tmp_path / "out"
    assert (files / "model.int8.onnx").stat().st_size < 0.7 * (files / "model.onnx").stat().st_size
    card = write_card(trained.plan, {}, None, source="a test", lighter=found["lighter"])
    assert "| int8 |" in card and "Smaller variants" in card
    # Measured the same way, the file that was not made smaller has the network's very scores.
    names = ["source", "target"] if name == "encoder-decoder" else ["tokens"]
    batch = trained.encode(frame)
    exact = OnnxNetwork(files / "model.onnx", names, functools.partial(full_length, trained))
    assert trained.scores(batch, exact) == pytest.approx(trained.scores(batch), rel=1e-4, abs=1e-4)


def test_what_cannot_be_made_lighter_is_said(run_of: Runs, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="add --onnx"):
        export(load(run_of("dense")), tmp_path / "out", "", Form(int8=True))
    with pytest.raises(InputError, match="no ONNX for a model of task 'masked-text'"):
        export(load(run_of("gaps")), tmp_path / "out", "", Form(onnx=True, int8=True))
    with pytest.raises(InputError, match="a share from 0 to below 1"):
        export(load(run_of("dense")), tmp_path / "out", "", Form(prune=1.5))
    assert not any(tmp_path.iterdir())
