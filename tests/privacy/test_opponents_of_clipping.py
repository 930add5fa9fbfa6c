"""Models and uses that would pass the bound, or leave the model changed, without being noticed."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from dp_kit import BOOK, HOOKS, cross_entropy, difference, norm, rows
from torch import Tensor, nn
from torch.nn import functional

from privet.common.errors import BypassError, InputError, PrivacyError, SelfTestError
from privet.privacy.accounting.units import UnitIndex
from privet.privacy.mechanism import selftest
from privet.privacy.mechanism.clipping import GradientEngine
from privet.privacy.mechanism.dpsgd import DpSgd
from privet.privacy.mechanism.noise import Stream

Batch = dict[str, Tensor]
pytestmark = pytest.mark.filterwarnings("ignore")
WIDTH = 8


def texts(records: int, seed: int, length: int = 8, shortest: int = 8) -> Batch:
    """Token numbers, 0 is padding."""
    g = torch.Generator().manual_seed(seed)
    tokens = torch.randint(1, 30, (records, length), generator=g)
    long = torch.randint(shortest, length + 1, (records, 1), generator=g)
    tokens[torch.arange(length)[None] >= long] = 0
    return {"x": tokens, "label": torch.randint(0, 3, (records,), generator=g)}


def loss(model: nn.Module, batch: Batch) -> Tensor:
    return functional.cross_entropy(model(batch["x"]), batch["label"], reduction="none")


class Reader(nn.Module):
    """Words, a layer, their mean, a head; ``how`` calls the layer."""

    def __init__(self, how: Callable[[nn.Module, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words, self.layer = nn.Embedding(30, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, 3)
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.how(self.layer, self.words(x), x).tanh().mean(1))  # type: ignore[no-any-return]


def cut(layer: nn.Module, states: Tensor, x: Tensor) -> Tensor:
    """Long rows in pieces, one piece of all records after the other."""
    pieces = states.split(8, 1)
    made = layer(torch.cat(pieces, 0))
    return torch.cat(made.split(len(x), 0), 1)


def by_length(layer: nn.Module, states: Tensor, x: Tensor) -> Tensor:
    """Rows in the order of their length, as packed sequences are."""
    order = (x != 0).sum(1).argsort(stable=True)
    return layer(states[order])[order.argsort()]  # type: ignore[no-any-return]


def unpadded(layer: nn.Module, states: Tensor, x: Tensor) -> Tensor:
    """Padding left out, as fast attention does."""
    made = torch.zeros_like(states)
    made[x != 0] = layer(states[x != 0])
    return made


def plain(layer: nn.Module, states: Tensor, x: Tensor) -> Tensor:
    del x
    return layer(states)  # type: ignore[no-any-return]


REAL = {"cut": (64, 64), "by_length": (8, 2), "unpadded": (8, 4), "plain": (8, 2)}
"""Length and shortest length of real rows."""


@pytest.mark.parametrize("mode", [BOOK, HOOKS])
@pytest.mark.parametrize("how", [cut, by_length, unpadded])
def test_real_rows_that_take_another_way_are_noticed(
    how: Callable[[nn.Module, Tensor, Tensor], Tensor], mode: str
) -> None:
    engine = GradientEngine(Reader(how), loss, mode=mode)
    try:
        selftest.run(engine, texts, engine.named)
    except SelfTestError:
        return  # noticed at once: all the better
    length, shortest = REAL[how.__name__]
    real = texts(40, 5, length, shortest)
    if mode == BOOK and how is cut:  # another number of rows: clipped one by one, and exact
        assert selftest.real_records(engine, real) > 3
        return
    with pytest.raises(SelfTestError, match="H16"):
        selftest.real_records(engine, real)


@pytest.mark.parametrize("mode", [BOOK, HOOKS, "functorch"])
def test_real_rows_of_an_honest_model_pass(mode: str) -> None:
    engine = GradientEngine(Reader(plain), loss, mode=mode)
    before = [p.detach().clone() for p in engine.parameters]
    selftest.real_records(engine, texts(40, 5, 12, 1))
    selftest.real_records(engine, texts(1, 5, 12, 1))
    assert all(torch.equal(a, b) for a, b in zip(before, engine.parameters, strict=True))


def test_a_real_record_without_a_gradient_is_left_out() -> None:
    engine = GradientEngine(nn.Linear(4, 2), cross_entropy, mode=BOOK)
    x = torch.randn(20, 4)
    x[3] = float("nan")
    selftest.real_records(engine, {"x": x, "label": torch.zeros(20, dtype=torch.int64)})


@pytest.mark.parametrize("scale", [1e3, 1e4, 1e5, 1e6])
def test_rows_that_cancel_do_not_pass_the_bound(scale: float) -> None:
    """Two records of one person, nearly equal and with opposite labels."""
    torch.manual_seed(0)
    model = nn.Linear(64, 2, bias=False)
    with torch.no_grad():
        model.weight.zero_()
    base = torch.randn(64) * scale
    x = torch.stack([base, base + torch.randn(64)])
    batch = {"x": x, "label": torch.tensor([0, 1])}
    engine = GradientEngine(model, cross_entropy, mode=BOOK)
    for one in engine._method._layers.per_unit.parameters:  # type: ignore[attr-defined]
        one._requested = False  # as a long unit would choose
    total = engine.clipped_sum(batch, np.zeros(2, dtype=np.int64), 1, 1.0)
    single = sum(
        torch.autograd.grad(cross_entropy(model, {k: t[i : i + 1] for k, t in batch.items()}).sum(),
                            model.weight)[0].double()
        for i in range(2)
    )  # fmt: skip
    assert float(single.norm()) > 2.0
    assert norm(total.tensors) <= 1.0 + 1e-3
    # Its norm is taken for longer by what rounding may hide: the larger the terms, the more.
    assert norm(total.tensors) >= 1.0 - 2e-2


def test_the_bound_holds_at_very_small_scales() -> None:
    model = nn.Linear(4, 2, bias=False)
    batch = {"x": torch.randn(3, 4) * 1e-25, "label": torch.tensor([0, 1, 0])}
    engine = GradientEngine(model, cross_entropy, mode=BOOK)
    clip = 1e-27
    total = engine.clipped_sum(batch, np.arange(3), 3, clip)
    assert norm(total.tensors) <= 3 * clip * (1 + 1e-5)


def test_complex_numbers_and_integers_get_no_noise_by_halves() -> None:
    model = nn.Linear(4, 2)
    model.phase = nn.Parameter(torch.zeros(2, dtype=torch.cfloat))
    with pytest.raises(InputError, match=r"'phase' is of type torch\.complex64"):
        GradientEngine(model, cross_entropy)
    with pytest.raises(PrivacyError, match=r"torch\.int64"):
        Stream.seeded(1).add_normal(torch.zeros(4, dtype=torch.int64), 1.0)


@pytest.mark.parametrize(
    "owner",
    [[0, 1, 0, 1], [0, 1], [0, 1, 2, 3], [-1, 0, 1, 1]],
    ids=["mixed", "short", "far", "low"],
)
def test_owners_that_do_not_fit_are_refused(owner: list[int]) -> None:
    engine = GradientEngine(nn.Linear(4, 2), cross_entropy)
    batch = {"x": torch.randn(4, 4), "label": torch.zeros(4, dtype=torch.int64)}
    with pytest.raises(InputError, match="'owner'"):
        engine.clipped_sum(batch, np.array(owner), 3, 1.0)


# what a model does between engine and pass


def _linear() -> tuple[nn.Linear, Batch, GradientEngine]:
    torch.manual_seed(0)
    model = nn.Linear(4, 2)
    batch = {"x": torch.randn(4, 4), "label": torch.tensor([0, 1, 0, 1])}
    return model, batch, GradientEngine(model, cross_entropy, mode=BOOK)


def test_a_loss_that_takes_gradients_of_its_own_counts_once() -> None:
    model, batch, _ = _linear()

    def penal(model: nn.Module, batch: Batch) -> Tensor:
        with torch.enable_grad():
            x = batch["x"].clone().requires_grad_()
            inner = functional.cross_entropy(model(x), batch["label"], reduction="sum")
            (direction,) = torch.autograd.grad(inner, x)
        return functional.cross_entropy(
            model(batch["x"] + 0.1 * direction.sign()), batch["label"], reduction="none"
        )

    engine = GradientEngine(model, penal, mode=BOOK)
    assert selftest.run(
        engine, lambda n, seed: {"x": torch.randn(n, 4, generator=torch.Generator().manual_seed(seed)),
                                 "label": torch.arange(n) % 2}, engine.named,
    ) == ["H6", "H7", "H16", "H17"]  # fmt: skip
    del batch


def test_a_replaced_weight_is_noticed() -> None:
    model, batch, engine = _linear()
    model.weight = nn.Parameter(model.weight.detach() * 2)
    with pytest.raises(SelfTestError, match="the weight of a Linear was replaced"):
        engine.clipped_sum(batch, np.arange(4), 4, 1.0)
    release = DpSgd(1.0, 1.0, 1.0).release
    with pytest.raises(BypassError, match="'weight' is not the one that the engine was made for"):
        release(
            engine, batch, UnitIndex.by_record(4), nominal_size=4,
            optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1),
        )  # fmt: skip


def test_a_forward_of_somebody_else_is_neither_passed_over_nor_taken_away() -> None:
    model, batch, engine = _linear()
    own = model.forward

    def doubled(x: Tensor) -> Tensor:
        return 2 * own(x)

    model.forward = doubled  # type: ignore[method-assign]
    with pytest.raises(SelfTestError, match="somebody replaced 'forward' of a Linear"):
        engine.clipped_sum(batch, np.arange(4), 4, 1.0)
    assert model.forward is doubled


def test_a_parameter_that_is_cut_by_position_is_not_taken_for_copies() -> None:
    class Placed(Reader):
        def __init__(self) -> None:
            super().__init__(plain)
            self.places = nn.Parameter(torch.randn(8, WIDTH))

        def forward(self, x: Tensor) -> Tensor:
            states = self.words(x) + self.places[: x.shape[1]]
            return self.head(self.layer(states).mean(1))  # type: ignore[no-any-return]

    with pytest.raises(InputError, match="'places' is used in a way that is not known"):
        GradientEngine(Placed(), loss, mode=BOOK)


@pytest.mark.parametrize("mode", [HOOKS, "functorch"])
def test_a_closed_engine_leaves_the_model_as_it_was(mode: str) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    attributes = {name: set(vars(p)) for name, p in model.named_parameters()}
    batch = {"x": torch.randn(4, 4), "label": torch.tensor([0, 1, 0, 1])}
    engine = GradientEngine(model, cross_entropy, mode=mode)
    engine.clipped_sum(batch, np.arange(4), 4, 1.0)
    engine.close()
    for module in model.modules():
        assert not module._forward_hooks and not module._backward_hooks
        assert not hasattr(module, "activations")
    assert {name: set(vars(p)) for name, p in model.named_parameters()} == attributes
    again = GradientEngine(model, cross_entropy, mode=mode)
    assert norm(again.clipped_sum(batch, np.arange(4), 4, 1.0).tensors) > 0


# uses that are right, and were refused


def _exact(model: nn.Module, batch: Batch, own: Callable[[nn.Module, Batch], Tensor]) -> float:
    engine = GradientEngine(model, own, mode=BOOK)
    parameters = engine.parameters
    want = [torch.zeros_like(p) for p in parameters]
    count = len(batch["x"])
    for i in range(count):
        one = {name: tensor[i : i + 1] for name, tensor in batch.items()}
        made = torch.autograd.grad(own(model, one).sum(), parameters)
        length = float(sum(g.double().square().sum() for g in made)) ** 0.5
        for running, g in zip(want, made, strict=True):
            running.add_(g * min(1.0, 0.1 / length))
    got = engine.clipped_sum(batch, np.arange(count), count, 0.1)
    return difference(got.tensors, want)


def test_an_output_may_be_changed_in_place() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(inplace=True), nn.Linear(6, 2))
    batch = {"x": torch.randn(5, 3, 4), "label": torch.randint(0, 2, (5,))}

    def own(model: nn.Module, batch: Batch) -> Tensor:
        return functional.cross_entropy(model(batch["x"]).mean(1), batch["label"], reduction="none")

    assert _exact(model, batch, own) < 1e-5


def test_a_layer_may_be_called_with_its_arguments_name() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.norm = nn.Linear(4, 2), nn.LayerNorm(2)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(input=self.layer(input=x))  # type: ignore[no-any-return]

    torch.manual_seed(0)
    batch = {"x": torch.randn(5, 4), "label": torch.randint(0, 2, (5,))}
    assert _exact(Named(), batch, cross_entropy) < 1e-5


def test_a_single_record_may_be_squeezed() -> None:
    model = nn.Linear(4, 2)

    def own(model: nn.Module, batch: Batch) -> Tensor:
        logits = model(batch["x"].squeeze())
        return functional.cross_entropy(logits.view(-1, 2), batch["label"], reduction="none")

    batch = {"x": torch.randn(1, 4), "label": torch.tensor([1])}
    assert _exact(model, batch, own) < 1e-5


@pytest.mark.parametrize("kind", ["autocast", "parameters"])
def test_bfloat16_passes_the_start_up_test_and_a_fault_does_not(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Coarse(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.layers = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3))
            if kind == "parameters":
                self.layers.to(torch.bfloat16)

        def forward(self, x: Tensor) -> Tensor:
            if kind == "parameters":
                return self.layers(x.to(torch.bfloat16)).float()  # type: ignore[no-any-return]
            with torch.autocast("cpu", torch.bfloat16):
                return self.layers(x).float()  # type: ignore[no-any-return]

    def batch(records: int, seed: int) -> Batch:
        g = torch.Generator().manual_seed(seed)
        return {"x": torch.randn(records, 6, generator=g), "label": torch.arange(records) % 3}

    engine = GradientEngine(Coarse(), cross_entropy, mode=BOOK)
    assert selftest.run(engine, batch, engine.named) == ["H6", "H7", "H16", "H17"]
    assert engine.reduced_precision
    from privet.privacy.mechanism.clipping.parameter_gradients import ParameterGradients

    honest = ParameterGradients.add_linear
    monkeypatch.setattr(
        ParameterGradients, "add_linear", lambda self, x, g: honest(self, x * 1.2, g)
    )
    wrong = GradientEngine(Coarse(), cross_entropy, mode=BOOK)
    with pytest.raises(SelfTestError, match="H16"):
        selftest.run(wrong, batch, wrong.named)


@pytest.mark.parametrize("always", [False, True])
def test_dropout_that_is_no_layer_is_drawn_while_the_model_trains(always: bool) -> None:
    class Dropping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(functional.dropout(x, 0.5, self.training or always))  # type: ignore[no-any-return]

    engine = GradientEngine(Dropping(), cross_entropy, mode=BOOK)
    if not always:
        assert selftest.run(engine, lambda n, seed: rows(n, seed=seed), engine.named)
        return
    with pytest.raises(SelfTestError, match="two passes over the same records differ"):
        selftest.run(engine, lambda n, seed: rows(n, seed=seed), engine.named)


def test_long_units_choose_anew_what_costs_less() -> None:
    model, _, engine = _linear()
    one = engine._method._layers.per_unit.parameters[0]  # type: ignore[attr-defined]
    one.instantiate = False
    one.begin_pass()
    assert one.instantiate is None
    del model
