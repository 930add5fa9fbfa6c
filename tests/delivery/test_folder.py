"""An exported folder, opened by plain transformers, answers as the network of the run did."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from families_kit import plan_for
from folder_kit import END, PAD, START, TINY, save_tiny
from short_kit import short

from privet.common.errors import RunError
from privet.common.models.text import tokens_for
from privet.delivery import export as export_module
from privet.delivery import probe as probe_module
from privet.delivery.export import export
from privet.delivery.folder_check import FolderCheck
from privet.delivery.folder_model import write_transformers
from privet.delivery.folder_tokenizer import open_tokenizer
from privet.delivery.probe import generated_texts
from privet.delivery.trained import Trained, load
from privet.privacy.audit.card import write_card
from privet.simulations.run import simulate

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]
Tiny = Callable[..., Trained]


@pytest.fixture
def trained_of(tmp_path: Path) -> Tiny:
    """Return a tiny model of transformers after a short run."""

    def make(name: str, *, change: Callable[[Path], None] | None = None, **options: Any) -> Trained:
        folder = save_tiny(name, tmp_path / "model")
        if change is not None:
            change(folder)
        model = {"kind": "huggingface", "options": {"folder": str(folder), **options}}
        plan = plan_for(
            TINY[name].task, model, tmp_path, 30,
            training={"rounds": 1, "steps": 1, "sample_rate": 0.5, "learning_rate": 0.5},
        )  # fmt: skip
        return load(simulate(plan, out=tmp_path / "run").out)

    return make


def _settings(folder: Path, name: str = "tokenizer_config.json", **values: Any) -> None:
    path = folder / name
    value = json.loads(path.read_text()) | values
    path.write_text(json.dumps({key: one for key, one in value.items() if one is not None}))


@pytest.mark.parametrize(
    "name", short(sorted(TINY), ("bert", "bart", "gpt2-causal", "llama-causal"))
)
def test_transformers_answers_as_the_run_did(trained_of: Tiny, tmp_path: Path, name: str) -> None:
    said: list[FolderCheck] = []
    found = export(
        trained_of(name), tmp_path / "out", lambda lighter, checked: said.append(checked) or ""
    )
    assert 0 <= found["folder_off"] <= 1e-4
    assert "each alone and as one batch padded" in said[0].notes[0]
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["dtype"] == "float32"
    if TINY[name].task == "text":
        assert config["id2label"] == {"0": "0", "1": "1"}


@pytest.mark.parametrize("name", ["bert-masked", "gpt2-causal", "t5"])
def test_lora_is_merged_into_what_is_delivered(trained_of: Tiny, tmp_path: Path, name: str) -> None:
    targets = {"bert-masked": ["query", "value"], "gpt2-causal": ["c_attn"], "t5": ["q", "v"]}
    trained = trained_of(name, tuning="lora", rank=2, targets=targets[name])
    found = export(trained, tmp_path / "out", "")
    assert found["folder_off"] <= 1e-4 and "adapter" not in found["files"]


# the negative controls: what was changed after it was written is not handed on


def _after_writing(monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], None]) -> None:
    real = export_module.check_folder

    def changed(trained: Trained, network: Any, folder: Path, probe: Any) -> FolderCheck:
        change(folder)
        return real(trained, network, folder, probe)

    monkeypatch.setattr(export_module, "check_folder", changed)


def _scale_a_weight(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = folder / "model.safetensors"
    tensors = load_file(path)
    name = next(n for n in sorted(tensors) if n.endswith("weight") and tensors[n].dim() == 2)
    tensors[name] = tensors[name] * 1.01
    save_file(tensors, path, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("bert", _scale_a_weight, "answers otherwise"),
        pytest.param("llama-causal", _scale_a_weight, "answers otherwise", marks=pytest.mark.long),
        pytest.param("bart", _scale_a_weight, "answers otherwise", marks=pytest.mark.long),
        ("bert", lambda folder: _settings(folder, padding_side="left"), "answers otherwise"),
        ("bart", lambda folder: _settings(folder, "config.json", decoder_start_token_id=5), "wise"),
        ("bert", lambda folder: _settings(folder, truncation_side="left"), "gives other numbers"),
        ("bert", lambda folder: _settings(folder, model_max_length=12), "gives other numbers"),
        (
            "bert",
            lambda folder: _settings(folder, split_special_tokens=False),
            "gives other numbers",
        ),
        ("bert", lambda folder: (folder / "tokenizer.json").write_text("{"), "not that of the run"),
        ("bert", lambda folder: (folder / "model.safetensors").unlink(), "cannot open"),
    ],
)
def test_a_folder_that_answers_otherwise_is_refused(
    trained_of: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    name: str, change: Callable[[Path], None], said: str,
) -> None:  # fmt: skip
    trained = trained_of(name)
    _after_writing(monkeypatch, change)
    with pytest.raises(RunError, match=said):
        export(trained, tmp_path / "out", "")
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".export-*"))


def test_another_padding_of_a_classifier_that_reads_the_last_token_is_refused(
    trained_of: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = trained_of("gpt2")
    _after_writing(monkeypatch, lambda folder: _settings(folder, "config.json", pad_token_id=9))
    with pytest.raises(RunError, match="answers otherwise"):
        export(trained, tmp_path / "out", "")


def test_own_architectures_are_compared_too(
    run_of: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("dense", "text-encoder"):
        assert export(load(run_of(name)), tmp_path / name, "")["folder_off"] <= 1e-6
    _after_writing(monkeypatch, _scale_a_weight)
    for name in ("dense", "text-encoder"):
        with pytest.raises(RunError, match="answers otherwise"):
            export(load(run_of(name)), tmp_path / "out", "")


# what the folder holds


def test_generation_settings_are_those_of_the_model(trained_of: Tiny, tmp_path: Path) -> None:
    settings = {"temperature": 0.6, "do_sample": False, "eos_token_id": [END, 9]}  # not valid
    text = json.dumps(settings, indent=3)

    def change(folder: Path) -> None:
        (folder / "generation_config.json").write_text(text)

    export(trained_of("llama-causal", change=change), tmp_path / "out", "")
    assert (tmp_path / "out" / "generation_config.json").read_text() == text


@pytest.mark.parametrize(("name", "tied"), [("gpt2-causal", True), ("llama-causal", False)])
def test_a_tied_head_stays_tied_and_another_stays_another(
    trained_of: Tiny, tmp_path: Path, name: str, tied: bool
) -> None:
    from safetensors import safe_open

    export(trained_of(name), tmp_path / "out", "")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    with safe_open(str(tmp_path / "out" / "model.safetensors"), "pt") as stored:
        assert ("lm_head.weight" in stored.keys()) is not tied  # noqa: SIM118
    assert config.get("tie_word_embeddings", True) is tied


@pytest.mark.parametrize("mixed", [False, True])
def test_a_folder_has_the_precision_that_its_configuration_names(
    tmp_path: Path, mixed: bool
) -> None:
    import transformers
    from safetensors.torch import load_file

    folder = save_tiny("bert", tmp_path / "model")
    auto = transformers.AutoModelForSequenceClassification
    model = auto.from_pretrained(folder).to(torch.bfloat16)
    if mixed:  # a head that was trained beside a frozen encoder; it keeps its numbers
        model.classifier.float().weight.data.fill_(1 / 3)
    write_transformers(model, tmp_path / "out", ("no", "yes"), folder)
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    wanted = torch.float32 if mixed else torch.bfloat16
    assert {tensor.dtype for tensor in tensors.values()} == {wanted}
    assert config["dtype"] == str(wanted).removeprefix("torch.")
    assert config["id2label"] == {"0": "no", "1": "yes"} and config["label2id"] == {
        "no": 0,
        "yes": 1,
    }
    again = auto.from_pretrained(tmp_path / "out")
    assert torch.equal(again.classifier.weight, model.classifier.weight)


def test_a_folder_without_a_padding_token_gets_that_of_the_model(
    trained_of: Tiny, tmp_path: Path
) -> None:
    def change(folder: Path) -> None:
        _settings(folder, pad_token=None)

    export(trained_of("bert", change=change), tmp_path / "out", "")
    assert open_tokenizer(tmp_path / "out").pad_token_id == PAD


def test_texts_are_read_one_by_one_where_nothing_names_padding(
    trained_of: Tiny, tmp_path: Path
) -> None:
    def change(folder: Path) -> None:
        _settings(folder, pad_token=None)
        _settings(folder, "config.json", pad_token_id=None)

    said: list[FolderCheck] = []
    trained = trained_of("gpt2-causal", change=change)
    export(trained, tmp_path / "out", lambda lighter, checked: said.append(checked) or "")
    assert "not as a padded batch" in said[0].notes[0]
    card = write_card(
        trained.plan, {}, None, source="a test", folder=said[0].notes, opening=said[0].opening
    )
    assert "must be read one by one" in card
    assert '    model = transformers.AutoModelForCausalLM.from_pretrained("OUT")' in card


def test_a_start_that_the_task_puts_is_in_the_delivered_tokenizer(
    trained_of: Tiny, tmp_path: Path
) -> None:
    """GPT-2's tokenizer puts no start; the network was trained with one."""
    trained = trained_of("gpt2-causal")
    source = open_tokenizer(Path(trained.plan.model.options.folder))  # type: ignore[union-attr, arg-type]
    assert source("one").input_ids[0] != START
    export(trained, tmp_path / "out", "")
    read = open_tokenizer(tmp_path / "out")
    assert read("one").input_ids == [START, *source("one").input_ids]


@pytest.mark.parametrize(
    ("name", "text", "count"), [("bert", "[SEP]", 1), ("bert-masked", "[MASK]", 1)]
)
def test_a_classifier_reads_a_special_token_as_text_and_a_mask_stays_one(
    trained_of: Tiny, tmp_path: Path, name: str, text: str, count: int
) -> None:
    export(trained_of(name), tmp_path / "out", "")
    tokenizer = open_tokenizer(tmp_path / "out")
    ids = tokenizer(f"one {text} two").input_ids
    assert ids.count(tokenizer.convert_tokens_to_ids(text)) == count


@pytest.mark.parametrize("name", ["qwen2-causal"])
def test_a_tokenizer_that_the_architecture_would_build_otherwise_is_named(
    trained_of: Tiny, tmp_path: Path, name: str
) -> None:
    """Qwen2's class builds byte-level pairs whatever the file holds."""
    said: list[FolderCheck] = []
    export(trained_of(name), tmp_path / "out", lambda lighter, checked: said.append(checked) or "")
    assert (
        "Open its tokenizer with PreTrainedTokenizerFast: AutoTokenizer gives" in said[0].notes[1]
    )
    assert (
        'tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained("OUT")' in said[0].opening
    )


# what it is compared on


def test_generated_texts_have_all_lengths_and_no_record(trained_of: Tiny) -> None:
    tokens = tokens_for(trained_of("bert").plan.model, 16)
    texts = generated_texts(tokens, 16)
    rows = tokens.numbers(texts)
    lengths = sorted((rows != tokens.padding).sum(1).tolist())
    assert lengths[0] == 3 and lengths[-2:] == [16, 16]  # one token in its frame
    assert any(6 <= length <= 12 for length in lengths)
    assert texts == generated_texts(tokens, 16)


def test_long_texts_are_compared_at_some_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    places = probe_module._places(5000)
    assert len(places) == probe_module.MAX_PLACES and (places[0], places[-1]) == (0, 4999)
    assert probe_module._places(3) == [0, 1, 2]


# adapters that cannot be merged


@pytest.mark.parametrize("method", ["prompt", "prefix"])
def test_an_adapter_that_cannot_be_merged_is_beside_its_base(
    trained_of: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    import peft

    trained = trained_of("llama-causal")
    settings: Any = {
        "prompt": peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
        "prefix": peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
    }[method]
    network: Any = trained.network
    torch.manual_seed(0)
    network.inner = peft.get_peft_model(network.inner, settings).eval()
    whole = network.forward  # peft also returns the outputs of a learnt prompt
    monkeypatch.setattr(network, "forward", lambda rows: whole(rows)[:, -rows.shape[1] :])
    said: list[FolderCheck] = []
    export(trained, tmp_path / "out", lambda lighter, checked: said.append(checked) or "")
    files = {path.name for path in (tmp_path / "out" / "adapter").iterdir()}
    assert files == {"adapter_config.json", "adapter_model.safetensors"}
    lines = [line.replace("OUT", str(tmp_path / "out")) for line in said[0].opening]
    assert len(lines) == 4  # three open the model, one its tokenizer
    scope: dict[str, Any] = {}
    exec("\n".join(lines), scope)
    assert isinstance(scope["model"], peft.PeftModel)
    # The control: without its adapter the base model answers otherwise.
    monkeypatch.setattr(peft.PeftModel, "from_pretrained", lambda base, path: base)
    with pytest.raises(RunError, match="answers otherwise"):
        export(trained, tmp_path / "again", "")
