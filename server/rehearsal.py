"""Rehearse the coordinator's half of a round, before a site is asked.

::

    first model ── generated updates ── compression and back ── strategy ── mean of the last models
                                                                   └── snapshot: saved and read

The rehearsal finds the faults of a plan that need no site: a strategy that cannot be imported, does
not know an option or returns no model; unreadable first weights; a folder that cannot be written.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from privet.common.compress import CompressedUpdate, compress
from privet.common.errors import PlanError, PrivetError
from privet.common.flat import BLOCK, Arrays, digest_arrays
from privet.common.plan import Plan
from privet.common.tasks.measure import pooled, table_shape
from privet.privacy.mechanism.noise import Stream
from privet.server.aggregate import Aggregator, mean_of
from privet.server.snapshot import Snapshot, Snapshots

_SITES = 3
"""Most sites that take part: enough for a mean."""


def rehearse(plan: Plan, model: Arrays, folder: Path) -> None:
    """Run the coordinator's steps of one round, with generated updates.

    Args:
        plan: with its noise calibrated.
        model: the first model.
        folder: the run's folder; the rehearsal writes a snapshot there, and removes it.

    Raises:
        PlanError: saying what is wrong and what to do.
        OSError: if the folder cannot be written.
    """
    with _stage(plan, "the metrics table"):
        shape = table_shape(plan)
        if plan.metrics.source == "gate" and shape is not None:
            pooled({site.name: np.ones(shape) for site in plan.sites[:_SITES]}, plan.task.kind)
    if not plan.trains:
        return
    with _stage(plan, f"the strategy '{plan.strategy.kind}'"):
        part = _part(plan, model)
        joined = _joined(plan, part)
    with _stage(plan, "the snapshot"):
        _store(plan, joined, folder)


def _part(plan: Plan, model: Arrays) -> Arrays:
    """Return the part of a model that a fault shows in: all of it for a strategy of the user's.

    Flower's own strategies work number by number.
    """
    if ":" in plan.strategy.kind:
        return dict(model)
    part: Arrays = {}
    room = BLOCK
    for name, array in model.items():
        if array.size > room:
            array = array.reshape(-1)[:room]
        part[name] = array
        room -= array.size
        if not room:
            break
    return part


def _joined(plan: Plan, model: Arrays) -> Arrays:
    sites = plan.sites[:_SITES]
    stream = Stream.seeded("rehearsal")
    shapes = {name: array.shape for name, array in model.items()}
    updates: dict[str, Arrays] = {}
    for number, site in enumerate(sites, 1):
        update: Arrays = {
            name: np.full(array.shape, 1e-3 * number, array.dtype) for name, array in model.items()
        }
        if plan.compression is not None:
            packed, _ = compress(update, plan.compression, stream)
            update = CompressedUpdate(packed, shapes, plan.compression)
        updates[site.name] = update
    nodes = list(range(1, len(plan.sites) + 1))
    return Aggregator(plan).join_made_up(model, updates, nodes)


def _store(plan: Plan, model: Arrays, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    earlier = (model,) if plan.strategy.average_last > 1 else ()
    shown = mean_of([*earlier, model])
    with tempfile.TemporaryDirectory(dir=folder, prefix=".rehearsal-") as name:
        snapshots = Snapshots(Path(name))
        snapshots.store(Snapshot(1, model, {}, earlier))
        found = snapshots.latest()
    if found is None or digest_arrays(found.arrays) != digest_arrays(model):
        raise PlanError("the model is not read as it was written")
    if list(shown) != list(model):
        raise PlanError("the mean of the last models has other parameters")


@contextmanager
def _stage(plan: Plan, what: str) -> Iterator[None]:
    """Turn any error into one that names the stage."""
    told = f"plan '{plan.name}' cannot run: {what} fails with generated updates"
    try:
        yield
    except PlanError:
        raise
    except PrivetError as error:
        raise PlanError(f"{told}: {error}") from error
    except OSError:
        raise
    except Exception as error:
        raise PlanError(f"{told}: {error!r}") from error
