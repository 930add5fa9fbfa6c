"""The start-up test at the size of a real batch: what couples records from some number of them on.

An expert with room for four tokens, a loss that sorts its batch or takes another way above 64
records pass any test of three. On generated records, in micro-batches as training makes them:

- the losses of some records must not move when all others are exchanged for fewer others (H6);
- the clipped sum of the whole batch must be the sum over small groups computed alone (H16).
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from privet.common.errors import CoupledRecordsError, SelfTestError
from privet.privacy.mechanism import exactness as ex
from privet.privacy.mechanism.clipping import GradientEngine
from privet.privacy.mechanism.clipping.methods import Batch
from privet.privacy.mechanism.record_coupling import losses_agree

MAX_RECORDS = 512
"""Records that are tried at most."""
MIN_RECORDS = 32
"""And at least, however dear the model is, where a real batch has that many."""
MAX_OPERATIONS = 1.5e11
"""Multiplications and additions of the whole test on a CPU: some seconds."""
_ON_DEVICE = 50
"""A device may do this many times as many."""
_IN_DOUBLE = 0.25
"""A test of at most this share of them is done in double precision."""
_UNSURE = 8
"""How far a guess of the arithmetic may be off, as where attention uses all pairs of places."""
_PASSES = 7
"""Forward passes that the test is worth: two passes with gradients, and one of losses."""
_LONG = 5
"""Records of a batch whose rows are as long as the plan allows."""
_GROUP = 3
_TOLERANCE, _FINE, _COARSE = 1e-2, 1e-5, 0.1
"""Differences of a sum, in units of C for the square root of n: in single, double, and less."""
_LOG = logging.getLogger("privet.selftest")


def check(
    engine: GradientEngine,
    random_batch: Callable[[int, int], Batch],
    records: int,
    together: int = 1,
    *,
    bounded: bool = True,
) -> int:
    """Run the test; return how many records it was made with.

    Args:
        engine: the engine that will train, at weights of a sensible size.
        random_batch: makes a batch of (records, seed).
        records: in a real batch.
        together: records that a unit may have; each unit of the test has that many.
        bounded: False where gradients are not bounded, so that there is no clipped sum to test.

    Raises:
        CoupledRecordsError: if records depend on each other (H6).
        SelfTestError: if the sum is wrong (H16).
    """
    few = random_batch(_GROUP, 1)
    exact = ex.computes_in_double(engine, few)
    clear = _clear(engine, few)
    many = size_of(engine, random_batch, records)
    if many < records:
        _LOG.info("the start-up test of a whole batch has %d records of %d", many, records)
    for count in sorted({min(_LONG, records), many}):
        batch, other = random_batch(count, 4), random_batch(count, 5)
        dear = _cost(engine, batch) > _IN_DOUBLE * MAX_OPERATIONS
        with ex.kept_weights(engine.model):
            if exact and (not dear or not clear):
                ex.widen(engine.model)
                batch, other = ex.wide(batch), ex.wide(other)
            state = {name: b.clone() for name, b in engine.model.named_buffers()}
            _losses(engine, batch, other)
            if count == min(_LONG, records):
                _lengths(engine, batch, bounded=bounded)
            if bounded:
                _sums(engine, batch, together)
            _require_same_state(engine, state)
    return many


def size_of(engine: GradientEngine, random_batch: Callable[[int, int], Batch], records: int) -> int:
    """Return how many records the test is made with, by the arithmetic that a record takes.

    The smallest of the real batch, 512, and what :data:`MAX_OPERATIONS` allow; never below 32, if
    a real batch has that many. It does not depend on how fast the machine is.
    """
    sample = random_batch(_LONG + 4, 4)
    each = _cost(engine, sample) / ex.count_of(sample)
    device = next(iter(engine.parameters)).device
    room = MAX_OPERATIONS * (1 if device.type == "cpu" else _ON_DEVICE)
    allowed = max(MIN_RECORDS, int(room / max(each, 1.0)))
    return max(1, min(records, MAX_RECORDS, allowed))


def _cost(engine: GradientEngine, batch: Batch) -> float:
    """Return the arithmetic of the test on a batch; guessed where it is little."""
    places = max((t.shape[1] for t in batch.values() if t.dim() > 1), default=1)
    guess = float(_PASSES * 2 * ex.numbers_of(engine) * places * ex.count_of(batch))
    if guess < _IN_DOUBLE * MAX_OPERATIONS / _UNSURE:
        return guess
    # Not above: it takes a second to load, and small models need none of it.
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    try:
        with torch.no_grad(), counter:
            engine.losses(batch)
        found = counter.get_total_flops()
    except Exception:  # some models take another way while they are counted
        return guess
    return float(_PASSES * found)


def _clear(engine: GradientEngine, batch: Batch) -> bool:
    """Whether rounding leaves gradients as they are, in the model's own type."""
    if engine.reduced_precision:
        return True
    rounding = ex.rounding_of(engine, batch, ex.singles(engine, batch))
    return len(ex.told(rounding)) == len(rounding)


def _tolerance(engine: GradientEngine, like: Tensor) -> float:
    if engine.reduced_precision:
        return _COARSE
    return _FINE if like.dtype == torch.float64 else _TOLERANCE


def _losses(engine: GradientEngine, batch: Batch, other: Batch) -> None:
    """Exchange all but some records for fewer others: the losses of those must stay."""
    room = min(ex.count_of(batch), engine.max_records)
    kept = sorted({0, room - 1, *range(0, room, 8)})
    sizes = engine.sizes(batch)
    order = torch.arange(ex.count_of(batch)) if sizes is None else sizes.argsort(stable=True)
    order = order[:room]
    fewer = ex.count_of(other) // 2
    with torch.no_grad():
        whole = engine.losses({n: t[order.to(t.device)] for n, t in batch.items()})
        mine = {n: t[order[kept].to(t.device)] for n, t in batch.items()}
        # One of those that are kept stands first, as before, and the others are scattered.
        mixed = {n: torch.cat([t[:1], other[n][:fewer], t[1:]]) for n, t in mine.items()}
        part = engine.losses(mixed)
    places = [0, *range(fewer + 1, fewer + len(kept))]
    one, two = whole[kept].double(), part[places].double()

    def close(one: Tensor, two: Tensor) -> bool:
        scale = max(float(one.abs().max()), 1e-6)
        return float((one - two).abs().max()) <= _tolerance(engine, whole) * scale

    if not losses_agree(one, two, close):
        raise CoupledRecordsError(
            f"H6: the loss of one record of {room} depends on the other records or on how many "
            "there are (an expert's capacity, a branch on the size of the batch, sorting); no "
            "per-unit bound holds"
        )


def _lengths(engine: GradientEngine, batch: Batch, *, bounded: bool) -> None:
    """Compare each record's loss beside longer ones with its loss alone, where it may be shorter.

    The longest record's gradient is compared with that by plain autograd: the other tests of
    gradients are made with short records.
    """
    with torch.no_grad():
        beside = engine.losses(batch).double()
        alone = torch.cat([engine.losses(row) for row in ex.rows_of(batch)]).double()
    tolerance = _tolerance(engine, next(iter(engine.parameters)))

    def close(one: Tensor, two: Tensor) -> bool:
        scale = max(float(one.abs().max()), 1e-6)
        return float((one - two).abs().max()) <= tolerance * scale

    if not losses_agree(alone, beside, close):
        raise CoupledRecordsError(
            "H6: the loss of a record depends on how long the other records of its batch are "
            "(positions made for the longest text, padding that is read); no per-unit bound holds. "
            "Fill all rows to one length in the model"
        )
    sizes = engine.sizes(batch)
    if not bounded or sizes is None:
        return
    row = ex.rows_of(batch)[int(sizes.argmax())]
    plain = engine.plain_sum(row)
    made = engine.clipped_sum(row, np.zeros(1, np.int64), 1, 4 * max(ex.norm_of(plain), 1.0))
    apart = ex.norm_of([a - b for a, b in zip(made.tensors, plain, strict=True)])
    if not apart <= tolerance * max(ex.norm_of(plain), 1e-6):
        raise SelfTestError(
            "H16: the gradient of the longest record differs from that by plain autograd: "
            f"'{engine.mode}' does not treat long records as the model does"
        )


def _require_same_state(engine: GradientEngine, state: dict[str, Tensor]) -> None:
    """Check that no buffer of the model was changed by the records that it read."""
    now = dict(engine.model.named_buffers())
    for name, before in state.items():
        after = now.get(name)
        if after is None or after.shape != before.shape or not torch.equal(after, before):
            raise SelfTestError(
                f"H5: the model keeps something of the records that it reads: the buffer '{name}' "
                "changed; it would leave with the model, or change what other records contribute"
            )


def _sums(engine: GradientEngine, batch: Batch, together: int) -> None:
    """Compare the clipped sum of the batch with small groups that are computed alone."""
    count = ex.count_of(batch)
    owner = np.arange(count) // together
    # Below most norms, so that a record shows alike whether its gradient is large or not.
    few = {name: tensor[: min(count, _LONG)] for name, tensor in batch.items()}
    norms = [norm for one in ex.singles(engine, few) if (norm := ex.norm_of(one)) > 0]
    clip = min(norms, default=2.0) / 2
    units = int(owner[-1]) + 1
    whole = engine.clipped_sum(batch, owner, units, clip).tensors
    total = [torch.zeros_like(one, dtype=torch.float64) for one in whole]
    step = together * max(1, _GROUP // together)
    for start in range(0, count, step):
        rows = slice(start, min(start + step, count))
        group = {name: tensor[rows] for name, tensor in batch.items()}
        mine = owner[rows] - owner[rows][0]
        made = engine.clipped_sum(group, mine, int(mine[-1]) + 1, clip).tensors
        for running, one in zip(total, made, strict=True):
            running.add_(one)
    apart = [float((a.double() - b).norm()) for a, b in zip(whole, total, strict=True)]
    allowed = _tolerance(engine, whole[0]) * clip * units**0.5
    if not sum(one**2 for one in apart) ** 0.5 <= allowed:
        name = list(engine.named)[int(np.nan_to_num(apart, nan=np.inf).argmax())]
        raise SelfTestError(
            f"H16: the clipped sum of {count} records is not that of few of them, above all for "
            f"'{name}': the model or the loss mixes records of larger batches, or treats them by "
            "number, length or order; no per-unit bound holds"
        )
