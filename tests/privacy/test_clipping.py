from __future__ import annotations

import numpy as np
import pytest
import torch
from dp_kit import (
    BOOK,
    FUNCTORCH,
    HOOKS,
    QUIET,
    Wide,
    built,
    cross_entropy,
    difference,
    examples,
    norm,
    reference_clipped_sum,
    reference_gradients,
    rows,
    wide_engine,
    wide_model,
)
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from privet.common.errors import InputError, SelfTestError
from privet.privacy.mechanism.clipping import GradientEngine, engine, methods

pytestmark = [pytest.mark.filterwarnings(quiet) for quiet in QUIET]

MODES = (BOOK, HOOKS, FUNCTORCH)
SMALL = ("linear", "ft-transformer", "text-encoder", "minilm-head")
CASES = [
    *((name, mode) for name in SMALL for mode in MODES),
    *(pytest.param("minilm-lora", mode, marks=pytest.mark.slow) for mode in MODES),
]


def each(count: int) -> np.ndarray:
    return np.arange(count)


def close(got, want, tolerance: float = 1e-5) -> bool:
    return difference(got, want) <= tolerance * max(norm(want), 1e-12)


# --- against a loop of single records -----------------------------------------------------


@pytest.mark.parametrize(("name", "mode"), CASES)
def test_clipped_sum_of_the_built_in_models(name, mode):
    model, task = built(name)
    batch = task.random_batch(7, 3)
    singles = reference_gradients(model, task.loss, batch)
    norms = sorted(norm(g) for g in singles)
    unit = GradientEngine(model, task.loss, mode=mode, micro_batch=4)
    for clip in (norms[0] / 2, norms[3], 2 * norms[-1]):
        got = unit.clipped_sum(batch, each(7), 7, clip)
        assert got.clip == clip
        assert close(got.tensors, reference_clipped_sum(singles, each(7), 7, clip))
        # Control: the same sum without clipping, or with the mean clipped, is far away.
        if clip < norms[-1]:
            assert not close(got.tensors, reference_clipped_sum(singles, each(7), 7, 1e9), 1e-2)


@pytest.mark.parametrize("name", ["linear", "ft-transformer", "text-encoder"])
@pytest.mark.parametrize("mode", [BOOK, HOOKS, FUNCTORCH])
def test_clipped_sum_of_persons(name, mode):
    model, task = built(name)
    batch, owner = task.random_batch(8, 4), np.array([0, 1, 1, 1, 2, 4, 4, 5])
    singles = reference_gradients(model, task.loss, batch)
    clip = 0.7 * norm(singles[0])
    want = reference_clipped_sum(singles, owner, 6, clip)
    unit = GradientEngine(model, task.loss, mode=mode, micro_batch=3)
    assert close(unit.clipped_sum(batch, owner, 6, clip).tensors, want)
    # Control: clipping each record instead of each person is another sum.
    assert not close(unit.clipped_sum(batch, each(8), 8, clip).tensors, want, 1e-2)


@pytest.mark.parametrize("name", ["linear", "ft-transformer", "text-encoder", "minilm-head"])
@pytest.mark.parametrize("mode", [BOOK, HOOKS, FUNCTORCH])
def test_per_sample_gradients(name, mode):
    model, task = built(name)
    batch = task.random_batch(4, 5)
    singles = reference_gradients(model, task.loss, batch)
    got = GradientEngine(model, task.loss, mode=mode).per_sample(batch)
    for i, single in enumerate(singles):
        assert close([g[i] for g in got], single)


@pytest.mark.parametrize("mode", MODES)
def test_the_engine_leaves_nothing_behind(mode):
    unit = wide_engine(mode=mode)
    batch = rows(5)
    before = [p.detach().clone() for p in unit.parameters]
    first = unit.clipped_sum(batch, each(5), 5, 0.3).tensors
    unit.per_sample(rows(3, seed=9))
    assert all(p.grad is None for p in unit.parameters)
    again = unit.clipped_sum(batch, each(5), 5, 0.3).tensors
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(before, unit.parameters, strict=True))


@pytest.mark.parametrize("mode", MODES)
def test_an_error_in_the_loss_does_not_spoil_the_next_batch(mode):
    broken = []

    def loss(model, batch):
        losses = cross_entropy(model, batch)
        if broken:
            raise RuntimeError("planted")
        return losses

    unit = wide_engine(mode=mode, loss=loss)
    want = unit.clipped_sum(rows(5), each(5), 5, 0.3).tensors
    broken.append(1)
    with pytest.raises(RuntimeError, match="planted"):
        unit.clipped_sum(rows(3, seed=2), each(3), 3, 0.3)
    broken.clear()
    assert close(unit.clipped_sum(rows(5), each(5), 5, 0.3).tensors, want, 1e-7)


# --- units and micro-batches --------------------------------------------------------------

sizes = st.lists(st.integers(0, 5), min_size=1, max_size=6)


def owners(counts: list[int]) -> np.ndarray:
    return np.repeat(np.arange(len(counts)), counts)


@examples(40)
@given(sizes, st.integers(1, 7), st.floats(0.05, 3.0))
def test_micro_batches_never_part_a_person(counts, micro_batch, clip):
    owner, model = owners(counts), wide_model()
    batch = rows(len(owner), seed=len(owner))
    singles = reference_gradients(model, cross_entropy, batch)
    unit = wide_engine(model, micro_batch=micro_batch)
    got = unit.clipped_sum(batch, owner, len(counts), clip).tensors
    if not len(owner):
        assert norm(got) == 0
        return
    assert close(got, reference_clipped_sum(singles, owner, len(counts), clip))


@examples(100)
@given(sizes, st.integers(1, 7))
def test_cuts_cover_every_record_once(counts, micro_batch):
    owner = owners(counts)
    cuts = list(engine._micro_batches(owner, micro_batch))
    covered = [i for cut, _ in cuts for i in range(*cut.indices(len(owner)))]
    assert covered == list(range(len(owner)))
    whole = [set(owner[cut]) for cut, _ in cuts]
    assert all(one.isdisjoint(two) for i, one in enumerate(whole) for two in whole[:i])
    for cut, people in cuts:
        assert (people == np.unique(owner[cut], return_inverse=True)[1]).all()
        assert len(people) <= micro_batch or len(set(owner[cut])) == 1


def test_a_person_with_more_records_than_a_micro_batch():
    batch, owner = rows(11), np.array([0] * 2 + [1] * 7 + [2] * 2)
    model = wide_model()
    singles = reference_gradients(model, cross_entropy, batch)
    unit = wide_engine(model, micro_batch=3)
    got = unit.clipped_sum(batch, owner, 3, 0.4).tensors
    assert close(got, reference_clipped_sum(singles, owner, 3, 0.4))
    # Control: cut in two, the person would count twice.
    parted = np.array([0] * 2 + [1] * 3 + [2] * 4 + [3] * 2)
    assert not close(got, reference_clipped_sum(singles, parted, 4, 0.4), 1e-2)


@pytest.mark.parametrize("mode", MODES)
def test_empty_batch(mode):
    unit = wide_engine(mode=mode)
    got = unit.clipped_sum(rows(0), np.empty(0, np.int64), 0, 1.0)
    assert [t.shape for t in got.tensors] == [p.shape for p in unit.parameters]
    assert norm(got.tensors) == 0


def test_auto_keeps_books_where_it_knows_all_layers():
    assert wide_engine(mode="auto").mode == BOOK
    deep = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 3))
    assert GradientEngine(deep, cross_entropy).mode == BOOK


# --- sensitivity --------------------------------------------------------------------------


def most_moved(unit: GradientEngine, batch, owner: np.ndarray, clip: float) -> float:
    """Return the largest move of the clipped sum when one unit is removed."""
    count = int(owner.max()) + 1
    whole = unit.clipped_sum(batch, owner, count, clip).tensors
    moved = []
    for gone in range(count):
        keep = torch.as_tensor(owner != gone)
        rest = {name: tensor[keep] for name, tensor in batch.items()}
        left = np.unique(owner[owner != gone], return_inverse=True)[1]
        part = unit.clipped_sum(rest, left, len(set(left)), clip).tensors
        moved.append(difference(whole, part))
    return max(moved)


@examples(20)
@given(st.lists(st.integers(1, 4), min_size=2, max_size=5), st.floats(0.01, 0.5), st.integers(0, 9))
def test_removing_a_person_moves_the_sum_by_the_clip_at_most(counts, clip, seed):
    owner = owners(counts)
    batch = rows(len(owner), seed=seed)
    batch["x"] *= 10
    moved = most_moved(wide_engine(micro_batch=4), batch, owner, clip)
    assert 0 < moved <= clip * (1 + 1e-4)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["linear", "minilm-head"])
def test_removing_a_record_moves_the_sum_by_the_clip_at_most(name, mode):
    model, task = built(name)
    unit = GradientEngine(model, task.loss, mode=mode)
    moved = most_moved(unit, task.random_batch(6, 2), each(6), 0.05)
    assert 0.04 < moved <= 0.05 * (1 + 1e-4)


@pytest.mark.parametrize("mode", MODES)
def test_left_out_clipping_is_noticed(mode, monkeypatch):
    monkeypatch.setattr(methods, "clip_factors", lambda squares, clip: torch.ones_like(squares))
    assert most_moved(wide_engine(mode=mode), rows(5), each(5), 0.05) > 2 * 0.05


def test_clipping_records_instead_of_persons_is_noticed():
    batch = {name: tensor.repeat_interleave(4, 0) for name, tensor in rows(3).items()}
    owner, clip = owners([4, 4, 4]), 0.05
    unit = wide_engine()
    assert most_moved(unit, batch, owner, clip) <= clip * (1 + 1e-4)
    whole = unit.clipped_sum(batch, each(12), 12, clip).tensors
    rest = {name: tensor[4:] for name, tensor in batch.items()}
    assert difference(whole, unit.clipped_sum(rest, each(8), 8, clip).tensors) > 3 * clip


def test_rounding_never_exceeds_the_bound():
    squares = (10 ** torch.linspace(-20, 20, 20_001)).float()
    factors = methods.clip_factors(squares, 0.1)
    assert ((factors.double() * squares.double().sqrt()) <= 0.1).all()
    assert (factors <= 1).all()


# --- not finite (H7) ----------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 3e38])
@pytest.mark.parametrize("whole_row", [True, False])
def test_a_record_that_is_not_finite_counts_for_nothing(mode, bad, whole_row):
    unit = wide_engine(mode=mode)
    batch = rows(5)
    want = unit.clipped_sum({k: t[1:] for k, t in batch.items()}, each(4), 4, 0.3).tensors
    batch["x"][0, slice(None) if whole_row else 2] = bad
    got = unit.clipped_sum(batch, each(5), 5, 0.3).tensors
    assert all(bool(torch.isfinite(t).all()) for t in got)
    # 3e38 may have a finite gradient, and then it counts up to the clip.
    assert difference(got, want) <= (0.3 * (1 + 1e-4) if bad == 3e38 else 1e-6)


@pytest.mark.parametrize("mode", MODES)
def test_nothing_but_records_that_are_not_finite(mode):
    unit = wide_engine(mode=mode)
    batch = rows(3)
    batch["x"][:] = float("nan")
    assert norm(unit.clipped_sum(batch, each(3), 3, 0.3).tensors) == 0


@pytest.mark.parametrize("mode", [BOOK, HOOKS, FUNCTORCH])
def test_a_transformer_is_not_poisoned_either(mode):
    model, task = built("ft-transformer")
    unit = GradientEngine(model, task.loss, mode=mode)
    batch = task.random_batch(4, 1)
    want = unit.clipped_sum({k: t[:3] for k, t in batch.items()}, each(3), 3, 0.3).tensors
    batch["numeric"][3, 1] = float("nan")
    assert close(unit.clipped_sum(batch, each(4), 4, 0.3).tensors, want)


def test_a_person_with_one_bad_record_counts_for_nothing():
    unit, batch = wide_engine(), rows(5)
    rest = {name: tensor[3:] for name, tensor in batch.items()}
    want = unit.clipped_sum(rest, each(2), 2, 0.3).tensors
    batch["x"][1] = float("nan")
    got = unit.clipped_sum(batch, np.array([0, 0, 0, 1, 2]), 3, 0.3).tensors
    assert close(got, want)


def test_a_plain_sum_shows_what_one_bad_record_does():
    unit, batch = wide_engine(), rows(5)
    batch["x"][0] = float("nan")
    assert not all(bool(torch.isfinite(t).all()) for t in unit.plain_sum(batch))


# --- a record's gradient is its own -------------------------------------------------------


def alone_and_together(unit, batch, i):
    together = [g[i] for g in unit.per_sample(batch)]
    alone = [g[0] for g in unit.per_sample({k: t[i : i + 1] for k, t in batch.items()})]
    return alone, together


@pytest.mark.parametrize("name", ["linear", "ft-transformer", "text-encoder", "minilm-head"])
@pytest.mark.parametrize("mode", [BOOK, HOOKS, FUNCTORCH])
def test_other_rows_do_not_change_a_gradient(name, mode):
    model, task = built(name)
    unit = GradientEngine(model, task.loss, mode=mode)
    alone, together = alone_and_together(unit, task.random_batch(5, 6), 2)
    assert close(together, alone)


def padded(lengths: list[int], width: int):
    tokens = torch.zeros((len(lengths), width), dtype=torch.int64)
    for row, length in enumerate(lengths):
        tokens[row, :length] = torch.arange(101, 101 + length)
    return {"tokens": tokens, "label": torch.zeros(len(lengths), dtype=torch.int64)}


@pytest.mark.parametrize(
    "name", ["text-encoder", pytest.param("minilm-lora", marks=pytest.mark.slow)]
)
def test_padding_does_not_change_a_gradient(name):
    model, task = built(name)
    unit = GradientEngine(model, task.loss, mode=HOOKS)
    for length in (1, 4, 6):
        tight = [g[0] for g in unit.per_sample(padded([length], max(length, 2)))]
        wide = [g[0] for g in unit.per_sample(padded([length, 12, 0, 2], 12))]
        assert close(wide, tight)
    # Control: one token more is another gradient.
    longer = [g[0] for g in unit.per_sample(padded([7], 12))]
    assert not close(longer, tight, 1e-3)


def test_an_empty_text_has_a_gradient():
    model, task = built("text-encoder")
    unit = GradientEngine(model, task.loss)
    assert 0 < norm(g[0] for g in unit.per_sample(padded([0, 5], 12))) < float("inf")


# --- what is refused ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "layer", [nn.BatchNorm1d(4), nn.InstanceNorm1d(4, affine=True, track_running_stats=True)]
)
def test_layers_that_mix_records_are_refused(layer):
    with pytest.raises(SelfTestError, match="mixes records"):
        GradientEngine(nn.Sequential(nn.Linear(6, 4), layer), cross_entropy)


def test_group_norm_is_accepted():
    GradientEngine(nn.Sequential(nn.Linear(6, 4), nn.GroupNorm(2, 4)), cross_entropy)


def test_nothing_to_train():
    with pytest.raises(InputError, match="no trainable parameter"):
        GradientEngine(Wide().requires_grad_(False), cross_entropy)


def test_unknown_mode():
    with pytest.raises(InputError, match="'ew' is not known"):
        GradientEngine(Wide(), cross_entropy, mode="ew")
