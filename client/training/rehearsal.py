"""Rehearse one round on generated records at a site, before anything is charged.

::

    random_batch ─┬─ loss ── one clipped step ── compression ── does the update fit?
                  └─ scores ─┬─ metrics, as a public test split would give them
                             └─ the metrics mechanism's table, noised ── does it fit?

The rehearsal runs the code of the real round, and finds the faults that need no record: the shape
of losses, scores and labels, the measure, the optimizer, the compression. It opens no record.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from privet.client.data.records import SiteData
from privet.client.training.model_runtime import ModelRuntime, labels_of, model_runtime
from privet.client.training.trainer import Trainer, UsableRecords, optimizer_of
from privet.common.compress import CompressedUpdate, compress
from privet.common.errors import PlanError, PrivetError
from privet.common.flat import Arrays
from privet.common.order import Order
from privet.common.plan import Plan
from privet.common.sections.strategy import proximal_mu
from privet.common.tasks import Batch
from privet.common.tasks.measure import CLASSES, OURS, table_shape
from privet.privacy.accounting.units import UnitIndex
from privet.privacy.mechanism.noise import Stream

RECORDS = 4
"""Generated records of the rehearsal."""
_NO_MODEL = "sha256:" + "0" * 64
_MEASURE = (
    "A task is measured as a classification unless it has an attribute 'measure' "
    "(docs/how-to/own-model-and-task.md)"
)


def rehearse(plan: Plan) -> None:
    """Run a site's steps of one round on generated records; once a process and plan.

    The model stays as it was.

    Args:
        plan: with its noise calibrated, whose start-up tests passed.

    Raises:
        PlanError: saying what is wrong and what to do.
    """
    if fault := _fault(plan):
        raise PlanError(fault)


@functools.lru_cache(maxsize=16)
def _fault(plan: Plan) -> str | None:
    try:
        _rehearse(plan)
    except PrivetError as error:
        return str(error)
    return None


def made_up(bench: ModelRuntime) -> Batch:
    """Return generated records of the task, on the plan's device.

    Raises:
        PlanError: if the task returns no batch.
    """
    name = bench.plan.task.kind
    with _stage(bench.plan, "random_batch"):
        batch = bench.task.random_batch(RECORDS, 5)
        counts = {key: len(tensor) for key, tensor in batch.items()}
        moved = {key: tensor.to(bench.plan.device) for key, tensor in batch.items()}
    if not counts or set(counts.values()) != {RECORDS}:
        raise PlanError(
            f"task '{name}': random_batch({RECORDS}, seed) must make tensors whose first dimension "
            f"is {RECORDS}, and made {counts}"
        )
    return moved


def _rehearse(plan: Plan) -> None:
    bench = model_runtime(plan)
    batch = made_up(bench)
    before = {name: p.detach().cpu().numpy().copy() for name, p in bench.engine.named.items()}
    stand_in = _StandIn(plan, batch)
    try:
        with _stage(plan, "loss"):
            losses = tuple(bench.engine.losses(batch).shape)
        if losses != (RECORDS,):
            raise PlanError(
                f"task '{plan.task.kind}': the loss of {RECORDS} records has the shape "
                f"{list(losses)}; it must be one value for each record, [{RECORDS}]: use "
                "reduction='none'"
            )
        if plan.trains:
            with _stage(plan, "a clipped step"):
                update = stand_in.one_step()
            _require_update(plan, update, before)
        if plan.metrics.source != "off":
            _require_scores(bench, batch)
        if plan.metrics.source == "public":
            _require_figures(bench, batch)
        if plan.metrics.source == "gate":
            with _stage(plan, "the metrics table", _MEASURE):
                made = stand_in.release(_order(plan, "evaluate", before), before)
            _require_table(plan, made.arrays["histogram"])
    finally:
        bench.load(before)
        stand_in.close()


class _StandIn(Trainer):
    """A trainer with generated records, and with noise that protects nobody."""

    def __init__(self, plan: Plan, batch: Batch) -> None:
        super().__init__(
            plan,
            plan.sites[0].name,
            lambda: SiteData(pd.DataFrame(), pd.DataFrame()),
            lambda order: Stream.seeded("rehearsal", order.purpose),
        )
        self._batch = batch

    def one_step(self) -> Arrays:
        """Return the update of one step over all generated records."""
        update = replace(self.mechanism, steps=1, sample_rate=1.0).release(
            self._bench.engine,
            self._batch,
            UnitIndex.by_record(RECORDS),
            nominal_size=self.site.nominal_size,
            optimizer=optimizer_of(self.plan.training),
            proximal_mu=proximal_mu(self.plan.strategy),
            stream=Stream.seeded("rehearsal", "train"),
            views=self._bench.views,
        )
        return {name: tensor.numpy() for name, tensor in update.tensors.items()}

    def _usable(self, part: str, data: SiteData, frame: pd.DataFrame) -> UsableRecords:
        del part, data, frame
        return UsableRecords(self._batch, UnitIndex.by_record(RECORDS), {})


def _require_update(plan: Plan, update: Arrays, model: Arrays) -> None:
    """Check that a coordinator could accept the update."""
    if plan.compression is not None:
        shapes = {name: array.shape for name, array in model.items()}
        with _stage(plan, "compression"):
            packed, _ = compress(update, plan.compression, Stream.seeded("rehearsal", "compress"))
            update = CompressedUpdate(packed, shapes, plan.compression).whole()
    for name, array in model.items():
        if name not in update or update[name].shape != array.shape:
            raise PlanError(f"plan '{plan.name}': the update of '{name}' has another shape")


def _require_scores(bench: ModelRuntime, batch: Batch) -> None:
    """Check a task's measure.

    Raises:
        PlanError: if scores or labels are not what its measure reads.
    """
    plan, name = bench.plan, bench.plan.task.kind
    with _stage(plan, "scores"):
        scores = bench.score(batch)
    if scores.ndim != 2 or len(scores) != RECORDS or not np.issubdtype(scores.dtype, np.floating):
        raise PlanError(
            f"task '{name}': the scores of {RECORDS} records have the shape {list(scores.shape)}; "
            f"they must be numbers [{RECORDS}, K]"
        )
    if bench.measure is not CLASSES:
        return
    labels, classes = labels_of(batch), scores.shape[1]
    if labels.shape != (RECORDS,) or not np.issubdtype(labels.dtype, np.integer):
        raise PlanError(
            f"task '{name}': its labels are {labels.dtype} of the shape {list(labels.shape)}, and "
            f"those of a classification are class numbers [{RECORDS}]. {_MEASURE}"
        )
    if classes < 2 or labels.min() < 0 or labels.max() >= classes:
        raise PlanError(
            f"task '{name}': it scores {classes} classes, and its labels go from {labels.min()} to "
            f"{labels.max()}: a class needs a score each, from 0. {_MEASURE}"
        )


def _require_figures(bench: ModelRuntime, batch: Batch) -> None:
    """Check that metrics follow from scores, as on a public test split; Privet's own always do."""
    plan = bench.plan
    if bench.measure in OURS:
        return  # and what they need takes a second to load, in each process
    with _stage(plan, "the measure's metrics", _MEASURE):
        figures: Any = bench.measure.figures(bench.score(batch), labels_of(batch))
    if not isinstance(figures, Mapping) or not all(map(_is_figure, figures.values())):
        raise PlanError(
            f"task '{plan.task.kind}': its measure's 'figures' must return numbers, or None, by "
            f"name, and returned {figures!r:.200}"
        )


def _is_figure(value: object) -> bool:
    return value is None or isinstance(value, int | float | np.number)


def _require_table(plan: Plan, table: Any) -> None:
    """Check that the coordinator could read a table of the metrics mechanism."""
    wanted = table_shape(plan)
    if table.ndim != 2 or (wanted is not None and table.shape != wanted):
        raise PlanError(
            f"task '{plan.task.kind}': the metrics table has the shape {list(table.shape)}; it "
            f"must be {list(wanted) if wanted else 'of two dimensions'}. {_MEASURE}"
        )


def _order(plan: Plan, purpose: str, model: Arrays) -> Order:
    site = plan.sites[0].name
    return Order("rehearsal", site, 1, 1, purpose, plan.digest, _NO_MODEL, tuple(model))


@contextmanager
def _stage(plan: Plan, what: str, hint: str = "") -> Iterator[None]:
    """Turn any error into one that says where it happened, and what to do."""
    told = f"plan '{plan.name}' cannot run: {what} fails on generated records"
    try:
        yield
    except PrivetError as error:
        raise PlanError(f"{told}: {error}") from error
    except Exception as error:
        raise PlanError(f"{told}: {error!r}. {hint}".removesuffix(" ")) from error
