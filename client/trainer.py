"""The trainer: model, task and gradient engine of one plan, kept warm between orders.

It holds no keys and opens no connection. What it hands out is a noised update or a
noised histogram, each with its event.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from privet.common.errors import DataError, PrivetError
from privet.common.flat import Arrays
from privet.common.models import build_model, trainable
from privet.common.plan import Plan
from privet.common.tasks import Batch, build_task
from privet.privacy import events as ev
from privet.privacy import gate, selftest
from privet.privacy.clipping import GradientEngine
from privet.privacy.dpsgd import DpSgd, Mechanism, NoisedUpdate, PlainSgd, PlainUpdate
from privet.privacy.noise import Stream
from privet.privacy.units import Relation, Unit, UnitIndex

PERSON = "person"
"""Name of the column that names the person, where the unit is a person."""


@dataclass(frozen=True)
class SiteData:
    """One site's records: to train on, and held out for its own evaluation."""

    train: pd.DataFrame
    held_out: pd.DataFrame


@dataclass(frozen=True)
class _Encoded:
    examples: Batch
    units: UnitIndex


def mechanism(plan: Plan) -> Mechanism:
    """Return the plan's mechanism for one round.

    Raises:
        PrivetError: if the plan asks for privacy and its noise is not calibrated yet.
    """
    training, privacy = plan.training, plan.privacy
    if privacy is None:
        return PlainSgd(training.sample_rate, training.steps, training.clip)
    if privacy.noise_multiplier is None:
        raise PrivetError("the plan's noise is not calibrated; use simulations.run.resolve(plan)")
    return DpSgd(
        training.sample_rate,
        privacy.noise_multiplier,
        privacy.clip,
        training.steps,
        Unit(privacy.unit),
        Relation(privacy.relation),
    )


class Trainer:
    """Trains and evaluates for one site.

    Args:
        plan: with its noise calibrated.
        site: name of the site in the plan.

    The start-up tests run at the first order, before data is opened.
    """

    def __init__(self, plan: Plan, site: str) -> None:
        self.plan = plan
        self.site = plan.site(site)
        self.mechanism = mechanism(plan)
        # An encoded copy of the data, kept for later rounds; it never leaves the process.
        self._cache: dict[str, _Encoded] = {}

    @functools.cached_property
    def _bench(self) -> Workbench:
        return workbench(self.plan)

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of the trained parameters, in order."""
        return tuple(self._bench.engine.named)

    def misfit(self, model: Arrays) -> str | None:
        """Say what is wrong with a model that came with an order; None if it can be trained."""
        for name, parameter in self._bench.engine.named.items():
            array = model.get(name)
            if array is None or array.shape != tuple(parameter.shape):
                return f"'{name}' has another shape than in the plan's model"
            if not bool(np.isfinite(array).all()):
                return f"'{name}' is not finite"
        return None

    def self_test(self) -> tuple[str, ...]:
        """Run the start-up tests, once a process and plan; return the rows that passed.

        Raises:
            SelfTestFailed: naming the row and the layer.
        """
        return self._bench.self_tests

    def train(
        self, model: Arrays, data: SiteData, stream: Stream | None
    ) -> NoisedUpdate | PlainUpdate:
        """Run one round's steps from ``model``.

        Raises:
            DataError: if the site has no usable record.
        """
        torch.set_num_threads(self.plan.threads)
        encoded = self._encoded("train", data.train)
        self._bench.load(model)
        return self.mechanism.release(
            self._bench.engine,
            encoded.examples,
            encoded.units,
            nominal_size=self.site.nominal_size,
            optimizer=self._optimizer,
            proximal_mu=self.plan.strategy.proximal_mu,
            stream=stream,
        )

    def evaluate(
        self, model: Arrays, data: SiteData, stream: Stream | None
    ) -> tuple[Arrays, ev.Event]:
        """Return the noised histogram of ``model`` on the site's held-out records."""
        torch.set_num_threads(self.plan.threads)
        encoded = self._encoded("held_out", data.held_out)
        self._bench.load(model)
        table, event = gate.noised_histogram(
            self._bench.score(encoded.examples),
            encoded.examples["label"].cpu().numpy(),
            encoded.units,
            bins=self.plan.metrics.bins,
            noise_multiplier=self.plan.metrics.noise_multiplier,
            stream=stream,
        )
        return {"histogram": table.astype(np.float64)}, event

    def _encoded(self, part: str, frame: pd.DataFrame) -> _Encoded:
        if part not in self._cache:
            if not len(frame):
                raise DataError(f"{self.site.name}: there is no record to {part.replace('_', ' ')}")
            examples = self._bench.encode(frame)
            if ":" in self.plan.task.kind:
                # A task made anew each time: one that learns from its first table shows, too.
                selftest.encoding(
                    examples,
                    lambda row: build_task(self.plan).encode(
                        frame.iloc[[row]].reset_index(drop=True)
                    ),
                )
            self._cache[part] = _Encoded(examples, units_of(self.plan, frame))
        return self._cache[part]

    def _optimizer(self, parameters: object) -> torch.optim.Optimizer:
        training = self.plan.training
        if training.optimizer == "adam":
            return torch.optim.Adam(parameters, lr=training.learning_rate)  # type: ignore[arg-type]
        return torch.optim.SGD(
            parameters,  # type: ignore[arg-type]
            lr=training.learning_rate,
            momentum=training.momentum,
        )


def units_of(plan: Plan, frame: pd.DataFrame) -> UnitIndex:
    """Return which rows of ``frame`` belong to which unit.

    Raises:
        DataError: if the unit is a person and a row does not name one.
    """
    if plan.privacy is None or plan.privacy.unit != "person":
        return UnitIndex.by_record(len(frame))
    if PERSON not in frame.columns:
        raise DataError("the unit is a person, and no column names the person")
    if frame[PERSON].isna().any():
        row = int(np.flatnonzero(frame[PERSON].isna())[0])
        raise DataError(f"row {row} names no person; the unit is a person")
    return UnitIndex.by_person(frame[PERSON].astype(str).to_numpy(), plan.privacy.max_records)


class Workbench:
    """Task, model and gradient engine of one plan; a process has one for each plan.

    One model serves all sites that a process simulates: weights are set at each order,
    and nothing else of it may change between orders (the watch sees to that).
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.task = build_task(plan)
        person = plan.privacy is not None and plan.privacy.unit == "person"
        self.engine = GradientEngine(
            build_model(plan),
            self.task.loss,
            mode=plan.training.clipping,
            one_record_each=not person,
            micro_batch=plan.training.micro_batch,
        )

    def load(self, model: Arrays) -> None:
        """Set the trained parameters."""
        with torch.no_grad():
            for name, parameter in self.engine.named.items():
                parameter.copy_(torch.from_numpy(np.array(model[name])))

    @functools.cached_property
    def self_tests(self) -> tuple[str, ...]:
        """Rows of the honesty list whose start-up tests this model passed.

        Raises:
            SelfTestFailed: naming the row and the layer.
        """
        declared = trainable(self.engine.model)
        before = {name: parameter.detach().clone() for name, parameter in declared.items()}
        generator = torch.Generator().manual_seed(0)
        try:
            with torch.no_grad():
                # Away from initial zeros, where the gradients of whole layers vanish.
                for parameter in declared.values():
                    moved = 0.1 * torch.randn(parameter.shape, generator=generator)
                    parameter.add_(moved.to(parameter.device))
            return tuple(selftest.run(self.engine, self._random_batch, declared))
        finally:
            with torch.no_grad():
                for name, parameter in declared.items():
                    parameter.copy_(before[name])

    def _random_batch(self, records: int, seed: int) -> Batch:
        batch = self.task.random_batch(records, seed)
        return {name: tensor.to(self.plan.device) for name, tensor in batch.items()}

    def score(self, examples: Batch, chunk: int = 1024) -> np.ndarray:
        """Return class probabilities [N, K] of the model as it is now."""
        model, parts = self.engine.model, []
        model.eval()
        try:
            with torch.no_grad(), self.engine.hooks_off():
                for start in range(0, len(examples["label"]), chunk):
                    batch = {name: t[start : start + chunk] for name, t in examples.items()}
                    parts.append(self.task.scores(model, batch).float().cpu().numpy())
        finally:
            model.train()
        return np.concatenate(parts)

    def encode(self, frame: pd.DataFrame) -> Batch:
        """Return the records as tensors on the plan's device.

        Raises:
            DataError: if they do not fit the task.
        """
        return {name: t.to(self.plan.device) for name, t in self.task.encode(frame).items()}


@functools.lru_cache(maxsize=4)
def workbench(plan: Plan) -> Workbench:
    """Return the process's workbench for ``plan``."""
    return Workbench(plan)
