"""Every family passes the start-up tests by book-keeping, trains with privacy, and learns."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from families_kit import FAMILIES, family_plan, plan_for, tokenizer_folder

from privet.client.training.model_runtime import ModelRuntime
from privet.common.errors import DataMissingError, PlanError, SelfTestError
from privet.common.models import build_model, initial_model
from privet.common.tasks import build_task
from privet.simulations.run import simulate

NAMES = sorted(FAMILIES)


@pytest.mark.parametrize("name", NAMES)
def test_each_passes_the_start_up_tests_by_bookkeeping(name: str, tmp_path: Path) -> None:
    bench = ModelRuntime(family_plan(name, tmp_path))
    assert bench.self_tests == ("H6", "H7", "H16", "H17")
    assert bench.engine.mode == "bookkeeping"


@pytest.mark.parametrize("name", NAMES)
def test_each_trains_with_privacy_and_every_parameter_moves(name: str, tmp_path: Path) -> None:
    plan = family_plan(name, tmp_path)
    before = initial_model(plan)
    result = simulate(plan, out=tmp_path / "run")
    assert result.loss is not None and 7.9 < result.loss.epsilon <= 8
    assert [site.status for site in result.sites] == ["released", "released"]
    assert list(result.model) == list(before)
    assert all(not np.array_equal(result.model[name], before[name]) for name in before)
    headline = "accuracy" if plan.task.labels else "perplexity"
    assert result.metrics[headline] is not None
    assert (result.out / "plots" / "rounds.svg").read_text().count(headline)


LEARNS = {"training": {"rounds": 4, "steps": 25, "optimizer": "adam", "learning_rate": 0.02}}


LONG = ("encoder-decoder", "t5", "gaps", "vit", "linear")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.long) if n in LONG else n for n in NAMES]
)
def test_each_learns_what_can_be_learnt(name: str, tmp_path: Path) -> None:
    plan = family_plan(name, tmp_path, privacy="none", **LEARNS)
    found = simulate(plan, out=tmp_path / "run").metrics
    if plan.task.labels:
        assert found["accuracy"] > 0.9
    else:
        # 4,096 tokens; what follows a number in words is nearly fixed.
        assert found["perplexity"] < 12


@pytest.mark.long
def test_a_translation_is_scored_by_what_is_written(tmp_path: Path) -> None:
    model = {"kind": "encoder-decoder", "options": {"width": 32, "heads": 2, "layers": 1}}
    learns = {"training": {"rounds": 4, "steps": 40, "optimizer": "adam", "learning_rate": 0.01}}
    plan = plan_for("text-to-text", model, tmp_path, 100, privacy="none", **learns)
    found = simulate(plan, out=tmp_path / "run").metrics
    assert found["chrf"] > 60 and found["bleu"] > 20
    untrained = simulate(
        plan.changed(training={"rounds": 1, "steps": 1, "learning_rate": 1e-9}),
        out=tmp_path / "other",
    ).metrics
    assert untrained["chrf"] < 20


def test_beam_search_finds_likelier_texts_than_one_step_at_a_time(tmp_path: Path) -> None:
    plan = family_plan("encoder-decoder", tmp_path)
    bench = ModelRuntime(plan)
    network, task = bench.engine.model.eval(), bench.task
    batch = task.random_batch(12, 3)

    def worth(beams: int) -> float:
        """Mean nats of a token; beams are chosen by those of a text."""
        with torch.no_grad(), bench.engine.hooks_off():
            written = network.write(batch["source"], beams)[:, 1:]
            target = torch.nn.functional.pad(written, (0, 16 - written.shape[1]))
            nats, there = task.nats(network, {**batch, "target": target})  # type: ignore[attr-defined]
        return float((nats * there).sum() / there.sum())

    assert worth(4) < worth(1) - 0.1
    asked: list[int] = []
    real = network.write
    network.write = lambda source, beams: asked.append(beams) or real(source, beams)
    with bench.engine.hooks_off():
        task.write(network, batch)  # type: ignore[attr-defined]
    assert asked == [4]


def _nothing_is_known_of_what_comes_later(bench: ModelRuntime, key: str) -> None:
    batch = bench.task.random_batch(4, 3)
    batch = {name: tensor.clamp(min=2) for name, tensor in batch.items()}
    changed = {**batch, key: batch[key].clone()}
    changed[key][:, 6] += 1
    with torch.no_grad(), bench.engine.hooks_off():
        one, two = (bench.task.nats(bench.engine.model, b)[0] for b in (batch, changed))  # type: ignore[attr-defined]
    assert torch.allclose(one[:, :5], two[:, :5], atol=1e-5)
    # The control: what comes after does know.
    assert not torch.allclose(one[:, 6:], two[:, 6:], atol=1e-5)


@pytest.mark.parametrize("name", ["decoder", "encoder-decoder", "t5"])
def test_a_token_is_predicted_from_those_before_it(name: str, tmp_path: Path) -> None:
    key = "tokens" if name == "decoder" else "target"
    _nothing_is_known_of_what_comes_later(ModelRuntime(family_plan(name, tmp_path)), key)


# gaps


def test_what_is_left_out_depends_on_the_record_and_the_step_alone(tmp_path: Path) -> None:
    bench = ModelRuntime(family_plan("gaps", tmp_path))
    batch = bench.task.random_batch(6, 3)
    losses = bench.engine.losses(batch)
    shuffled = {key: tensor.flip(0) for key, tensor in batch.items()}
    assert torch.allclose(bench.engine.losses(shuffled).flip(0), losses, atol=1e-6)
    alone = {key: tensor[2:3] for key, tensor in batch.items()}
    assert torch.allclose(bench.engine.losses(alone), losses[2:3], atol=1e-6)
    with torch.no_grad():  # another step: another choice
        bench.engine.parameters[0].view(-1)[0] += 0.125
    assert not torch.allclose(bench.engine.losses(batch), losses, atol=1e-3)


def test_a_seventh_of_the_tokens_is_left_out(tmp_path: Path) -> None:
    plan = family_plan("gaps", tmp_path).changed(task={"max_tokens": 64})
    bench = ModelRuntime(plan)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(2, 4096, (200, 64), generator=generator)
    tokens[:100, 40:] = 0
    seen: list[torch.Tensor] = []

    def model(read: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        seen.extend((read, places))
        return torch.zeros(*places.shape, 4096)

    model_like: Any = type("Model", (), {"__call__": staticmethod(model)})()
    model_like.parameters = lambda: iter([torch.nn.Parameter(torch.ones(1))])
    _, counts = bench.task.nats(model_like, {"tokens": tokens})  # type: ignore[attr-defined]
    read, places = seen
    assert counts[:100].sum(1).eq(6).all() and counts[100:].sum(1).eq(10).all()
    # Padding is neither read instead of anything nor predicted.
    assert (places[:100][counts[:100] > 0] < 40).all() and (read[:100, 40:] == 0).all()
    changed = read != tokens
    masked = (read == 1).sum() / counts.sum()
    assert 0.75 < masked < 0.85
    assert 0.85 < changed.sum() / counts.sum() < 0.95
    # Every place is as likely as another.
    share = torch.bincount(places[100:][counts[100:] > 0], minlength=64) / 100
    assert share.min() > 0.04 and share.max() < 0.32


def test_gaps_that_depend_on_the_batch_are_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from privet.common.tasks import language

    real = language._hashes
    monkeypatch.setattr(
        language,
        "_hashes",
        lambda tokens, there, weight: real(tokens + tokens.sum(), there, weight),
    )
    with pytest.raises(SelfTestError, match="H6|H16"):
        assert ModelRuntime(family_plan("gaps", tmp_path)).self_tests


# models of Hugging Face


def _save(kind: str) -> Any:
    import transformers as hf

    more = {"vocab_size": 4096, "pad_token_id": 0}
    if kind == "causal-text":
        config: Any = hf.GPT2Config(n_embd=16, n_layer=1, n_head=2, n_positions=32, **more)
        return hf.GPT2LMHeadModel(config).save_pretrained
    if kind == "text-to-text":
        config = hf.T5Config(
            d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, decoder_start_token_id=0,
            eos_token_id=1, **more,
        )  # fmt: skip
        return hf.T5ForConditionalGeneration(config).save_pretrained
    config = hf.BertConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, **more
    )
    return hf.BertForMaskedLM(config).save_pretrained


@pytest.mark.long
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("tuning", ["full", "lora", "head"])
@pytest.mark.parametrize("kind", ["text", "causal-text", "masked-text", "text-to-text"])
def test_a_folder_of_hugging_face_trains(kind: str, tuning: str, tmp_path: Path) -> None:
    if tuning == "head" and kind != "text":
        pytest.skip("the head of a language model is its table of tokens")
    names = {"eos_token": "[UNK]", "mask_token": "[UNK]", "pad_token": "[PAD]"}
    folder = tokenizer_folder(tmp_path / "model", _save(kind), **names)
    targets = {"causal-text": ["c_attn"], "text-to-text": ["q", "v"]}
    options: dict[str, Any] = {"folder": str(folder), "tuning": tuning}
    if tuning == "lora":
        options |= {"rank": 2, "targets": targets.get(kind, ["query", "value"])}
    plan = plan_for(kind, {"kind": "huggingface", "options": options}, tmp_path)
    bench = ModelRuntime(plan)
    assert bench.self_tests == ("H6", "H7", "H16", "H17")
    assert bench.engine.mode == "bookkeeping"
    if kind in ("causal-text", "text-to-text"):
        _nothing_is_known_of_what_comes_later(bench, "tokens" if "causal" in kind else "target")
    result = simulate(plan, out=tmp_path / "run")
    assert [site.status for site in result.sites] == ["released", "released"]
    before = initial_model(plan)
    assert any(not np.array_equal(result.model[name], before[name]) for name in before)


@pytest.mark.parametrize(
    ("frame", "eos", "bos", "kind", "row"),
    [
        ("$A", "[UNK]", None, "causal-text", [7, 8, 1]),
        ("$A [UNK]", "[UNK]", None, "text-to-text", [7, 8, 1]),  # T5: not two ends
        ("[PAD] $A [UNK]", "[UNK]", "[PAD]", "text-to-text", [0, 7, 8, 1]),  # BART's frame stays
        ("[PAD] $A [UNK]", None, None, "text-to-text", [0, 7, 8, 1]),  # BERT has no end
        ("[PAD] $A", "[UNK]", "[PAD]", "causal-text", [7, 8, 1]),  # LLaMA: the task puts the start
    ],
)
def test_a_frame_of_the_tokenizer_is_there_once(
    frame: str, eos: str | None, bos: str | None, kind: str, row: list[int], tmp_path: Path
) -> None:
    from tokenizers import Tokenizer, processors

    names = {"eos_token": eos, "bos_token": bos, "pad_token": "[PAD]"}
    given = {name: token for name, token in names.items() if token is not None}
    folder = tokenizer_folder(tmp_path / "model", _save(kind), **given)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.post_processor = processors.TemplateProcessing(
        single=frame, special_tokens=[("[PAD]", 0), ("[UNK]", 1)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    plan = plan_for(kind, {"kind": "huggingface", "options": {"folder": str(folder)}}, tmp_path)
    ids = tokenizer.encode("one two", add_special_tokens=False).ids
    assert len(ids) == 2
    wanted = [{7: ids[0], 8: ids[1]}.get(number, number) for number in row]
    table = pd.DataFrame({"text": ["one two", "one two " * 20], "spanish": "one two"})
    for name, tensor in build_task(plan).encode(table).items():
        if name != "characters":
            assert tensor[0].tolist() == wanted + [-1] * (16 - len(wanted))


def test_a_model_of_the_hub_is_its_commit_in_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    commit = "0123456789" * 4
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    folder = tmp_path / "hub" / "models--somebody--tiny" / "snapshots" / commit
    folder.parent.mkdir(parents=True)
    tokenizer_folder(folder, _save("masked-text"), pad_token="[PAD]", mask_token="[UNK]")
    plan = plan_for("masked-text", {"kind": "huggingface"}, tmp_path)

    def named(**options: str) -> Any:
        return plan.changed(model={"kind": "huggingface", "options": options})

    by_name, by_path = (
        initial_model(chosen)
        for chosen in (named(name="somebody/tiny", revision=commit), named(folder=str(folder)))
    )
    assert all(np.array_equal(by_name[key], by_path[key]) for key in by_path)
    assert ModelRuntime(named(name="somebody/tiny", revision=commit)).self_tests
    with pytest.raises(PlanError, match="named with its commit"):
        build_model(named(name="somebody/tiny", revision="main"))
    with pytest.raises(PlanError, match="needs 'folder', or 'name'"):
        build_model(named(name="somebody/tiny", folder=str(folder)))
    for name in ("somebody/other", "../../etc"):
        with pytest.raises(DataMissingError, match="Privet downloads nothing. Run `hf download"):
            build_model(named(name=name, revision=commit))


def test_a_folder_must_have_the_weights_that_the_plan_names(tmp_path: Path) -> None:
    folder = tokenizer_folder(tmp_path / "model", _save("text"), pad_token="[PAD]")
    options = {"folder": str(folder), "sha256": "0" * 64}
    plan = plan_for("text", {"kind": "huggingface", "options": options}, tmp_path)
    with pytest.raises(PlanError, match="not the weights that model.options.sha256 names"):
        build_model(plan)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(DataMissingError, match="only safetensors are read"):
        build_model(plan)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("transformers_weights", "other.safetensors"),
        ("transformers_weights", "adapter_model.bin"),
        ("auto_map", {"AutoModel": "evil.Model"}),
        ("quantization_config", {"quant_method": "awq"}),
    ],
)
def test_a_configuration_that_reads_elsewhere_is_refused(
    tmp_path: Path, key: str, value: object
) -> None:
    folder = tokenizer_folder(tmp_path / "model", _save("text"), pad_token="[PAD]")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, key: value}))
    plan = plan_for("text", {"kind": "huggingface", "options": {"folder": str(folder)}}, tmp_path)
    with pytest.raises(PlanError, match=f"'{key}' would have other weights or code read"):
        build_model(plan)


def test_an_adapter_in_the_folder_is_refused(tmp_path: Path) -> None:
    folder = tokenizer_folder(tmp_path / "model", _save("text"), pad_token="[PAD]")
    (folder / "adapter_config.json").write_text("{}")
    plan = plan_for("text", {"kind": "huggingface", "options": {"folder": str(folder)}}, tmp_path)
    with pytest.raises(PlanError, match="it holds an adapter"):
        build_model(plan)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "config.json"])
@pytest.mark.parametrize("text", ["", "[]", "{", '{"added_tokens": 1}', '"a"'])
def test_a_damaged_folder_is_said(tmp_path: Path, name: str, text: str) -> None:
    folder = tokenizer_folder(tmp_path / "model", _save("text"), pad_token="[PAD]")
    (folder / name).write_text(text)
    plan = plan_for("text", {"kind": "huggingface", "options": {"folder": str(folder)}}, tmp_path)
    try:
        ModelRuntime(plan)
    except PlanError as error:
        assert str(folder) in str(error)
    else:
        # Not every text is wrong in every file: names of special tokens may be left out.
        assert name == "tokenizer_config.json"


def test_a_model_that_cannot_do_the_task_is_named(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="model 'vit' does not do task 'text': use text-encoder"):
        build_model(plan_for("text", {"kind": "vit"}, tmp_path))
    with pytest.raises(PlanError, match="patch 3 does not divide an image of 4 by 4"):
        build_model(plan_for("image", {"kind": "vit", "options": {"patch": 3}}, tmp_path))
