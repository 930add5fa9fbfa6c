"""Read a run's texts before its first round, and say how far it is."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from privet.client.training.model_runtime import model_runtime
from privet.common.errors import DataError
from privet.common.plan import Plan
from privet.common.tasks.text import TextTask
from privet.simulations.partition import SITE
from privet.simulations.records import SiteRecords

_SAY_AGAIN_S = 15.0


def read_ahead(
    plan: Plan,
    records: SiteRecords,
    cache: Path | None,
    *,
    stage: Callable[[str], None],
    step: Callable[[str], None],
) -> None:
    """Read all texts of a run with the frozen encoder, if its model has one.

    The first round would be silent for as long as that takes.

    Args:
        plan: of the run.
        records: of all sites.
        cache: folder where the features are kept, or None.
        stage: takes how far it is, now and again.
        step: takes it each time.
    """
    task = model_runtime(plan).task
    if not (plan.model.reads_features and isinstance(task, TextTask)):
        return
    sites = {site.name for site in plan.participants}
    parts = records.parts()
    used = ["train", "test"] if plan.metrics.source == "gate" else ["train"]
    frames = [parts[name][parts[name][SITE].isin(sites).to_numpy()] for name in used]
    if plan.metrics.source == "public":
        frames.append(records.measurable())
    where = f", kept in {cache}" if cache else ""
    began = said = time.monotonic()

    def tell(done: int, total: int) -> None:
        nonlocal said
        text = f"reading texts with the frozen encoder{where}: {done:,} of {total:,}"
        step(text)
        # Soon after it has begun, and then now and again; a terminal shows every step.
        if time.monotonic() - said > _SAY_AGAIN_S or (said == began and done > 256):
            said = time.monotonic()
            stage(text)

    try:
        task.read_ahead(pd.concat(frames, ignore_index=True), tell)
    except DataError:
        return  # the site whose file lacks the column says so


__all__ = ["read_ahead"]
