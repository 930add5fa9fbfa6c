"""Book-keeping: one forward and one backward pass that yield the clipped sum.

For each micro-batch of records, with the equations of the package
(:mod:`privet.privacy.mechanism.clipping`):

1. forward, with layers that save their activations (:mod:`.layers`); backward of Σ_r ℓ_r, in which
   each layer records its activations and backprops, or instantiates G_u;
2. ‖G_u‖² for each unit, added up over parameters in double precision;
3. c_u = min(1, C / ‖G_u‖), and 0 for a unit whose norm is not finite (H7);
4. Σ_u c_u G_u from what was recorded, added to the total. Ghost clipping (Li et al. 2022) would run
   a second backward pass here; book-keeping (Bu et al. 2023, Algorithm 1) does not.

Nothing in Python is done for each record.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from privet.common.errors import SelfTestError
from privet.privacy.mechanism.clipping import methods, record_axes
from privet.privacy.mechanism.clipping.cost import max_units_in_memory
from privet.privacy.mechanism.clipping.layers import RecordingLayers, Unsupported
from privet.privacy.mechanism.clipping.methods import Batch, Loss, UnitOfRecord
from privet.privacy.mechanism.clipping.one_by_one import OneByOne
from privet.privacy.mechanism.clipping.record_axes import RecordAxes

_LOG = logging.getLogger("privet.clipping")
_VARIED = 3
"""Batches with shorter rows that the model reads before the rules are used."""


class BookKeeping(methods.PlainMethod):
    """The clipping method of the module's docstring.

    Args:
        model: stays as it is; its layers' forwards are replaced while a pass runs.
        loss: per-record losses.
        named: the trained parameters.

    Attributes:
        is_tested: whether the start-up test has passed. After it a micro-batch that the rules do
            not fit is clipped one unit at a time, in place of an error that costs a charge.

    Raises:
        Unsupported: if a trained parameter is used in a way that is not known.
    """

    def __init__(self, model: nn.Module, loss: Loss, named: Mapping[str, Tensor]) -> None:
        super().__init__(model, loss, named)
        self._layers = RecordingLayers(model)
        self._axes: dict[int, RecordAxes] = {}
        self._whole: list[nn.Module] = []
        tables = {
            id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)
        }  # they are not instantiated where they are large
        count = sum(p.numel() for p in named.values() if id(p) not in tables)
        trained = sum(p.numel() for p in named.values())
        device = next(iter(named.values())).device
        self.max_units = max_units_in_memory(count, trained, device)

    def prepare(self, random_batch: Callable[[int, int], Batch]) -> None:
        """As :meth:`ClippingMethod.prepare`: find the dimensions of records."""

        def read(batch: Batch) -> None:
            self._loss(self.model, batch)

        def run(records: int) -> None:
            read(random_batch(records, 1))

        if operators := record_axes.rearranged(read, random_batch):
            raise SelfTestError(
                "H16: book-keeping does not fit this model: it takes or orders rows by what they "
                f"hold ({', '.join(sorted(operators))}), so that a row's record is not known"
            )
        while True:
            self._axes = record_axes.find(self._layers.modules, run)
            if not (parents := self._read_by_others(random_batch(record_axes.SIZES[0], 1))):
                break
            # Its parent reads the weights of a layer that has a gradient and is not called (an
            # adapter of peft, functional.linear), or calls it in several ways: it is taken whole.
            self._whole += parents
            self._layers = RecordingLayers(self.model, whole=self._whole)
        for seed in range(_VARIED):
            batch = record_axes.with_shorter_rows(random_batch(record_axes.SIZES[1], seed), seed)
            if kind := record_axes.misfit(self._axes, self._layers.modules, read, batch):
                raise SelfTestError(
                    "H16: book-keeping does not fit this model: how many rows a "
                    f"{kind} reads depends on what the records hold"
                )
        self._layers.use_axes(self._axes)

    def _read_by_others(self, batch: Batch) -> list[nn.Module]:
        """Return the parents of layers that have gradients but are not called, or not alike."""
        parents = {id(child): m for m in self.model.modules() for child in m.children()}
        found = [
            parents[id(m)]
            for m in self._layers.modules
            if id(m) in self._axes and not self._axes[id(m)].is_known and id(m) in parents
        ]
        known = self._axes.keys() | self._layers.called_by_rules
        uncalled = [m for m in self._layers.modules if id(m) not in known]
        # What a layer that is called holds as well is read there: tied weights.
        tied = {id(p) for m in self._layers.modules if id(m) in self._axes for p in m.parameters()}
        parameters = {
            id(p): p
            for m in uncalled
            for p in m.parameters()
            if p.requires_grad and id(p) not in tied
        }
        if not parameters:
            return found
        self.reset()
        self._loss(self.model, batch).sum().backward()
        used = {key for key, parameter in parameters.items() if parameter.grad is not None}
        self.reset()
        return found + [
            parents[id(m)]
            for m in uncalled
            if id(m) in parents and any(id(p) in used for p in m.parameters())
        ]

    def per_sample(self, batch: Batch) -> list[Tensor]:
        """As :meth:`ClippingMethod.per_sample`."""
        layers = RecordingLayers(self.model, instantiate=True, whole=self._whole)
        if self._axes:
            layers.use_axes(self._axes)
        records = len(next(iter(batch.values())))
        self._pass(layers, batch, None)
        layers.per_unit.squared_norms()  # raises where a gradient is outside its layer (H17)
        self._layers.per_unit.reduced_precision |= layers.per_unit.reduced_precision
        for one in layers.per_unit.parameters:
            if not one.used:
                one.instantiated(records).zero_()
        return [one.instantiated(records) for one in layers.per_unit.parameters]

    def clipped_sum(
        self, micro_batches: Iterable[tuple[Batch, UnitOfRecord]], clip: methods.Bound
    ) -> list[Tensor]:
        """As :meth:`ClippingMethod.clipped_sum`."""
        per_unit = self._layers.per_unit
        totals = per_unit.zeros()
        rest: list[tuple[Batch, UnitOfRecord]] = []
        for batch, unit_of in micro_batches:
            counts = None
            if len(unit_of) and unit_of[-1] + 1 != len(unit_of):
                counts = torch.from_numpy(np.bincount(unit_of))
            try:
                self._pass(self._layers, batch, counts)
                with torch.no_grad():
                    squared_norms = per_unit.squared_norms()
            except (SelfTestError, RuntimeError) as fault:
                # A batch unlike those of the start-up test: a layer that they did not call, another
                # number of rows, weights read outside a layer. Its sum is made by definition.
                if not self.is_tested:
                    raise
                _LOG.info("a micro-batch is clipped one by one: %s", fault)
                self.reset()
                rest.append((batch, unit_of))
                continue
            with torch.no_grad():
                factors = methods.clip_factors(squared_norms, clip)
                finite = torch.isfinite(squared_norms)
                # The host waits for the device here: rows of NaN times 0 would be NaN.
                all_finite = bool(finite.all())
                per_unit.add_weighted_sum(totals, factors, None if all_finite else finite)
            self._layers.forget()
        found = per_unit.by_parameter(totals)
        if rest:
            others = OneByOne(self.model, self._loss, self.named).clipped_sum(rest, clip)
            found = [one + other for one, other in zip(found, others, strict=True)]
        return found

    def reset(self) -> None:
        """As :meth:`ClippingMethod.reset`."""
        self._layers.forget()
        super().reset()

    @property
    def reduced_precision(self) -> bool:
        """As :attr:`ClippingMethod.reduced_precision`."""
        return self._layers.per_unit.reduced_precision or super().reduced_precision

    def _pass(self, layers: RecordingLayers, batch: Batch, counts: Tensor | None) -> None:
        """Run one forward and one backward pass in which ``layers`` record.

        Args:
            layers: of the model.
            batch: B records.
            counts: [U] records of each unit; None for one each.
        """
        for parameter in self.named.values():
            parameter.grad = None
        records = len(next(iter(batch.values())))
        try:
            with layers.recording(records, counts):
                loss = self._loss(self.model, batch).sum()
                layers.per_unit.recording = True
                loss.backward()
        except Unsupported as error:
            raise SelfTestError(
                f"H16: book-keeping does not fit this model: {error}; use clipping = 'auto'"
            ) from error
