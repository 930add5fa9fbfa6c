from __future__ import annotations

import pytest
import torch
from dp_kit import (
    BOOK,
    FUNCTORCH,
    HOOKS,
    MODELS,
    QUIET,
    cross_entropy,
    lively,
    plan_of,
    rows,
    wide_engine,
)
from opacus.grad_sample import register_grad_sampler
from torch import nn
from torch.nn import functional

from privet.client.training.model_runtime import ModelRuntime
from privet.common.errors import CoupledRecordsError, SelfTestError
from privet.common.models import trainable
from privet.privacy.mechanism import record_coupling, selftest
from privet.privacy.mechanism.clipping import GradientEngine, methods

pytestmark = [pytest.mark.filterwarnings(quiet) for quiet in QUIET]

ALL = ["H6", "H7", "H16", "H17"]
MODES = (BOOK, HOOKS, FUNCTORCH)


def check(unit, batch=rows, declared=None):
    return selftest.run(
        unit, lambda count, seed: batch(count, seed=seed), declared or trainable(unit.model)
    )


class LooksWhileItTrains(nn.Module):
    """A layer of one's own that looks at a number while it trains, which vmap cannot do."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.head = nn.Parameter(torch.ones(6)), nn.Linear(6, 3)

    def forward(self, x):
        h = functional.dropout(x * self.scale, 0.1, self.training)
        if self.training and h.isinf().any():
            raise RuntimeError("a number is infinite")
        return self.head(h)


def test_what_a_method_cannot_do_while_a_model_trains_is_found():
    """The other tests run without dropout by a function, and so on a model that does not train."""
    unit = GradientEngine(nn.Sequential(LooksWhileItTrains()), cross_entropy)
    assert check(unit) == ALL
    assert unit.mode == "one-by-one" and "while it trains" in unit.refused[BOOK]
    assert all(module.training for module in unit.model.modules())
    batch = rows(5)
    clipped = unit.clipped_sum(batch, torch.arange(5).numpy(), 5, 1.0)
    assert all(torch.isfinite(tensor).all() for tensor in clipped.tensors)
    # The control: without chance nothing differs while it trains, and book-keeping is kept.
    plain = nn.Sequential(nn.Linear(6, 6), nn.Dropout(0.1), nn.Linear(6, 3))
    kept = GradientEngine(plain, cross_entropy)
    assert check(kept) == ALL and kept.mode == BOOK


# --- what should pass ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        pytest.param(
            name,
            mode,
            marks=[pytest.mark.slow, *[pytest.mark.long] * (mode in (HOOKS, FUNCTORCH))]
            if name == "minilm-lora"
            else [],
        )
        for name in MODELS
        for mode in ("auto", BOOK, HOOKS, FUNCTORCH)
    ],
)
def test_built_in_models_pass(name, mode):
    bench = ModelRuntime(plan_of(name, clipping=mode))
    before = {key: p.detach().clone() for key, p in bench.engine.named.items()}
    assert set(bench.self_tests) == set(ALL)
    assert all(torch.equal(p, before[key]) for key, p in bench.engine.named.items())
    assert bench.engine.model.training


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "tuning"), [("text", "full"), ("masked-text", "full"), ("masked-text", "lora")]
)
def test_minilm_passes_in_full_and_filling_gaps(task, tuning):
    plan = plan_of("minilm-lora").changed(model={"options": {"tuning": tuning}})
    if task != "text":
        plan = plan.changed(task={"kind": task, "classes": []})
    bench = ModelRuntime(plan)
    assert set(bench.self_tests) == set(ALL) and bench.engine.mode == BOOK


@pytest.mark.parametrize("mode", MODES)
def test_a_plain_model_passes(mode):
    assert check(wide_engine(mode=mode)) == ALL


def test_dropout_passes_and_is_switched_on_again():
    model = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5), nn.Linear(8, 3))
    assert check(wide_engine(lively(model))) == ALL
    assert model[1].training


# --- H6: records that depend on each other ------------------------------------------------


def batch_mean(model, batch):
    logits = model(batch["x"])
    return functional.cross_entropy(logits - logits.mean(0), batch["label"], reduction="none")


def contrastive(model, batch):
    features = functional.normalize(model(batch["x"]), dim=1)
    target = torch.arange(len(features))
    return functional.cross_entropy(features @ features.T / 0.5, target, reduction="none")


def router(model, batch):
    logits = model(batch["x"])
    chosen = logits.max(1).values.softmax(0)  # a place that records compete for
    return chosen * functional.cross_entropy(logits, batch["label"], reduction="none")


def before(model, batch):
    """Each record is weighed by the one before it."""
    weights = 1 + torch.cat([torch.zeros(1), batch["x"][:-1, 0].abs()])
    return weights * functional.cross_entropy(model(batch["x"]), batch["label"], reduction="none")


def after(model, batch):
    weights = 1 + torch.cat([batch["x"][1:, 0].abs(), torch.zeros(1)])
    return weights * functional.cross_entropy(model(batch["x"]), batch["label"], reduction="none")


COUPLED = [batch_mean, contrastive, router, before, after]


@pytest.mark.parametrize("loss", COUPLED)
@pytest.mark.parametrize("mode", MODES)
def test_coupled_records_stop_the_run(loss, mode):
    with pytest.raises(SelfTestError, match=r"H6|H16"):
        check(wide_engine(loss=loss, mode=mode))


@pytest.mark.parametrize("loss", COUPLED)
@pytest.mark.parametrize("mode", MODES)
def test_coupled_records_are_found_by_the_test_of_coupling(loss, mode):
    with pytest.raises(SelfTestError, match="H6"):
        record_coupling.require_uncoupled(
            wide_engine(loss=loss, mode=mode), rows(3, seed=1), rows(3, seed=2)
        )
    record_coupling.require_uncoupled(wide_engine(mode=mode), rows(3, seed=1), rows(3, seed=2))


@pytest.mark.parametrize("loss", COUPLED)
def test_coupled_records_are_named_as_such(loss):
    with pytest.raises(SelfTestError, match="H6"):
        check(wide_engine(loss=loss))


def mean_given_to_each(model, batch):
    losses = cross_entropy(model, batch)
    return losses.mean().expand(len(losses))


def mean_alone(model, batch):
    return cross_entropy(model, batch).mean()


@pytest.mark.parametrize("loss", [mean_given_to_each, mean_alone])
@pytest.mark.parametrize("mode", MODES)
def test_a_mean_instead_of_one_loss_a_record(loss, mode):
    """A mean that each record is given has their own gradients; a NaN shows it then (H7)."""
    with pytest.raises(SelfTestError, match=r"H6|H7|H16"):
        check(wide_engine(loss=loss, mode=mode))


@pytest.mark.parametrize("mode", MODES)
def test_coupling_through_gradients_alone_is_found(mode):
    """In a sum over records each gradient is still the record's own; a NaN shows it (H7)."""

    def sly(model, batch):
        logits = model(batch["x"])
        hidden = logits.mean()
        return functional.cross_entropy(
            logits + hidden - hidden.detach(), batch["label"], reduction="none"
        ) + (hidden - hidden.detach())

    with pytest.raises(SelfTestError, match=r"H6|H7|H16"):
        check(wide_engine(loss=sly, mode=mode))


def test_batch_norm_without_weights_or_statistics_stops_the_run():
    """Opacus looks at layers with parameters only; this one has none."""
    norm = nn.BatchNorm1d(6, affine=False, track_running_stats=False)
    for training in (True, False):
        with pytest.raises(CoupledRecordsError, match="H6"):
            wide_engine(nn.Sequential(norm, nn.Linear(6, 3)).train(training))


# --- H16: wrong per-sample gradients ------------------------------------------------------


class Tied(nn.Module):
    """An embedding whose weights are also the output layer, past the hooks."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(9, 6)

    def forward(self, x):
        return functional.linear(self.words(x).mean(1), self.words.weight)


def token_rows(count, *, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        "x": torch.randint(0, 9, (count, 5), generator=generator),
        "label": torch.randint(0, 9, (count,), generator=generator),
    }


@pytest.mark.parametrize("mode", MODES)
def test_tied_weights(mode):
    said = "'words.weight' has a gradient outside" if mode == BOOK else "H16.*'words.weight'"
    with pytest.raises(SelfTestError, match=said):
        check(wide_engine(lively(Tied()), mode=mode), token_rows)


class Doubling(nn.Module):
    """A layer of one's own, whose registered sampler is wrong by a factor."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(6))

    def forward(self, x):
        return x * self.scale


@register_grad_sampler(Doubling)
def _doubling(layer, activations, backprops):
    return {layer.scale: 2 * activations[0] * backprops}


def with_doubling(mode):
    return wide_engine(lively(nn.Sequential(Doubling(), nn.Linear(6, 3))), mode=mode)


def test_a_custom_layer_with_a_wrong_sampler():
    with pytest.raises(SelfTestError, match=r"H16.*'0\.scale'.*auto"):
        check(with_doubling(HOOKS))


def test_the_advice_helps():
    assert check(with_doubling(FUNCTORCH)) == ALL


class Buried(nn.Module):
    """A parameter of the whole model, used beside its layers."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 3)
        self.layer.register_parameter("temperature", nn.Parameter(torch.ones(3)))

    def forward(self, x):
        return self.layer(x) * self.layer.temperature


@pytest.mark.parametrize("mode", MODES)
def test_a_layer_outside_coverage(mode):
    """The extra parameter of a known layer has no per-sample gradient."""
    with pytest.raises((SelfTestError, RuntimeError, KeyError, AttributeError)):
        check(wide_engine(lively(Buried()), mode=mode))


def test_a_layer_outside_coverage_is_named():
    with pytest.raises(SelfTestError, match=r"H16|H17"):
        check(wide_engine(lively(Buried())))


@pytest.mark.parametrize("mode", MODES)
def test_left_out_clipping(mode, monkeypatch):
    unit = wide_engine(mode=mode)
    monkeypatch.setattr(methods, "clip_factors", lambda squares, clip: torch.ones_like(squares))
    with pytest.raises(SelfTestError, match="H16: the clipped sum is wrong"):
        check(unit)


@pytest.mark.parametrize("factor", [0.5, 1.01])
def test_clipping_to_another_bound(factor, monkeypatch):
    honest = methods.clip_factors
    monkeypatch.setattr(methods, "clip_factors", lambda squares, c: honest(squares, factor * c))
    with pytest.raises(SelfTestError, match="H16: the clipped sum is wrong"):
        check(wide_engine())


def test_a_model_without_any_gradient():
    def constant(model, batch):
        return 0 * cross_entropy(model, batch)

    with pytest.raises(SelfTestError, match="H16: the loss does not depend"):
        check(wide_engine(loss=constant))


# --- H17: coverage ------------------------------------------------------------------------


def test_a_parameter_that_thawed():
    model = nn.Sequential(nn.Linear(6, 6).requires_grad_(False), nn.Linear(6, 3))
    unit = wide_engine(model)
    model[0].requires_grad_(True)
    with pytest.raises(SelfTestError, match=r"H17: '0\.bias' is not trained"):
        check(unit)


def test_a_parameter_that_was_not_declared():
    with pytest.raises(SelfTestError, match=r"H17: 'layer\.bias' is trained but not declared"):
        check(wide_engine(), declared=["layer.weight"])


# --- H7: one record spoils the others -----------------------------------------------------


def nan_spreads(model, batch):
    """Records meet only in a term that is exactly zero, unless one of them is NaN."""
    logits = model(batch["x"])
    losses = functional.cross_entropy(logits, batch["label"], reduction="none")
    return losses * (1 + 0 * logits.detach().sum())


@pytest.mark.parametrize("mode", MODES)
def test_a_nan_that_spreads(mode):
    with pytest.raises(SelfTestError, match="H7: one NaN record"):
        check(wide_engine(loss=nan_spreads, mode=mode))


def nan_is_missing(model, batch):
    """A network that takes NaN for a missing value, as many do."""
    logits = model(torch.nan_to_num(batch["x"]))
    return functional.cross_entropy(logits, batch["label"], reduction="none")


def nan_turns_others(model, batch):
    """The same, but one missing value turns the logits of all."""
    turned = 5.0 * batch["x"].isnan().any() * torch.eye(3)[0]
    logits = model(torch.nan_to_num(batch["x"])) + turned
    return functional.cross_entropy(logits, batch["label"], reduction="none")


@pytest.mark.parametrize("mode", MODES)
def test_a_network_that_reads_nan_as_a_missing_value(mode):
    assert check(wide_engine(loss=nan_is_missing, mode=mode)) == ALL
    with pytest.raises(SelfTestError, match="H7: one NaN record"):
        check(wide_engine(loss=nan_turns_others, mode=mode))


@pytest.mark.parametrize("mode", MODES)
def test_gradients_that_are_not_finite_and_are_kept(mode, monkeypatch):
    def careless(squares, clip):
        return (clip / squares.sqrt().clamp(min=1e-30)).clamp(max=1.0)

    unit = wide_engine(mode=mode)
    monkeypatch.setattr(methods, "clip_factors", careless)
    monkeypatch.setattr(torch, "nan_to_num", lambda tensor, *rest: tensor)
    with pytest.raises(SelfTestError, match=r"H7|H16"):
        check(unit)


def test_a_failed_self_test_leaves_the_engine_usable():
    calls = []

    def flaky(model, batch):
        calls.append(1)
        return (nan_spreads if len(calls) < 30 else cross_entropy)(model, batch)

    unit = wide_engine(loss=flaky)
    with pytest.raises(SelfTestError):
        check(unit)
    calls.extend([1] * 30)
    assert check(unit) == ALL


def test_the_engine_of_a_workbench_is_a_gradient_engine():
    assert isinstance(ModelRuntime(plan_of("linear")).engine, GradientEngine)


def test_without_a_bound_there_is_no_bound_to_test():
    free = plan_of("linear", clip=None)
    assert free.training.clip is None
    assert set(ModelRuntime(free).self_tests) == {"H6", "H17"}
    private = {"epsilon": 1.0, "delta": 1e-5}
    assert set(ModelRuntime(free.changed(privacy=private)).self_tests) == set(ALL)


# --- at weights that saturate the model -----------------------------------------------------


def grown(unit, by):
    with torch.no_grad():
        for parameter in unit.parameters:
            parameter.mul_(by)
    return unit


@pytest.mark.parametrize("by", [1e3, 1e6])
@pytest.mark.parametrize("loss", [*COUPLED, nan_spreads, mean_alone])
@pytest.mark.parametrize("mode", MODES)
def test_broken_losses_are_found_at_large_weights(loss, mode, by):
    with pytest.raises(SelfTestError, match=r"H6|H7|H16"):
        check(grown(wide_engine(loss=loss, mode=mode), by))


@pytest.mark.parametrize("by", [1e3, 1e6])
def test_broken_layers_are_found_at_large_weights(by, monkeypatch):
    with pytest.raises(SelfTestError, match="H16"):
        check(grown(with_doubling(HOOKS), by))
    with pytest.raises(SelfTestError, match=r"H16"):
        check(grown(wide_engine(lively(Tied()), mode=HOOKS), by), token_rows)
    unit = grown(wide_engine(), by)
    assert check(unit) == ALL
    monkeypatch.setattr(methods, "clip_factors", lambda squares, clip: torch.ones_like(squares))
    with pytest.raises(SelfTestError, match="H16: the clipped sum is wrong"):
        check(unit)
