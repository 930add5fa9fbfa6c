"""One submitted run, from its first round to its final model, over any grid."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from privet.common.errors import RunError
from privet.common.flat import Arrays
from privet.common.grid import OwnGrid, PassingGrid
from privet.server.app import create_app, run_app
from privet.server.queue import CANCELLED, Run
from privet.server.recorder import Recorder
from privet.server.rounds import Outcome, Progress
from privet.server.snapshot import save_model

_LOG = logging.getLogger("privet.run")


def conduct(
    run: Run,
    grid: OwnGrid | PassingGrid,
    initial: Callable[[], Arrays],
    recorder: Callable[[], Recorder],
    *,
    on_round: Callable[[float], None] = lambda seconds: None,
) -> None:
    """Run all rounds that are left, note each in the run's status, and keep the final model.

    Args:
        run: whose sites are ready.
        grid: reaches them.
        initial: makes the first model.
        recorder: opens the run's journal.
        on_round: told of each round that was done, and how long it took.

    Raises:
        RunError: as :func:`privet.server.rounds.run`.
    """
    plan = run.plan
    run.require_wanted()
    run.note(state="running", fault="")
    _LOG.info("a run goes on", extra={"run": run.id, "plan": plan.digest})
    began = time.monotonic()

    def keep(progress: Progress) -> None:
        remarks = list(progress.remarks)
        try:
            if progress.histograms:
                run.keep_figures(progress.round, progress.histograms)
        except OSError:
            raise
        except Exception as error:  # the round is paid for
            _LOG.exception("no figures", extra={"run": run.id, "round": progress.round})
            remarks.append(f"round {progress.round}: the figures could not be read: {error!r}")
        run.note_round(progress.round, progress.statuses, progress.spent, remarks)

    def observe(progress: Progress) -> None:
        nonlocal began
        seconds, began = time.monotonic() - began, time.monotonic()
        on_round(seconds)
        _LOG.info("a round is done", extra={"run": run.id, "round": progress.round})
        if progress.round == plan.last_round:
            settle()
        else:
            run.require_wanted()

    def settle() -> None:
        if not run.settle():
            raise RunError(CANCELLED)

    outcomes: list[Outcome] = []
    app = create_app(
        run.id, plan, initial, run.snapshots, recorder,
        keep=keep, observe=observe, finish=outcomes.append,
    )  # fmt: skip
    run_app(app, grid)
    settle()
    facts = {"plan": plan.digest, "private": str(plan.privacy is not None).lower()}
    save_model(run.folder / "model" / "model.safetensors", outcomes[0].model, facts)
    run.note(state="done")
    _LOG.info("a run is done", extra={"run": run.id, "sites": "; ".join(run.told())})
