"""What people write first: torch's own Transformers, recurrent layers, layers of their own.

Each must train as it is, with the gradients that single records have. What is refused is refused
because its records depend on each other, decided by plain autograd, and never because a way of
clipping does not fit.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from dp_kit import BOOK, HOOKS
from torch import Tensor, nn
from torch.nn import functional

from privet.common.errors import (
    CoupledRecordsError,
    InputError,
    PrivetError,
    SelfTestError,
    UnfitModelError,
)
from privet.privacy.mechanism import selftest
from privet.privacy.mechanism.clipping import GradientEngine, record_axes
from privet.privacy.mechanism.clipping.engine import AUTOMATIC
from privet.privacy.mechanism.clipping.record_axes import RecordAxes, RecordAxis

WORDS, WIDTH, PLACES = 23, 8, 6
ALL = ["H6", "H7", "H16", "H17"]
VMAP, ONE_BY_ONE = "vmap", "one-by-one"
Batch = dict[str, Tensor]

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


def tokens(count: int, seed: int, places: int = PLACES) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    drawn = [torch.randint(1, WORDS, (count, places), generator=generator) for _ in range(2)]
    drawn[0][::2, -2:] = 0  # padding
    return {"x": drawn[0], "y": drawn[1]}


def loss_of(model: nn.Module, batch: Batch) -> Tensor:
    """Mean cross entropy over the places of each record, [B]."""
    scores = model(batch["x"]).transpose(1, 2)
    return functional.cross_entropy(scores, batch["y"], reduction="none").mean(1)


class Around(nn.Module):
    """An embedding, a layer [B, T, d] → [B, T, d], and a head over the vocabulary."""

    def __init__(self, layer: nn.Module, call: Callable[..., Tensor] | None = None) -> None:
        super().__init__()
        self.table = nn.Embedding(WORDS, WIDTH)
        self.layer = layer
        self.head = nn.Linear(WIDTH, WORDS)
        self._call = call or (lambda layer, h, x: layer(h))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self._call(self.layer, self.table(x), x))  # type: ignore[no-any-return]


def turned(call: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Let a layer read [T, B, d]."""
    return lambda layer, h, x: call(layer, h.transpose(0, 1), x).transpose(0, 1)


def encoder(**more: Any) -> nn.Module:
    given = {"dropout": 0.0, "batch_first": True, **more}
    return nn.TransformerEncoder(nn.TransformerEncoderLayer(WIDTH, 2, 12, **given), 2)


def causal(layer: Any, h: Tensor, x: Tensor) -> Tensor:
    places = x.shape[1]
    mask = nn.Transformer.generate_square_subsequent_mask(places)
    made: Tensor = layer(h, mask=mask, src_key_padding_mask=(x == 0).float() * -1e9, is_causal=True)
    return made


class Seq2Seq(nn.Module):
    """``nn.Transformer`` with source and target, in torch's own order of dimensions."""

    def __init__(self, *, batch_first: bool) -> None:
        super().__init__()
        self.source, self.target = nn.Embedding(WORDS, WIDTH), nn.Embedding(WORDS, WIDTH)
        self.core = nn.Transformer(WIDTH, 2, 1, 2, 12, 0.0, batch_first=batch_first)
        self.head = nn.Linear(WIDTH, WORDS)
        self.turn = not batch_first

    def forward(self, x: Tensor) -> Tensor:
        source, target = self.source(x), self.target(x.flip(1))
        if self.turn:
            source, target = source.transpose(0, 1), target.transpose(0, 1)
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        made = self.head(self.core(source, target, tgt_mask=mask, tgt_is_causal=True))
        return made.transpose(0, 1) if self.turn else made  # type: ignore[no-any-return]


class Positions(nn.Module):
    """Positions that are read once for all records, at ids [T], [1, T] or [T, 1]."""

    def __init__(self, shape: str) -> None:
        super().__init__()
        self.table, self.shape = nn.Embedding(PLACES, WIDTH), shape

    def forward(self, h: Tensor) -> Tensor:
        if self.shape == "[T, 1]":
            return h + self.table(torch.arange(len(h)).unsqueeze(1))
        ids = torch.arange(h.shape[1])
        return h + self.table(ids if self.shape == "[T]" else ids.unsqueeze(0))


class Raw(nn.Module):
    """A layer of one's own: a scale, positions [T, d], a bias of all places [1, T, d]."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.linspace(0.5, 1.5, WIDTH))
        self.places = nn.Parameter(torch.randn(PLACES, WIDTH))
        self.inner = nn.Linear(WIDTH, WIDTH)

    def forward(self, h: Tensor) -> Tensor:
        return self.inner(h + self.places[: h.shape[1]]) * self.scale


class Several(nn.Module):
    """A raw parameter in a layer that takes keywords and returns more than tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(WIDTH, WIDTH))

    def forward(self, h: Tensor, *, by: float, mask: Tensor | None = None) -> Any:
        made = h @ self.weight * by
        return {"out": made if mask is None else made * mask, "none": None, "number": 3}


class Experts(nn.Module):
    """Each place goes to one expert: sound, and no layer reads a batch of records."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(WIDTH, 3)
        self.experts = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def forward(self, h: Tensor) -> Tensor:
        weights = self.router(h).softmax(-1)
        chosen, made = weights.argmax(-1), torch.zeros_like(h)
        for number, expert in enumerate(self.experts):
            mine = chosen == number
            made[mine] = expert(h[mine]) * weights[mine][:, number : number + 1]
        return made


def frozen_norm() -> nn.Module:
    norm = nn.BatchNorm1d(WIDTH)
    norm.running_mean, norm.running_var = torch.randn(WIDTH), torch.rand(WIDTH) + 0.5
    return norm.eval()


def self_attention(layer: Any, h: Tensor, x: Tensor) -> Tensor:
    made: Tensor = layer(h, h, h, key_padding_mask=x == 0)[0]
    return made


def cross_attention(layer: Any, h: Tensor, x: Tensor) -> Tensor:
    other = h.flip(1)[:, :4]
    made: Tensor = layer(h, other, other, need_weights=False)[0]
    return made


def three_inputs(layer: Any, h: Tensor, x: Tensor) -> Tensor:
    made: Tensor = layer(h, h * 2, h + 1, attn_mask=torch.eye(h.shape[1]))[0]
    return made


def first_of(layer: Any, h: Tensor, x: Tensor) -> Tensor:
    made: Tensor = layer(h)[0]
    return made


def channels(layer: Any, h: Tensor, x: Tensor) -> Tensor:
    made: Tensor = layer(h.transpose(1, 2)).transpose(1, 2)
    return made


def attention(**more: Any) -> nn.Module:
    return nn.MultiheadAttention(WIDTH, 2, **{"batch_first": True, **more})


CASES: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "encoder": (lambda: Around(encoder()), BOOK),
    "encoder, norm first": (lambda: Around(encoder(norm_first=True, activation="gelu")), BOOK),
    "encoder, causal, padding": (lambda: Around(encoder(), causal), BOOK),
    "encoder [T, B, d]": (lambda: Around(encoder(batch_first=False), turned(causal)), BOOK),
    "transformer": (lambda: Seq2Seq(batch_first=True), BOOK),
    "transformer [T, B, d]": (lambda: Seq2Seq(batch_first=False), BOOK),
    "attention": (lambda: Around(attention(), self_attention), BOOK),
    "attention, no bias": (lambda: Around(attention(bias=False), self_attention), BOOK),
    "attention, cross": (lambda: Around(attention(), cross_attention), BOOK),
    "attention, three inputs": (lambda: Around(attention(), three_inputs), BOOK),
    "attention, widths": (
        lambda: Around(attention(kdim=WIDTH, vdim=WIDTH, add_bias_kv=True), self_attention), BOOK,
    ),
    "LSTM [T, B, d]": (lambda: Around(nn.LSTM(WIDTH, WIDTH), turned(first_of)), BOOK),
    "LSTM, deep, both ways": (
        lambda: Around(
            nn.LSTM(WIDTH, WIDTH // 2, 2, bidirectional=True, batch_first=True), first_of
        ), BOOK,
    ),
    "GRU": (lambda: Around(nn.GRU(WIDTH, WIDTH, batch_first=True), first_of), BOOK),
    "GRU, deep, both ways": (
        lambda: Around(nn.GRU(WIDTH, WIDTH // 2, 2, bidirectional=True), turned(first_of)), BOOK,
    ),
    "RNN": (lambda: Around(nn.RNN(WIDTH, WIDTH, nonlinearity="relu"), turned(first_of)), BOOK),
    "LSTM, projected": (
        lambda: Around(nn.LSTM(WIDTH, 12, proj_size=WIDTH, batch_first=True), first_of), ONE_BY_ONE,
    ),
    "positions [T]": (lambda: Around(Positions("[T]")), BOOK),
    "positions [1, T]": (lambda: Around(Positions("[1, T]")), BOOK),
    "positions [T, 1]": (
        lambda: Around(Positions("[T, 1]"), turned(lambda layer, h, x: layer(h))), BOOK,
    ),
    "raw parameters": (lambda: Around(Raw()), BOOK),
    "more than tensors": (
        lambda: Around(
            Several(), lambda layer, h, x: layer(h, by=0.5, mask=(x > 0).unsqueeze(2))["out"]
        ), BOOK,
    ),
    "weight norm": (
        lambda: Around(nn.utils.parametrizations.weight_norm(nn.Linear(WIDTH, WIDTH))), BOOK,
    ),
    "norm over places": (lambda: Around(nn.LayerNorm([PLACES, WIDTH])), BOOK),
    "batch norm, frozen": (lambda: Around(frozen_norm(), channels), BOOK),
    "transposed convolution": (
        lambda: Around(nn.ConvTranspose1d(WIDTH, WIDTH, 3, padding=1), channels), BOOK,
    ),
    "same convolution": (
        lambda: Around(nn.Conv1d(WIDTH, WIDTH, 3, padding="same"), channels), BOOK,
    ),
    "bilinear": (
        lambda: Around(nn.Bilinear(WIDTH, WIDTH, WIDTH), lambda m, h, x: m(h, h.flip(1))), BOOK,
    ),
    "experts": (lambda: Around(Experts()), ONE_BY_ONE),
}  # fmt: skip


def built(name: str) -> nn.Module:
    torch.manual_seed(5)
    return CASES[name][0]()


def alone(engine: GradientEngine, batch: Batch) -> list[list[Tensor]]:
    rows = range(len(batch["x"]))
    return [engine.plain_sum({n: t[i : i + 1] for n, t in batch.items()}) for i in rows]


def error_of(got: list[Tensor], singles: list[list[Tensor]]) -> float:
    """Return the largest difference of a record's gradient, as a share of its norm."""
    worst = 0.0
    for row, single in enumerate(singles):
        norm = sum(float(g.square().sum()) for g in single) ** 0.5
        apart = sum(float((a[row] - b).square().sum()) for a, b in zip(got, single, strict=True))
        worst = max(worst, apart**0.5 / norm)
    return worst


@pytest.mark.parametrize("name", CASES)
def test_it_trains_as_it_is(name: str) -> None:
    model = built(name)
    names = {n for n, _ in model.named_modules()}
    engine = GradientEngine(model, loss_of)
    assert selftest.run(engine, tokens, list(engine.named), records=20) == ALL
    assert engine.mode == CASES[name][1], engine.refused
    # As many records as places: a shape does not tell which is which.
    batch = tokens(PLACES, 9)
    singles = alone(engine, batch)
    assert error_of(engine.per_sample(batch), singles) < 1e-5
    # Units of 3, 2 and 1 records: the sum over a person's records is what is clipped.
    owner = np.array([0, 0, 0, 1, 1, 2])
    units = [[sum(singles[i][p] for i in np.flatnonzero(owner == u)) for p in range(len(singles[0]))]
             for u in range(3)]  # fmt: skip
    norms = [sum(float(g.square().sum()) for g in unit) ** 0.5 for unit in units]
    clip = sorted(norms)[1] * 0.9
    total = engine.clipped_sum(batch, owner, 3, clip).tensors
    for place, got in enumerate(total):
        want = sum(min(1.0, clip / n) * u[place] for u, n in zip(units, norms, strict=True))
        assert float((got - want).norm()) < 1e-4 * clip
    engine.close()
    assert {n for n, _ in model.named_modules()} == names
    assert all("forward" not in vars(m) and not m._forward_hooks for m in model.modules())


@pytest.mark.parametrize("mode", [VMAP, ONE_BY_ONE])
@pytest.mark.parametrize("name", ["encoder [T, B, d]", "raw parameters", "positions [T]"])
def test_the_last_two_ways_give_the_same(name: str, mode: str) -> None:
    model = built(name)
    engine = GradientEngine(model, loss_of, mode=mode, micro_batch=4)
    assert selftest.run(engine, tokens, list(engine.named), records=20, together=2) == ALL
    batch = tokens(7, 3)
    assert error_of(engine.per_sample(batch), alone(engine, batch)) < 1e-5
    owner = np.array([0, 0, 1, 2, 2, 2, 4])
    book = GradientEngine(model, loss_of, mode=BOOK)
    book.prepare(tokens)
    for got, want in zip(
        engine.clipped_sum(batch, owner, 5, 0.3).tensors,
        book.clipped_sum(batch, owner, 5, 0.3).tensors,
        strict=True,
    ):
        assert torch.allclose(got, want, atol=1e-6)


def test_the_same_chance_is_drawn_as_without_clipping() -> None:
    """Dropout of the layers that are written out in parts: the sum is autograd's own."""
    torch.manual_seed(5)
    model = Around(encoder(dropout=0.3), causal)
    engine = GradientEngine(model, loss_of, mode=BOOK)
    engine.prepare(tokens)
    batch = tokens(5, 2)
    torch.manual_seed(11)
    each = engine.per_sample(batch)
    torch.manual_seed(11)
    total = engine.plain_sum(batch)
    assert any(float(t.norm()) > 0 for t in total)
    for rows, whole in zip(each, total, strict=True):
        assert torch.allclose(rows.sum(0), whole, atol=1e-5)


# --- what is refused, and why -------------------------------------------------------------


class Mean(nn.Module):
    def forward(self, h: Tensor) -> Tensor:
        return h - h.mean(0, keepdim=True)


class StoppedMean(nn.Module):
    """Adds nothing to the loss of others but moves their gradients."""

    def forward(self, h: Tensor) -> Tensor:
        factor = h.detach().mean()
        return h * factor + (h * (1 - factor)).detach()


class Roll(nn.Module):
    """Each record reads the one before it."""

    def forward(self, h: Tensor) -> Tensor:
        return h + h.roll(1, 0)


COUPLED = {
    "mean": lambda: Around(Mean()),
    "stopped mean": lambda: Around(StoppedMean()),
    "roll": lambda: Around(Roll()),
    # Written as if the first dimension were of places: attention over records.
    "wrong order": lambda: Around(encoder(batch_first=False)),
    "LSTM, wrong order": lambda: Around(nn.LSTM(WIDTH, WIDTH), first_of),
}


@pytest.mark.parametrize("mode", ["auto", BOOK, HOOKS, VMAP, ONE_BY_ONE])
@pytest.mark.parametrize("name", COUPLED)
def test_coupled_records_are_refused_in_every_mode(name: str, mode: str) -> None:
    torch.manual_seed(5)
    model = COUPLED[name]()
    try:
        engine = GradientEngine(model, loss_of, mode=mode)
    except PrivetError as error:
        assert mode == HOOKS and "Opacus refuses the model" in str(error)
        return
    with pytest.raises(CoupledRecordsError, match="H6"):
        selftest.run(engine, tokens, list(engine.named), records=20)
    assert engine.mode == (BOOK if mode == "auto" else mode), "no other way was tried"


def test_a_way_that_does_not_fit_accuses_no_model(caplog: pytest.LogCaptureFixture) -> None:
    engine = GradientEngine(built("experts"), loss_of)
    with caplog.at_level("INFO"):
        selftest.run(engine, tokens, list(engine.named))
    assert list(engine.refused) == [mode for mode in AUTOMATIC if mode != ONE_BY_ONE]
    assert not any("H6" in why for why in engine.refused.values())
    assert "clipping continues with one-by-one" in caplog.text


def test_wrong_record_axes_do_not_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: the start-up test notices a dimension that was taken for that of records."""
    real = record_axes.find

    def first_always(*given: Any) -> dict[int, RecordAxes]:
        found = real(*given)
        return {
            key: RecordAxes(tuple(map(first, one.inputs)), one.outputs)
            for key, one in found.items()
        }

    def first(axis: RecordAxis) -> RecordAxis:
        return RecordAxis(0, PLACES // 3 if axis.dimension == 1 else axis.rows)

    monkeypatch.setattr(record_axes, "find", first_always)
    model = Around(encoder(batch_first=False), turned(lambda layer, h, x: layer(h)))
    engine = GradientEngine(model, loss_of, mode=BOOK)
    with pytest.raises(SelfTestError, match="H16") as caught:
        selftest.run(engine, tokens, list(engine.named))
    assert not isinstance(caught.value, UnfitModelError)
    monkeypatch.undo()
    engine = GradientEngine(model, loss_of, mode=BOOK)
    assert selftest.run(engine, tokens, list(engine.named)) == ALL


class Packed(nn.Module):
    """Leaves padding out: the layer reads as many rows as there are words, [n, d]."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(WIDTH, WIDTH)

    def forward(self, h: Tensor, x: Tensor) -> Tensor:
        made, words = torch.zeros_like(h), x > 0
        made[words] = self.inner(h[words])
        return made


def full(count: int, seed: int) -> Batch:
    """Generated records without padding, of which nobody sees that rows are packed."""
    batch = tokens(count, seed)
    return {**batch, "x": batch["x"].clamp(min=1)}


class Sorted(nn.Module):
    """Orders the records by their length, and back."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(WIDTH, WIDTH)

    def forward(self, h: Tensor, x: Tensor) -> Tensor:
        order = (x > 0).sum(1).argsort(stable=True)
        return self.inner(h[order])[order.argsort()]


class PackedByPython(nn.Module):
    """As :class:`Packed`, by numbers that Python has: no operator of torch takes rows."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(WIDTH, WIDTH)

    def forward(self, h: Tensor, x: Tensor) -> Tensor:
        lengths = (x > 0).sum(1).tolist()
        rows = self.inner(torch.cat([row[:n] for row, n in zip(h, lengths, strict=True)]))
        parts = torch.split(rows, lengths)
        return torch.stack(
            [functional.pad(part, (0, 0, 0, h.shape[1] - len(part))) for part in parts]
        )


@pytest.mark.parametrize("layer", [Packed, PackedByPython, Sorted])
def test_rows_that_are_taken_or_ordered_by_what_they_hold_are_no_records(layer: Any) -> None:
    """Generated records of one length show nothing of it; real ones would have the wrong rows."""
    torch.manual_seed(5)
    model = Around(layer(), lambda layer, h, x: layer(h, x))
    engine = GradientEngine(model, loss_of, mode=BOOK)
    with pytest.raises(SelfTestError, match="what (they|the records) hold"):
        selftest.run(engine, full, list(engine.named), records=20)
    engine = GradientEngine(model, loss_of)
    assert selftest.run(engine, full, list(engine.named), records=20) == ALL
    batch = full(4, 9)
    # 18 words of 3 records, as many as generated ones have: 6 of each, if one did not know better.
    batch = full(3, 9) if layer is Sorted else {"x": torch.zeros(3, 12, dtype=torch.long)}
    if layer is not Sorted:
        for row, words in enumerate((2, 4, 12)):
            batch["x"][row, :words] = torch.arange(1, words + 1)
        batch["y"] = batch["x"].flip(1)
    else:
        batch["x"][0, 3:] = 0
    assert error_of(engine.per_sample(batch), alone(engine, batch)) < 1e-5


class Given(nn.Module):
    """Reads or writes records at the places that they bring; generated ones bring their own."""

    def __init__(self, *, writes: bool) -> None:
        super().__init__()
        self.inner, self.writes = nn.Linear(WIDTH, WIDTH), writes

    def forward(self, h: Tensor, places: Tensor) -> Tensor:
        if self.writes:
            return self.inner(torch.zeros_like(h).index_add(0, places, h))
        return self.inner(h[places])


@pytest.mark.parametrize("writes", [False, True])
def test_an_index_that_records_bring_is_not_taken_for_their_order(writes: bool) -> None:
    """One that is each record's own place in every generated batch: nothing else shows it."""

    class Placed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.layer = nn.Embedding(WORDS, WIDTH), Given(writes=writes)
            self.head = nn.Linear(WIDTH, WORDS)

        def forward(self, x: Tensor, places: Tensor) -> Tensor:
            return self.head(self.layer(self.table(x), places % len(x)))  # type: ignore[no-any-return]

    def placed(count: int, seed: int) -> Batch:
        return {**full(count, seed), "places": torch.arange(count)}

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        scores = model(batch["x"], batch["places"]).transpose(1, 2)
        return functional.cross_entropy(scores, batch["y"], reduction="none").mean(1)

    torch.manual_seed(5)
    engine = GradientEngine(Placed(), loss, mode=BOOK)
    # Records alone have no place but the first: the model is coupled, or its rows are not known.
    with pytest.raises(SelfTestError, match="H6|what they hold"):
        selftest.run(engine, placed, list(engine.named))
    assert record_axes.rearranged(lambda batch: loss(engine.model, batch), placed)


def test_weights_that_a_rare_branch_reads_past_their_layer_are_clipped_one_by_one() -> None:
    class Reaches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(WIDTH, WIDTH)

        def forward(self, h: Tensor, x: Tensor) -> Tensor:
            made = self.inner(h)
            rare = (x == WORDS - 1).all(1)
            return (
                made + functional.linear(h, self.inner.weight) * rare.view(-1, 1, 1)
                if rare.any()
                else made
            )

    model = Around(Reaches(), lambda layer, h, x: layer(h, x))
    engine = GradientEngine(model, loss_of, mode=BOOK)
    assert selftest.run(engine, tokens, list(engine.named), records=20) == ALL
    batch = tokens(4, 9)
    batch["x"][1] = WORDS - 1
    got = engine.clipped_sum(batch, np.arange(4), 4, 0.5).tensors
    want = GradientEngine(model, loss_of, mode=ONE_BY_ONE).clipped_sum(batch, np.arange(4), 4, 0.5)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(got, want.tensors, strict=True))


def test_a_second_start_up_test_is_one_too() -> None:
    """It clips nothing one by one either, though the first has passed."""
    model = Around(Sometimes(), lambda layer, h, x: layer(h, x))
    engine = GradientEngine(model, loss_of, mode=BOOK)
    assert selftest.run(engine, tokens, list(engine.named)) == ALL

    def rare(count: int, seed: int) -> Batch:
        batch = tokens(count, seed)
        if count not in record_axes.SIZES or seed == 2:
            batch["x"][0] = WORDS - 1
        return batch

    with pytest.raises(SelfTestError, match="did not see"):
        selftest.run(engine, rare, list(engine.named), records=20)


class Keeps(nn.Module):
    """A raw parameter beside a buffer and an attribute that each pass replaces."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(WIDTH))
        self.register_buffer("last", torch.zeros(()))

    def forward(self, h: Tensor) -> Tensor:
        made = h * self.scale
        self.last, self.shown = made.detach().sum(), made
        return made


def test_a_module_that_is_treated_as_a_whole_keeps_nothing_of_vmap() -> None:
    model = Around(Keeps())
    engine = GradientEngine(model, loss_of, mode=BOOK)
    engine.prepare(tokens)
    before = float(model.layer.last)
    engine.clipped_sum(tokens(4, 9), np.arange(4), 4, 0.5)
    assert float(model.layer.last) == before
    copy.deepcopy(model.state_dict())


class Sometimes(nn.Module):
    """A layer that only some records call."""

    def __init__(self) -> None:
        super().__init__()
        self.always, self.rarely = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, h: Tensor, x: Tensor) -> Tensor:
        h = self.always(h)
        rare = (x == WORDS - 1).all(1)
        return h + torch.where(rare.view(-1, 1, 1), self.rarely(h), 0.0) if rare.any() else h


def test_a_batch_unlike_those_of_the_start_up_test_is_clipped_one_by_one(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A layer that no generated batch called is not guessed, and costs no failure."""
    model = Around(Sometimes(), lambda layer, h, x: layer(h, x))
    engine = GradientEngine(model, loss_of, mode=BOOK, micro_batch=3)
    assert selftest.run(engine, tokens, list(engine.named), records=20) == ALL
    batch = tokens(7, 9)
    batch["x"][1] = WORDS - 1
    with caplog.at_level(logging.INFO):
        got = engine.clipped_sum(batch, np.arange(7), 7, 0.5).tensors
    assert caplog.text.count("is clipped one by one") == 1, "one micro-batch of three"
    want = (
        GradientEngine(model, loss_of, mode=ONE_BY_ONE)
        .clipped_sum(batch, np.arange(7), 7, 0.5)
        .tensors
    )
    assert all(torch.allclose(one, two, atol=1e-6) for one, two in zip(got, want, strict=True))


def test_during_the_start_up_test_nothing_is_clipped_one_by_one_instead() -> None:
    model = Around(Sometimes(), lambda layer, h, x: layer(h, x))
    engine = GradientEngine(model, loss_of, mode=BOOK)
    engine.prepare(tokens)
    batch = tokens(4, 9)
    batch["x"][1] = WORDS - 1
    with pytest.raises(SelfTestError, match="did not see"):
        engine.clipped_sum(batch, np.arange(4), 4, 0.5)


class Sinusoids(nn.Module):
    """Positions that a linear layer maps, once for all records."""

    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Linear(4, WIDTH)

    def forward(self, h: Tensor) -> Tensor:
        places = torch.arange(h.shape[1]).unsqueeze(1) * torch.tensor([1.0, 0.3, 0.1, 0.03])
        return h + self.map(places.sin())


@pytest.mark.parametrize(
    "layer", [lambda: Positions("[T]"), lambda: Positions("[1, T]"), Sinusoids]
)
def test_what_records_share_is_so_also_where_they_have_one_place(layer: Any) -> None:
    torch.manual_seed(5)
    model = Around(layer())
    engine = GradientEngine(model, loss_of)
    assert selftest.run(engine, tokens, list(engine.named), records=20) == ALL
    batch = {name: tensor[:, :1] for name, tensor in full(8, 4).items()}
    total = engine.clipped_sum(batch, np.arange(8), 8, 0.1).tensors
    want = (
        GradientEngine(model, loss_of, mode=ONE_BY_ONE)
        .clipped_sum(batch, np.arange(8), 8, 0.1)
        .tensors
    )
    assert all(torch.allclose(one, two, atol=1e-6) for one, two in zip(total, want, strict=True))


def test_a_batch_norm_that_trains_is_refused_also_later() -> None:
    model = Around(nn.BatchNorm1d(WIDTH), channels)
    with pytest.raises(CoupledRecordsError, match=r"'layer' \(BatchNorm1d\).*group norms"):
        GradientEngine(model, loss_of)
    model.layer.eval()
    engine = GradientEngine(model, loss_of)
    assert selftest.run(engine, tokens, list(engine.named)) == ALL
    engine.clipped_sum(tokens(3, 1), np.arange(3), 3, 1.0)
    model.train()
    with pytest.raises(CoupledRecordsError, match="BatchNorm1d"):
        engine.clipped_sum(tokens(3, 1), np.arange(3), 3, 1.0)


@pytest.mark.parametrize("mode", ["auto", BOOK, HOOKS, "functorch", VMAP, ONE_BY_ONE])
def test_a_parameter_that_no_record_uses_has_a_gradient_of_zero(mode: str) -> None:
    torch.manual_seed(5)
    model = Around(nn.Linear(WIDTH, WIDTH))
    model.idle = nn.Linear(3, 300)
    engine = GradientEngine(model, loss_of, mode=mode)
    assert selftest.run(engine, tokens, list(engine.named), records=9) == ALL
    total = engine.clipped_sum(tokens(4, 1), np.arange(4), 4, 0.5)
    for name, tensor in zip(engine.named, total.tensors, strict=True):
        assert bool(tensor.any()) == (not name.startswith("idle"))
    norm = sum(float(t.square().sum()) for t in total.tensors) ** 0.5
    assert 0 < norm <= 4 * 0.5


def test_a_model_that_fails_is_told_as_its_own_fault() -> None:
    def broken(model: nn.Module, batch: Batch) -> Tensor:
        raise KeyError("labels")

    engine = GradientEngine(built("encoder"), broken)
    with pytest.raises(UnfitModelError, match=r"fails on 3 generated records.*labels"):
        selftest.run(engine, tokens, list(engine.named))
    assert engine.mode == BOOK


class Chance(nn.Module):
    """Dropout that is no layer, as many models of transformers have it."""

    def __init__(self, *, always: bool = False, mixes: bool = False) -> None:
        super().__init__()
        self.inner, self.always, self.mixes = nn.Linear(WIDTH, WIDTH), always, mixes

    def forward(self, h: Tensor) -> Tensor:
        made = functional.dropout(self.inner(h), 0.4, self.training or self.always)
        if self.mixes and self.training:
            made = made - made.mean(0)
        return made


@pytest.mark.parametrize("mode", ["auto", VMAP, ONE_BY_ONE])
def test_chance_that_is_no_layer_may_be_drawn_while_the_model_trains(mode: str) -> None:
    model = Around(Chance())
    model.train()
    engine = GradientEngine(model, loss_of, mode=mode)
    state = torch.random.get_rng_state()
    assert selftest.run(engine, tokens, list(engine.named), records=9) == ALL
    assert all(module.training for module in model.modules()), "as it was"
    assert selftest.real_records(engine, tokens(9, 4)) > 3
    drawn = [engine.clipped_sum(tokens(3, 1), np.arange(3), 3, 1.0).tensors for _ in range(2)]
    assert not torch.equal(drawn[0][-1], drawn[1][-1]), "it is drawn again in training"
    assert len(state) == len(torch.random.get_rng_state())


class Attends(nn.Module):
    """Attention that leaves padding out: of an empty text it makes no number."""

    def __init__(self, *, spreads: bool = False, chance: float = 0.0) -> None:
        super().__init__()
        self.inner, self.spreads, self.chance = attention(), spreads, chance

    def forward(self, h: Tensor, x: Tensor) -> Tensor:
        made = self_attention(self.inner, h, x)
        if self.spreads:
            made = made + 0.0 * made.sum(0)
        return functional.dropout(made, self.chance, self.training)


def with_an_empty_text(count: int, seed: int) -> Batch:
    batch = tokens(count, seed)
    batch["x"][min(1, count - 1)] = 0
    return batch


@pytest.mark.parametrize("chance", [0.0, 0.2])
@pytest.mark.parametrize("mode", ["auto", ONE_BY_ONE])
def test_a_record_without_a_loss_accuses_no_model(mode: str, chance: float) -> None:
    torch.manual_seed(5)
    model = Around(Attends(chance=chance), lambda layer, h, x: layer(h, x)).train()
    engine = GradientEngine(model, loss_of, mode=mode)
    assert selftest.run(engine, with_an_empty_text, list(engine.named), records=20) == ALL
    total = engine.clipped_sum(with_an_empty_text(8, 3), np.arange(8), 8, 1.0).tensors
    assert all(bool(torch.isfinite(one).all()) for one in total)


@pytest.mark.parametrize("chance", [0.0, 0.2])
def test_a_record_without_a_loss_that_takes_the_others_with_it_is_refused(chance: float) -> None:
    torch.manual_seed(5)
    model = Around(Attends(spreads=True, chance=chance), lambda layer, h, x: layer(h, x)).train()
    engine = GradientEngine(model, loss_of)

    def sometimes(count: int, seed: int) -> Batch:
        return with_an_empty_text(count, seed) if seed in (2, 5) else full(count, seed)

    with pytest.raises(CoupledRecordsError, match="H6"):
        selftest.run(engine, sometimes, list(engine.named), records=20)


def test_what_mixes_records_only_while_it_trains_is_refused() -> None:
    engine = GradientEngine(Around(Chance(mixes=True)).train(), loss_of)
    with pytest.raises(CoupledRecordsError, match="H6"):
        selftest.run(engine, tokens, list(engine.named))


class OwnChance(nn.Module):
    """Draws from a generator of its own, and mixes records while it trains."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.draw = nn.Linear(WIDTH, WIDTH), torch.Generator().manual_seed(3)

    def forward(self, h: Tensor) -> Tensor:
        made = self.inner(h)
        if self.training:
            made = made * (torch.rand(h.shape, generator=self.draw) > 0.3) - 0.1 * made.mean(0)
        return made


class ManyMix(nn.Module):
    """Mixes records from nine on, while it trains; beside a dropout that is no layer."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(WIDTH, WIDTH)

    def forward(self, h: Tensor) -> Tensor:
        made = functional.dropout(self.inner(h), 0.1, self.training)
        return made - made.mean(0) if self.training and len(h) > 8 else made


class MixingDropout(nn.Module):
    """Has a name that promises to be harmless."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(WIDTH, WIDTH)

    def forward(self, h: Tensor) -> Tensor:
        made = self.inner(h)
        return made - made.mean(0) if self.training else made


@pytest.mark.parametrize(
    ("layer", "error"),
    [
        (OwnChance, UnfitModelError),
        (ManyMix, CoupledRecordsError),
        (MixingDropout, CoupledRecordsError),
    ],
)
def test_what_mixes_records_in_training_is_found_behind_chance(layer: Any, error: Any) -> None:
    engine = GradientEngine(Around(layer()).train(), loss_of)
    with pytest.raises(error):
        selftest.run(engine, tokens, list(engine.named), records=20)


def test_no_pass_has_more_records_than_the_start_up_test_had() -> None:
    engine = GradientEngine(Around(nn.Linear(WIDTH, WIDTH)), loss_of, micro_batch=256)
    selftest.run(engine, tokens, list(engine.named), records=20)
    assert engine.micro_batch == engine.max_records == 20


def test_a_table_that_a_lookup_writes_to_is_refused() -> None:
    model = Around(nn.Linear(WIDTH, WIDTH))
    model.table = nn.Embedding(WORDS, WIDTH, max_norm=1.0)
    with pytest.raises(InputError, match="'table'.*max_norm"):
        GradientEngine(model, loss_of)


def test_chance_that_is_drawn_always_is_told_as_the_models_fault() -> None:
    model = Around(Chance(always=True)).train()
    engine = GradientEngine(model, loss_of)
    with pytest.raises(UnfitModelError, match="two passes over the same records differ"):
        selftest.run(engine, tokens, list(engine.named))
    assert all(module.training for module in model.modules())


class Converting(nn.Module):
    """A router of transformers: it makes its layer single in each forward."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 3)

    def forward(self, h: Tensor) -> Tensor:
        self.layer = self.layer.to(torch.float32)
        found: Tensor = self.head(torch.relu(self.layer(h)))
        return found


def test_a_layer_that_is_converted_in_forward_is_left_to_another_way() -> None:
    """Within vmap it would hold a dead tensor, and the next read would end the process."""
    model = Converting()
    model.layer.requires_grad_(False)
    batch = {"h": torch.randn(5, WIDTH)}
    engine = GradientEngine(model, lambda m, b: m(b["h"]).square().sum(1), mode="vmap")
    with pytest.raises(RuntimeError, match="converted within the model's forward"):
        engine.per_sample(batch)
    other = GradientEngine(model, lambda m, b: m(b["h"]).square().sum(1), mode=ONE_BY_ONE)
    assert all(part.isfinite().all() for part in other.per_sample(batch))
