"""Book-keeping: one forward and one backward pass that yield the clipped sum.

The backward pass leaves each unit's gradient, or what its norm is made of (:mod:`.book`); norms,
factors and the sum follow without a second pass (Bu et al. 2023, Differentially Private
Optimization on Large Model at Small Cost). Nothing in Python is done by record.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from privet.common.errors import SelfTestFailed
from privet.privacy.mechanism.clipping import methods
from privet.privacy.mechanism.clipping.cost import units_at_once
from privet.privacy.mechanism.clipping.layers import Layers, Unsupported
from privet.privacy.mechanism.clipping.methods import Batch, Loss, People

_SINGLE = torch.finfo(torch.float32).eps


class BookKeeping:
    """See the module.

    Args:
        model: stays as it is; its layers' forwards are replaced while a pass runs.
        loss: per-record losses.
        named: the trained parameters.

    Raises:
        Unsupported: if a trained parameter is used in a way that is not known.
        SelfTestFailed: if a layer mixes records.
    """

    def __init__(self, model: nn.Module, loss: Loss, named: Mapping[str, Tensor]) -> None:
        _require_separate(model)
        self.model, self._loss, self.named = model, loss, named
        self._layers = Layers(model)
        tables = {
            id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)
        }  # they are not instantiated where they are large
        count = sum(p.numel() for p in named.values() if id(p) not in tables)
        trained = sum(p.numel() for p in named.values())
        device = next(iter(named.values())).device
        self.most_units: int | None = units_at_once(count, trained, device)

    def per_sample(self, batch: Batch) -> list[Tensor]:
        """As :meth:`Method.per_sample`."""
        layers = Layers(self.model, dense=True)
        records = len(next(iter(batch.values())))
        self._pass(layers, batch, None)
        layers.book.squares()  # every page is written
        self._layers.book.coarse |= layers.book.coarse
        return [page.gradients(records) for page in layers.book.pages]

    def clipped_sum(self, parts: Iterable[tuple[Batch, People]], clip: float) -> list[Tensor]:
        """As :meth:`Method.clipped_sum`."""
        book = self._layers.book
        totals = book.zeros()
        for batch, people in parts:
            counts = None
            if len(people) and people[-1] + 1 != len(people):
                counts = torch.from_numpy(np.bincount(people))
            self._pass(self._layers, batch, counts)
            with torch.no_grad():
                squares = book.squares()
                factors = methods.clip_factors(squares, clip)
                finite = torch.isfinite(squares)
                # The one wait for the device in a pass: rows of NaN times 0 would be NaN.
                book.add_to(totals, factors, None if bool(finite.all()) else finite)
            self._layers.forget()
        return book.of_parameters(totals)

    def plain(self, batch: Batch) -> Tensor:
        """As :meth:`Method.plain`."""
        return self._loss(self.model, batch)

    def pause(self) -> None:
        """As :meth:`Method.pause`: between two passes nothing is watched."""

    def resume(self) -> None:
        """As :meth:`Method.resume`."""

    def forget(self) -> None:
        """As :meth:`Method.forget`."""
        self._layers.forget()
        for parameter in self.named.values():
            parameter.grad = None

    def close(self) -> None:
        """As :meth:`Method.close`."""
        self.forget()

    @property
    def coarse(self) -> bool:
        """As :attr:`Method.coarse`."""
        return self._layers.book.coarse or is_coarse(self.named.values())

    def _pass(self, layers: Layers, batch: Batch, counts: Tensor | None) -> None:
        for parameter in self.named.values():
            parameter.grad = None
        records = len(next(iter(batch.values())))
        try:
            with layers.watching(records, counts):
                loss = self._loss(self.model, batch).sum()
                layers.book.listens = True
                loss.backward()
        except Unsupported as error:
            raise SelfTestFailed(
                f"H16: book-keeping does not fit this model: {error}; use clipping = "
                "'opacus-hooks' or 'functorch'"
            ) from error


def is_coarse(parameters: Iterable[Tensor]) -> bool:
    """Return whether a parameter holds less than single precision."""
    return any(torch.finfo(one.dtype).eps > _SINGLE for one in parameters)


def _require_separate(model: nn.Module) -> None:
    """Refuse layers whose output for a record depends on the others."""
    for name, module in model.named_modules():
        mixes = isinstance(module, nn.modules.batchnorm._BatchNorm)
        remembers = isinstance(module, nn.modules.instancenorm._InstanceNorm)
        if mixes or (remembers and module.track_running_stats):
            raise SelfTestFailed(
                f"H6: '{name}' ({type(module).__name__}) mixes records, so that no bound of one "
                "unit's gradient holds; use GroupNorm or LayerNorm"
            )
