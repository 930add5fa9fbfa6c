"""Execute one submitted run, from its first round to its final model, over any grid."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import suppress

from privet.common.errors import InputError, RunError
from privet.common.flat import Arrays
from privet.common.flower.grid import OwnGrid, PassingGrid
from privet.common.order import Order, Status
from privet.common.tasks.weakness import weakness_of_tables
from privet.server.app import create_app, run_app
from privet.server.evidence.collector import EvidenceCollector
from privet.server.queue import CANCELLED, NO_REPLY, Run
from privet.server.rounds import Outcome, Progress
from privet.server.snapshot import save_model

_LOG = logging.getLogger("privet.run")


class _Watch:
    """Log and note which site did not release for an order, and with which status.

    Args:
        run: the run, whose status notes it.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self._open: dict[str, Order] = {}

    def on(self, collector: EvidenceCollector) -> EvidenceCollector:
        """Add this listener to an evidence collector that may have one; return the collector."""
        before = collector.on_answer

        def heard(order: Order, said: str) -> None:
            before(order, said)
            silent = self._open.pop(order.site, None)
            if said == "ordered":
                if silent is not None:
                    self._note(silent, NO_REPLY)
                self._open[order.site] = order
                return
            if said != Status.RELEASED:
                self._note(order, said)

        collector.on_answer = heard
        return collector

    def note_silent(self) -> None:
        """Note the sites that did not answer an order in time."""
        silent, self._open = self._open, {}
        for order in silent.values():
            self._note(order, NO_REPLY)

    def _note(self, order: Order, said: str) -> None:
        about = {"purpose": order.purpose, "round": order.round, "attempt": order.attempt}
        _LOG.warning(
            "a site did not release",
            extra={"run": self._run.id, "site": order.site, "status": said, **about},
        )
        with suppress(OSError, InputError):  # the line was logged; the round continues
            self._run.note_failure(order, said)


def execute_run(
    run: Run,
    grid: OwnGrid | PassingGrid,
    initial: Callable[[], Arrays],
    collector: Callable[[], EvidenceCollector],
    *,
    on_round: Callable[[float], None] = lambda seconds: None,
) -> None:
    """Run the remaining rounds, note each in the run's status, and store the final model.

    Args:
        run: whose sites are ready.
        grid: reaches them.
        initial: makes the first model.
        collector: opens the run's journal.
        on_round: called for each round that is done, with its duration in seconds.

    Raises:
        RunError: as :func:`privet.server.rounds.run`.
    """
    plan = run.plan
    run.require_wanted()
    run.note(state="running", fault="", began=time.time())
    _LOG.info("a run continues", extra={"run": run.id, "plan": plan.digest})
    began = time.monotonic()

    watch = _Watch(run)

    def keep(progress: Progress) -> None:
        watch.note_silent()
        remarks = list(progress.remarks)
        try:
            if progress.histograms:
                run.keep_figures(progress.round, progress.histograms, plan.task.kind)
                weakness = weakness_of_tables(progress.histograms, plan)
                if weakness and progress.round == plan.last_round:
                    remarks.append(weakness)
        except OSError:
            raise
        except Exception as error:  # the round is paid for
            _LOG.exception("no metrics", extra={"run": run.id, "round": progress.round})
            remarks.append(f"round {progress.round}: the metrics could not be read: {error!r}")
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

    def told(text: str) -> None:
        _LOG.warning("restored", extra={"run": run.id, "what": text})
        run.note_remark(text)

    def opened() -> EvidenceCollector:
        made = watch.on(collector())
        made.on_restored = told
        if run.is_resumed:
            made.resumes = run.id
        return made

    outcomes: list[Outcome] = []
    app = create_app(
        run.id, plan, initial, run.snapshots, opened,
        keep=keep, observe=observe, finish=outcomes.append, scratch=run.folder / "model",
    )  # fmt: skip
    try:
        run_app(app, grid)
    except RunError:
        watch.note_silent()
        raise
    settle()
    facts = {"plan": plan.digest, "private": str(plan.privacy is not None).lower()}
    save_model(run.folder / "model" / "model.safetensors", outcomes[0].model, facts)
    run.note(state="done")
    _LOG.info("a run is done", extra={"run": run.id, "sites": "; ".join(run.told())})
