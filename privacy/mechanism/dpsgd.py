"""DP-SGD: sampling, clipping and noise coupled in one frozen object that emits its event.

Abadi et al. 2016, Algorithm 1, with Poisson batches over units and a public divisor:
each step adds ``N(0, (σ C)²)`` to the sum of clipped per-unit gradients and divides by
``q · nominal_size``, a constant of plan and policy. The event of a release is built from
what the steps did (rate drawn with, noise added, bound clipped to, additions counted),
not from what was planned; nobody declares an ε.

The idea of a frozen plan object that carries its event is learnt from jax_privacy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from privet.common.errors import InputError, NotReleasableError
from privet.privacy.accounting import events as ev
from privet.privacy.accounting.units import Relation, Unit, UnitIndex
from privet.privacy.mechanism.clipping import ClippedSum, GradientEngine
from privet.privacy.mechanism.clipping.methods import AutomaticBound, Batch, Bound
from privet.privacy.mechanism.noise import Stream
from privet.privacy.mechanism.parameter_integrity import TamperGuard
from privet.privacy.mechanism.sampling import PoissonSampler


@dataclass(frozen=True)
class Views:
    """How a unit's records are seen in one step.

    Nothing is tried on the records of a release: whether it leaves must not depend on them. A view
    cannot depend on other records because it is made of its record alone; only an ``augment`` that
    treats each record by itself, by the start-up test
    (:func:`privet.privacy.mechanism.selftest.augmentation`), is given many at once.

    Attributes:
        augment: makes a view of each record [B], given a random 64-bit number for each.
        copies: how many augmented copies each record has.
        alone: whether ``augment`` sees one record at a time. False for Privet's own only.
    """

    augment: Callable[[Batch, Tensor], Batch]
    copies: int = 1
    alone: bool = True

    def of(self, batch: Batch, words: Tensor) -> Batch:
        """Return a view of each record; a record that ``augment`` fails on is seen as it is.

        Args:
            batch: records [B]; they stay as they are.
            words: a random number for each, [B].
        """
        if not self.alone:
            return self.made(batch, words)
        parts = []
        for row in range(len(words)):
            one = {name: rows[row : row + 1] for name, rows in batch.items()}
            try:
                parts.append(self.made(one, words[row : row + 1]))
            except Exception:  # what a record does must show in its own contribution alone
                parts.append(one)
        return {name: torch.cat([part[name] for part in parts]) for name in batch}

    def made(self, batch: Batch, words: Tensor) -> Batch:
        """Return a view of each record, all made in one call.

        Raises:
            NotReleasableError: if a view is of another form than its record.
        """
        # A copy: what it changes in place is not what the site keeps.
        seen = self.augment({name: rows.clone() for name, rows in batch.items()}, words)
        same = isinstance(seen, dict) and seen.keys() == batch.keys()
        if not same or any(
            seen[name].shape != rows.shape or seen[name].dtype != rows.dtype
            for name, rows in batch.items()
        ):
            raise NotReleasableError(
                "'augment' must return the batch's tensors, in their shapes and types"
            )
        return seen


OptimizerFactory = Callable[[Sequence[Tensor]], torch.optim.Optimizer]
_SEAL = object()
_PLAIN = ev.NonPrivate("training without noise")


class NoisedUpdate:
    """What one release lets out: the change of each trained parameter, with its event.

    Only :class:`DpSgd` makes one, and a plan with privacy releases nothing else. Every
    tensor is finite.

    Attributes:
        tensors: change of each parameter, by name, on the CPU.
        event: what it cost.
        reproducible: True when noise came from a seed; the claim is then ``none``.
    """

    __slots__ = ("event", "reproducible", "tensors")

    def __init__(
        self, seal: object, tensors: dict[str, Tensor], event: ev.Event, reproducible: bool
    ) -> None:
        if seal is not _SEAL:
            raise NotReleasableError("only a mechanism can make a NoisedUpdate")
        _require_finite(tensors)
        self.tensors = tensors
        self.event = event
        self.reproducible = reproducible


@dataclass(frozen=True)
class PlainUpdate:
    """The same without noise, for plans without privacy only. Its ε is infinite."""

    tensors: dict[str, Tensor]
    reproducible: bool

    def __post_init__(self) -> None:
        _require_finite(self.tensors)

    @property
    def event(self) -> ev.Event:
        """Non-private, always."""
        return _PLAIN


def _require_finite(tensors: dict[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        # A sum of numbers of which one is not finite is not finite: most updates are read once.
        if not bool(torch.isfinite(tensor.sum())) and not bool(torch.isfinite(tensor).all()):
            raise NotReleasableError(f"the update of '{name}' is not finite; nothing is released")


@dataclass
class _Observed:
    """What the steps of one release did, as counted by the code that did it."""

    steps: list[ev.Event] = field(default_factory=list)

    def event(self) -> ev.Event:
        grouped = ev.group(self.steps)
        if len(grouped) != 1:
            return ev.NonPrivate("the steps of one release differ from each other")
        step, count = grouped[0]
        return ev.Repeated(step, count)


@dataclass(frozen=True)
class DpSgd:
    """A mechanism for one release: ``steps`` noisy steps from the same start.

    Attributes:
        sample_rate: Poisson rate q.
        noise_multiplier: σ, noise per unit of ``clip``.
        clip: L2 bound C of one unit's gradient.
        steps: noise additions in one release.
        unit, relation: what the guarantee is about.
        automatic: brings every unit's gradient close to C (:class:`.clipping.AutomaticBound`); the
            event is the same.

    Example::

        DpSgd(0.1, clip=1.0, steps=5).calibrated(3.0, 1e-5, releases=20)
    """

    sample_rate: float
    noise_multiplier: float = 1.0
    clip: float = 1.0
    steps: int = 1
    unit: Unit = Unit.RECORD
    relation: Relation = Relation.ADD_OR_REMOVE_ONE
    automatic: bool = False

    def __post_init__(self) -> None:
        PoissonSampler(self.sample_rate)
        for name in ("noise_multiplier", "clip"):
            if not 0 < getattr(self, name) < math.inf:
                raise InputError(f"{name} must be positive, not {getattr(self, name)}")
        if self.steps < 1:
            raise InputError("steps must be at least 1")

    @property
    def bound(self) -> Bound:
        """C, with its rule."""
        return AutomaticBound(self.clip) if self.automatic else self.clip

    @property
    def event(self) -> ev.Event:
        """The event that one release will have if all goes to plan; reserved before it runs."""
        step = _step_event(self.sample_rate, self.noise_multiplier * self.clip, self.clip)
        return ev.Repeated(step, self.steps)

    def calibrated(
        self, epsilon: float, delta: float, *, releases: int = 1, extra: Iterable[ev.Event] = ()
    ) -> Self:
        """Return a copy whose noise makes ``releases`` releases and ``extra`` cost ``epsilon``.

        Raises:
            InputError: if no noise reaches the target.
        """
        # Not above: a process that only trains is up sooner without the accountants.
        from privet.privacy.accounting.noise_calibration import calibrate_noise

        others = tuple(extra)

        def events_at(noise: float) -> list[ev.Event]:
            event = replace(self, noise_multiplier=noise).event
            return [ev.Repeated(event, releases), *others]

        noise = calibrate_noise(epsilon, delta, events_at, self.relation)
        return replace(self, noise_multiplier=noise)

    def noised(
        self, total: ClippedSum, stream: Stream, sample_rate: float | None = None
    ) -> tuple[list[Tensor], ev.Event]:
        """Return the sum plus fresh Gaussian noise, and the event of this one step.

        Noise is added in double precision. Every number that comes back is a multiple of the
        public :func:`~privet.privacy.mechanism.noise.grid_of` σC, in the type of the sum.

        Args:
            total: clipped to this mechanism's bound.
            stream: where the noise comes from.
            sample_rate: the rate the batch was drawn with, where it is not the planned one.

        Raises:
            NotReleasableError: if the sum was clipped to another bound.
        """
        if total.clip != self.clip:
            raise NotReleasableError(f"clipped to {total.clip}, but the noise is for {self.clip}")
        standard_deviation = self.noise_multiplier * total.clip
        noised = _with_noise(total.tensors, stream, standard_deviation)
        rate = self.sample_rate if sample_rate is None else sample_rate
        return noised, _step_event(rate, standard_deviation, total.clip)

    def release(
        self,
        engine: GradientEngine,
        examples: Batch,
        units: UnitIndex,
        *,
        nominal_size: int,
        optimizer: OptimizerFactory,
        proximal_mu: float = 0.0,
        stream: Stream | None = None,
        views: Views | None = None,
    ) -> NoisedUpdate:
        """Train ``steps`` noisy steps and return the change of the trained parameters.

        Args:
            engine: the model and its loss; the model is left at its trained state.
            examples: all records of the site, tensors with first dimension N.
            units: which records belong to which unit; as many units as there are.
            nominal_size: declared number of units; the divisor is ``q`` times it (H2).
            optimizer: makes the local optimizer; it sees noised gradients only.
            proximal_mu: weight of FedProx's pull to the start (no data in it, no cost).
            stream: randomness; None draws a new key from the operating system.
            views: how each drawn record is seen; all views of a unit share its bound.

        Raises:
            BypassError: if anything but these steps moved a parameter or a buffer.
            NotReleasableError: if the result is not finite.
        """
        steps = self.begin(examples, units, nominal_size=nominal_size, stream=stream, views=views)

        def gradient() -> list[Tensor]:
            batch, owner, count = steps.draw()
            return steps.gradient(engine.clipped_sum(batch, owner, count, self.bound))

        tensors = _descend(engine, gradient, self.steps, optimizer, proximal_mu)
        return steps.update(tensors)

    def begin(
        self,
        examples: Batch,
        units: UnitIndex,
        *,
        nominal_size: int,
        stream: Stream | None = None,
        views: Views | None = None,
    ) -> NoisySteps:
        """Return the draws and the noise of one release, for a caller that computes the gradients.

        Args:
            examples: as :meth:`release`.
            units: as :meth:`release`.
            nominal_size: as :meth:`release`.
            stream: as :meth:`release`.
            views: as :meth:`release`.
        """
        return NoisySteps(self, examples, units, nominal_size, stream or Stream.fresh(), views)


@dataclass(frozen=True)
class PlainSgd:
    """The same local training without noise, for comparison. Its ε is infinite.

    With ``clip`` each unit's gradient is still bounded, which is a choice of training.
    """

    sample_rate: float
    steps: int = 1
    clip: float | None = None
    automatic: bool = False

    @property
    def bound(self) -> Bound | None:
        """C, with its rule; None for no bound."""
        if self.clip is None or not self.automatic:
            return self.clip
        return AutomaticBound(self.clip)

    @property
    def event(self) -> ev.Event:
        """Non-private, always."""
        return _PLAIN

    def release(
        self,
        engine: GradientEngine,
        examples: Batch,
        units: UnitIndex,
        *,
        nominal_size: int,
        optimizer: OptimizerFactory,
        proximal_mu: float = 0.0,
        stream: Stream | None = None,
        views: Views | None = None,
    ) -> PlainUpdate:
        """As :meth:`DpSgd.release`, without protection."""
        steps = self.begin(examples, units, nominal_size=nominal_size, stream=stream, views=views)

        def gradient() -> list[Tensor]:
            batch, owner, count = steps.draw()
            if self.bound is None:
                return steps.gradient(engine.plain_sum(batch))
            return steps.gradient(engine.clipped_sum(batch, owner, count, self.bound))

        tensors = _descend(engine, gradient, self.steps, optimizer, proximal_mu)
        return steps.update(tensors)

    def begin(
        self,
        examples: Batch,
        units: UnitIndex,
        *,
        nominal_size: int,
        stream: Stream | None = None,
        views: Views | None = None,
    ) -> PlainSteps:
        """As :meth:`DpSgd.begin`, without noise."""
        return PlainSteps(self, examples, units, nominal_size, stream or Stream.fresh(), views)


class LocalSteps:
    """The draws of one release at one site, and what becomes of its sums.

    Args:
        mechanism: of the release.
        examples: all records of the site, tensors with first dimension N.
        units: which records belong to which unit.
        nominal_size: declared number of units; the divisor is ``q`` times it (H2).
        stream: randomness of the release.
        views: how each drawn record is seen.

    Attributes:
        divisor: by which a sum becomes a mean: the expected number of units, by what was declared.
    """

    def __init__(
        self,
        mechanism: DpSgd | PlainSgd,
        examples: Batch,
        units: UnitIndex,
        nominal_size: int,
        stream: Stream,
        views: Views | None,
    ) -> None:
        self._examples, self._units, self._views = examples, units, views
        self._sampler = PoissonSampler(mechanism.sample_rate)
        self.divisor = mechanism.sample_rate * nominal_size
        self.stream = stream

    @property
    def expected_records(self) -> float:
        """Records that a batch is expected to have."""
        views = 1 if self._views is None else self._views.copies
        return self._sampler.sample_rate * len(self._units.records) * views

    def draw(self) -> tuple[Batch, np.ndarray, int]:
        """Return the next batch: its records, the unit of each, and the number of units."""
        return _draw(self._sampler, self._examples, self._units, self.stream, self._views)


class NoisySteps(LocalSteps):
    """Of :class:`DpSgd`: each sum is noised, and the event is that of what was done."""

    def __init__(self, mechanism: DpSgd, *given: Any) -> None:
        super().__init__(mechanism, *given)
        self._mechanism = mechanism
        self._observed = _Observed()

    def gradient(self, total: ClippedSum) -> list[Tensor]:
        """Return the noised mean gradient of a step, and note its event.

        Raises:
            NotReleasableError: if the sum was clipped to another bound.
        """
        noised, event = self._mechanism.noised(total, self.stream, self._sampler.sample_rate)
        self._observed.steps.append(event)
        return [tensor / self.divisor for tensor in noised]

    def update(self, tensors: dict[str, Tensor]) -> NoisedUpdate:
        """Return the update, of the change of each trained parameter after the steps.

        Raises:
            NotReleasableError: if it is not finite.
        """
        return NoisedUpdate(_SEAL, tensors, self._observed.event(), self.stream.reproducible)


class PlainSteps(LocalSteps):
    """Of :class:`PlainSgd`."""

    def gradient(self, sums: ClippedSum | Sequence[Tensor]) -> list[Tensor]:
        """Return the mean gradient of a step."""
        tensors = sums.tensors if isinstance(sums, ClippedSum) else sums
        return [tensor / self.divisor for tensor in tensors]

    def update(self, tensors: dict[str, Tensor]) -> PlainUpdate:
        """Return the update, as :meth:`NoisySteps.update`."""
        return PlainUpdate(tensors, self.stream.reproducible)


Mechanism = DpSgd | PlainSgd


def _step_event(sample_rate: float, standard_deviation: float, clip: float) -> ev.Event:
    gaussian = ev.Gaussian(standard_deviation, clip)
    return gaussian if sample_rate >= 1.0 else ev.PoissonSampled(sample_rate, gaussian)


def _draw(
    sampler: PoissonSampler,
    examples: Batch,
    units: UnitIndex,
    stream: Stream,
    views: Views | None,
) -> tuple[Batch, np.ndarray, int]:
    chosen = sampler.draw(len(units), stream)
    rows, owner = units.gather(chosen)
    if views is not None:
        rows, owner = np.repeat(rows, views.copies), np.repeat(owner, views.copies)
    index = torch.as_tensor(rows)
    batch = {name: tensor[index] for name, tensor in examples.items()}
    if views is not None and len(rows):
        words = torch.from_numpy(stream.words(len(rows)).astype(np.int64))
        batch = views.of(batch, words.to(next(iter(batch.values())).device))
    return batch, owner, len(chosen)


def _descend(
    engine: GradientEngine,
    gradient: Callable[[], list[Tensor]],
    steps: int,
    optimizer_factory: OptimizerFactory,
    proximal_mu: float,
) -> dict[str, Tensor]:
    engine.require_same_parameters()
    parameters = engine.parameters
    start = [parameter.detach().clone() for parameter in parameters]
    watch = TamperGuard(engine.model, parameters)
    optimizer = optimizer_factory(parameters)
    watch.check("while the optimizer was made")
    for _ in range(steps):
        noised = gradient()
        watch.check("between two steps")
        for parameter, value, origin in zip(parameters, noised, start, strict=True):
            pull = proximal_mu * (parameter.detach() - origin) if proximal_mu else 0.0
            parameter.grad = (value + pull).to(parameter.dtype)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        watch.accept()
    watch.check("by the end of the round", thorough=True)
    return {
        name: (parameter.detach() - origin).cpu()
        for (name, parameter), origin in zip(engine.named.items(), start, strict=True)
    }


def _with_noise(
    tensors: Sequence[Tensor], stream: Stream, standard_deviation: float
) -> list[Tensor]:
    """Return the tensors plus noise, in one sweep over all that are of one type."""
    if len({(tensor.dtype, tensor.device) for tensor in tensors}) > 1:
        return [_with_noise([tensor], stream, standard_deviation)[0] for tensor in tensors]
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    stream.add_normal(flat, standard_deviation)
    parts = torch.split(flat, [tensor.numel() for tensor in tensors])
    return [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]


__all__ = ["DpSgd", "Mechanism", "NoisedUpdate", "PlainSgd", "PlainUpdate"]
