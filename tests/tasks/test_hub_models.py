"""Models of transformers through a plan: any family, any adapter, and rows of any length."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hub_kit import CLASSES, EACH_ADAPTER, END, SMALL_ADAPTERS, hub_folder, hub_plan, hub_tokenizer
from torch import Tensor

from privet.client.training.model_runtime import ModelRuntime
from privet.common.errors import PlanError
from privet.common.models import build_model, trainable
from privet.common.models.huggingface.networks import PADDING, TokenNetwork
from privet.common.plan import Plan

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")

TEXTS = ("distilbert", "bert", "roberta", "deberta-v2", "gpt2", "llama", "bart", "xlnet", "fnet")
LEFT, FIXED = ("xlnet",), ("fnet",)
SHORT, LONG = "w5 w6 w7", " ".join(f"w{number}" for number in range(8, 26))


def network_of(plan: Plan) -> TokenNetwork:
    network = build_model(plan).eval()
    assert isinstance(network, TokenNetwork)
    return network


def rows_of(plan: Plan, *texts: str) -> Tensor:
    import pandas as pd

    from privet.common.tasks import build_task

    found: Tensor = build_task(plan).encode(pd.DataFrame({"text": texts, "label": "a"}))["tokens"]
    return found


def plainly(folder: Path, ids: Tensor) -> Tensor:
    """What transformers answers to one text without padding, whose classes the folder names."""
    model: Any = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        logits: Tensor = model(input_ids=ids.unsqueeze(0)).logits[0]
    return logits


@pytest.mark.parametrize("family", TEXTS)
def test_a_text_has_the_same_answer_alone_and_beside_others(family: str, tmp_path: Path) -> None:
    folder = hub_folder(tmp_path / "model", family, "text", num_labels=3)
    plan = hub_plan(folder, "text")
    network = network_of(plan)
    assert network.is_left == (family in LEFT)
    assert network.is_fixed == (family in FIXED)
    rows = rows_of(plan, SHORT, LONG)
    with torch.no_grad():
        alone, beside = network(tokens=rows[:1])[0], network(tokens=rows)[0]
    assert torch.allclose(alone, beside, atol=1e-6)
    if family not in FIXED:
        wanted = plainly(folder, rows[0][rows[0] != PADDING])
        assert torch.allclose(alone, wanted, atol=1e-5)


@pytest.mark.parametrize(("family", "wrong"), [("gpt2", "padding"), ("xlnet", "is_left")])
def test_another_padding_gives_another_answer(family: str, wrong: str, tmp_path: Path) -> None:
    """The control: what :mod:`privet.common.models.huggingface.padding` finds is needed."""
    folder = hub_folder(tmp_path / "model", family, "text", num_labels=3)
    plan = hub_plan(folder, "text")
    network, rows = network_of(plan), rows_of(plan, SHORT, LONG)
    wanted = plainly(folder, rows[0][rows[0] != PADDING])
    setattr(network, wrong, 9 if wrong == "padding" else False)
    with torch.no_grad():
        assert not torch.allclose(network(tokens=rows)[0], wanted, atol=1e-3)


@pytest.mark.parametrize("family", [*TEXTS, "vit"])
def test_lora_finds_layers_that_fit(family: str, tmp_path: Path) -> None:
    task = "image" if family == "vit" else "text"
    folder = hub_folder(tmp_path / "model", family, task)
    model = build_model(hub_plan(folder, task, tuning="lora", rank=2))
    names = list(trainable(model))
    assert any("lora_A" in name for name in names)
    # A fresh head is trained, and nothing else of the model.
    assert any("lora" not in name for name in names)
    frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    assert frozen > 5 * sum(trainable(model)[name].numel() for name in names if "lora" not in name)


@pytest.mark.filterwarnings("ignore:Sparse invariant checks:UserWarning")
@pytest.mark.parametrize("tuning", EACH_ADAPTER)
def test_every_adapter_is_clipped_exactly(tuning: str, tmp_path: Path) -> None:
    folder = hub_folder(tmp_path / "model", "bert", "text")
    plan = hub_plan(folder, "text", tuning=tuning, **SMALL_ADAPTERS.get(tuning, {}))
    runtime = ModelRuntime(plan)
    assert runtime.self_tests == ("H6", "H7", "H16", "H17")
    assert "inner.bert.embeddings.word_embeddings.weight" not in runtime.engine.named


@pytest.mark.parametrize(
    ("family", "task"),
    [("llama", "causal-text"), ("t5", "text-to-text"), ("bert", "masked-text"), ("vit", "image")],
)
@pytest.mark.parametrize("tuning", ["full", "ia3", "prompt"])
def test_every_task_has_its_class(family: str, task: str, tuning: str, tmp_path: Path) -> None:
    folder = hub_folder(tmp_path / "model", family, task)
    plan = hub_plan(folder, task, tuning=tuning, **SMALL_ADAPTERS.get(tuning, {}))
    if (tuning, task) == ("prompt", "image"):
        with pytest.raises(
            PlanError, match="virtual tokens before a text, which task 'image' does"
        ):
            build_model(plan)
        return
    assert ModelRuntime(plan).self_tests == ("H6", "H7", "H16", "H17")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_checkpoint_of_16_bits_is_computed_in_32(dtype: torch.dtype, tmp_path: Path) -> None:
    folder = hub_folder(tmp_path / "model", "bert", "text")
    model: Any = transformers.AutoModelForSequenceClassification.from_pretrained(folder)
    model.to(dtype).save_pretrained(folder)
    for tuning in ("full", "lora"):
        built = build_model(hub_plan(folder, "text", tuning=tuning))
        assert {parameter.dtype for parameter in built.parameters()} == {torch.float32}


def test_patterns_freeze_and_train(tmp_path: Path) -> None:
    folder = hub_folder(tmp_path / "model", "bert", "text")

    def names(**options: Any) -> set[str]:
        return set(trainable(build_model(hub_plan(folder, "text", **options))))

    every = names()
    kept = names(freeze=["*.embeddings.*"])
    assert every - kept == {name for name in every if ".embeddings." in name} != set()
    norms = names(tuning="head", train=["*LayerNorm*"])
    assert {name for name in every if "LayerNorm" in name or "classifier" in name} == norms
    # The last word is that of 'train'.
    assert names(freeze=["*"], train=["classifier.*"]) == names(tuning="head")
    # Names are those of transformers, whatever an adapter makes of them.
    more = names(tuning="lora", train=["bert.pooler.dense.bias"])
    assert sum("pooler" in name for name in more) == 1
    with pytest.raises(PlanError, match=r"freeze: no parameter matches '\*.embedings.\*'"):
        names(freeze=["*.embedings.*"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 4}, "rank: belongs to tuning = 'lora', .* or others, not to 'full'"),
        ({"tuning": "head", "targets": ["query"]}, "targets: belongs to tuning = 'lora'"),
        ({"tuning": "lorra"}, "did you mean 'lora'"),
        ({"tuning": "lora", "peft": {"lora_alhpa": 3}}, "no option 'lora_alhpa'; did you mean"),
        ({"tuning": "lora", "peft": {"r": 3}}, "'rank' and 'targets' are keys of model.options"),
        ({"tuning": "lora", "targets": ["qery"]}, "no layer 'qery'; did you mean 'query'?"),
        ({"tuning": "prompt", "rank": 4}, "rank: 'prompt' has no rank"),
        ({"tuning": "prompt", "peft": {"tokenizer_name_or_path": "x"}}, "is not for a plan"),
        ({"tuning": "c3a"}, "tuning 'c3a': The block size"),
    ],
)
def test_options_that_do_not_fit_are_named(
    options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    folder = hub_folder(tmp_path / "model", "bert", "text")
    with pytest.raises(PlanError, match=message):
        build_model(hub_plan(folder, "text", **options))


def test_a_text_longer_than_a_model_reads_is_refused(tmp_path: Path) -> None:
    folder = hub_folder(tmp_path / "model", "roberta", "text")  # 64 positions, two of them free
    for most in (61, 62):
        assert build_model(hub_plan(folder, "text", max_tokens=most))
    with pytest.raises(PlanError, match="cannot read 63 tokens; it has 64 positions"):
        build_model(hub_plan(folder, "text", max_tokens=63))
    # Rotary positions have no end.
    folder = hub_folder(tmp_path / "other", "llama", "causal-text")
    assert build_model(hub_plan(folder, "causal-text", max_tokens=80))


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    folder = hub_folder(tmp_path / "model", "bert", "text")
    hub_tokenizer(folder, is_framed=True, words=90)
    with pytest.raises(PlanError, match="has 90 tokens, and the model of that folder knows 60"):
        build_model(hub_plan(folder, "text"))


def _without_end(folder: Path) -> None:
    """Take the end's name out of a tokenizer; its settings are read once a path."""
    import shutil

    path = folder / "tokenizer_config.json"
    value = {k: v for k, v in json.loads(path.read_text()).items() if k != "eos_token"}
    path.write_text(json.dumps(value))
    (folder / "special_tokens_map.json").unlink(missing_ok=True)
    shutil.move(folder, folder.with_name("other"))


@pytest.mark.parametrize(("name", "padding"), [("<pad>", 1), ("</s>", END), (None, END)])
def test_a_classifier_without_padding_takes_its_tokenizers(
    name: str | None, padding: int, tmp_path: Path
) -> None:
    folder = hub_folder(tmp_path / "model", "gpt2", "text", pad_token_id=None, num_labels=3)
    hub_tokenizer(folder, is_framed=False, pad_token=name)
    plan = hub_plan(folder, "text")
    assert network_of(plan).inner.config.pad_token_id == padding
    if name is None:
        _without_end(folder)
        with pytest.raises(PlanError, match="neither config.json has a 'pad_token_id' nor"):
            build_model(hub_plan(folder.with_name("other"), "text"))


def test_an_image_is_read_as_the_model_was_trained(tmp_path: Path) -> None:
    folder = hub_folder(tmp_path / "model", "vit", "image", num_labels=len(CLASSES))
    (folder / "preprocessor_config.json").write_text(
        '{"image_mean": [0.2, 0.4, 0.6], "image_std": [0.5, 0.25, 0.5]}'
    )
    plan = hub_plan(folder, "image")
    pixels = torch.rand(2, 1, 8, 8) * 2 - 1
    model: Any = transformers.AutoModelForImageClassification.from_pretrained(folder).eval()
    mean = torch.tensor([0.2, 0.4, 0.6]).view(3, 1, 1)
    deviation = torch.tensor([0.5, 0.25, 0.5]).view(3, 1, 1)
    large = torch.nn.functional.interpolate(
        ((pixels + 1) / 2).expand(-1, 3, -1, -1), (16, 16), mode="bilinear"
    )
    with torch.no_grad():
        wanted = model(pixel_values=(large - mean) / deviation).logits
        assert torch.allclose(build_model(plan).eval()(pixels=pixels), wanted, atol=1e-5)
