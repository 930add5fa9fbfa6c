"""Start-up tests of the mechanism on the model at hand, with random input (H6, H7, H16, H17).

They run before a run's first round, in seconds, and read no private data, but for
:func:`encoding` and :func:`real_records`, which come after data was opened and paid for. A failure
stops the run and names the layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from privet.common.errors import NotReleasable, PrivetError, SelfTestFailed
from privet.privacy.clipping import GradientEngine
from privet.privacy.clipping.methods import WEIGHT, Batch
from privet.privacy.dpsgd import Views

_RECORDS = 3
_ENCODED = 8
_VIEWED = (3, 8, 65)
"""Numbers of records whose views are made together and alone."""
_TOLERANCE = 1e-4
_COARSE = 3e-2
"""The same where a layer computes in bfloat16 or half precision."""
_NOISE = 0.03
"""Share of the largest number below which differences of real gradients are not told apart."""
_REAL = 7
"""Real records that are tried; their number divides few shapes."""

RandomBatch = Callable[[int, int], Batch]
"""Makes a batch of (records, seed) with the shapes and types of the task."""


def run(
    engine: GradientEngine,
    random_batch: RandomBatch,
    declared: Iterable[str],
    *,
    bounded: bool = True,
) -> list[str]:
    """Run all four tests; return the ids of the rows of the honesty list that passed.

    Args:
        engine: the engine that will train.
        random_batch: input to test with.
        declared: names of the parameters that the plan trains.
        bounded: False where no unit's gradient is bounded, in a run without privacy: then there
            is no per-sample gradient to test (H7, H16).

    Raises:
        SelfTestFailed: with the row's id and the parameter concerned.
    """
    try:
        with _Deterministic(engine.model):
            _coverage(engine, declared)
            _one_loss_each(engine, random_batch(_RECORDS, 1))
            _repeatable(engine, random_batch(_RECORDS, 1))
            _coupled_forward(engine, random_batch(_RECORDS, 1), random_batch(_RECORDS, 2))
            if not bounded:
                return ["H6", "H17"]
            _per_sample_gradient(engine, random_batch(_RECORDS, 1))
            _non_finite(engine, random_batch(_RECORDS, 1))
    except PrivetError:
        raise
    except Exception as error:
        raise SelfTestFailed(
            f"H16: per-sample gradients of this model cannot be computed ({error!r}); "
            "try another 'clipping'"
        ) from error
    return ["H6", "H7", "H16", "H17"]


def encoding(whole: Batch, alone: Callable[[int], Batch]) -> None:
    """Check on a few rows that a record's encoding does not depend on the other records (H6).

    Unlike the other tests this one reads private records: it runs after data was opened,
    for a user's own task.

    Args:
        whole: the encoding of all N records.
        alone: encodes one record by itself, given its number.

    Raises:
        SelfTestFailed: naming the tensor that differs.
    """
    for row in sorted(set(np.linspace(0, _count(whole) - 1, _ENCODED, dtype=int).tolist())):
        single = alone(row)
        if single.keys() != whole.keys():
            raise SelfTestFailed("H6: one record encoded alone has other tensors than in the table")
        for name, tensor in single.items():
            among = whole[name][row : row + 1].cpu()
            same = tensor.shape == among.shape and tensor.dtype == among.dtype
            if not same or not torch.allclose(tensor.cpu(), among, equal_nan=True):
                raise SelfTestFailed(
                    f"H6: '{name}' of one record depends on the other records of the table (a "
                    "mean, a rank, a vocabulary, padding to the longest); encode each record "
                    "from itself and public constants"
                )


def augmentation(views: Views, random_batch: RandomBatch) -> None:
    """Check that a view of a record is made of that record and its own random number alone (H6).

    With several numbers of records; each step of a release tries two of its records again.

    Args:
        views: how records are seen.
        random_batch: input to test with.

    Raises:
        SelfTestFailed: naming the tensor that depends on other records.
    """
    for records in _VIEWED:
        batch = random_batch(records, 3)
        words = torch.arange(1, records + 1) * 0x3C6EF372FE94F82B
        words = words.to(next(iter(batch.values())).device)
        try:
            views.of(batch, words)
            for row in range(min(records, _ENCODED)):
                rows = [row, *range(row), *range(row + 1, records)]  # each is first once
                views.of({name: tensor[rows] for name, tensor in batch.items()}, words[rows])
        except NotReleasable as error:
            raise SelfTestFailed(str(error)) from error
        except Exception as error:
            raise SelfTestFailed(f"H6: 'augment' of this task fails: {error!r}") from error


def real_records(engine: GradientEngine, examples: Batch) -> None:
    """Check the clipped sum of a few real records against single ones (H16).

    Made-up records may take another way through a model than real ones do: longer rows that are
    cut, rows that are sorted, rare tokens. Like :func:`encoding` this reads private records.

    Args:
        engine: the engine that trains.
        examples: all N encoded records.

    Raises:
        SelfTestFailed: naming the parameter whose sum is wrong.
    """
    rows = torch.tensor(_typical(examples))
    batch = {name: tensor[rows.to(tensor.device)] for name, tensor in examples.items()}
    count = len(rows)
    try:
        with _Deterministic(engine.model):
            alone = [
                engine.plain_sum({name: tensor[i : i + 1] for name, tensor in batch.items()})
                for i in range(count)
            ]
            norms = [sum(float(g.double().square().sum()) for g in one) ** 0.5 for one in alone]
            # What gives no gradient, or none that is finite, has nothing to compare.
            kept = [i for i, norm in enumerate(norms) if 0 < norm < float("inf")]
            if not kept:
                return
            batch = {name: tensor[kept] for name, tensor in batch.items()}
            alone, norms = [alone[i] for i in kept], [norms[i] for i in kept]
            clip = min(norms) / 2  # below every norm, so that each record shows
            got = engine.clipped_sum(batch, np.arange(len(kept)), len(kept), clip)
    except PrivetError:
        raise
    except Exception as error:
        raise SelfTestFailed(
            f"H16: gradients of real records cannot be computed ({error!r}), though those of "
            "made-up ones could: does the model treat longer rows in another way?"
        ) from error
    wanted = [
        sum(one[place] * (clip / norm) for one, norm in zip(alone, norms, strict=True))
        for place in range(len(engine.named))
    ]
    # What cancels (a bias before a norm) is rounding in both.
    floor = _NOISE * max(float(want.abs().max()) for want in wanted if want.numel())
    for name, total, want in zip(engine.named, got.tensors, wanted, strict=True):
        if not _close(total, want, floor, _tolerance(engine)):
            raise SelfTestFailed(
                f"H16: the clipped sum of real records is wrong for '{name}', though that of "
                "made-up ones was right: the model treats rows by their length or order, or mixes "
                "records"
            )


def _typical(examples: Batch) -> list[int]:
    """Return the numbers of a few records: with the fewest and the most entries, and others."""
    count = _count(examples)
    chosen = set(np.linspace(0, count - 1, min(_REAL, count), dtype=int).tolist())
    for tensor in examples.values():
        if tensor.dim() > 1:
            entries = (tensor != 0).flatten(1).sum(1)
            for row in (int(entries.argmin()), int(entries.argmax())):
                if row not in chosen and len(chosen) >= _REAL:
                    chosen.remove(sorted(chosen)[len(chosen) // 2])
                chosen.add(row)
    return sorted(chosen)


def _repeatable(engine: GradientEngine, batch: Batch) -> None:
    with torch.no_grad():
        one, two = engine.losses(batch), engine.losses(batch)
    if not torch.equal(one, two) and not _close(one, two):
        raise SelfTestFailed(
            "H16: two passes over the same records differ: there is dropout, or other chance, that "
            "is not a layer of its own. Set its rate to 0; the noise for privacy does its work"
        )


def _coverage(engine: GradientEngine, declared: Iterable[str]) -> None:
    trained, wanted = set(engine.named), set(declared)
    if trained != wanted:
        odd = sorted(trained ^ wanted)[0]
        raise SelfTestFailed(
            f"H17: '{odd}' is {'trained but not declared' if odd in trained else 'not trained'}; "
            "the plan's parameters and the trained ones must be the same"
        )


def _one_loss_each(engine: GradientEngine, batch: Batch) -> None:
    with torch.no_grad():
        shape = tuple(engine.losses(batch).shape)
    if shape != (_count(batch),):
        raise SelfTestFailed(
            f"H16: the loss must return one value for each record, [{_count(batch)}], "
            f"not {list(shape)}; use reduction='none'"
        )


def _loop(engine: GradientEngine, batch: Batch) -> list[Tensor]:
    """Per-record gradients, one record at a time, by plain autograd: [B, *shape] each."""
    rows = []
    for i in range(_count(batch)):
        single = {name: tensor[i : i + 1] for name, tensor in batch.items()}
        rows.append(engine.plain_sum(single))
    return [torch.stack(column) for column in zip(*rows, strict=True)]


def _per_sample_gradient(engine: GradientEngine, batch: Batch) -> None:
    expected = _loop(engine, batch)
    norms = torch.stack([g.flatten(1).square().sum(1) for g in expected]).sum(0).sqrt()
    if not bool((norms > 0).any()):
        raise SelfTestFailed("H16: the loss does not depend on the trained parameters")
    floor = _rounding(expected)
    if engine.mode != "opacus-ghost":
        for name, got, want in zip(engine.named, engine.per_sample(batch), expected, strict=True):
            near = got.shape == want.shape and _close(got, want, floor, _tolerance(engine))
            if not near:
                raise SelfTestFailed(
                    f"H16: the per-sample gradient of '{name}' differs from that of single "
                    "records (tied weights, or a layer Opacus treats wrongly); try "
                    "clipping = 'functorch'"
                )
    clip = float(norms.median()) / 2 or 1.0
    factors = (clip / norms.clamp(min=1e-30)).clamp(max=1.0)
    total = engine.clipped_sum(batch, np.arange(_count(batch)), _count(batch), clip)
    for name, got, want in zip(engine.named, total.tensors, expected, strict=True):
        total_wanted = torch.tensordot(factors, want, dims=1)
        if not _close(got, total_wanted, floor, _tolerance(engine)):
            raise SelfTestFailed(f"H16: the clipped sum is wrong for '{name}'")


def _coupled_forward(engine: GradientEngine, batch: Batch, other: Batch) -> None:
    """The gradient of the first and of the last record must not move when the others change.

    Both, because each record may depend on those before it only, or after it only.
    """
    for kept in (0, _count(batch) - 1):
        mixed = {name: tensor.clone() for name, tensor in other.items()}
        for name, tensor in batch.items():
            mixed[name][kept] = tensor[kept]
        if engine.mode == "opacus-ghost":
            with torch.no_grad():
                if not _close(engine.losses(batch)[kept], engine.losses(mixed)[kept]):
                    raise SelfTestFailed("H6: the loss of one record depends on the other records")
            continue
        rows, mixed_rows = list(engine.per_sample(batch)), list(engine.per_sample(mixed))
        floor = _rounding([row[kept] for row in rows])
        for name, first, second in zip(engine.named, rows, mixed_rows, strict=True):
            if not _close(first[kept], second[kept], floor, _tolerance(engine)):
                raise SelfTestFailed(
                    f"H6: the gradient of one record in '{name}' depends on the other records "
                    "(batch mean, contrastive loss, router); no per-unit bound holds"
                )


def _non_finite(engine: GradientEngine, batch: Batch) -> None:
    """One record whose input, or whose loss, is NaN must leave the sum as if it were not there."""
    count = _count(batch)
    ones = torch.ones(count, device=next(iter(batch.values())).device)
    inputs = {name for name, tensor in batch.items() if tensor.is_floating_point()}
    for floats in filter(None, (inputs, {WEIGHT})):
        poisoned = {name: tensor.clone() for name, tensor in {**batch, WEIGHT: ones}.items()}
        for name in floats:
            poisoned[name][-1] = float("nan")
        _one_spoilt(engine, batch, poisoned)


def _one_spoilt(engine: GradientEngine, batch: Batch, poisoned: Batch) -> None:
    count = _count(batch)
    clean = {name: tensor[:-1] for name, tensor in batch.items()}
    want = engine.clipped_sum(clean, np.arange(count - 1), count - 1, 1.0)
    got = engine.clipped_sum(poisoned, np.arange(count), count, 1.0)
    floor = _rounding(want.tensors)
    for name, one, two in zip(engine.named, got.tensors, want.tensors, strict=True):
        if not bool(torch.isfinite(one).all()):
            raise SelfTestFailed(f"H7: one NaN record makes '{name}' non-finite")
        if not _close(one, two, floor, _tolerance(engine)):
            raise SelfTestFailed(f"H7: one NaN record moves '{name}'")


def _rounding(gradients: Sequence[Tensor]) -> float:
    """Return the least scale that differences of these are measured by.

    What is exactly zero (a key's bias in attention) is rounding in both, and not by how much the
    one's rounding differs from the other's.
    """
    return 1e-3 * max((float(g.abs().max()) for g in gradients if g.numel()), default=1.0)


def _count(batch: Batch) -> int:
    return len(next(iter(batch.values())))


def _tolerance(engine: GradientEngine) -> float:
    return _COARSE if engine.coarse else _TOLERANCE


def _close(one: Tensor, two: Tensor, floor: float = 1e-6, tolerance: float = _TOLERANCE) -> bool:
    """Compare up to rounding; ``floor`` is the least scale that differences are measured by."""
    scale = max(float(one.abs().max()), float(two.abs().max()), floor) if one.numel() else 1.0
    return bool(torch.isfinite(one).all()) and float((one - two).abs().max()) <= tolerance * scale


class _Deterministic:
    """Switches dropout off for a while, so that two passes can be compared."""

    def __init__(self, model: nn.Module) -> None:
        self._dropouts = [
            m for m in model.modules() if "Dropout" in type(m).__name__ and m.training
        ]

    def __enter__(self) -> None:
        for module in self._dropouts:
            module.eval()

    def __exit__(self, *_: object) -> None:
        for module in self._dropouts:
            module.train()
