"""The local training of many sites at once, in lockstep.

::

    steps of each site ── draw ──► batches [K, B, ...] ── ClientGradients ──► sums [K, P]
          ▲                                                                    │
          └── event ◄── noise of each site's own stream ◄──────────────────────┘

Batches, noise and events are those of one site after another
(:class:`~privet.privacy.mechanism.dpsgd.LocalSteps`); only the products are made for all together.
What a site draws and the noise it adds come from its own stream, so that neither order nor chunk
matters.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from privet.client.training.model_runtime import ModelRuntime
from privet.client.training.trainer import mechanism, optimizer_of
from privet.common.errors import PrivetError
from privet.common.plan import Plan
from privet.common.sections.strategy import proximal_mu
from privet.common.tasks import Batch
from privet.common.threads import threads_of
from privet.privacy.mechanism.clipping import ClippedSum, GradientEngine
from privet.privacy.mechanism.clipping.client_gradients import ClientGradients, Unsupported
from privet.privacy.mechanism.clipping.methods import limit_of
from privet.privacy.mechanism.dpsgd import NoisedUpdate, NoisySteps, PlainSteps, PlainUpdate
from privet.privacy.mechanism.parameter_integrity import TamperGuard

_PASS_BYTES = 1 << 25
"""Memory for activations and gradients of the records of one pass."""
_WEIGHT_BYTES = 1 << 27
"""Memory for the weights, and what is made of them, of the sites that are trained together."""
_EXACT = 1e-4
"""How far sums may be from those of one site after another, relative to their norm."""
_COPIES = 8
"""Copies of a site's weights: themselves, gradients, the optimizer's, and what a step makes."""
_FILLING = 4.0
"""How much of a pass may fill up one site's batch, in bytes of the site's weights.

A product with few records waits for the weights, and then filling up costs nothing; with many it
costs as much as records do.
"""
Update = NoisedUpdate | PlainUpdate
Steps = NoisySteps | PlainSteps


class Cohort:
    """The sites of a plan whose models have one shape.

    Args:
        bench: the plan's runtime, whose start-up tests passed.

    Raises:
        Unsupported: if the model has no form for many sites, or another result there.
    """

    def __init__(self, bench: ModelRuntime) -> None:
        self.plan: Plan = bench.plan
        self.threads = threads_of(bench.plan.threads)
        """Threads that draw noise."""
        engine = bench.engine
        self._named = dict(engine.named)
        self._clip = mechanism(self.plan).bound
        self._most_records = engine.max_records
        self._filler = _on(self.plan.device, bench.task.random_batch(1, 0))
        self._optimizer = optimizer_of(self.plan.training)

        def made(records: int, seed: int) -> Batch:
            return _on(self.plan.device, bench.task.random_batch(records, seed))

        # A copy: a pass that fails may leave tensors of `vmap` in what a model keeps for itself.
        self._model = model = copy.deepcopy(engine.model)
        named = {n: p for n, p in model.named_parameters() if n in self._named}
        loss = bench.loss
        self._gradients = ClientGradients(model, loss, named, made, clipped=self._clip is not None)
        self._require_equal(engine, made)
        self._record_bytes = self._gradients.instantiated_bytes + _saved_bytes(
            model, loss, made(8, 2)
        )

    def train(
        self, all_steps: Sequence[Steps], start: dict[str, Tensor]
    ) -> list[Update | PrivetError]:
        """Return the update of each site, or why it has none.

        Args:
            all_steps: draws and noise of each site's release.
            start: the weights that all start from, by name.

        Raises:
            BypassError: if the model keeps something of a pass (H5, H8).
        """
        found: dict[int, Update | PrivetError] = {}
        guard = TamperGuard(self._model, [p for p in self._model.parameters() if p.requires_grad])
        # Products of many small matrices are quicker in one thread: more of them meet after each.
        # Each thread of the pool draws noise, in blocks that are too small to be shared.
        with (
            _one_thread(),
            ThreadPoolExecutor(self.threads, initializer=lambda: torch.set_num_threads(1)) as pool,
        ):
            most = max(1, _WEIGHT_BYTES // (_COPIES * self._site_bytes))
            for first in range(0, len(all_steps), most):
                made = self._train_some(all_steps[first : first + most], start, pool)
                found.update(enumerate(made, first))
        guard.check("by the end of the round", thorough=True)
        return [found[k] for k in range(len(all_steps))]

    @property
    def _site_bytes(self) -> int:
        """Bytes of a site's weights."""
        return sum(p.numel() * p.element_size() for p in self._named.values())

    def _groups(self, records: Sequence[int]) -> Iterator[list[int]]:
        """Return the numbers of sites whose batches make one pass: of like size, within memory.

        Args:
            records: in the batch of each site.
        """
        group: list[int] = []
        for k in sorted(range(len(records)), key=lambda k: -records[k]):
            largest = records[group[0]] if group else records[k]
            together = max(1, min(largest, self._most_records))
            most = _PASS_BYTES // (together * self._record_bytes)
            filled = (largest - records[k]) * self._record_bytes
            if group and (len(group) >= most or filled > _FILLING * self._site_bytes):
                yield group
                group = []
            group.append(k)
        if group:
            yield group

    def _train_some(
        self, some: Sequence[Steps], start: dict[str, Tensor], pool: ThreadPoolExecutor
    ) -> list[Update | PrivetError]:
        begun = {n: start[n].to(p.device) for n, p in self._named.items()}
        weights = {n: nn.Parameter(p.expand(len(some), *p.shape).clone()) for n, p in begun.items()}
        optimizer = self._optimizer(list(weights.values()))
        pull = proximal_mu(self.plan.strategy)
        for _ in range(self.plan.training.steps):
            sums = self._sums({n: w.detach() for n, w in weights.items()}, some)
            gradients = self._gradients_of(sums, some, pool)
            for name, weight in weights.items():
                gradient = gradients[name]
                if pull:
                    gradient = gradient + pull * (weight.detach() - begun[name])
                weight.grad = gradient.to(weight.dtype)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        moved = {n: (w.detach() - begun[n]).cpu() for n, w in weights.items()}
        found: list[Update | PrivetError] = []
        for k, steps in enumerate(some):
            try:
                found.append(steps.update({n: m[k].clone() for n, m in moved.items()}))
            except PrivetError as error:
                found.append(error)
        return found

    def _gradients_of(
        self, sums: dict[str, Tensor], some: Sequence[Steps], pool: ThreadPoolExecutor
    ) -> dict[str, Tensor]:
        """Return the mean gradients of a step, [K, *shape] by name, with each site's own noise.

        Args:
            sums: of the sites' batches.
            some: the sites' steps.
            pool: for the noise.
        """
        if all(isinstance(steps, PlainSteps) for steps in some):
            divisors = torch.tensor([steps.divisor for steps in some])
            return {
                n: t.div_(divisors.to(t).view(-1, *[1] * (t.ndim - 1))) for n, t in sums.items()
            }
        # One row for each site, in the order in which its own mechanism adds noise.
        each = {n: sums[n] for n in self._named}
        rows = torch.cat([t.flatten(1) for t in each.values()], 1)

        def noised(k: int) -> None:
            steps = some[k]
            if isinstance(steps, PlainSteps):
                made = steps.gradient([rows[k]])
            else:
                assert self._clip is not None
                made = steps.gradient(ClippedSum((rows[k],), limit_of(self._clip)))
            rows[k] = made[0]

        list(pool.map(noised, range(len(some))))
        parts = torch.split(rows, [t[0].numel() for t in each.values()], 1)
        return {n: part.view(t.shape) for (n, t), part in zip(each.items(), parts, strict=True)}

    def _sums(self, weights: dict[str, Tensor], some: Sequence[Steps]) -> dict[str, Tensor]:
        drawn = [steps.draw() for steps in some]
        groups = list(self._groups([len(owner) for _, owner, _ in drawn]))
        if len(groups) == 1:
            return self._sums_of(weights, drawn)
        totals = {n: torch.empty_like(w) for n, w in weights.items()}
        for group in groups:
            at = torch.tensor(group, device=self.plan.device)
            made = self._sums_of({n: w[at] for n, w in weights.items()}, [drawn[k] for k in group])
            for name, total in totals.items():
                total[at] = made[name]
        return totals

    def _sums_of(
        self, weights: dict[str, Tensor], drawn: Sequence[tuple[Batch, np.ndarray, int]]
    ) -> dict[str, Tensor]:
        batch, present, units = self._stacked(drawn)
        most = present.shape[1] // units
        # No pass has more records of a site than the start-up tests have seen.
        at_once = max(1, self._most_records // most)
        totals: dict[str, Tensor] = {}
        for first in range(0, units, at_once):
            rows = slice(first * most, (first + at_once) * most)
            part = {name: tensor[:, rows] for name, tensor in batch.items()}
            here = present[:, rows]
            made = (
                self._gradients.sums(weights, part, here)
                if self._clip is None
                else self._gradients.clipped_sums(
                    weights, part, here, here.shape[1] // most, self._clip
                )
            )
            totals = {n: totals[n] + made[n] if totals else made[n] for n in made}
        return totals

    def _stacked(self, drawn: Sequence[tuple[Batch, np.ndarray, int]]) -> tuple[Batch, Tensor, int]:
        """Return batches as one [K, U · R, ...], filled up with a generated record.

        Args:
            drawn: records, the unit of each, and the number of units, of each site.

        Returns:
            The batch; [K, U · R] 1 for a record that was drawn; and U, as many units for each site.
        """
        units = max(1, max(count for _, _, count in drawn))
        sizes = [np.bincount(owner, minlength=1) for _, owner, _ in drawn]
        most = max(1, max(int(size.max()) for size in sizes))
        shape = len(drawn), units * most
        batch = {
            n: t.expand(shape[0] * shape[1], *t.shape[1:]).clone().view(*shape, *t.shape[1:])
            for n, t in self._filler.items()
        }
        present = torch.zeros(shape, device=self.plan.device)
        for k, ((records, owner, _), size) in enumerate(zip(drawn, sizes, strict=True)):
            first = np.cumsum(size) - size
            places = torch.from_numpy(owner * most + np.arange(len(owner)) - first[owner])
            for name, rows in records.items():
                batch[name][k].index_copy_(0, places.to(rows.device), rows)
            present[k, places.to(present.device)] = 1.0
        return batch, present, units

    def _require_equal(self, engine: GradientEngine, made: Callable[[int, int], Batch]) -> None:
        """Compare two sites' sums, at weights of their own, with those of one after the other.

        The model trains meanwhile, as it will. One that draws chance has another result each time,
        and is refused like any other whose sums differ.

        Raises:
            Unsupported: if they differ.
        """
        generator = torch.Generator().manual_seed(0)
        begun = {n: p.detach().clone() for n, p in engine.named.items()}
        weights = {
            n: torch.stack(
                [p + 0.1 * torch.randn(p.shape, generator=generator).to(p) for _ in range(2)]
            )
            for n, p in begun.items()
        }
        each = [(made(count, count), np.arange(count), count) for count in (5, 3)]
        batch, present, units = self._stacked(each)
        clip = self._clip
        if clip is None:
            found = self._gradients.sums(weights, batch, present)
        else:
            found = self._gradients.clipped_sums(weights, batch, present, units, clip)
        try:
            for k, (records, owner, count) in enumerate(each):
                _set(engine.named, {n: w[k] for n, w in weights.items()})
                right = (
                    engine.plain_sum(records)
                    if clip is None
                    else engine.clipped_sum(records, owner, count, clip).tensors
                )
                off = sum(
                    float((found[n][k] - r).square().sum())
                    for n, r in zip(engine.named, right, strict=True)
                )
                size = sum(float(r.square().sum()) for r in right)
                if not off <= _EXACT**2 * size:
                    raise Unsupported("sums of many sites are not those of one after another")
        finally:
            _set(engine.named, begun)


def _set(named: Mapping[str, Tensor], values: dict[str, Tensor]) -> None:
    with torch.no_grad():
        for name, parameter in named.items():
            parameter.copy_(values[name])


def _on(device: str, batch: Batch) -> Batch:
    return {name: tensor.to(device) for name, tensor in batch.items()}


def _saved_bytes(model: nn.Module, loss: Callable[..., Tensor], batch: Batch) -> int:
    """Return the bytes that a forward pass keeps for the backward pass, for a record."""
    kept = 0

    def keep(tensor: Tensor) -> Tensor:
        nonlocal kept
        kept += tensor.numel() * tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss(model, batch)
    return 1 + kept // len(next(iter(batch.values())))


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
