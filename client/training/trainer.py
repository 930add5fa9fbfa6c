"""The trainer: model, records and mechanism of one plan, kept between orders.

It holds no keys and opens no connection. Its output is a noised update or a noised histogram, each
with its event (:class:`~privet.client.training.protocol.TrainerOutput`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from privet.client.data.columns import column_fits
from privet.client.data.records import SiteData
from privet.client.data.split import PERSON
from privet.client.training.model_runtime import ModelRuntime, labels_of, model_runtime
from privet.client.training.protocol import TrainerOutput
from privet.common.compat.torch import adam, sgd
from privet.common.compress import bytes_of, compress
from privet.common.errors import (
    DataError,
    InputError,
    NotReleasableError,
    PlanError,
    PrivetError,
    SelfTestError,
)
from privet.common.flat import Arrays, digest_arrays
from privet.common.models import initial_model
from privet.common.order import Order
from privet.common.person_id import PersonId
from privet.common.plan import Plan, Training
from privet.common.printable import counted
from privet.common.sections.strategy import proximal_mu
from privet.common.tasks import Batch
from privet.common.tasks.encoding import Faults
from privet.common.threads import threads_of
from privet.privacy.accounting import events as ev
from privet.privacy.accounting.units import Relation, Unit, UnitIndex
from privet.privacy.mechanism import metrics_mechanism
from privet.privacy.mechanism.dpsgd import DpSgd, Mechanism, NoisedUpdate, PlainSgd, PlainUpdate
from privet.privacy.mechanism.noise import Stream

MAX_NOTES = 20
"""Records that are named in the operator's log each time they are read; all are counted."""
MAX_NOTE_CHARACTERS = 2000
_PARTS = {"train": "train on", "held_out": "measure on"}


@dataclass(frozen=True)
class UsableRecords:
    """The usable part of a site's records.

    Attributes:
        examples: their tensors, each with first dimension N, on the plan's device.
        units: maps them to their units.
        faults: why the other records are left out, by their place in the frame.
    """

    examples: Batch
    units: UnitIndex
    faults: Faults


def mechanism(plan: Plan) -> Mechanism:
    """Return the plan's mechanism for one round.

    Raises:
        PrivetError: if the plan asks for privacy and its noise is not calibrated yet.
    """
    training, privacy = plan.training, plan.privacy
    if privacy is None:
        return PlainSgd(training.sample_rate, training.steps, training.clip, training.is_automatic)
    if privacy.is_central:
        raise PrivetError("privacy.trust 'central' is for simulations: no site adds its noise")
    if privacy.noise_multiplier is None:
        raise PrivetError("the plan's noise is not calibrated; use simulations.run.resolve(plan)")
    return DpSgd(
        training.sample_rate,
        privacy.noise_multiplier,
        privacy.clip,
        training.steps,
        Unit(privacy.unit),
        Relation(privacy.relation),
        training.is_automatic,
    )


StreamFor = Callable[[Order], Stream | None]
"""Randomness of an order; None draws a key from the operating system."""


class Trainer:
    """Train and evaluate for one site, in this process; a ``TrainerProtocol``.

    Args:
        plan: with its noise calibrated.
        site: name of the site in the plan.
        open_data: reads the site's records; called at the first order, after its charge.
        stream_for: returns the randomness of an order. A simulation may fix it; its claim is then
            ``none``.
        check_source: raises an InputError if the records cannot be opened; reads none of them.
    """

    def __init__(
        self,
        plan: Plan,
        site: str,
        open_data: Callable[[], SiteData],
        stream_for: StreamFor = lambda order: None,
        check_source: Callable[[], None] = lambda: None,
    ) -> None:
        self.plan = plan
        self.site = plan.site(site)
        self._mechanism = mechanism(plan) if plan.trains else None
        self._open_data = open_data
        self._stream_for = stream_for
        self._check_source = check_source
        self._data: SiteData | None = None
        # An encoded copy of the data, kept for later rounds; it never leaves the process.
        self._cache: dict[str, UsableRecords] = {}
        self._notes: list[str] = []
        # Remainders of compressed updates, by run; the newest stays aside until it is paid for.
        self._rest: dict[str, Arrays] = {}
        self._aside: tuple[Order, Arrays] | None = None

    @functools.cached_property
    def _bench(self) -> ModelRuntime:
        return model_runtime(self.plan)

    @property
    def mechanism(self) -> Mechanism:
        """The mechanism that makes an update.

        Raises:
            PrivetError: if the plan trains nothing.
        """
        if self._mechanism is None:
            raise PrivetError(f"plan '{self.plan.name}' trains nothing")
        return self._mechanism

    @property
    def event(self) -> ev.Event:
        """See :class:`~privet.client.training.protocol.TrainerProtocol`, also for the other
        methods.
        """
        return self.mechanism.event

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the trained parameters in order, each with its shape."""
        return {name: tuple(part.shape) for name, part in self._bench.engine.named.items()}

    def begins(self) -> str:
        """Return the digest of the trained parameters before any training."""
        return self._begins

    @functools.cached_property
    def _begins(self) -> str:
        return digest_arrays(initial_model(self.plan))

    def self_test(self) -> tuple[str, ...]:
        """Run the start-up tests and a rehearsal; return the rows that passed.

        Each is done once a process and plan.

        Raises:
            SelfTestError: naming the row and the layer, or the fault of the plan.
        """
        try:
            bytes_of(self.shapes(), self.plan.compression)
        except InputError as error:
            raise SelfTestError(str(error)) from error
        passed = self._bench.self_tests
        # It trains and measures as this class does.
        from privet.client.training.rehearsal import rehearse

        try:
            rehearse(self.plan)
        except PlanError as error:
            raise SelfTestError(str(error)) from error
        return passed

    def require_source(self) -> None:
        """See :class:`~privet.client.training.protocol.TrainerProtocol`."""
        if self._data is None:
            self._check_source()

    def release(self, order: Order, model: Arrays) -> TrainerOutput:
        """Train or evaluate, as the order says; the first order opens the records.

        Args:
            order: already charged.
            model: trained parameters by name.

        Raises:
            DataError: if the records cannot be read as a table.
            NotReleasableError: if the mechanism's result may not leave the site.
        """
        data = self._opened()
        torch.set_num_threads(threads_of(self.plan.threads))
        stream = self._stream_for(order)
        if order.purpose == "evaluate":
            return self._evaluate(model, data, stream)
        return self._train(order, model, data, stream)

    def _opened(self) -> SiteData:
        if self._data is None:
            self._data = self._open_data()
            source = self._data.source
            self._note(
                self._data,
                {fault.place: fault.why for fault in self._data.faults},
                lambda are: f"cannot be read and {are} left out of {source}",
            )
        return self._data

    def committed(self, order: Order) -> None:
        """See :class:`~privet.client.training.protocol.TrainerProtocol`."""
        if self._aside is not None and self._aside[0].digest == order.digest:
            self._rest = {order.run: self._aside[1]}
        self._aside = None

    def close(self) -> None:
        """Free the records, and the remainders of compressed updates."""
        self._data = None
        self._cache.clear()
        self._rest.clear()
        self._aside = None

    def _train(
        self, order: Order, model: Arrays, data: SiteData, stream: Stream | None
    ) -> TrainerOutput:
        encoded = self._usable("train", data, data.train)
        self._bench.load(model)
        update = self.mechanism.release(
            self._bench.engine,
            encoded.examples,
            encoded.units,
            nominal_size=self.site.nominal_size,
            optimizer=optimizer_of(self.plan.training),
            proximal_mu=proximal_mu(self.plan.strategy),
            stream=stream,
            views=self._bench.views,
        )
        return self._output(order, update, stream)

    def _output(
        self, order: Order, update: NoisedUpdate | PlainUpdate, stream: Stream | None
    ) -> TrainerOutput:
        releasable = PlainUpdate if self.plan.privacy is None else NoisedUpdate
        if not isinstance(update, releasable):
            raise NotReleasableError(f"a {type(update).__name__} is not a release")
        arrays = {name: tensor.numpy() for name, tensor in update.tensors.items()}
        if self.plan.compression is not None:
            before = self._rest.get(order.run, {})
            arrays, rest = compress(arrays, self.plan.compression, stream or Stream.fresh(), before)
            self._aside = (order, rest)
        return TrainerOutput(arrays, update.event, update.reproducible, self._take_notes())

    def _evaluate(self, model: Arrays, data: SiteData, stream: Stream | None) -> TrainerOutput:
        encoded = self._usable("held_out", data, data.held_out)
        self._bench.load(model)
        table, event = metrics_mechanism.noised_histogram(
            self._bench.score(encoded.examples),
            labels_of(encoded.examples),
            encoded.units,
            measure=self._bench.measure,
            shape=self._bench.table_shape,
            noise_multiplier=self.plan.metrics.noise_multiplier,
            stream=stream,
        )
        reproducible = stream is not None and stream.reproducible
        arrays = {"histogram": table}
        return TrainerOutput(arrays, event, reproducible, self._take_notes())

    def _usable(self, part: str, data: SiteData, frame: pd.DataFrame) -> UsableRecords:
        if part not in self._cache:
            found = usable_records(self._bench, frame)
            none = "" if len(found.units) else ", which leaves none: what is released is noise"

            def what(are: str) -> str:
                return f"of {len(frame)} to {_PARTS[part]} {are} left out of {data.source}{none}"

            self._note(data, {frame.index[row]: why for row, why in found.faults.items()}, what)
            if part == "train":
                faults = [
                    f for fit in column_fits(self.plan.task, frame) for f in fit.faults.values()
                ]
                self._notes += [f"{data.source}: {fault}"[:MAX_NOTE_CHARACTERS] for fault in faults]
            self._cache[part] = found
        return self._cache[part]

    def _note(self, data: SiteData, faults: dict[int, str], what: Callable[[str], str]) -> None:
        """Keep for the operator's log how many records are left out, which, and why.

        Args:
            data: of the site.
            faults: why, by the record's place.
            what: says it, given the verb "is" or "are".
        """
        if not faults:
            return
        places = sorted(faults)
        count = counted(len(places), "record")
        said = what("is" if len(places) == 1 else "are")
        self._notes.append(f"{count} {said}: `privet client check --json` names all")
        self._notes += [
            f"left out: {data.where(k)}: {faults[k]}"[:MAX_NOTE_CHARACTERS]
            for k in places[:MAX_NOTES]
        ]

    def _take_notes(self) -> tuple[str, ...]:
        notes, self._notes = tuple(self._notes), []
        return notes


def optimizer_of(training: Training) -> Callable[[Sequence[Tensor]], torch.optim.Optimizer]:
    """Return what makes a plan's local optimizer of the parameters that it trains."""

    def make(parameters: Sequence[Tensor]) -> torch.optim.Optimizer:
        if training.optimizer == "adam":
            return adam(parameters, training.learning_rate)
        return sgd(parameters, training.learning_rate, training.momentum)

    return make


def usable_records(bench: ModelRuntime, frame: pd.DataFrame) -> UsableRecords:
    """Return the usable records of a frame, encoded record by record, with their units.

    A record that cannot be encoded is left out, and so is one without a person's id if the unit is
    a person. This changes nothing for the other records (H6, H7).

    Args:
        bench: the plan's runtime.
        frame: the records.

    Raises:
        DataError: if a column is missing that the plan needs.
    """
    plan = bench.plan
    found = bench.encode_records(frame)
    faults, rows, examples = dict(found.faults), found.rows, found.batch
    if ":" in plan.task.kind + plan.model.kind and len(rows):
        unfit = bench.not_computable(examples)
        for place, why in unfit.items():
            faults[int(rows[place])] = f"its loss or its scores cannot be computed: {why}"
        if unfit:
            fits = np.ones(len(rows), dtype=bool)
            fits[list(unfit)] = False
            index = torch.from_numpy(np.flatnonzero(fits)).to(plan.device)
            examples = {name: tensor[index] for name, tensor in examples.items()}
            rows = rows[fits]
    if plan.privacy is None or plan.privacy.unit != "person":
        return UsableRecords(examples, UnitIndex.by_record(len(rows)), faults)
    if PERSON not in frame.columns:
        raise DataError("the unit is a person, and no column names the person")
    ids = [PersonId().of(cell) for cell in frame[PERSON].iloc[rows]]
    named = np.array([place for place, name in enumerate(ids) if name is not None], dtype=np.int64)
    for place, name in enumerate(ids):
        if name is None:
            faults[int(rows[place])] = "names no person; the unit is a person"
    if len(named) < len(ids):
        index = torch.from_numpy(named).to(plan.device)
        examples = {name: tensor[index] for name, tensor in examples.items()}
    persons = np.array([ids[place] for place in named], dtype=object)
    return UsableRecords(examples, UnitIndex.by_person(persons, plan.privacy.max_records), faults)
