"""Other views of a record: made of that record alone, and bounded together with it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families_kit import counting, family_plan
from torch import Tensor

from privet.client.training.model_runtime import ModelRuntime
from privet.common.errors import PlanError, SelfTestError
from privet.common.plan import Plan
from privet.common.tasks import Batch, build_task
from privet.privacy.accounting.units import UnitIndex
from privet.privacy.mechanism import dpsgd, selftest
from privet.privacy.mechanism.dpsgd import DpSgd, Views
from privet.privacy.mechanism.noise import Stream
from privet.simulations.run import Setting, run_plan

KINDS = {
    "hide": "dense", "shift": "vit", "flip": "resnet", "drop": "text-encoder",
}  # fmt: skip
EACH = pytest.mark.parametrize("kind", KINDS)


def plan_with(kind: str, folder: Path, **changes: Any) -> Plan:
    plan = family_plan(KINDS[kind], folder, **changes)
    return plan.changed(task={"augment": [kind]})


def seen(plan: Plan, count: int = 400) -> tuple[Batch, Batch]:
    """Records, and a view of each."""
    task: Any = build_task(plan)
    batch = task.encode(counting(1, count, 3))
    words = torch.from_numpy(Stream.seeded("views").words(count).astype(np.int64))
    return batch, task.augment(dict(batch), words)


def test_a_tenth_of_the_cells_is_hidden(tmp_path: Path) -> None:
    before, after = seen(plan_with("hide", tmp_path))
    hidden = (after["missing"] == 1) & (before["missing"] == 0)
    assert 0.06 < hidden.float().mean() < 0.14
    assert (after["numeric"][hidden] == 0).all()
    assert torch.equal(after["numeric"][~hidden], before["numeric"][~hidden])


def test_a_tenth_of_the_tokens_is_hidden_and_no_padding(tmp_path: Path) -> None:
    before, after = (batch["tokens"] for batch in seen(plan_with("drop", tmp_path)))
    changed = before != after
    assert 0.06 < changed[before != 0].float().mean() < 0.14
    assert not changed[before == 0].any() and (after[changed] == 1).all()


def test_images_move_by_a_pixel(tmp_path: Path) -> None:
    before, after = (batch["pixels"] for batch in seen(plan_with("shift", tmp_path)))
    moves = torch.zeros(3, 3)
    for one, other in zip(before, after, strict=True):
        wide = torch.nn.functional.pad(one, (1, 1, 1, 1), value=-1.0)
        fits = [
            (y, x) for y in range(3) for x in range(3)
            if torch.equal(wide[:, y : y + 4, x : x + 4], other)
        ]  # fmt: skip
        assert fits
        moves[fits[0]] += 1
    assert moves.min() > 400 / 9 / 2 and moves.max() < 2 * 400 / 9  # each way as often


def test_half_of_the_images_are_turned(tmp_path: Path) -> None:
    before, after = (batch["pixels"] for batch in seen(plan_with("flip", tmp_path)))
    turned = [torch.equal(one.flip(2), two) for one, two in zip(before, after, strict=True)]
    same = [torch.equal(one, two) for one, two in zip(before, after, strict=True)]
    assert 0.4 < np.mean(turned) < 0.6 and all(a != b for a, b in zip(turned, same, strict=True))


# H6: a view depends on its own record alone


def _mean(batch: Batch, words: Tensor) -> Batch:
    pixels = batch["pixels"]
    return {**batch, "pixels": pixels - pixels.mean(0, keepdim=True)}


def _mixup(batch: Batch, words: Tensor) -> Batch:
    return {**batch, "pixels": 0.9 * batch["pixels"] + 0.1 * batch["pixels"].roll(1, 0)}


def _by_chance(batch: Batch, words: Tensor) -> Batch:
    return {**batch, "pixels": batch["pixels"] + torch.randn_like(batch["pixels"])}


def _labels(batch: Batch, words: Tensor) -> Batch:
    return {**batch, "label": batch["label"].roll(1)}


def _only_many(batch: Batch, words: Tensor) -> Batch:
    return _mixup(batch, words) if len(words) > 40 else batch


def _turned_over(batch: Batch, words: Tensor) -> Batch:
    return {name: rows.flip(0) for name, rows in batch.items()}


def _other_shape(batch: Batch, words: Tensor) -> Batch:
    return {**batch, "pixels": batch["pixels"][..., :-1]}


def _more(batch: Batch, words: Tensor) -> Batch:
    return {**batch, "more": batch["pixels"]}


def _fails(batch: Batch, words: Tensor) -> Batch:
    raise TypeError("no")


MIXED = "H6: '(pixels|label)' of an augmented record"


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        *((fault, MIXED) for fault in (_mean, _mixup, _by_chance, _labels)),
        *((fault, "augment") for fault in (_only_many, _turned_over, _other_shape, _more, _fails)),
    ],
)
def test_what_mixes_records_or_does_not_fit_is_found_at_start(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fault: Callable[[Batch, Tensor], Batch],
    said: str,
) -> None:
    from privet.common.tasks import image

    monkeypatch.setattr(image, "flip", fault)
    with pytest.raises(SelfTestError, match=said):
        assert ModelRuntime(plan_with("flip", tmp_path)).self_tests


def released(bench: ModelRuntime, views: Views, records: int = 40) -> None:
    DpSgd(0.5, 1.0, 1.0, steps=5).release(
        bench.engine, bench.encode(counting(1, records, 3)), UnitIndex.by_record(records),
        nominal_size=records, optimizer=lambda p: torch.optim.SGD(p, lr=0.1), views=views,
    )  # fmt: skip


def test_a_view_of_ones_own_sees_one_record_at_a_time(tmp_path: Path) -> None:
    """What would mix records has none to mix with, and no check on real ones is needed."""
    seen: list[int] = []

    def mixing(batch: Batch, words: Tensor) -> Batch:
        seen.append(len(words))
        return _mean(_mixup(batch, words), words)

    bench = ModelRuntime(plan_with("flip", tmp_path))
    released(bench, Views(mixing))
    assert len(seen) > 20 and set(seen) == {1}
    released(bench, Views(mixing, alone=False))
    assert max(seen) > 1  # as ours are made


def test_what_a_view_does_to_one_record_does_not_stop_a_release(tmp_path: Path) -> None:
    def picky(batch: Batch, words: Tensor) -> Batch:
        if float(batch["pixels"].sum()) > 0:
            raise ValueError("not this one")
        return _other_shape(batch, words) if int(words[0]) % 2 else batch

    bench = ModelRuntime(plan_with("flip", tmp_path))
    released(bench, Views(picky))
    batch = bench.encode(counting(1, 40, 3))
    seen = Views(picky).of(batch, torch.arange(40))
    assert torch.equal(seen["pixels"], batch["pixels"])


def test_ones_own_views_are_tested_at_start_too(tmp_path: Path) -> None:
    bench = ModelRuntime(plan_with("flip", tmp_path))
    draw = bench.task.random_batch
    selftest.augmentation(Views(_turned_over), draw)  # of one record
    for fault in (_by_chance, _other_shape, _more, _fails):
        with pytest.raises(SelfTestError):
            selftest.augmentation(Views(fault), draw)


def test_what_it_changes_in_place_is_not_what_the_site_keeps(tmp_path: Path) -> None:
    def spoil(batch: Batch, words: Tensor) -> Batch:
        batch["pixels"].zero_()
        return batch

    bench = ModelRuntime(plan_with("flip", tmp_path))
    examples = bench.encode(counting(1, 40, 3))
    before = examples["pixels"].clone()
    DpSgd(1.0, 1.0, 1.0).release(
        bench.engine, examples, UnitIndex.by_record(40), nominal_size=40,
        optimizer=lambda p: torch.optim.SGD(p, lr=0.1), views=Views(spoil),
    )  # fmt: skip
    assert torch.equal(examples["pixels"], before)


@EACH
def test_ours_do_not(tmp_path: Path, kind: str) -> None:
    bench = ModelRuntime(plan_with(kind, tmp_path))
    assert bench.views is not None
    selftest.augmentation(bench.views, bench.task.random_batch)
    assert bench.self_tests == ("H6", "H7", "H16", "H17")


# the bound


def most_moved(views: Views, folder: Path) -> float:
    """How far one record moves the clipped sum, in units of the bound."""
    plan = plan_with("flip", folder)
    bench = ModelRuntime(plan)
    examples = bench.encode(counting(1, 40, 3))
    sums: list[list[Tensor]] = []
    real = bench.engine.clipped_sum

    def noted(*given: Any) -> Any:
        total = real(*given)
        sums.append([tensor.clone() for tensor in total.tensors])
        return total

    bench.engine.clipped_sum = noted  # type: ignore[method-assign]
    start = [parameter.detach().clone() for parameter in bench.engine.parameters]
    clip = 0.01
    for count in (40, 39):
        with torch.no_grad():
            for parameter, origin in zip(bench.engine.parameters, start, strict=True):
                parameter.copy_(origin)
        DpSgd(1.0, 1.0, clip).release(
            bench.engine,
            {name: tensor[:count] for name, tensor in examples.items()},
            UnitIndex.by_record(count),
            nominal_size=40,
            optimizer=lambda p: torch.optim.SGD(p, lr=0.1),
            stream=Stream.seeded("same"),
            views=views,
        )
    moved = sum(float((a - b).square().sum()) for a, b in zip(*sums, strict=True)) ** 0.5
    return moved / clip


def by_content(batch: Batch, words: Tensor) -> Batch:
    """A view that is the same whatever number it is given, so that two sums can be compared."""
    return {**batch, "pixels": batch["pixels"].flip(3)}


@pytest.mark.parametrize("copies", [1, 4])
def test_all_views_of_a_record_share_its_bound(tmp_path: Path, copies: int) -> None:
    assert 0.9 < most_moved(Views(by_content, copies), tmp_path) <= 1.0001


def test_views_that_count_as_records_of_their_own_would_be_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = dpsgd._draw

    def apart(*given: Any) -> Any:
        batch, owner, _ = real(*given)
        return batch, np.arange(len(owner)), len(owner)

    monkeypatch.setattr(dpsgd, "_draw", apart)
    assert most_moved(Views(by_content, 4), tmp_path) > 3.9


def test_a_step_takes_the_mean_over_views(tmp_path: Path) -> None:
    def total(copies: int) -> list[Tensor]:
        plan = plan_with("flip", tmp_path).changed(training={"copies": copies})
        bench = ModelRuntime(plan)
        batch = bench.encode(counting(1, 12, 3))
        owner = np.repeat(np.arange(12), copies)
        rows = torch.as_tensor(owner)
        views = {name: tensor[rows] for name, tensor in batch.items()}
        return list(bench.engine.clipped_sum(views, owner, 12, 1e6).tensors)

    for one, three in zip(total(1), total(3), strict=True):
        assert torch.allclose(one, three, rtol=1e-4, atol=1e-6)


# in a run


@EACH
def test_it_trains_at_the_same_cost(tmp_path: Path, kind: str) -> None:
    spent = []
    for number, changes in enumerate(({}, {"copies": 2})):
        plan = plan_with(kind, tmp_path)
        if changes:
            plan = plan.changed(training=changes)
        result = run_plan(plan, Setting(), tmp_path / f"run-{number}")
        assert result.loss is not None and result.claim != "none"
        spent.append(result.loss.epsilon)
    assert spent[0] == spent[1]


@pytest.mark.parametrize(
    ("task", "training", "said"),
    [
        ({"augment": ["drop"]}, {}, "must be 'shift' or 'flip', not 'drop'"),
        ({"augment": ["flip", "flip"]}, {}, "task.augment: names one twice"),
        ({}, {"copies": 4}, "a record twice is the same"),
    ],
)
def test_what_makes_no_sense_is_refused(
    tmp_path: Path, task: dict[str, Any], training: dict[str, Any], said: str
) -> None:
    with pytest.raises(PlanError, match=said):
        family_plan("vit", tmp_path).changed(task=task, training=training)


def test_a_head_on_frozen_features_reads_no_tokens(tmp_path: Path) -> None:
    plan = family_plan("text-encoder", tmp_path)
    with pytest.raises(PlanError, match="reads no tokens"):
        build_task(
            plan.changed(model={"kind": "minilm", "options": {}}, task={"augment": ["drop"]})
        )
