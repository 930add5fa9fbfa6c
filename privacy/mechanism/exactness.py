"""Conditions under which rounding does not decide a start-up test.

A model whose weights are large (of a run at a high learning rate, or of another run) has gradients
that single precision gets wrong in every digit: a comparison then says nothing about the model.
Here are weights of a sensible size, double precision for a while, and a measure of what rounding
does to a record's gradient.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from privet.common.compat.torch import DispatchMode, buffers_of
from privet.privacy.mechanism.clipping import GradientEngine
from privet.privacy.mechanism.clipping.methods import Batch

_MAX_DOUBLE_PARAMETERS = 1 << 28
"""A model of at most this many numbers is made double for a while: 2 GiB."""
_TOLD = 1e-3
"""A gradient that rounding moves by more than this share of its norm is not compared."""
_MIN_NORM, _RANGE = 1e-30, 1e-25
"""The smallest norm that is compared, and the smallest as a share of the largest."""
_STEPS = 4.0
"""Units in the last place by which weights are moved to see what rounding does."""


@contextmanager
def kept_weights(model: nn.Module) -> Iterator[None]:
    """Give every parameter and buffer back afterwards: the same memory with the same numbers.

    Inside, ``parameter.data`` may be replaced, and not changed in place.
    """
    parameters = [(p, p.data) for p in model.parameters()]
    buffers = [(m, name, b) for m in model.modules() for name, b in buffers_of(m).items()]
    try:
        yield
    finally:
        for parameter, data in parameters:
            parameter.grad = None
            parameter.data = data
        for module, name, buffer in buffers:
            buffers_of(module)[name] = buffer


def tame(model: nn.Module) -> bool:
    """Scale parameters down to the size that initial ones have; return whether any was larger.

    A weight [n, ...] of m numbers a row gets a root mean square of at most 3 / √m or 0.3 (Glorot
    and Bengio 2010 begin with less), any other parameter of at most 3. What is smaller stays.
    """
    larger = False
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    for parameter in model.parameters():
        data = parameter.data
        if not data.is_floating_point() or not data.numel():
            continue
        row = data.dim() > 1 and len(data) > 1 and id(parameter) not in tables
        most = max(3.0 / math.sqrt(data[0].numel()), 0.3) if row else 3.0
        size = float(torch.linalg.vector_norm(data, dtype=torch.float64)) / data.numel() ** 0.5
        if math.isfinite(size) and size > most:
            parameter.data = data * (most / size)
            larger = True
    return larger


def widen(model: nn.Module) -> None:
    """Make parameters and buffers double, for use within :func:`kept_weights`."""
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.double()
    done: dict[int, Tensor] = {}
    for module in model.modules():
        for name, buffer in buffers_of(module).items():
            if buffer is not None and buffer.is_floating_point():
                buffers_of(module)[name] = done.setdefault(id(buffer), buffer.double())


def wide(batch: Batch) -> Batch:
    """Return a batch with real numbers in double precision."""
    return {name: t.double() if t.is_floating_point() else t for name, t in batch.items()}


def computes_in_double(engine: GradientEngine, batch: Batch) -> bool:
    """Return whether the model can be computed in double, and does not go narrower by itself.

    Args:
        engine: whose model is as large as :data:`_MAX_DOUBLE_PARAMETERS` at most, else False.
        batch: records to try it with.
    """
    if numbers_of(engine) > _MAX_DOUBLE_PARAMETERS:
        return False
    seen = _Narrow()  # type: ignore[no-untyped-call]
    with kept_weights(engine.model):
        try:
            widen(engine.model)
            with seen:
                engine.plain_sum(wide(batch))
        except Exception:  # a model of one's own may insist on a type
            return False
    return not seen.found


def numbers_of(engine: GradientEngine) -> int:
    """Return how many numbers the model's parameters hold."""
    return sum(p.numel() for p in engine.model.parameters())


def singles(engine: GradientEngine, batch: Batch) -> list[list[Tensor]]:
    """Return each record's gradient, one record at a time by plain autograd, as it is now."""
    return [engine.plain_sum(row) for row in rows_of(batch)]


def rows_of(batch: Batch) -> list[Batch]:
    """Return the records of a batch, each by itself."""
    return [
        {name: tensor[i : i + 1] for name, tensor in batch.items()} for i in range(count_of(batch))
    ]


def count_of(batch: Batch) -> int:
    """Return how many records a batch has."""
    return len(next(iter(batch.values())))


def norm_of(gradient: Sequence[Tensor]) -> float:
    """Return the norm over all parameters, in double precision."""
    return math.sqrt(sum(float(g.double().square().sum()) for g in gradient))


def rounding_of(
    engine: GradientEngine, batch: Batch, gradients: Sequence[Sequence[Tensor]], *, tries: int = 1
) -> list[float]:
    """Return what rounding does to each record's gradient, as a share of its norm.

    Seen by moving every weight by a few units in the last place, which is what an exact way to
    compute the gradient may do as well. 0 for a gradient that is zero whatever is done, infinite
    for one that is not finite.

    Args:
        engine: as it computes now.
        batch: the records.
        gradients: their gradients, of :func:`singles`.
        tries: how often weights are moved, each time otherwise; the worst counts.
    """
    generator = torch.Generator().manual_seed(5)
    found = [_moved(engine, batch, gradients, generator) for _ in range(tries)]
    return [max(shares) for shares in zip(*found, strict=True)]


def _moved(
    engine: GradientEngine,
    batch: Batch,
    gradients: Sequence[Sequence[Tensor]],
    generator: torch.Generator,
) -> list[float]:
    with kept_weights(engine.model):
        for parameter in engine.model.parameters():
            if parameter.is_floating_point():
                by = _STEPS * torch.finfo(parameter.dtype).eps
                turned = torch.randn(parameter.shape, generator=generator).to(parameter)
                turned.view(-1)[:1] = 0  # masked tokens are drawn by the bits of a first weight
                parameter.data = parameter.data * (1 + by * turned.clamp(-2, 2))
        moved = singles(engine, batch)
    found = []
    for one, other in zip(gradients, moved, strict=True):
        norm = norm_of(one)
        apart = norm_of([a.double() - b.double() for a, b in zip(one, other, strict=True)])
        known = norm < math.inf and math.isfinite(apart) and (norm > 0 or apart == 0)
        found.append(apart / (norm or 1.0) if known else math.inf)
    return found


def told(rounding: Sequence[float]) -> list[int]:
    """Return the numbers of the records of which something can be said."""
    return [row for row, share in enumerate(rounding) if share <= _TOLD]


def comparable(rounding: Sequence[float], norms: Sequence[float]) -> list[int]:
    """Return the numbers of the records whose gradients can be compared with each other.

    A gradient that is zero, or so small against the largest that a factor between them is no
    number of single precision, is left out.

    Args:
        rounding: of :func:`rounding_of`.
        norms: of the gradients.
    """
    least = max(_MIN_NORM, _RANGE * max((n for n in norms if n < math.inf), default=0.0))
    return [row for row in told(rounding) if least <= norms[row] < math.inf]


class _Narrow(DispatchMode):  # type: ignore[no-untyped-call]
    """Sees whether numbers that are not whole are computed in less than double precision."""

    found = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for one in made if isinstance(made, tuple | list) else (made,):
            if self.found or not isinstance(one, Tensor) or not one.is_floating_point():
                continue
            if one.dtype != torch.float64 and one.numel() > 1:
                self.found = not torch.equal(one, one.round())
        return made
