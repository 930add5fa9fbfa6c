"""Chance that a model draws while it trains: how it is seen, tested (H6) and switched off.

The other start-up tests compare passes, so that they run without it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from privet.common.errors import CoupledRecordsError, UnfitModelError
from privet.privacy.mechanism import batch_coupling
from privet.privacy.mechanism import exactness as ex
from privet.privacy.mechanism.clipping import GradientEngine
from privet.privacy.mechanism.clipping.methods import Batch
from privet.privacy.mechanism.record_coupling import (
    FINE,
    Closeness,
    losses_agree,
    require_uncoupled,
)

_RECORDS = 3
_ROUGH = 3e-3
"""Share by which numbers may differ in single precision, where rounding is not measured."""
_SEED = 3
_DROPOUTS = (
    nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout,
)  # fmt: skip
"""Layers that are known to treat records alike; a layer of another's may do more in training."""
RandomBatch = Callable[[int, int], Batch]
"""Makes a batch of (records, seed) with the shapes and types of the task."""


class Deterministic:
    """Switches dropout off for a while, so that two passes can be compared."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._training = [m for m in model.modules() if m.training]

    def __enter__(self) -> Self:
        for module in self._training:
            if type(module) in _DROPOUTS:
                module.training = False
        return self

    def remove(self) -> None:
        """Switch off all else that a model does only while it trains."""
        self._model.eval()

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Let the model train for a while; what it draws then is lost to nobody."""
        before = [module.training for module in self._training]
        with _same_chance():
            self.__exit__()
            try:
                yield
            finally:
                for module, is_training in zip(self._training, before, strict=True):
                    module.training = is_training

    @property
    def is_removed(self) -> bool:
        """Whether a part of the model does not train at present."""
        return not all(module.training for module in self._training)

    def __exit__(self, *_: object) -> None:
        for module in self._training:
            module.training = True


def repeats(
    engine: GradientEngine, batch: Batch, close: Callable[[Tensor, Tensor], bool] = torch.equal
) -> bool:
    """Whether two passes over the same records give the same losses.

    By default to the last bit: where weights are small, dropout moves a loss by less than rounding
    may.
    """
    with torch.no_grad():
        return losses_agree(engine.losses(batch), engine.losses(batch), close)


def draws_chance(engine: GradientEngine, batch: Batch) -> bool:
    """Whether a pass draws chance, whatever it does with it: a rare event need not show."""
    before = _states_of_chance()
    with torch.no_grad():
        engine.losses(batch)
    after = _states_of_chance()
    return any(not np.array_equal(one, two) for one, two in zip(before, after, strict=True))


def _states_of_chance() -> list[Any]:
    """Return the states of the generators of torch (also on devices), NumPy and Python."""
    found: list[Any] = [torch.random.get_rng_state().numpy()]
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        found += [state.numpy() for state in torch.cuda.get_rng_state_all()]
    _, keys, position, *_ = np.random.get_state()
    return [*found, keys, position, hash(random.getstate())]


def without_chance(
    engine: GradientEngine, random_batch: RandomBatch, chance: Deterministic, records: int
) -> None:
    """Remove chance that is not a layer (``functional.dropout``), after a test of H6 with it.

    Such chance is drawn while the model trains, so the other tests run on a model that does not.
    What mixes records only while it trains is found here: the same chance is drawn for a batch
    whose other records are exchanged.
    """
    with ex.kept_weights(engine.model):
        ex.tame(engine.model)
        batch, other = random_batch(_RECORDS, 1), random_batch(_RECORDS, 2)
        if not draws_chance(engine, batch) and repeats(engine, batch):
            return
        with _same_chance(), ex.kept_weights(engine.model):
            close = Closeness(_ROUGH, _ROUGH**2)  # rounding differs with what is exchanged
            if ex.computes_in_double(engine, batch):
                ex.widen(engine.model)
                batch, other, close = ex.wide(batch), ex.wide(other), Closeness(FINE)
            losses = [_losses_with_same_chance(engine, batch) for _ in range(2)]
            if not losses_agree(losses[0], losses[1], close):
                raise UnfitModelError(
                    "H16: two passes over the same records differ although the same chance is "
                    "drawn: the model keeps a state while it trains, or draws from a generator of "
                    "its own. Draw from torch's, and keep nothing of a batch"
                )
            require_uncoupled(engine, batch, other, close=close, before=_draw_again)
            _coupled_crowd(engine, random_batch, records, close)
        chance.remove()
        if repeats(engine, random_batch(_RECORDS, 1), Closeness()):
            return
    raise UnfitModelError(
        "H16: two passes over the same records differ, also in eval(): the model draws chance "
        "whether it trains or not. Let it draw while self.training only, or set its rate to 0"
    )


def _losses_with_same_chance(engine: GradientEngine, batch: Batch) -> Tensor:
    _draw_again()
    with torch.no_grad():
        return engine.losses(batch)


def _coupled_crowd(
    engine: GradientEngine, random_batch: RandomBatch, records: int, close: Closeness
) -> None:
    """As :func:`require_uncoupled` for the losses of a whole batch, while the model trains."""
    count = min(batch_coupling.size_of(engine, random_batch, records), engine.max_records)
    kept = sorted({0, count // 2, count - 1})
    batch, other = (_like(engine, random_batch(count, seed)) for seed in (4, 5))
    mixed = {name: tensor.clone() for name, tensor in other.items()}
    for name, tensor in batch.items():
        mixed[name][kept] = tensor[kept]
    one, two = (_losses_with_same_chance(engine, each)[kept] for each in (batch, mixed))
    if not losses_agree(one, two, close):
        raise CoupledRecordsError(
            f"H6: while the model trains, the loss of one record of {count} depends on the other "
            "records; no per-unit bound holds"
        )


def _like(engine: GradientEngine, batch: Batch) -> Batch:
    """Return a batch with real numbers of the model's type."""
    parameter = engine.parameters[0]
    return ex.wide(batch) if parameter.dtype == torch.float64 else batch


def _draw_again() -> None:
    """Let torch, NumPy and Python draw the same numbers again."""
    torch.manual_seed(_SEED)
    np.random.seed(_SEED)
    random.seed(_SEED)


@contextmanager
def _same_chance() -> Iterator[None]:
    """Draw from fixed seeds for a while; what is drawn afterwards does not depend on them."""
    numpy_state, python_state = np.random.get_state(), random.getstate()
    with torch.random.fork_rng():
        try:
            _draw_again()
            yield
        finally:
            np.random.set_state(numpy_state)
            random.setstate(python_state)
