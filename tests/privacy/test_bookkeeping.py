"""Book-keeping against a loop of single records, for every family of Transformers it claims."""

from __future__ import annotations

import itertools
import logging
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from dp_kit import BOOK, Wide, cross_entropy, difference, examples, lively, norm, rows
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from privet.common.errors import InputError, SelfTestError
from privet.privacy.mechanism import selftest
from privet.privacy.mechanism.clipping import GradientEngine, cost
from privet.privacy.mechanism.clipping.bookkeeping import BookKeeping
from privet.privacy.mechanism.clipping.engine import AUTOMATIC
from privet.privacy.mechanism.clipping.parameter_gradients import ParameterGradients
from privet.privacy.mechanism.clipping.per_unit_gradients import PerUnitGradients

Batch = dict[str, Tensor]
EXACT = 1e-5
WORDS = 60
_SMALL = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 16}
_WIDE = {**_SMALL, "intermediate_size": 32, "num_labels": 3}
_QUIET = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}

pytestmark = pytest.mark.filterwarnings("ignore")


def classified(model: Any, batch: Batch) -> Tensor:
    inputs = {name: tensor for name, tensor in batch.items() if name != "label"}
    return functional.cross_entropy(model(**inputs).logits, batch["label"], reduction="none")


def spoken(model: Any, batch: Batch) -> Tensor:
    logits = model(**batch).logits[:, :-1]
    losses = functional.cross_entropy(logits.mT, batch["input_ids"][:, 1:], reduction="none")
    return (losses * batch["attention_mask"][:, 1:]).sum(1)


def translated(model: Any, batch: Batch) -> Tensor:
    told = {name: batch[name] for name in ("input_ids", "attention_mask")}
    logits = model(**told, decoder_input_ids=batch["target"]).logits
    return functional.cross_entropy(logits.mT, batch["target"], reduction="none").mean(1)


def text(records: int, seed: int, length: int = 7) -> Batch:
    """Padded texts: the mask is two-dimensional, and positions are left to the model."""
    g = torch.Generator().manual_seed(seed)
    long = torch.randint(2, length + 1, (records, 1), generator=g)
    return {
        "input_ids": torch.randint(3, WORDS, (records, length), generator=g),
        "attention_mask": (torch.arange(length)[None] < long).long(),
    }


def labelled(records: int, seed: int) -> Batch:
    g = torch.Generator().manual_seed(seed + 100)
    return {**text(records, seed), "label": torch.randint(0, 3, (records,), generator=g)}


def pairs(records: int, seed: int) -> Batch:
    g = torch.Generator().manual_seed(seed + 100)
    return {
        **text(records, seed),
        "target": torch.randint(3, WORDS, (records, 5), generator=g),
    }


def images(records: int, seed: int) -> Batch:
    g = torch.Generator().manual_seed(seed)
    return {
        "pixel_values": torch.randn(records, 1, 8, 8, generator=g),
        "label": torch.randint(0, 3, (records,), generator=g),
    }


def _bert() -> nn.Module:
    import transformers as t

    config = t.BertConfig(vocab_size=WORDS, **_WIDE, **_QUIET)
    return t.BertForSequenceClassification(config)


def _roberta() -> nn.Module:
    import transformers as t

    config = t.RobertaConfig(vocab_size=WORDS, max_position_embeddings=32, **_WIDE, **_QUIET)
    return t.RobertaForSequenceClassification(config)


def _distilbert() -> nn.Module:
    import transformers as t

    config = t.DistilBertConfig(
        vocab_size=WORDS, dim=16, n_layers=2, n_heads=2, hidden_dim=32, num_labels=3,
        dropout=0.0, attention_dropout=0.0, seq_classif_dropout=0.0,
    )  # fmt: skip
    return t.DistilBertForSequenceClassification(config)


def _gpt2() -> nn.Module:
    import transformers as t

    config = t.GPT2Config(
        vocab_size=WORDS, n_embd=16, n_layer=2, n_head=2, n_positions=32, bos_token_id=0,
        eos_token_id=0, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    return t.GPT2LMHeadModel(config)


def _llama() -> nn.Module:
    import transformers as t

    config = t.LlamaConfig(
        vocab_size=WORDS, **_SMALL, intermediate_size=32, num_key_value_heads=1,
        pad_token_id=0, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return t.LlamaForCausalLM(config)


def _t5(**more: Any) -> nn.Module:
    import transformers as t

    config = t.T5Config(
        vocab_size=WORDS, d_model=16, d_kv=8, num_layers=2, num_heads=2, d_ff=32, dropout_rate=0.0,
        **more,
    )  # fmt: skip
    return t.T5ForConditionalGeneration(config)


def _t5_gated() -> nn.Module:
    return _t5(feed_forward_proj="gated-gelu", tie_word_embeddings=False)


def _vit() -> nn.Module:
    import transformers as t

    config = t.ViTConfig(image_size=8, patch_size=4, num_channels=1, **_WIDE, **_QUIET)
    return t.ViTForImageClassification(config)


def _lora(make: Callable[[], nn.Module], **more: Any) -> nn.Module:
    import peft

    return peft.get_peft_model(make(), peft.LoraConfig(r=2, lora_alpha=4, lora_dropout=0.0, **more))


def _bert_lora() -> nn.Module:
    return _lora(_bert, target_modules=["query", "value"], task_type="SEQ_CLS")


def _gpt2_lora() -> nn.Module:
    return _lora(_gpt2, target_modules=["c_attn"], fan_in_fan_out=True, task_type="CAUSAL_LM")


Family = tuple[Callable[[], nn.Module], Callable[[Any, Batch], Tensor], Callable[..., Batch]]
FAMILIES: dict[str, Family] = {
    "bert": (_bert, classified, labelled),
    "roberta": (_roberta, classified, labelled),
    "distilbert": (_distilbert, classified, labelled),
    "gpt2": (_gpt2, spoken, text),
    "llama": (_llama, spoken, text),
    "t5": (_t5, translated, pairs),
    "t5-gated": (_t5_gated, translated, pairs),
    "vit": (_vit, classified, images),
    "bert-lora": (_bert_lora, classified, labelled),
    "gpt2-lora": (_gpt2_lora, spoken, text),
}
_MADE: dict[str, nn.Module] = {}


def family(name: str) -> tuple[nn.Module, Callable[[Any, Batch], Tensor], Callable[..., Batch]]:
    make, loss, draw = FAMILIES[name]
    if name not in _MADE:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            _MADE[name] = lively(make()).train()
    return _MADE[name], loss, draw


def singles(
    model: nn.Module, loss: Callable[[Any, Batch], Tensor], batch: Batch
) -> list[list[Tensor]]:
    """Gradients by plain autograd, a record at a time."""
    trained = [p for p in model.parameters() if p.requires_grad]
    found = []
    for i in range(len(next(iter(batch.values())))):
        one = {name: tensor[i : i + 1] for name, tensor in batch.items()}
        made = torch.autograd.grad(loss(model, one).sum(), trained, allow_unused=True)
        zeros = (torch.zeros_like(p) for p in trained)
        found.append([z if g is None else g for g, z in zip(made, zeros, strict=True)])
    return found


def expected(gradients: list[list[Tensor]], owner: np.ndarray, clip: float) -> list[Tensor]:
    total = [torch.zeros_like(g, dtype=torch.float64) for g in gradients[0]]
    for unit in range(int(owner.max()) + 1):
        members = [g for g, who in zip(gradients, owner, strict=True) if who == unit]
        added = [sum(part).double() for part in zip(*members, strict=True)]
        factor = min(1.0, clip / max(norm(added), 1e-30))
        for running, part in zip(total, added, strict=True):
            running.add_(factor * part)
    return total


def relative(got: Any, want: Any) -> float:
    return difference(got, want) / max(norm(want), 1e-12)


def median_clip(gradients: list[list[Tensor]]) -> float:
    norms = sorted(norm(g) for g in gradients)
    return norms[len(norms) // 2]


def engine(
    model: nn.Module, loss: Callable[[Any, Batch], Tensor], ghost: bool | None = None, **more: Any
) -> GradientEngine:
    made = GradientEngine(model, loss, mode=BOOK, **more)
    if ghost is not None:
        assert isinstance(made._method, BookKeeping)
        for one in made._method._layers.per_unit.parameters:
            one.instantiate = None if one.parameter.dim() < 2 else not ghost
    return made


# --- exact ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_each_records_gradient_is_that_of_the_record_alone(name: str) -> None:
    model, loss, draw = family(name)
    batch = draw(4, 5)
    want = singles(model, loss, batch)
    got = engine(model, loss).per_sample(batch)
    for i, alone in enumerate(want):
        assert relative([g[i] for g in got], alone) <= EXACT


@pytest.mark.parametrize("ghost", [None, True, False])
@pytest.mark.parametrize("name", FAMILIES)
def test_the_clipped_sum_is_that_of_single_records(name: str, ghost: bool | None) -> None:
    model, loss, draw = family(name)
    batch = draw(6, 1)
    gradients = singles(model, loss, batch)
    clip = median_clip(gradients)
    for owner in (np.arange(6), np.array([0, 0, 0, 1, 2, 2]), np.array([0, 0, 1, 1, 2, 2])):
        want = expected(gradients, owner, clip)
        for micro_batch in (256, 2):
            unit = engine(model, loss, ghost, micro_batch=micro_batch)
            got = unit.clipped_sum(batch, owner, int(owner.max()) + 1, clip).tensors
            assert relative(got, want) <= EXACT


@examples(15)
@given(
    st.sampled_from(sorted(FAMILIES)), st.lists(st.integers(1, 3), min_size=1, max_size=4),
    st.integers(0, 50), st.floats(0.2, 3.0), st.integers(1, 5),
)  # fmt: skip
def test_any_batch_of_persons(
    name: str, counts: list[int], seed: int, factor: float, micro_batch: int
) -> None:
    model, loss, draw = family(name)
    owner = np.repeat(np.arange(len(counts)), counts)
    batch = draw(len(owner), seed)
    gradients = singles(model, loss, batch)
    clip = factor * median_clip(gradients)
    got = engine(model, loss, micro_batch=micro_batch).clipped_sum(batch, owner, len(counts), clip)
    assert relative(got.tensors, expected(gradients, owner, clip)) <= EXACT


@pytest.mark.parametrize("name", ["bert", "gpt2", "t5"])
@pytest.mark.parametrize("frozen", ["bias", "weight", "embed", "first"])
def test_frozen_parts(name: str, frozen: str) -> None:
    make, loss, draw = FAMILIES[name]
    torch.manual_seed(1)
    model = lively(make()).train()
    for number, (key, parameter) in enumerate(model.named_parameters()):
        hit = frozen in key.replace("wte", "embed") if frozen != "first" else number < 9
        parameter.requires_grad_(not hit)
    if not any(p.requires_grad for p in model.parameters()):
        pytest.skip("nothing is left to train")
    batch = draw(5, 2)
    gradients = singles(model, loss, batch)
    clip = median_clip(gradients)
    got = engine(model, loss).clipped_sum(batch, np.arange(5), 5, clip).tensors
    assert relative(got, expected(gradients, np.arange(5), clip)) <= EXACT


class Convolved(nn.Module):
    """Convolutions of every shape that is known, with group norms."""

    def __init__(self) -> None:
        super().__init__()
        self.image = nn.Conv2d(2, 4, 3, stride=2, padding=1, groups=2)
        self.norm = nn.GroupNorm(2, 4)
        self.signal = nn.Conv1d(4, 6, 3, padding=2, dilation=2)
        self.root = nn.RMSNorm(6)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.gelu(self.norm(self.image(x)))
        x = self.root(self.signal(x.flatten(2)).mT)
        return self.head(x.mean(1))  # type: ignore[no-any-return]


def pictures(records: int, seed: int) -> Batch:
    g = torch.Generator().manual_seed(seed)
    return {
        "x": torch.randn(records, 2, 6, 8, generator=g),
        "label": torch.randint(0, 3, (records,), generator=g),
    }


@pytest.mark.parametrize("owner", [[0, 1, 2, 3, 4], [0, 0, 1, 2, 2], [0, 0, 0, 0, 1]])
def test_convolutions(owner: list[int]) -> None:
    torch.manual_seed(2)
    model, batch, who = lively(Convolved()), pictures(5, 0), np.array(owner)
    gradients = singles(model, cross_entropy, batch)
    clip = median_clip(gradients)
    got = engine(model, cross_entropy).clipped_sum(batch, who, int(who.max()) + 1, clip).tensors
    assert relative(got, expected(gradients, who, clip)) <= EXACT


@pytest.mark.parametrize("reentrant", [True, False])
def test_activation_checkpointing(reentrant: bool) -> None:
    make, loss, draw = FAMILIES["bert"]
    torch.manual_seed(3)
    model = lively(make()).train()
    batch = draw(4, 3)
    gradients = singles(model, loss, batch)
    clip = median_clip(gradients)
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    if reentrant:
        model.enable_input_require_grads()
    got = engine(model, loss).clipped_sum(batch, np.arange(4), 4, clip).tensors
    assert relative(got, expected(gradients, np.arange(4), clip)) <= EXACT


@pytest.mark.parametrize("name", ["bert", "gpt2", "t5", "vit", "bert-lora"])
@pytest.mark.parametrize("ghost", [True, False])
def test_bfloat16_autocast(name: str, ghost: bool) -> None:
    """The numbers are those of 8 bits; the bound is as exact as in float32."""
    model, loss, draw = family(name)

    def cast(model: Any, batch: Batch) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return loss(model, batch).float()

    batch = draw(5, 4)
    gradients = singles(model, loss, batch)
    clip = median_clip(gradients)
    unit = engine(model, cast, ghost)
    got = unit.clipped_sum(batch, np.arange(5), 5, clip).tensors
    assert relative(got, expected(gradients, np.arange(5), clip)) <= 0.1
    assert all(tensor.dtype == torch.float32 for tensor in got)
    for i in range(5):
        one = {key: tensor[i : i + 1] for key, tensor in batch.items()}
        alone = unit.clipped_sum(one, np.arange(1), 1, clip / 10).tensors
        assert norm(alone) == pytest.approx(clip / 10, rel=1e-4)
        assert norm(alone) <= clip / 10 * (1 + 1e-5)


def test_shared_layers() -> None:
    """The same layer twice: its two contributions are one gradient before the norm."""

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.head = nn.Linear(6, 6), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.inner(torch.tanh(self.inner(x))))  # type: ignore[no-any-return]

    model, batch = lively(Twice()), rows(5)
    gradients = singles(model, cross_entropy, batch)
    clip = median_clip(gradients)
    for ghost in (True, False):
        got = engine(model, cross_entropy, ghost).clipped_sum(batch, np.arange(5), 5, clip).tensors
        assert relative(got, expected(gradients, np.arange(5), clip)) <= EXACT


def test_a_parameter_takes_no_gradient_beside_ghosts() -> None:
    """What is kept one way and read the other would escape the norm."""
    own = ParameterGradients("w", nn.Parameter(torch.ones(3, 6)), instantiate=False)
    PerUnitGradients([own]).begin_pass(4, None)
    own.add_linear(torch.ones(4, 1, 6), torch.ones(4, 1, 3))
    for add in (own.add_row_sum, own.add_gradient):
        with pytest.raises(SelfTestError, match=r"'w' is shared by layers of two kinds"):
            add(torch.ones(4, 3, 6))


def test_parameters_of_bfloat16_are_clipped_in_single_precision() -> None:
    model = lively(Wide(features=40)).bfloat16()
    batch = rows(6, features=40)
    batch["x"] = batch["x"].bfloat16()

    def loss(model: Any, batch: Batch) -> Tensor:
        return functional.cross_entropy(model(batch["x"]).float(), batch["label"], reduction="none")

    for ghost in (True, False):
        unit = engine(model, loss, ghost)
        for i in range(6):
            one = {key: tensor[i : i + 1] for key, tensor in batch.items()}
            alone = unit.clipped_sum(one, np.arange(1), 1, 0.01).tensors
            assert all(tensor.dtype == torch.float32 for tensor in alone)
            assert 0.0099 < norm(alone) <= 0.01 * (1 + 1e-5)


def test_the_norm_of_millions_of_numbers_is_not_too_small() -> None:
    model = lively(Wide(features=2000, classes=1500))
    batch = rows(3, features=2000, classes=1500)
    gradients = singles(model, cross_entropy, batch)
    unit = engine(model, cross_entropy, False)
    for clip in (0.1, 0.5):
        got = unit.clipped_sum(batch, np.arange(3), 3, clip).tensors
        assert relative(got, expected(gradients, np.arange(3), clip)) <= 3e-6
        one = {name: tensor[:1] for name, tensor in batch.items()}
        alone = unit.clipped_sum(one, np.arange(1), 1, clip).tensors
        assert norm(alone) <= clip * (1 + 1e-7)


def test_padding_rows_of_a_table_have_no_gradient() -> None:
    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.head = nn.Embedding(40, 6, padding_idx=0), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.words(x).mean(1))  # type: ignore[no-any-return]

    g = torch.Generator().manual_seed(0)
    batch = {
        "x": torch.randint(0, 4, (5, 7), generator=g),
        "label": torch.randint(0, 3, (5,), generator=g),
    }
    model = lively(Words())
    gradients = singles(model, cross_entropy, batch)
    for ghost in (True, False):
        got = engine(model, cross_entropy, ghost).clipped_sum(batch, np.arange(5), 5, 0.1).tensors
        assert relative(got, expected(gradients, np.arange(5), 0.1)) <= EXACT


# --- planted faults -------------------------------------------------------------------------


def test_a_cross_term_that_is_left_out_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tied weights: the norm of a sum is not the sum of the norms."""
    from privet.privacy.mechanism.clipping import ghost_norms

    model, loss, draw = family("gpt2")
    batch = draw(6, 1)
    gradients = singles(model, loss, batch)
    want = expected(gradients, np.arange(6), median_clip(gradients) / 2)
    clip = median_clip(gradients) / 2
    honest = engine(model, loss).clipped_sum(batch, np.arange(6), 6, clip).tensors
    monkeypatch.setattr(ghost_norms, "lookup_linear_product", lambda one, two: torch.zeros(6))
    got = engine(model, loss).clipped_sum(batch, np.arange(6), 6, clip).tensors
    assert relative(honest, want) <= EXACT < relative(got, want)


def test_a_layer_whose_rule_is_wrong_fails_the_start_up_test(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    honest = ParameterGradients.add_linear
    monkeypatch.setattr(
        ParameterGradients, "add_linear", lambda self, x, g: honest(self, x * 1.001, g)
    )
    unit = GradientEngine(lively(Wide()), cross_entropy, mode=BOOK)
    with pytest.raises(SelfTestError, match=r"H16.*'layer.weight'"):
        selftest.run(unit, lambda n, seed: rows(n, seed=seed), unit.named)


class Sideways(nn.Module):
    """A layer that reads features first, so that its first dimension is not of records."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(6, 6)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        turned = x.unsqueeze(2).expand(-1, -1, 6).transpose(0, 1)
        return self.head(self.mix(turned).mean(0))  # type: ignore[no-any-return]


def test_another_order_of_dimensions_is_found_with_generated_batches(
    caplog: pytest.LogCaptureFixture,
) -> None:
    unit = GradientEngine(lively(Sideways()), cross_entropy, mode=BOOK)
    selftest.run(unit, lambda n, seed: rows(n, seed=seed), unit.named)
    assert not unit.fall_back("it was asked for")
    chosen = GradientEngine(lively(Sideways()), cross_entropy)
    with caplog.at_level(logging.INFO):
        for before, after in itertools.pairwise(AUTOMATIC):
            assert chosen.mode == before and chosen.fall_back(f"H16 of {before}")
            assert chosen.mode == after and after in caplog.text
    assert not chosen.fall_back("again")
    assert chosen.refused[BOOK] == "H16 of bookkeeping"


class Own(nn.Module):
    """A layer of the user's own, whose parameter nobody knows how to read."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(6))
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x * self.scale)  # type: ignore[no-any-return]


def test_a_model_that_is_not_known_goes_to_vmap() -> None:
    with pytest.raises(InputError, match=r"'scale' is used in a way that is not known"):
        GradientEngine(Own(), cross_entropy, mode=BOOK)
    assert GradientEngine(Own(), cross_entropy).mode == "vmap"


def test_a_model_is_as_it_was_after_a_pass() -> None:
    model, loss, draw = family("vit")
    before = {name: dict(module.__dict__) for name, module in model.named_modules()}
    engine(model, loss).clipped_sum(draw(3, 0), np.arange(3), 3, 1.0)
    with pytest.raises(ValueError, match="odd"):

        def odd(model: Any, batch: Batch) -> Tensor:
            loss(model, batch)
            raise ValueError("odd")

        engine(model, odd).clipped_sum(draw(3, 0), np.arange(3), 3, 1.0)
    for name, module in model.named_modules():
        assert module.__dict__.keys() == before[name].keys()
        assert module._parameters == before[name]["_parameters"]
    assert all(parameter.grad is None for parameter in model.parameters())


# --- memory and cost ------------------------------------------------------------------------


def test_memory_is_kept_and_bounded() -> None:
    model, loss, draw = family("bert")
    unit = engine(model, loss, False)
    assert isinstance(unit._method, BookKeeping)
    unit._method.max_units = 2
    buffers = unit._method._layers.per_unit.buffers
    unit.clipped_sum(draw(7, 0), np.arange(7), 7, 1.0)
    kept = [buffer.rows.data_ptr() for buffer in buffers]
    assert max(len(buffer.rows) for buffer in buffers) == 2
    unit.clipped_sum(draw(7, 1), np.arange(7), 7, 1.0)
    assert [buffer.rows.data_ptr() for buffer in buffers] == kept


def test_the_cheaper_way_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost, "rates", lambda *_: (1e11, 1e10))
    like = torch.zeros(1)
    assert not cost.ghost_is_cheaper(512, 256, 256, like)
    assert cost.ghost_is_cheaper(1, 256, 256, like)
    assert cost.ghost_is_cheaper(64, 4096, 4096, like)
    # Where moving bytes is dear, Gram matrices are cheap.
    monkeypatch.setattr(cost, "rates", lambda *_: (1e13, 1e10))
    assert cost.ghost_is_cheaper(512, 1024, 1024, like)


def test_rates_are_measured_once() -> None:
    cost.rates.cache_clear()
    first = cost.rates(torch.device("cpu"), torch.float32, 1)
    assert all(rate > 1e8 for rate in first)
    assert cost.rates(torch.device("cpu"), torch.float32, 1) is first


# --- the user's door -----------------------------------------------------------------------


def test_an_adapter_moves_and_is_usable_after_it_was_put_on_a_device(tmp_path: Any) -> None:
    """Opacus #820: PEFT, then `.to(device)`, gave models that did not train and looked private."""
    import peft

    from privet.privacy.accounting.units import UnitIndex
    from privet.privacy.mechanism.dpsgd import DpSgd

    torch.manual_seed(5)
    model = _bert_lora().train()
    loss = classified
    unit = GradientEngine(model, loss)
    model.to("cpu")
    assert unit.mode == BOOK
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    update = DpSgd(1.0, noise_multiplier=0.01, steps=3).release(
        unit, labelled(12, 0), UnitIndex.by_record(12), nominal_size=12,
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.5),
    )  # fmt: skip
    after = dict(model.named_parameters())
    moved = {n for n in before if not torch.equal(before[n], after[n])}
    assert moved == set(update.tensors) == {n for n, p in after.items() if p.requires_grad}
    assert any("lora_A" in name for name in moved) and any("lora_B" in name for name in moved)
    batch = labelled(4, 9)
    shown = loss(model.eval(), batch)
    model.save_pretrained(tmp_path / "adapter")
    torch.manual_seed(5)
    fresh = _bert()
    loaded = peft.PeftModel.from_pretrained(fresh, str(tmp_path / "adapter")).eval()
    assert torch.allclose(loss(loaded, batch), shown, atol=1e-6)


def test_the_start_up_tests_pass_for_every_family() -> None:
    for name in FAMILIES:
        model, loss, draw = family(name)
        unit = GradientEngine(model, loss)
        assert unit.mode == BOOK
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            passed = selftest.run(unit, draw, unit.named)
        assert {"H6", "H16", "H17"} <= set(passed), name
