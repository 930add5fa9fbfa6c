"""Start-up tests of the mechanism on the model at hand, with random input (H6, H7, H16, H17).

They run before a run's first round, in seconds, and read no private data. A failure stops the run
and names the layer. :func:`real_records` reads private records: it is for an operator's own check
and never decides about a release, since that would tell of a record.

Rounding decides none of them (:mod:`.exactness`): they run at weights of a sensible size and, where
the model can, in double precision; also at the weights at hand, where those are larger. A record
whose gradient rounding moves is not compared. From a handful of records it is one step to the size
of a real batch (:mod:`.batch_coupling`).

::

    selftest.py            what is tested, in which order; the next method where one fails
    training_chance.py     chance that a model draws while it trains, tested and switched off
    record_coupling.py     H6 of a few records, by plain autograd
    batch_coupling.py      H6 and H16 at the size of a real batch
    exactness.py           when rounding decides, and how it does not
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from privet.common.errors import (
    NotReleasableError,
    PrivetError,
    SelfTestError,
    UnfitModelError,
)
from privet.common.printable import shortened
from privet.privacy.mechanism import batch_coupling
from privet.privacy.mechanism import exactness as ex
from privet.privacy.mechanism.clipping import GradientEngine
from privet.privacy.mechanism.clipping.methods import CLIP_MARGIN, LOSS_WEIGHT, Batch
from privet.privacy.mechanism.dpsgd import Views
from privet.privacy.mechanism.record_coupling import (
    COARSE,
    FINE,
    TOLERANCE,
    Closeness,
    require_uncoupled,
)
from privet.privacy.mechanism.training_chance import (
    Deterministic,
    RandomBatch,
    draws_chance,
    repeats,
    without_chance,
)

_RECORDS = 3
_ENCODED = 8
_VIEWED = (3, 8, 65)
"""Numbers of records whose views are made together and alone."""
_SMALL = 1 << 20
"""Numbers in a model that is tried in both precisions."""
_REAL = 7
"""Real records that are tried; their number divides few shapes."""
_TRIES = 64
"""How often weights are moved before a model counts as wrong on real records."""
_MAX_REASON = 200
"""Characters of a library's error in a message of Privet's."""


def run(
    engine: GradientEngine,
    random_batch: RandomBatch,
    declared: Iterable[str],
    *,
    bounded: bool = True,
    records: int = 0,
    together: int = 1,
) -> list[str]:
    """Run all tests; return the ids of the rows of the assumption register that passed.

    Args:
        engine: the engine that will train, its model at the weights that the plan begins with.
        random_batch: input to test with.
        declared: names of the parameters that the plan trains.
        bounded: False where no unit's gradient is bounded, in a run without privacy: then there
            is no per-sample gradient to test (H7, H16).
        records: in a real batch, as the plan expects it; 0 leaves out the test at that size. It
            is cut to what :func:`privet.privacy.mechanism.batch_coupling.size_of` allows.
        together: records that a unit may have.

    Raises:
        UnfitModelError: if the model or its loss is at fault; CoupledRecordsError where a record's
            loss or gradient depends on other records. Decided by plain autograd.
        SelfTestError: if no way is exact, with the row's id and the parameter concerned.
    """
    _coverage(engine, declared)
    with Deterministic(engine.model) as chance:
        try:
            _one_loss_each(engine, random_batch(_RECORDS, 1))
            without_chance(engine, random_batch, chance, records)
        except PrivetError:
            raise
        except Exception as error:
            raise UnfitModelError(f"H16: the model or its loss fails: {_said(error)}") from error
        while True:
            try:
                tested = _one_way(engine, random_batch, bounded, records, together)
                if bounded and chance.is_removed:
                    _sums_while_it_trains(engine, random_batch(_RECORDS, 1), chance)
                engine.passed_tests(tested)
                break
            except UnfitModelError:
                raise
            except SelfTestError as fault:
                first = next(iter(engine.refused.values()), "")
                if engine.fall_back(str(fault)):
                    continue
                if not first:
                    raise
                # What a later way says of a layer is not what a user can act on.
                raise SelfTestError(f"{fault} (by {engine.mode}; before it: {first})") from fault
    return ["H6", "H7", "H16", "H17"] if bounded else ["H6", "H17"]


def _one_way(
    engine: GradientEngine, random_batch: RandomBatch, bounded: bool, records: int, together: int
) -> int:
    """Run all tests but those of the loss's shape, by the engine's present method.

    Returns:
        How many records the largest tested batch had; 0 if ``records`` is 0.
    """
    tested = 0
    try:
        engine.prepare(random_batch)
        _everywhere(engine, random_batch, bounded)
        if records:
            with ex.kept_weights(engine.model):
                ex.tame(engine.model)
                tested = batch_coupling.check(
                    engine, random_batch, records, together, bounded=bounded
                )
    except PrivetError:
        raise
    except Exception as error:
        raise SelfTestError(
            f"H16: per-sample gradients of this model cannot be computed ({_said(error)})"
        ) from error
    return tested


def _sums_while_it_trains(engine: GradientEngine, batch: Batch, chance: Deterministic) -> None:
    """Make one sum with all chance: what a model does only then may have no form in a method.

    Raises:
        SelfTestError: if it has none.
    """
    try:
        with chance.restored():
            engine.clipped_sum(batch, np.arange(_RECORDS), _RECORDS, 1.0)
    except PrivetError:
        raise
    except Exception as error:
        raise SelfTestError(
            "H16: per-sample gradients of this model cannot be computed while it trains "
            f"({_said(error)})"
        ) from error


def _said(error: Exception) -> str:
    """Return what a library says of a fault: some list all that they could have done."""
    line = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {shortened(line, _MAX_REASON)}"


def _everywhere(engine: GradientEngine, random_batch: RandomBatch, bounded: bool) -> None:
    """Run the tests of a few records in each precision, at tame weights and at those at hand."""
    batch, other = random_batch(_RECORDS, 1), random_batch(_RECORDS, 2)
    with ex.kept_weights(engine.model):
        larger = ex.tame(engine.model)
        exact = ex.computes_in_double(engine, batch)
        compared = _few(engine, batch, other, bounded, TOLERANCE)
        _has_gradient(engine, batch)
        # In a large model that rounding leaves alone, double would cost more than it finds.
        if exact and (compared < _RECORDS or ex.numbers_of(engine) <= _SMALL):
            ex.widen(engine.model)
            batch, other = ex.wide(batch), ex.wide(other)
            compared = _few(engine, batch, other, bounded, FINE)
        if not compared:
            # Moving weights may change more than rounding does (a hash of them): compare all.
            _few(engine, batch, other, bounded, TOLERANCE, every=True)
    if larger and exact:
        with ex.kept_weights(engine.model):
            ex.widen(engine.model)
            _few(engine, ex.wide(batch), ex.wide(other), bounded, FINE)


def _few(
    engine: GradientEngine,
    batch: Batch,
    other: Batch,
    bounded: bool,
    tolerance: float,
    *,
    every: bool = False,
) -> int:
    """Run all tests of a few records; return how many of them could be compared.

    ``every`` compares all, whatever rounding seems to do to them.
    """
    expected = ex.singles(engine, batch)
    fault: Exception | None = None
    if bounded:  # whether it is coarse is seen in a pass
        try:
            engine.clipped_sum(batch, np.arange(_count(batch)), _count(batch), 1.0)
        except Exception as error:  # the method's; whether records are coupled comes first
            fault = error
    norms = [ex.norm_of(one) for one in expected]
    trusted = every or engine.reduced_precision
    rounding = [0.0] * len(norms) if trusted else ex.rounding_of(engine, batch, expected)
    stable = ex.told(rounding)
    rows = ex.comparable(rounding, norms)
    share = max((rounding[row] for row in rows), default=0.0)
    close = Closeness(COARSE if engine.reduced_precision else tolerance, share)
    require_uncoupled(engine, batch, other, stable, close, alone=expected)
    if fault is not None:
        raise fault
    if bounded and rows:
        chosen = {name: tensor[rows] for name, tensor in batch.items()}
        _per_sample_gradient(engine, chosen, [expected[row] for row in rows], close)
        _non_finite(engine, chosen, close)
    return len(rows)


def augmentation(views: Views, random_batch: RandomBatch) -> None:
    """Check that a view of a record is made of that record and its own random number alone (H6).

    With several numbers of records, in two orders, and each of some by itself.

    Args:
        views: how records are seen.
        random_batch: input to test with.

    Raises:
        SelfTestError: naming the tensor that depends on other records.
    """
    for records in _VIEWED:
        batch = random_batch(records, 3)
        words = torch.arange(1, records + 1) * 0x3C6EF372FE94F82B
        words = words.to(next(iter(batch.values())).device)
        singles = [*range(min(records, _ENCODED)), records - 1]
        try:
            alone = [views.made({n: t[i : i + 1] for n, t in batch.items()}, words[i : i + 1])
                     for i in singles]  # fmt: skip
            seen = views.of(batch, words)
            back = views.of({name: tensor.flip(0) for name, tensor in batch.items()}, words.flip(0))
        except NotReleasableError as error:
            raise SelfTestError(str(error)) from error
        except Exception as error:
            raise SelfTestError(f"H6: 'augment' of this task fails: {error!r}") from error
        for name, tensor in seen.items():
            same = all(
                torch.equal(one[name], tensor[i : i + 1])
                for i, one in zip(singles, alone, strict=True)
            )
            if not same or not torch.equal(back[name].flip(0), tensor):
                raise SelfTestError(
                    f"H6: '{name}' of an augmented record depends on other records, or on "
                    "chance that is not its own number; no per-unit bound holds"
                )


def real_records(engine: GradientEngine, examples: Batch) -> int:
    """Check the clipped sum of a few real records against single ones (H16).

    Generated records may take another way through a model than real ones do: longer rows that are
    cut, rows that are sorted, rare tokens. Like :func:`encoding` this reads private records and is
    for the operator's own check. It computes in double precision where the model can. What gives no
    gradient, or one that rounding decides, is left out.

    Args:
        engine: the engine that trains.
        examples: all N encoded records.

    Returns:
        How many records were compared, 7 at most.

    Raises:
        SelfTestError: naming the parameter whose sum is wrong.
    """
    rows = torch.tensor(_typical(examples))
    batch = {name: tensor[rows.to(tensor.device)] for name, tensor in examples.items()}
    # Where weights are so large that the last bit decides what a record says, one move of the
    # weights need not show it: before a model is accused, its records are moved more often.
    for tries in (1, _TRIES):
        try:
            with Deterministic(engine.model) as chance, ex.kept_weights(engine.model):
                if draws_chance(engine, batch) or not repeats(engine, batch):
                    chance.remove()
                compared, wrong = _compare_real(engine, batch, tries)
        except PrivetError:
            raise
        except Exception as error:
            raise SelfTestError(
                f"H16: gradients of real records cannot be computed ({_said(error)}), though those "
                "of generated ones could: does the model treat longer rows in another way?"
            ) from error
        if not wrong:
            return compared
    raise SelfTestError(
        f"H16: the clipped sum of real records is wrong for '{wrong}', though that of "
        "generated ones was right: the model treats rows by their length or order, or mixes "
        "records"
    )


def _compare_real(engine: GradientEngine, batch: Batch, tries: int) -> tuple[int, str]:
    """Compare the clipped sum of records with single ones.

    Args:
        engine: its model's weights may be made double.
        batch: the records.
        tries: of :func:`privet.privacy.mechanism.exactness.rounding_of`.

    Returns:
        How many records could be compared, and the parameter whose sum is wrong, or "".
    """
    exact = ex.computes_in_double(engine, batch)
    if exact:
        ex.widen(engine.model)
        batch = ex.wide(batch)
    alone = ex.singles(engine, batch)
    rounding = ex.rounding_of(engine, batch, alone, tries=tries)
    kept = ex.comparable(rounding, [ex.norm_of(one) for one in alone])
    if not kept:
        return 0, ""
    batch = {name: tensor[kept] for name, tensor in batch.items()}
    norms = [ex.norm_of(alone[i]) for i in kept]
    clip = min(norms) / 2  # below every norm, so that each record shows alike
    got = engine.clipped_sum(batch, np.arange(len(kept)), len(kept), clip)
    wanted = [
        torch.stack([alone[i][place].double() * (clip / norm * (1 - CLIP_MARGIN))
                     for i, norm in zip(kept, norms, strict=True)]).sum(0)
        for place in range(len(engine.named))
    ]  # fmt: skip
    apart = [float((a.double() - b).norm()) for a, b in zip(got.tensors, wanted, strict=True)]
    tolerance = COARSE if engine.reduced_precision else FINE if exact else 10 * TOLERANCE
    allowed = (tolerance + 10 * max(rounding[i] for i in kept)) * len(kept) * clip
    if sum(one**2 for one in apart) ** 0.5 <= allowed:
        return len(kept), ""
    return len(kept), list(engine.named)[int(np.nan_to_num(apart, nan=np.inf).argmax())]


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


def _coverage(engine: GradientEngine, declared: Iterable[str]) -> None:
    trained, wanted = set(engine.named), set(declared)
    if trained != wanted:
        odd = sorted(trained ^ wanted)[0]
        raise SelfTestError(
            f"H17: '{odd}' is {'trained but not declared' if odd in trained else 'not trained'}; "
            "the plan's parameters and the trained ones must be the same"
        )


def _one_loss_each(engine: GradientEngine, batch: Batch) -> None:
    try:
        with torch.no_grad():
            shape = tuple(engine.losses(batch).shape)
    except PrivetError:
        raise
    except Exception as error:
        raise UnfitModelError(
            f"H16: the model or its loss fails on {_count(batch)} generated records: {_said(error)}"
        ) from error
    if shape != (_count(batch),):
        raise UnfitModelError(
            f"H16: the loss must return one value for each record, [{_count(batch)}], "
            f"not {list(shape)}; use reduction='none'"
        )


def _has_gradient(engine: GradientEngine, batch: Batch) -> None:
    if not any(ex.norm_of(one) > 0 for one in ex.singles(engine, batch)):
        raise UnfitModelError("H16: the loss does not depend on the trained parameters")


def _per_sample_gradient(
    engine: GradientEngine, batch: Batch, singles: Sequence[Sequence[Tensor]], close: Closeness
) -> None:
    """Compare with records computed alone, one by one by plain autograd."""
    expected = [torch.stack(column) for column in zip(*singles, strict=True)]
    rows = engine.per_sample(batch)
    floors = [close.floor(one) for one in singles]
    for name, got, want in zip(engine.named, rows, expected, strict=True):
        near = got.shape == want.shape and all(
            close(got[i], want[i], floor) for i, floor in enumerate(floors)
        )
        if not near:
            raise SelfTestError(
                f"H16: the per-sample gradient of '{name}' differs from that of single "
                "records (tied weights, or a layer that is treated wrongly); use "
                "clipping = 'auto'"
            )
    norms = torch.tensor([ex.norm_of(one) for one in singles], dtype=torch.float64)
    clip = float(norms.median()) / 2
    factors = torch.where(norms > clip, clip / norms * (1 - CLIP_MARGIN), 1.0)
    total = engine.clipped_sum(batch, np.arange(_count(batch)), _count(batch), clip)
    wanted = [torch.tensordot(factors.to(want), want, dims=1) for want in expected]
    floor = close.floor(wanted)
    for name, got, want in zip(engine.named, total.tensors, wanted, strict=True):
        if not close(got, want, floor):
            raise SelfTestError(f"H16: the clipped sum is wrong for '{name}'")


def _non_finite(engine: GradientEngine, batch: Batch, close: Closeness) -> None:
    """One record whose input, or whose loss, is NaN must leave the sum as if it were not there.

    Inputs without numbers (a table of categories alone) have nothing to spoil.
    """
    count = _count(batch)
    device = next(iter(batch.values())).device
    ones = torch.ones(count, device=device, dtype=engine.losses(batch).dtype)
    inputs = {name for name, part in batch.items() if part.is_floating_point() and part.numel()}
    for floats in filter(None, (inputs, {LOSS_WEIGHT})):
        poisoned = {name: tensor.clone() for name, tensor in {**batch, LOSS_WEIGHT: ones}.items()}
        for name in floats:
            poisoned[name][-1] = float("nan")
        _one_spoilt(engine, batch, poisoned, close)


def _one_spoilt(engine: GradientEngine, batch: Batch, poisoned: Batch, close: Closeness) -> None:
    count = _count(batch)
    clean = {name: tensor[:-1] for name, tensor in batch.items()}
    want = [torch.zeros_like(parameter) for parameter in engine.parameters]
    clip = 1.0
    if count > 1:
        singles = ex.singles(engine, clean)
        clip = min(ex.norm_of(one) for one in singles) / 2  # so that each record shows alike
        want = list(engine.clipped_sum(clean, np.arange(count - 1), count - 1, clip).tensors)
    last = {name: tensor[-1:] for name, tensor in poisoned.items()}
    if all(bool(torch.isfinite(part).all()) for part in engine.plain_sum(last)):
        # A network that does not read that input, or takes NaN for missing: a record as others.
        alone = engine.clipped_sum(last, np.arange(1), 1, clip).tensors
        want = [one + two for one, two in zip(want, alone, strict=True)]
    got = engine.clipped_sum(poisoned, np.arange(count), count, clip)
    floor = close.floor(want)
    for name, one, two in zip(engine.named, got.tensors, want, strict=True):
        if not bool(torch.isfinite(one).all()):
            raise SelfTestError(f"H7: one NaN record makes '{name}' non-finite")
        if not close(one, two, floor):
            raise SelfTestError(f"H7: one NaN record moves '{name}'")


def _count(batch: Batch) -> int:
    return len(next(iter(batch.values())))
