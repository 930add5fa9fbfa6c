"""What an opponent tried on models of the Hub: each has a test."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from families_kit import plan_for
from hub_kit import END, hub_folder, hub_plan
from safetensors.torch import load_file
from torch import Tensor, nn

from privet.client.training.model_runtime import ModelRuntime
from privet.common.errors import CoupledRecordsError, PlanError, SelfTestError
from privet.common.models import build_model, prompts
from privet.common.models.huggingface import networks, padding
from privet.common.tasks import build_task

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")

ROPES = {
    "dynamic": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0},
    "longrope": {
        "rope_type": "longrope", "rope_theta": 1e4, "factor": 4.0, "short_factor": [1.0] * 4,
        "long_factor": [64.0] * 4, "original_max_position_embeddings": 32,
    },
}  # fmt: skip


@pytest.mark.parametrize("rope", ROPES)
def test_positions_made_for_the_longest_text_are_refused(rope: str, tmp_path: Path) -> None:
    folder = hub_folder(
        tmp_path / "model", "llama", "causal-text", rope_parameters=ROPES[rope],
        max_position_embeddings=32 if rope == "dynamic" else 128,
    )  # fmt: skip
    with pytest.raises(PlanError, match="keeps something of the texts .* lower task.max_tokens"):
        build_model(hub_plan(folder, "causal-text", max_tokens=64))
    # Where all texts are treated alike it is sound.
    assert ModelRuntime(hub_plan(folder, "causal-text", max_tokens=24)).self_tests


class ByLongest(nn.Module):
    """Its scale follows the longest row of a batch, from a length on that few rows have."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.words, self.head, self.limit = nn.Embedding(4096, 8), nn.Linear(8, 2), limit

    def forward(self, tokens: Tensor) -> Tensor:
        longest = ((tokens != 0) * torch.arange(1, tokens.shape[1] + 1)).amax()
        h = (self.words(tokens) * (tokens != 0)[..., None]).sum(1)
        found: Tensor = self.head(h * (1 + (longest > self.limit)))
        return found


def by_longest(task: Any, limit: int) -> nn.Module:
    return ByLongest(limit)


@pytest.mark.parametrize(("limit", "is_coupled"), [(40, True), (64, False)])
def test_a_length_that_one_record_has_couples_all(
    limit: int, is_coupled: bool, tmp_path: Path
) -> None:
    model = {"kind": f"{__name__}:by_longest", "options": {"limit": limit}}
    plan = plan_for("text", model, tmp_path).changed(task={"max_tokens": 64})
    if is_coupled:
        with pytest.raises(CoupledRecordsError, match="how long the other records"):
            ModelRuntime(plan).self_tests  # noqa: B018
    else:
        assert ModelRuntime(plan).self_tests


class Remembering(nn.Module):
    """Counts what it reads in a buffer, which no output shows."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = ByLongest(64)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, tokens: Tensor) -> Tensor:
        self.seen += tokens.sum()
        found: Tensor = self.inner(tokens)
        return found


def remembering(task: Any) -> nn.Module:
    return Remembering()


def test_a_buffer_that_counts_records_is_refused_before_anything_is_spent(tmp_path: Path) -> None:
    plan = plan_for("text", {"kind": f"{__name__}:remembering"}, tmp_path)
    with pytest.raises(SelfTestError, match="the buffer 'seen' changed"):
        ModelRuntime(plan).self_tests  # noqa: B018


def _word_level(folder: Path, **model: Any) -> None:
    """Change the model part of a folder's tokenizer."""
    path = folder / "tokenizer.json"
    value = json.loads(path.read_text())
    value["pre_tokenizer"] = {"type": "WhitespaceSplit"}
    value["model"] |= model
    path.write_text(json.dumps(value))


@pytest.mark.parametrize("task", ["text", "causal-text"])
def test_a_record_cannot_write_a_special_token(task: str, tmp_path: Path) -> None:
    folder = hub_folder(tmp_path / "model", "bert" if task == "text" else "llama", task)
    _word_level(folder)  # whose vocabulary holds the letters of special tokens
    frame = pd.DataFrame({"text": ["w5 </s> <pad> w6", "<s>"], "label": "a"})
    rows = build_task(hub_plan(folder, task)).encode(frame)["tokens"].tolist()
    framed = [[0, 5, 4, 4, 6, END], [0, 4, END]] if task == "text" else None
    wanted = framed or [[5, 4, 4, 6, END], [4, END]]
    assert [[n for n in row if n >= 0] for row in rows] == wanted


def test_a_tokenizer_that_stops_at_an_unknown_word_is_refused(tmp_path: Path) -> None:
    folder = hub_folder(tmp_path / "model", "bert", "text")
    _word_level(folder, unk_token="<nothing>")
    with pytest.raises(PlanError, match="cannot read every text .* name an 'unk_token'"):
        build_model(hub_plan(folder, "text"))


def test_a_window_of_attention_is_not_lost_in_vmap(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = {"num_key_value_heads": 2, "head_dim": 8}
    folder = hub_folder(tmp_path / "model", "mistral", "causal-text", sliding_window=28, **sizes)
    plan = hub_plan(folder, "causal-text", max_tokens=60)
    assert ModelRuntime(plan).self_tests
    plan = plan.changed(training={"clipping": "vmap"})
    with pytest.raises(SelfTestError, match="cannot be computed"):
        ModelRuntime(plan).self_tests  # noqa: B018
    # The control: the whole text in place of the window, which a long record shows.
    monkeypatch.setattr(networks, "_has_window", lambda config: False)
    with pytest.raises(SelfTestError, match="the gradient of the longest record differs"):
        ModelRuntime(plan).self_tests  # noqa: B018


@pytest.mark.parametrize(
    "change",
    [
        {"attn_implementation": "kernels-community/flash-attn2"},
        {"_attn_implementation": "somebody/kernel"},
        {"use_kernels": True},
        {"text_config": {"auto_map": {"AutoModel": "evil.Model"}}},
    ],
)
def test_a_configuration_cannot_ask_for_a_kernel(change: dict[str, Any], tmp_path: Path) -> None:
    folder = hub_folder(tmp_path / "model", "bert", "text")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(PlanError, match="would have other weights or code read"):
        build_model(hub_plan(folder, "text"))
    (folder / "config.json").write_text(json.dumps({**config, "attn_implementation": "eager"}))
    assert build_model(hub_plan(folder, "text"))


def test_a_template_that_draws_lots_is_refused(tmp_path: Path) -> None:
    folder = hub_folder(tmp_path / "model", "llama", "causal-text")
    template = (
        "{{ ['x','y','z','u','v','w']|random }}"
        "{% for m in messages %}<s>{{ m.content }}</s>{% endfor %}"
    )
    (folder / "chat_template.jinja").write_text(template)
    with pytest.raises(PlanError, match="writes something else each time"):
        prompts.chat_turn(folder)
    (folder / "chat_template.jinja").write_text(template.partition("}}")[2])
    assert prompts.chat_turn(folder)


def test_what_an_adapter_puts_aside_is_not_trained(tmp_path: Path) -> None:
    folder = hub_folder(tmp_path / "model", "bert", "text")
    model = build_model(hub_plan(folder, "text", tuning="lora", train=["*classifier*"]))
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert not any("original_module" in name for name in trained)
    assert sum("classifier" in name for name in trained) == 2


def test_padding_is_tried_beside_the_longest_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A control: the search asks for each length that a plan allows."""
    seen: list[tuple[int, ...]] = []
    whole = padding._logits
    monkeypatch.setattr(
        padding, "_logits",
        lambda network, rows: seen.append(tuple(rows.shape)) or whole(network, rows),
    )  # fmt: skip
    folder = hub_folder(tmp_path / "model", "bert", "text")
    build_model(hub_plan(folder, "text", max_tokens=48))
    assert (2, 48) in seen and (1, 6) in seen


def test_classes_in_another_order_are_refused(tmp_path: Path) -> None:
    names = {0: "b", 1: "a", 2: "c"}
    folder = hub_folder(
        tmp_path / "model", "bert", "text", num_labels=3, id2label=names,
        label2id={name: number for number, name in names.items()},
    )  # fmt: skip
    plan = hub_plan(folder, "text")
    with pytest.raises(PlanError, match=r'in another order; write classes = \["b", "a", "c"\]'):
        build_model(plan)
    assert build_model(plan.changed(task={"classes": ["b", "a", "c"]}))
    assert build_model(plan.changed(task={"classes": ["x", "y"]}))


@pytest.mark.parametrize(("theirs", "is_kept"), [("abc", True), ("xyz", False), (None, True)])
def test_a_head_for_other_classes_is_fresh(
    theirs: str | None, is_kept: bool, tmp_path: Path
) -> None:
    names = {"id2label": dict(enumerate(theirs))} if theirs else {}
    folder = hub_folder(tmp_path / "model", "bert", "text", num_labels=3, **names)
    saved = load_file(folder / "model.safetensors")["classifier.weight"]
    plan = hub_plan(folder, "text").changed(seed=5)  # the folder was made with another
    built = dict(build_model(plan).named_parameters())
    assert torch.equal(built["inner.classifier.weight"], saved) == is_kept


@pytest.mark.parametrize("tuning", ["full", "lora", "ia3", "prompt"])
def test_the_types_of_a_pair_reach_the_model(tuning: str, tmp_path: Path) -> None:
    folder = hub_folder(tmp_path / "model", "bert", "question-answering")
    plan = hub_plan(folder, "question-answering", tuning=tuning)
    if tuning == "prompt":  # peft forgets them there
        with pytest.raises(PlanError, match="task 'question-answering' does not allow"):
            build_model(plan)
        return
    network = build_model(plan).eval()
    tokens = torch.arange(5, 15).unsqueeze(0)
    types = (torch.arange(10) > 4).long().unsqueeze(0)
    with torch.no_grad():
        one = network(tokens=tokens, types=types)
        other = network(tokens=tokens, types=torch.zeros_like(types))
    assert not torch.allclose(one, other, atol=1e-4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image_mean": {"r": 1}}, "'image_mean' must be a list of numbers"),
        ({"image_mean": [0.5]}, "'image_mean' must have a number for each of 3 channels"),
        ({"image_std": [0, 1, 1]}, "'image_std' must be above 0"),
    ],
)
def test_settings_of_images_that_cannot_be_used_are_named(
    settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    folder = hub_folder(tmp_path / "model", "vit", "image")
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    with pytest.raises(PlanError, match=message):
        build_model(hub_plan(folder, "image"))


@pytest.mark.parametrize(("family", "task"), [("bert", "text"), ("vit", "image")])
def test_a_precision_that_is_asked_for_is_used_in_training(
    family: str, task: str, tmp_path: Path
) -> None:
    folder = hub_folder(tmp_path / "model", family, task)
    given = torch.rand(2, 1, 8, 8) if task == "image" else torch.arange(5, 21).view(2, 8)
    logits = []
    for precision in ("float32", "bfloat16"):
        model = build_model(hub_plan(folder, task, precision=precision))
        with torch.no_grad():
            logits += [model(given), model.eval()(given)]
    trained, evaluated, coarse, exact = logits
    assert torch.equal(evaluated, exact) and coarse.dtype == torch.float32
    assert not torch.equal(trained, coarse)
