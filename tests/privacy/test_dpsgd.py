from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest
import torch
from dp_kit import (
    BOOK,
    FALSE_ALARM,
    HOOKS,
    Counting,
    Weak,
    cross_entropy,
    difference,
    norm,
    reference_clipped_sum,
    reference_gradients,
    rows,
    scale_fits,
    shape_fits,
    wide_engine,
    wide_model,
)
from scipy import stats
from torch import nn
from torch.nn import functional

from privet.common.errors import (
    BypassError,
    CoupledRecordsError,
    InputError,
    NotReleasableError,
    PrivacyError,
    SelfTestError,
)
from privet.privacy.accounting.events import (
    Gaussian,
    NonPrivate,
    PoissonSampled,
    Repeated,
    covers,
    group,
)
from privet.privacy.accounting.pld import epsilon
from privet.privacy.accounting.units import Relation, Unit, UnitIndex
from privet.privacy.mechanism import dpsgd
from privet.privacy.mechanism.dpsgd import DpSgd, NoisedUpdate, PlainSgd, PlainUpdate
from privet.privacy.mechanism.noise import Stream
from privet.privacy.mechanism.sampling import PoissonSampler

RATE, NOISE, CLIP, NOMINAL = 0.25, 1.5, 0.7, 200
MECHANISM = DpSgd(RATE, NOISE, CLIP)


def plain(parameters):
    """SGD at rate 1: the update is minus the noised mean."""
    return torch.optim.SGD(parameters, lr=1.0)


def released(mechanism=MECHANISM, unit=None, batch=None, *, units=None, **more):
    batch = rows(50) if batch is None else batch
    units = units or UnitIndex.by_record(len(batch["label"]))
    more = {"nominal_size": NOMINAL, "optimizer": plain, **more}
    return mechanism.release(unit or wide_engine(), batch, units, **more)


def flat(update) -> np.ndarray:
    return torch.cat([t.flatten() for t in update.tensors.values()]).double().numpy()


def silent():
    """A model without bias and records of zeros: the gradient is zero, all is noise."""
    batch = rows(50, features=100)
    batch["x"].zero_()
    return wide_engine(wide_model(features=100, classes=80, bias=False)), batch


def noise_of(mechanism=MECHANISM, **more) -> np.ndarray:
    """Return the noise of a release, undivided: standard deviation σ C is wanted."""
    unit, batch = silent()
    update = released(mechanism, unit, batch, **more)
    return flat(update) * mechanism.sample_rate * NOMINAL


# --- noise --------------------------------------------------------------------------------


def test_the_noise_of_a_release_has_the_right_scale_and_shape():
    values = noise_of(stream=Stream.seeded("scale"))
    assert scale_fits(values, NOISE * CLIP)
    assert shape_fits(values, NOISE * CLIP)
    for factor in (0.1, 2 / 3, 3 / 2):
        assert not scale_fits(values, factor * NOISE * CLIP)


@pytest.mark.parametrize("factor", [0.1, 2 / 3, 3 / 2, 0.0])
def test_a_weak_stream_is_noticed(factor):
    stream = Weak.seeded("weak")
    stream.factor = factor
    assert not scale_fits(noise_of(stream=stream), NOISE * CLIP)


@pytest.mark.parametrize("factor", [0.1, 2 / 3])
def test_noise_made_too_small_in_the_mechanism_is_noticed(factor, monkeypatch):
    honest = dpsgd._with_noise
    monkeypatch.setattr(
        dpsgd, "_with_noise", lambda tensors, stream, std: honest(tensors, stream, factor * std)
    )
    assert not scale_fits(noise_of(stream=Stream.seeded("small")), NOISE * CLIP)


def test_forgotten_clip_in_the_noise_is_noticed():
    values = noise_of(DpSgd(RATE, NOISE, 0.1), stream=Stream.seeded("clip"))
    assert scale_fits(values, NOISE * 0.1)
    assert not scale_fits(values, NOISE)


def test_every_step_draws_its_own_noise():
    """Two steps' noises add as independent ones do: not doubled, not cancelled."""
    two = dataclasses.replace(MECHANISM, steps=2)
    values = noise_of(two, stream=Stream.seeded("steps"))
    assert scale_fits(values, 2**0.5 * NOISE * CLIP)
    assert not scale_fits(values, 2 * NOISE * CLIP)
    one = noise_of(stream=Stream.seeded("steps"))
    assert abs(np.corrcoef(one, values - one)[0, 1]) < 6 / len(one) ** 0.5


def test_tensors_of_one_step_have_noise_of_their_own():
    unit = wide_engine(wide_model(features=80, classes=80))
    update = released(unit=unit, batch=rows(0, features=80), stream=Stream.seeded("own"))
    weight, bias = update.tensors["layer.weight"], update.tensors["layer.bias"]
    assert not torch.isin(bias, weight).any()
    assert len(weight.unique()) > 0.99 * weight.numel()


def test_the_noise_stays_when_there_are_data():
    """The same stream with and without data: what differs is the clipped mean alone."""
    everyone = DpSgd(1.0, NOISE, CLIP)
    batch, model = rows(30), wide_model()
    owner = np.arange(30)
    want = reference_clipped_sum(reference_gradients(model, cross_entropy, batch), owner, 30, CLIP)
    with_data = released(everyone, wide_engine(model), batch, stream=Stream.seeded("same"))
    without = released(everyone, batch=rows(0), stream=Stream.seeded("same"))
    got = [
        -NOMINAL * (a - b)
        for a, b in zip(with_data.tensors.values(), without.tensors.values(), strict=True)
    ]
    assert difference(got, want) <= 1e-4 * norm(want)


def test_two_releases_differ_and_a_seed_repeats_one():
    first, second = released(), released()
    assert not first.reproducible
    assert difference(first.tensors.values(), second.tensors.values()) > 0
    seeded = [released(stream=Stream.seeded("run", 1, "site")) for _ in range(2)]
    assert all(update.reproducible for update in seeded)
    assert difference(*(update.tensors.values() for update in seeded)) == 0


def test_global_seeds_have_no_effect():
    updates = []
    for _ in range(2):
        torch.manual_seed(1)
        np.random.seed(1)
        updates.append(flat(released()))
    assert not (updates[0] == updates[1]).any()


def test_a_release_moves_no_global_generator():
    unit, batch = silent()
    states = torch.get_rng_state(), np.random.get_state()[1].copy()
    released(unit=unit, batch=batch)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (np.random.get_state()[1] == states[1]).all()


# --- divisor ------------------------------------------------------------------------------


@pytest.mark.parametrize("records", [0, 1, 50, 51, 400])
def test_the_divisor_is_a_constant_of_the_plan(records):
    """H2: however many records there are, noise is divided by the same number."""
    unit, _ = silent()
    batch = rows(records, features=100)
    batch["x"].zero_()
    values = flat(released(unit=unit, batch=batch, stream=Stream.seeded("divisor")))
    assert scale_fits(values, NOISE * CLIP / (RATE * NOMINAL))
    # Control: a divisor that follows the data is far off, unless the data are as declared.
    if 0 < records != NOMINAL:
        assert not scale_fits(values, NOISE * CLIP / (RATE * records))


def test_one_record_more_adds_its_clipped_gradient_and_nothing_else():
    everyone, batch, model = DpSgd(1.0, NOISE, CLIP), rows(31), wide_model()
    newcomer = {name: tensor[30:] for name, tensor in batch.items()}
    single = reference_gradients(model, cross_entropy, newcomer)
    want = reference_clipped_sum(single, np.arange(1), 1, CLIP)
    fewer = {name: tensor[:30] for name, tensor in batch.items()}
    one, two = (
        released(everyone, wide_engine(), data, stream=Stream.seeded("more"))
        for data in (fewer, batch)
    )
    moved = [
        -NOMINAL * (b - a) for a, b in zip(one.tensors.values(), two.tensors.values(), strict=True)
    ]
    assert difference(moved, want) <= 1e-4
    assert norm(moved) <= CLIP * (1 + 1e-4)


# --- events -------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [0.25, 1.0])
@pytest.mark.parametrize("steps", [1, 4])
def test_the_event_is_what_was_planned_when_all_goes_to_plan(rate, steps):
    mechanism = DpSgd(rate, NOISE, CLIP, steps)
    step = Gaussian(NOISE * CLIP, CLIP)
    step = step if rate == 1 else PoissonSampled(rate, step)
    assert mechanism.event == Repeated(step, steps)
    update = released(mechanism)
    assert update.event == mechanism.event
    assert covers(mechanism.event, update.event)


def test_noise_additions_are_counted():
    """H10: as many normals are drawn as the event says, and no more."""
    unit = wide_engine()
    size = sum(p.numel() for p in unit.parameters)
    for steps in (1, 3):
        stream = Counting.seeded("count")
        update = released(DpSgd(RATE, NOISE, CLIP, steps), unit, stream=stream)
        ((_, count),) = group([update.event])
        assert stream.drawn == count * size == steps * size


@pytest.mark.parametrize("extra", [-1, 2])
def test_other_steps_than_planned_are_another_event(extra, monkeypatch):
    honest = dpsgd._descend
    monkeypatch.setattr(
        dpsgd,
        "_descend",
        lambda unit, gradient, steps, *a: honest(unit, gradient, steps + extra, *a),
    )
    mechanism = DpSgd(RATE, NOISE, CLIP, 3)
    update = released(mechanism)
    assert group([update.event])[0][1] == 3 + extra
    assert covers(mechanism.event, update.event) == (extra < 0)


def test_another_rate_is_another_event(monkeypatch):
    monkeypatch.setattr(dpsgd, "PoissonSampler", lambda rate: PoissonSampler(2 * rate))
    try:
        update = released()
    except PrivacyError:
        return
    assert not covers(MECHANISM.event, update.event)


def test_another_clip_is_not_released(monkeypatch):
    unit = wide_engine()
    honest = unit.clipped_sum
    monkeypatch.setattr(unit, "clipped_sum", lambda b, o, n, clip: honest(b, o, n, 10 * clip))
    with pytest.raises(NotReleasableError, match="clipped to 7"):
        released(unit=unit)


def test_steps_that_differ_are_not_private():
    observed = dpsgd._Observed([MECHANISM.event, DpSgd(RATE, 9.0, CLIP).event])
    assert isinstance(observed.event(), NonPrivate)
    assert isinstance(dpsgd._Observed().event(), NonPrivate)


def test_an_empty_batch_is_noised_and_counted():
    """H19: nobody drawn, or nobody there, looks and costs like any other step."""
    unit, batch = silent()
    rare = DpSgd(1e-9, NOISE, CLIP, 3)
    update = released(rare, unit, batch, stream=Stream.seeded("empty"))
    assert update.event == rare.event
    assert scale_fits(flat(update) * 1e-9 * NOMINAL, 3**0.5 * NOISE * CLIP)
    nobody = released(MECHANISM, batch=rows(0))
    assert nobody.event == MECHANISM.event
    assert np.count_nonzero(flat(nobody)) == len(flat(nobody))


def test_persons_without_any_record():
    index = UnitIndex.by_person(np.array([], dtype=object), 3)
    assert released(batch=rows(0), units=index).event == MECHANISM.event


# --- calibration --------------------------------------------------------------------------


@pytest.mark.parametrize("relation", list(Relation))
def test_calibrated(relation):
    extra = [Gaussian(20.0, 1.0)] * 4
    base = DpSgd(0.2, clip=0.3, steps=5, relation=relation, unit=Unit.PERSON)
    mechanism = base.calibrated(4.0, 1e-5, releases=6, extra=extra)
    history = [mechanism.event] * 6 + extra
    assert 0.998 * 4 <= epsilon(history, 1e-5, relation) <= 4
    assert dataclasses.replace(mechanism, noise_multiplier=1.0) == base
    with pytest.raises(dataclasses.FrozenInstanceError):
        mechanism.noise_multiplier = 0.1


def test_calibration_does_not_depend_on_the_clip():
    noises = {
        DpSgd(1.0, clip=clip, steps=2).calibrated(3.0, 1e-5, releases=2).noise_multiplier
        for clip in (0.01, 1.0, 50.0)
    }
    assert max(noises) - min(noises) <= 1e-4 + 1e-9


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("sample_rate", 0.0),
        ("sample_rate", 1.1),
        ("noise_multiplier", 0.0),
        ("noise_multiplier", -1.0),
        ("noise_multiplier", float("nan")),
        ("noise_multiplier", float("inf")),
        ("clip", 0.0),
        ("clip", float("nan")),
        ("steps", 0),
    ],
)
def test_impossible_mechanisms(field, value):
    with pytest.raises(InputError, match=field):
        dataclasses.replace(MECHANISM, **{field: value})


# --- what may leave -----------------------------------------------------------------------


def test_nobody_makes_a_noised_update_by_hand():
    for seal in (None, object(), True, "seal", dpsgd.DpSgd):
        with pytest.raises(NotReleasableError, match="only a mechanism"):
            NoisedUpdate(seal, {"w": torch.ones(2)}, MECHANISM.event, False)
    with pytest.raises(TypeError):
        NoisedUpdate(tensors={}, event=MECHANISM.event, reproducible=False)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_an_update_that_is_not_finite_is_not_made(bad):
    with pytest.raises(NotReleasableError, match=r"'w' is not finite"):
        NoisedUpdate(dpsgd._SEAL, {"w": torch.tensor([0.0, bad])}, MECHANISM.event, False)


@pytest.mark.parametrize(
    "rate",
    [
        1e36,
        1e38,
    ],
)
def test_training_that_diverges_is_not_released(rate):
    """At 1e36 one step overflows to one kind of infinity; at 1e38 to both kinds."""
    unit = wide_engine(wide_model(features=1, classes=1, bias=False)) if rate < 1e38 else None
    batch = rows(4, features=1, classes=1) if rate < 1e38 else None
    with pytest.raises(NotReleasableError, match="not finite"):
        released(
            DpSgd(1e-9, NOISE, CLIP),
            unit,
            batch,
            optimizer=lambda p: torch.optim.SGD(p, lr=rate),
            stream=Stream.seeded("diverge"),
        )


def test_one_bad_record_does_not_show():
    """H7: the update of a site with a NaN record is the update without it."""
    everyone, batch = DpSgd(1.0, NOISE, CLIP), rows(20)
    batch["x"][3] = float("nan")
    good = {name: torch.cat([t[:3], t[4:]]) for name, t in batch.items()}
    one, two = (
        released(everyone, batch=data, stream=Stream.seeded("nan")) for data in (batch, good)
    )
    assert np.allclose(flat(one), flat(two), atol=1e-6)
    # Control: without clipping, one bad record ruins everything.
    with pytest.raises(PrivacyError):
        released(PlainSgd(1.0), batch=batch)


def test_an_update_holds_the_trained_parameters_only():
    model = wide_model()
    frozen = nn.ModuleDict({"encoder": nn.Linear(6, 6).requires_grad_(False), "head": model})

    def loss(_, batch):
        return cross_entropy(model, {**batch, "x": frozen["encoder"](batch["x"])})

    update = released(unit=wide_engine(frozen, loss=loss))
    assert list(update.tensors) == ["head.layer.weight", "head.layer.bias"]
    assert all(not tensor.requires_grad for tensor in update.tensors.values())


def test_a_plain_run_says_that_it_is_not_private():
    for clip in (None, 1.0):
        mechanism = PlainSgd(RATE, 2, clip)
        update = released(mechanism)
        assert type(update) is PlainUpdate
        assert isinstance(update.event, NonPrivate)
        assert epsilon([update.event], 1e-5) == float("inf")
        assert not covers(MECHANISM.event, update.event)


# --- bypass (H5, H8, H17) -----------------------------------------------------------------


def rogue_loss(action, mode=HOOKS):
    """Return an engine whose loss does ``action(model)`` before it computes the loss."""
    inner = wide_model()

    def loss(model, batch):
        action(inner)
        return cross_entropy(model, batch)

    return wide_engine(inner, loss=loss, mode=mode)


def step_in_the_clear(model):
    with torch.no_grad():
        model.layer.weight.sub_(0.1)


def step_through_data(model):
    model.layer.weight.data.sub_(0.1)  # the version counter does not see this


def swap_rows(model):
    model.layer.weight.data = model.layer.weight.data.flip(0)


@pytest.mark.parametrize("action", [step_in_the_clear, step_through_data, swap_rows])
@pytest.mark.parametrize("mode", [BOOK, HOOKS])
def test_a_loss_that_steps_the_parameters(action, mode):
    with pytest.raises(BypassError, match=r"'layer.weight' changed outside.*H8"):
        released(DpSgd(1.0, NOISE, CLIP), rogue_loss(action, mode))


def test_an_honest_loss_passes():
    released(unit=rogue_loss(lambda model: model.layer.weight.sum()))


@pytest.mark.parametrize("mode", [BOOK, HOOKS])
def test_a_second_optimizer(mode):
    def loss(model, batch):
        logits = functional.linear(batch["x"], *unit.parameters)
        functional.cross_entropy(logits, batch["label"]).backward()
        torch.optim.SGD(unit.parameters, lr=0.1).step()
        return cross_entropy(model, batch)

    unit = wide_engine(loss=loss, mode=mode)
    # Book-keeping leaves no gradient, and sees one that is there before the optimizer is noticed.
    fault, said = BypassError, "another optimizer"
    if mode == BOOK:
        fault, said = SelfTestError, "a gradient outside its layer"
    with pytest.raises(fault, match=said):
        released(DpSgd(1.0, NOISE, CLIP), unit)


def test_an_optimizer_that_steps_when_it_is_made():
    def factory(parameters):
        with torch.no_grad():
            parameters[0].add_(100.0)
        return plain(parameters)

    try:
        update = released(optimizer=factory)
    except BypassError:
        return
    assert np.abs(flat(update)).max() < 50


class Extended(nn.Module):
    """A head beside a frozen layer and a buffer."""

    def __init__(self, action=None):
        super().__init__()
        self.frozen = nn.Linear(6, 6).requires_grad_(False)
        self.head = nn.Linear(6, 3)
        self.register_buffer("seen", torch.zeros(1))
        self.register_buffer("mask", torch.full((2, 2), -float("inf")).triu(1))
        self.action = action

    def forward(self, x):
        if self.action:
            self.action(self)
        return self.head(self.frozen(x))


def add_in_place(model):
    model.seen.add_(1)


def replace_buffer(model):
    model.seen = model.seen + 1


def write_data(model):
    model.seen.data.add_(1)


def move_frozen(model):
    model.frozen.weight.data.add_(0.1)


def new_buffer(model):
    model.register_buffer("statistics", torch.ones(3))


@pytest.mark.parametrize(
    "action", [add_in_place, replace_buffer, write_data, move_frozen, new_buffer]
)
def test_buffers_and_frozen_parameters_must_not_move(action):
    with pytest.raises(BypassError, match=r"H5|H17"):
        released(DpSgd(1.0, NOISE, CLIP), wide_engine(Extended(action)))


def test_buffers_that_stay_are_fine():
    unit = wide_engine(Extended())
    assert list(released(unit=unit).tensors) == ["head.weight", "head.bias"]


def test_batch_norm_without_weights_is_caught():
    model = nn.Sequential(nn.BatchNorm1d(6, affine=False), nn.Linear(6, 3))
    with pytest.raises(CoupledRecordsError, match="BatchNorm1d"):
        wide_engine(model)


def thaw(model):
    model.frozen.requires_grad_(True)


def test_a_thawed_parameter_is_not_trained():
    """H17: what thaws on the way is neither stepped nor released."""
    model = Extended()
    before = model.frozen.weight.detach().clone()
    unit = wide_engine(model)
    thaw(model)
    try:
        update = released(DpSgd(1.0, NOISE, CLIP, 2), unit)
    except PrivacyError:
        return
    assert list(update.tensors) == ["head.weight", "head.bias"]
    assert torch.equal(before, model.frozen.weight)


def test_an_optimizer_over_thawed_parameters():
    model = Extended()
    unit = wide_engine(model)

    def factory(_):
        thaw(model)
        return torch.optim.SGD(model.parameters(), lr=0.1)

    with pytest.raises(PrivacyError):
        released(DpSgd(1.0, NOISE, CLIP, 2), unit, optimizer=factory)


def test_weight_decay_on_a_frozen_parameter():
    model = Extended()

    def factory(parameters):
        optimizer = torch.optim.SGD([*parameters, model.frozen.weight], lr=0.1, weight_decay=0.1)
        model.frozen.weight.grad = torch.zeros(6, 6)
        return optimizer

    with pytest.raises(BypassError, match=r"frozen\.weight"):
        released(unit=wide_engine(model), optimizer=factory)


# --- local optimizers ---------------------------------------------------------------------


def test_the_proximal_pull_reads_no_data():
    """FedProx: θ₂ = θ₁ − η (g̃ + μ (θ₁ − θ₀)), and θ₁ − θ₀ is noised already."""
    mu = 0.3
    unit, batch = silent()

    def run(steps, pull):
        model = copy.deepcopy(unit.model.state_dict())
        update = released(
            dataclasses.replace(MECHANISM, steps=steps), unit, batch,
            proximal_mu=pull, stream=Stream.seeded("prox"),
        )  # fmt: skip
        unit.model.load_state_dict(model)
        return flat(update), update.event

    first, _ = run(1, 0.0)
    assert np.array_equal(run(1, mu)[0], first)
    (free, event), (pulled, event_pulled) = run(2, 0.0), run(2, mu)
    assert np.allclose(pulled, free - mu * first, atol=1e-6)
    assert event == event_pulled


def test_momentum_and_adam_see_noised_gradients_only():
    for factory in (
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
        lambda p: torch.optim.Adam(p, lr=0.01),
    ):
        update = released(dataclasses.replace(MECHANISM, steps=3), optimizer=factory)
        assert update.event == dataclasses.replace(MECHANISM, steps=3).event


# --- what a distinguisher sees ------------------------------------------------------------


@pytest.mark.parametrize("factor", [1.0, 0.1])
def test_a_distinguisher_stays_below_epsilon(factor):
    """Scores of 4,000 releases with and without one record at the clip bound.

    At the noise claimed, no threshold shows more than ε; at a tenth of it, one does.
    """
    mechanism = DpSgd(1.0, 2.0, CLIP)
    gradient = torch.tensor([[CLIP / 2**0.5], [-CLIP / 2**0.5]])
    total = dpsgd.ClippedSum((gradient,), CLIP)
    nothing = dpsgd.ClippedSum((torch.zeros_like(gradient),), CLIP)
    stream = Weak.seeded("distinguisher")
    stream.factor = factor
    direction, trials, delta = gradient / CLIP, 4000, 1e-3

    def scores(clipped):
        drawn = [mechanism.noised(clipped, stream)[0][0] for _ in range(trials)]
        return np.array([float((value * direction).sum()) for value in drawn])

    out, inside = scores(nothing), scores(total)
    claimed = epsilon([mechanism.noised(total, stream)[1]], delta)
    confidence = 1 - FALSE_ALARM

    def shown(threshold):
        hits, misses = int((inside > threshold).sum()), int((out > threshold).sum())
        low = stats.beta.ppf(1 - confidence, hits, trials - hits + 1) if hits else 0.0
        high = stats.beta.ppf(confidence, misses + 1, trials - misses)
        return np.log(max(low - delta, 1e-12) / high)

    found = max(shown(t) for t in np.linspace(-1, 1, 21) * CLIP)
    assert (found <= claimed) == (factor == 1.0)
